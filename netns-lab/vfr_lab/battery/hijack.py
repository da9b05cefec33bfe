"""To break into others' conversations: resets, injected data, redirects, forged errors, guessed ports, forged answers."""

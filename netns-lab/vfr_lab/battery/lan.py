"""To attack guests and host from the LAN: lan2 is hostile."""

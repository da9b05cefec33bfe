"""To have packets escape that nobody was to see: private addresses, late packets, moments of change."""

"""To receive what was meant for a former tenant: of an address, a port, a slot, a name."""

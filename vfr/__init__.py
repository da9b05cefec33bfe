"""VFR: a virtual firewall-router for the guests of a Linux host."""

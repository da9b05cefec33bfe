"""To use up what others need: tables, ports, bandwidth, the host's time, its logs."""

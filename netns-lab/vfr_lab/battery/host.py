"""To harm the host's own kernel and services: malformed headers of every layer, offloads, sizes."""

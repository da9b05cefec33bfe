"""To reach what is out of bounds: other domains, the host's services, the metadata address, loopback and martians."""

"""The lab: a host, its domains, a LAN and an internet, emulated by network namespaces.

Nothing in it touches the machine's own interfaces, and no packet leaves the namespaces it made.
"""

from vfr_lab.lab import Lab, LabError

__all__ = ["Lab", "LabError"]

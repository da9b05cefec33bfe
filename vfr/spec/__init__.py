"""The pure model of the fastpath: what every packet's fate should be, with no kernel in sight."""

from vfr.spec.model import Domain, Policy, Router, Session, State, Step, step

__all__ = ["Domain", "Policy", "Router", "Session", "State", "Step", "step"]

"""TCP as a router in the middle can know it: the transitions, and what each state is."""

from __future__ import annotations

from collections.abc import Mapping

from vfr._abi import TcpEvent as E
from vfr._abi import TcpState as S

# state -> event -> state; what is not named stays as it is. A SYN that begins a conversation anew never gets
# here. ABORT is a RST that can be believed. In ANSWERED, "other" acknowledges the peer's SYN.
TCP_NEXT: Mapping[S, Mapping[E, S]] = {
    S.TCP_NONE: {E.TCP_OPENER_SYN: S.TCP_OPENING},
    S.TCP_OPENING: {
        E.TCP_PEER_SYN: S.TCP_ANSWERED,
        E.TCP_ABORT: S.TCP_CLOSED,
        E.TCP_OPENER_RST: S.TCP_CLOSED,
        E.TCP_PEER_RST: S.TCP_CLOSED,
    },
    S.TCP_ANSWERED: {
        E.TCP_OPENER_OTHER: S.TCP_ESTABLISHED,
        E.TCP_ABORT: S.TCP_CLOSED,
        E.TCP_OPENER_RST: S.TCP_CLOSED,
        E.TCP_PEER_RST: S.TCP_CLOSED,
    },
    S.TCP_ESTABLISHED: {
        E.TCP_OPENER_FIN: S.TCP_FIN_OPENER,
        E.TCP_PEER_FIN: S.TCP_FIN_PEER,
        E.TCP_ABORT: S.TCP_CLOSED,
        E.TCP_OPENER_RST: S.TCP_RESET,
        E.TCP_PEER_RST: S.TCP_RESET,
    },
    S.TCP_FIN_OPENER: {
        E.TCP_ABORT: S.TCP_CLOSED,
        E.TCP_PEER_FIN: S.TCP_CLOSED,
        E.TCP_OPENER_RST: S.TCP_RESET,
        E.TCP_PEER_RST: S.TCP_RESET,
    },
    S.TCP_FIN_PEER: {
        E.TCP_ABORT: S.TCP_CLOSED,
        E.TCP_OPENER_FIN: S.TCP_CLOSED,
        E.TCP_OPENER_RST: S.TCP_RESET,
        E.TCP_PEER_RST: S.TCP_RESET,
    },
    S.TCP_CLOSED: {},
    S.TCP_RESET: {
        E.TCP_ABORT: S.TCP_CLOSED,
        E.TCP_OPENER_OTHER: S.TCP_ESTABLISHED,
        E.TCP_PEER_OTHER: S.TCP_ESTABLISHED,
        E.TCP_PEER_SYN: S.TCP_ESTABLISHED,
        E.TCP_OPENER_FIN: S.TCP_FIN_OPENER,
        E.TCP_PEER_FIN: S.TCP_FIN_PEER,
    },
}
HALF_OPEN = (S.TCP_OPENING, S.TCP_ANSWERED)
CLOSING = (S.TCP_CLOSED, S.TCP_RESET)
OVER = (S.TCP_CLOSED,)


def step_tcp(state: S, event: E) -> S:
    """The state after the event."""
    return TCP_NEXT[state].get(event, state)

"""Questions of `vfr explain`, in the words of the command line. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vfr.errors import UsageError
from vfr.policy.rules import ICMP, ICMP_REQUESTS, ICMP_TYPES, PROTOCOL_NAMES, WITH_PORTS, What

_PLAIN = ("proto", *PROTOCOL_NAMES)
DHCP_PORT = 67
_EXAMPLES = "write tcp/22, udp/53, dhcp, icmp, icmp/timestamp, gre, proto/47 or ether/0x889a"


@dataclass(frozen=True, slots=True)
class Question:
    """FROM and TO as they were written, and the traffic. `port` is None if none was said, where there could be one;
    of ICMP it is a number of ICMP_REQUESTS, of raw Ethernet the EtherType."""

    opener: str
    target: str
    protocol: int
    port: int | None
    ether: bool = False

    def __str__(self) -> str:
        return f"{self.opener} -> {self.target} {what_text(self.protocol, self.port, self.ether)}"


def question(opener: str, target: str, what: str) -> Question:
    """What was asked, in the words of the command line: tcp/22, udp/53, dhcp, icmp, icmp/timestamp, gre, proto/47,
    ether/0x889a. UsageError if WHAT is no traffic; who FROM and TO are is not looked at yet."""
    word, slash, detail = what.lower().partition("/")
    try:
        made = _traffic(word, detail if slash else None)
        What(made[0], ((made[1], made[1]),) if made[1] is not None and word not in _PLAIN else (), made[2])
    except ValueError as error:
        raise UsageError(f"{what!r}: {error}") from None
    return Question(opener, target, *made)


def _traffic(word: str, detail: str | None) -> tuple[int, int | None, bool]:
    """Protocol, port, and whether it is raw Ethernet. ValueError says what is wrong."""
    if word == "dhcp" and detail is None:
        return WITH_PORTS["udp"], DHCP_PORT, False
    if word in WITH_PORTS:
        return WITH_PORTS[word], None if detail is None else _port(detail), False
    if word == "icmp":
        return ICMP, _request(detail or "echo"), False
    if word in PROTOCOL_NAMES and detail is None:
        return PROTOCOL_NAMES[word], 0, False
    if word == "proto" and detail is not None:
        return _protocol(detail), 0, False
    if word == "ether":
        try:
            return 0, int(detail or "", 16), True
        except ValueError:
            raise ValueError("ether needs an EtherType, as ether/0x889a") from None
    raise ValueError(f"that is no traffic; {_EXAMPLES}")


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not one port; {_EXAMPLES}")
    return int(text)


def _request(text: str) -> int:
    name = ICMP_TYPES.get(int(text), "") if text.isdigit() else text.removesuffix("-request")
    if name not in ICMP_REQUESTS:
        raise ValueError(f"ICMP {text!r} begins no conversation that VFR carries; {' and '.join(ICMP_REQUESTS)} do")
    return ICMP_REQUESTS[name]


def _protocol(text: str) -> int:
    number = int(text) if text.isdigit() else PROTOCOL_NAMES.get(text)
    if number is None or number > 255:
        raise ValueError(f"{text!r} is not a protocol's number, nor one of {', '.join(PROTOCOL_NAMES)}")
    words = {ICMP: "icmp", **{number: f"{name}/PORT" for name, number in WITH_PORTS.items()}}
    if number in words:
        raise ValueError(f"protocol {number} has a word of its own; write {words[number]}")
    return number


def what_text(protocol: int, port: int | None, ether: bool = False) -> str:
    """Traffic in a rule's words."""
    has_ports = ether or protocol == ICMP or protocol in WITH_PORTS.values()
    return str(What(protocol, ((port, port),) if has_ports and port is not None else (), ether))

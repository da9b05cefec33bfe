"""DHCP messages by scapy: what guests of the test world ask, and what they are to be told."""

from __future__ import annotations

from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from support.world import GATEWAY_MAC, NODES

ALL, NOBODY, EVERYBODY = "255.255.255.255", "0.0.0.0", "ff:ff:ff:ff:ff:ff"
XID = 0x5EED
BROADCAST = 0x8000
MAGIC = b"c\x82Sc"
LEAST = 300
Option = Any


def raw_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ask(
    sender: str,
    message: str | None,
    *options: Option,
    src: str = NOBODY,
    dst: str = ALL,
    mac: str | None = None,
    to: str = EVERYBODY,
    sport: int = 68,
    dport: int = 67,
    raw: bytes | None = None,
    after: bytes = b"",
    udp: dict[str, Any] | None = None,
    ip: dict[str, Any] | None = None,
    **fields: Any,
) -> Packet:
    """A guest's message. `raw` stands in place of all options; `after` is what follows them; `fields` are BOOTP's."""
    mac = mac or NODES[sender].mac
    head = Ether(src=mac, dst=to) / IP(src=src, dst=dst, ttl=64, id=7, **(ip or {}))
    fixed = {"op": 1, "xid": XID, "chaddr": raw_mac(mac), **fields}
    made = head / UDP(sport=sport, dport=dport, **(udp or {})) / BOOTP(**fixed)
    if raw is not None:
        made[BOOTP].options = fields.get("options", MAGIC)
        return made / Raw(raw)
    said = [("message-type", message)] if message else []
    return made / DHCP(options=[*said, *options, "end"]) / Raw(after)


def at_home(sender: str, **more: Any) -> dict[str, Any]:
    """How a guest speaks that has its address, to the router alone."""
    own = NODES[sender].ip
    return {"src": own, "dst": NODES["dom0"].ip, "to": GATEWAY_MAC, "ciaddr": own, **more}


def told(
    to: str,
    message: str,
    *options: Option,
    own: str | None = None,
    mac: str | None = None,
    server: str = NODES["dom0"].ip,
    all_: bool = False,
    **fields: Any,
) -> Packet:
    """The answer, to the guest's own address or, with `all_`, to everybody. `options` are those behind the server's."""
    mac, own = mac or NODES[to].mac, own or NODES[to].ip
    head = Ether(src=GATEWAY_MAC, dst=EVERYBODY if all_ else mac)
    head = head / IP(src=server, dst=ALL if all_ else own, ttl=64, id=0, flags="DF")
    fixed = {"op": 2, "xid": XID, "chaddr": raw_mac(mac), "yiaddr": NOBODY if message == "nak" else own, **fields}
    said = BOOTP(**fixed) / DHCP(options=[("message-type", message), ("server_id", server), *options, "end"])
    return Ether(bytes(head / UDP(sport=67, dport=68) / said / Raw(bytes(max(LEAST - len(said), 0)))))


def lease(
    seconds: int | None = 3600,
    prefix: int = 32,
    router: str = NODES["dom0"].ip,
    on_link: bool = False,
    mtu: int = 1500,
    dns: tuple[str, ...] = (),
) -> list[Option]:
    """What a guest is told beside its address; `on_link` if the router is in its network."""
    routes = [("classless_static_routes", [f"{router}/32:0.0.0.0", f"0.0.0.0/0:{router}"])]
    return [
        *([("lease_time", seconds)] if seconds is not None else []),
        ("subnet_mask", {16: "255.255.0.0", 32: ALL}[prefix]),
        *([] if on_link else routes),
        ("router", router),
        ("interface-mtu", mtu),
        *([("name_server", *dns)] if dns else []),
    ]

"""What on this host gets in VFR's way, or is thought to and does not. Pure: facts in, findings out.

What decides most of it: the fastpath takes packets from VIFs and the uplink at tc ingress and redirects them. So

    between guests, guest -> LAN, LAN -> guest      meet no hook of netfilter at all
    guest -> domain 0, domain 0 -> guest            enter and leave the host by vfr0, as on any interface
    the host to its own forwards                    the same, after `inet vfr` has translated them
    everything else on the uplink                   is none of ours, and passes as if VFR were not there

(tests/control/test_what_netfilter_meets.py counts it). vfr.kernel.survey and vfr.kernel.netfilter collect the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vfr.plan import Change

Severity = Literal["ok", "note", "warning", "problem"]
OLDEST_KERNEL = (6, 1)
FORWARD_BASE = 2200
LOCK_PATIENCE_S = 120
_POOL = IPv4Network("169.254.1.0/24")
SORTER, _DOM0_VIF = "vfr-sorter", "vif0"
REPAIR = "run `vfr nat enable`"
SUDO = "run `sudo vfr doctor`"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is so: `effect` on VFR's traffic, and what to `do`, "" for nothing."""

    id: str
    severity: Severity
    text: str
    effect: str = ""
    do: str = ""


# What other programs told netfilter


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain that is not ours. `closes`: what it has not accepted, it drops or rejects, by its policy or its last
    rule. `accepts` are (protocol, low port, high port) that rules in it accept; `names_vfr0`: some rule is about what
    comes in by vfr0."""

    family: str
    table: str
    name: str
    hook: str
    makers: tuple[str, ...] = ()
    closes: bool = False
    accepts: tuple[tuple[str, int, int], ...] = ()
    names_vfr0: bool = False

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class Drop:
    """A rule, in the base chain `where`, that drops what comes from a network."""

    where: str
    hook: str
    net: IPv4Network


@dataclass(frozen=True, slots=True)
class Translation:
    """A rule that sends a port elsewhere ("dnat"), or gives packets the host's own address ("masquerade") and one of
    the ports low-high; `outs` are the interfaces it is about, () for all."""

    where: str
    makers: tuple[str, ...]
    kind: Literal["dnat", "masquerade"]
    protocol: str | None
    low: int
    high: int
    outs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Netfilter:
    """All of it. `error` says what could not be looked at."""

    chains: tuple[Chain, ...] = ()
    drops: tuple[Drop, ...] = ()
    translations: tuple[Translation, ...] = ()
    error: str = ""


# The machine


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket of the host's that waits on a port. `program` is "" if it can't be told."""

    protocol: str
    address: str
    port: int
    program: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """What runs on an interface. `ingress` in the order in which it runs, with OURS where our program is; `egress`
    what looks at packets on their way out; `xdp`: a program sees frames before anybody."""

    interface: str
    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    xdp: bool = False


OURS = "VFR's own"


@dataclass(frozen=True, slots=True)
class Machine:
    """The host. `bpf` is why bpf(2) can't be used, "" if it can; `default` the interface of the default route;
    `way_to_guests` that of the route to a guest; `bridges` those with an address or a port; `bridge_netfilter` None
    without the module; `sysctls` by their paths under /proc/sys/net/ipv4."""

    kernel: str = "6.1"
    bpf: str = ""
    default: str | None = None
    way_to_guests: str | None = None
    bridges: tuple[str, ...] = ()
    bridge_netfilter: bool | None = None
    sysctls: dict[str, str] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()

    def number(self, name: str) -> int:
        """A sysctl as a number, 0 if there is none."""
        return int(self.sysctls.get(name, "0"))


# The router


@dataclass(frozen=True, slots=True)
class ForwardTo:
    """An outside port, and which domain it leads to; `allowed` if a rule lets somebody on the LAN use it."""

    port: int
    domain: str | None
    allowed: bool
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class VifState:
    """A domain's interface; `state` as in `vfr domain list`."""

    domain: str
    interface: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ours:
    """This router. `exists` is False where there is none yet, and then the rest is what one would get by default.
    `lan_lost` says what is wrong with the uplink; `to_dom0`: a rule allows guests something of domain 0; `todo` is what
    is not as it is to be, `unhardened` the interfaces that have lost settings of theirs, `leftover` what a router that is
    no more has left; `is_installed`: the fastpath that runs is the installed build; `odd_layout` says how its tables are laid out otherwise than this
    version knows them, and then nothing is known of what is in them, and `must_lose`: an upgrade would cost conversations; `lock` is who changes the router now, and for how many seconds."""

    exists: bool = False
    nat: bool = False
    uplink: str | None = None
    address: IPv4Address | None = None
    lan_lost: str = ""
    pool: IPv4Network = _POOL
    ports: tuple[int, int] = (16384, 32767)
    forwards: tuple[ForwardTo, ...] = ()
    vifs: tuple[VifState, ...] = ()
    to_dom0: bool = False
    todo: tuple[Change, ...] = ()
    guard: Literal["in force", "gone", "changed"] = "in force"
    hooks: tuple[Hook, ...] = ()
    unhardened: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()
    lock: tuple[str, float] | None = None
    is_installed: bool = True
    odd_layout: str = ""
    must_lose: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. Without root there is no `netfilter`, and `ours` lacks what only root may see."""

    root: bool
    machine: Machine
    netfilter: Netfilter
    ours: Ours


def findings(facts: Facts) -> tuple[Finding, ...]:
    """All that is to be said, what is in order included."""
    return tuple(finding for check in CHECKS for finding in check(facts))


def has_problem(found: Iterable[Finding]) -> bool:
    """Whether VFR does not do, or will not do, what it is there for."""
    return any(finding.severity == "problem" for finding in found)


def _list(words: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(word) for word in words))


def _named(makers: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(makers)) or "a program"


# The machine itself


def _kernel(facts: Facts) -> Iterator[Finding]:
    release = facts.machine.kernel
    numbers = tuple(int(n) for n in release.replace("-", ".").split(".")[:2] if n.isdigit())
    if numbers < OLDEST_KERNEL:
        effect = "VFR refuses to change anything; what is in force stays"
        yield Finding("kernel", "problem", f"the kernel {release} is too old", effect, "boot Linux 6.1 or later")
    else:
        yield Finding("kernel", "ok", f"the kernel {release} is new enough")
    if facts.machine.bpf:
        text, _, do = facts.machine.bpf.partition("; ")
        yield Finding("bpf", "problem", text, "no fastpath can be loaded; what is in force stays", do)
    elif facts.root:
        yield Finding("bpf", "ok", "BPF programs can be loaded")


def _not_looked_at(facts: Facts) -> Iterator[Finding]:
    if not facts.root:
        effect = "nothing is said here of nftables, of what is attached to interfaces, and of which programs have ports"
        yield Finding("root", "note", "this is not root, who alone may see the firewall and the fastpath", effect, SUDO)
    elif facts.netfilter.error:
        effect = "nothing is said here of other firewalls, or not of all"
        do = "see why, and ask again"
        yield Finding("nft", "problem", f"the firewall cannot be read: {facts.netfilter.error}", effect, do)


# VFR's own state


def _router(facts: Facts) -> Iterator[Finding]:
    ours = facts.ours
    if not ours.exists:
        text = "there is no router here yet; what follows is about one with the defaults"
        yield Finding("router", "ok", text, "", "`vfr nat enable` makes one")
    else:
        way = f"NAT by {ours.uplink} as {ours.address}" if ours.nat else "no NAT"
        yield Finding("router", "ok", f"there is a router here with {len(ours.vifs)} domains and {way}")
    if ours.leftover:
        text = f"there is no router, but something is left of one: {_list(ours.leftover)}"
        yield Finding("leftover", "warning", text, "none, but it is in the next one's way", "run `vfr nat disable`")
    if ours.odd_layout:
        text = f"the fastpath that runs is another version's, and its tables are laid out otherwise ({ours.odd_layout})"
        effect = (
            "packets go on as they did, but this version's commands can neither change nor repair anything, and nothing is"
            " said here of hooks, guard and tables"
        )
        do = "run `vfr upgrade`, which keeps conversations"
        if ours.must_lose:
            do = "go on with the version that loaded it, or run `vfr upgrade --lose-sessions`, which ends all conversations"
        yield Finding("layout", "problem", text, effect, do)
    elif not ours.is_installed:
        text = "the fastpath that runs is another build than the installed one"
        yield Finding("build", "warning", text, "what the installed one mends is not in force", "run `vfr upgrade`")


def _lock(facts: Facts) -> Iterator[Finding]:
    if not facts.ours.lock:
        return
    who, seconds = facts.ours.lock
    text = f"{who} is changing this router since {seconds:.0f} s"
    if seconds < LOCK_PATIENCE_S:
        effect = "what is said here of the router's state may be half-way"
        yield Finding("lock", "note", text, effect, "ask again when it has ended")
    else:
        effect = f"other commands give up after {LOCK_PATIENCE_S} s; packets are not concerned"
        yield Finding("lock", "warning", text, effect, f"look at what {who} waits for, or end it")


def _uplink(facts: Facts) -> Iterator[Finding]:
    ours, machine = facts.ours, facts.machine
    if ours.nat and ours.lan_lost:
        effect = "guests reach the LAN no more, and forwards lead nowhere; guests stay apart"
        do = "give it back, or run `vfr nat enable --uplink IF` for what it is now"
        yield Finding("uplink", "problem", ours.lan_lost, effect, do)
    elif ours.uplink and machine.default != ours.uplink:
        other = f"leads by {machine.default}" if machine.default else "is missing"
        text = f"the uplink is {ours.uplink}, but the host's default route {other}"
        effect = (
            f"guests go out by {ours.uplink} all the same, as its routes say; where it has none, the remote address itself"
            " is asked for on its link. They do not take a VPN that the host takes"
        )
        do = f"`ip route add default via GATEWAY dev {ours.uplink} metric 9999`, or `vfr nat enable --uplink IF`"
        yield Finding("default-route", "warning" if machine.default else "note", text, effect, do)


_PINS = ("mount", "load")
_NO_FASTPATH = (
    "fastpath",
    "the fastpath's pins, in a bpffs of VFR's own, are missing or not whole",
    "where a program was attached by its pin, it is detached by now: such interfaces are closed, since the guard, or"
    " their settings, drop what they bring. Others go on, and nothing can be changed",
)
# Verb of the plan: id, what is so, effect. What has a finding of its own is not here.
_NOT_AS_WANTED = {
    "mount": _NO_FASTPATH,
    "load": _NO_FASTPATH,
    "make_sorter": (
        "sorter",
        "the sorter, which fragments pass, is not whole",
        "fragments out of order and packets that must be cut are dropped (DROP_NO_SORTER); all else goes on",
    ),
    "attach_uplink": (
        "uplink-program",
        "the pin of our program on the uplink is missing",
        "none yet; when the program goes, answers from the LAN and connections to forwards do not arrive",
    ),
    "replace_policy": ("rules", "the rules in force are not those that were applied", "others decide who may what"),
    "set_localnet": (
        "localnet",
        "net.ipv4.conf.vfr0.route_localnet is not as VFR set it",
        "the host does not reach its own forwards by 127.0.0.1",
    ),
    "route": ("route", "a route to guests is missing on the host", "the host does not reach its guests"),
}


def _own_todo(ours: Ours) -> dict[str, list[str]]:
    """What the next command would put right, by verb, without what follows from what has a finding of its own."""
    follows = {"write_guard", "bring_up"}
    if ours.lan_lost:
        follows |= {"unpin", "clear_forwards", "configure", "set_localnet", "replace_policy"}
    if any(vif.state == "missing" for vif in ours.vifs):
        follows |= {"clear_vif", "unpin"}
    if any(todo.verb == "bring_up" and _DOM0_VIF in todo.text.split() for todo in ours.todo):
        follows |= {"clear_vif", "route", "set_localnet"}
    if any(todo.verb == "make_sorter" for todo in ours.todo):
        follows.add("configure")
    if SORTER in ours.unhardened or _is_displaced(SORTER, ours):
        follows.add("make_sorter")
    if ours.uplink and _is_displaced(ours.uplink, ours):
        follows.add("attach_uplink")
    left = [todo for todo in ours.todo if todo.verb not in follows]
    pins = [todo for todo in left if todo.verb in _PINS]
    found: dict[str, list[str]] = {}
    for todo in pins or left:
        found.setdefault(todo.verb, []).append(todo.text)
    return found


def _not_as_wanted(facts: Facts) -> Iterator[Finding]:
    """Once for each kind."""
    todo = _own_todo(facts.ours)
    known = dict.fromkeys(_NOT_AS_WANTED[verb] for verb in todo if verb in _NOT_AS_WANTED)
    for ident, text, effect in known:
        yield Finding(ident, "problem", text, effect, REPAIR)
    others = [text for verb, texts in todo.items() if verb not in _NOT_AS_WANTED for text in texts]
    if others:
        text = f"the kernel is not as the registry says; the next command would {_list(others)}"
        yield Finding("state", "problem", text, "what was asked for last is not in force", REPAIR)


def _vifs(facts: Facts) -> Iterator[Finding]:
    dom0 = [VifState("dom0", _DOM0_VIF, "up", "")] if facts.ours.exists else []
    for vif in (*dom0, *facts.ours.vifs):
        if vif.state != "up":
            effect = f"{vif.domain} is cut off: nothing leaves it or reaches it"
            do = f"make it again, then {REPAIR}; or `vfr domain remove {vif.domain}`"
            text = f"the domain {vif.domain} is {vif.state}: {vif.reason.split(';')[0]}"
            yield Finding("vif", "problem", text, effect, do if vif.state == "missing" else REPAIR)
        elif _is_changed(vif, facts.ours):
            text = f"the domain {vif.domain} is not as it is to be: its pin, or a row about it, was changed"
            yield Finding("vif", "problem", text, f"{vif.domain} may be cut off, now or later", REPAIR)


def _is_changed(vif: VifState, ours: Ours) -> bool:
    """Whether it must be brought up for a reason that nothing else tells of."""
    told = vif.interface in ours.unhardened or any(todo.verb in _PINS for todo in ours.todo)
    told = told or _is_displaced(vif.interface, ours)
    return not told and any(t.verb == "bring_up" and vif.interface in t.text.split() for t in ours.todo)


def _is_displaced(interface: str, ours: Ours) -> bool:
    """Whether our program does not run there, or not first; a finding about its hook says so."""
    return any(hook.interface == interface and hook.ingress[:1] != (OURS,) for hook in ours.hooks)


def _settings(facts: Facts) -> Iterator[Finding]:
    if facts.ours.unhardened:
        text = f"settings of {_list(facts.ours.unhardened)} were changed (forwarding, rp_filter, IPv6 or ARP)"
        effect = (
            "none while our program and the guard are there; without both, the host's stack might take what guests send."
            " Whoever writes net.ipv4.ip_forward or net.ipv6.conf.all.disable_ipv6 changes those of all interfaces"
        )
        yield Finding("settings", "warning", text, effect, REPAIR)


def _guard(facts: Facts) -> Iterator[Finding]:
    if not facts.ours.exists or not facts.root:
        return
    if facts.ours.guard == "in force":
        yield Finding("guard", "ok", "the nftables guard is in force as it was written")
        return
    how = {"gone": "were flushed", "changed": "were changed by somebody"}[facts.ours.guard]
    effect = (
        "packets between guests and the LAN go on as they did; but should the fastpath be lost, only the interfaces'"
        " settings still keep guests out of the host, and the host does not reach its own forwards"
    )
    do = f"{REPAIR}; and let whoever does `nft flush ruleset` delete its own tables instead"
    yield Finding("guard", "problem", f"the nftables tables `inet vfr` and `arp vfr` {how}", effect, do)


# Who else looks at packets


def _hooks(facts: Facts) -> Iterator[Finding]:
    for hook in facts.ours.hooks:
        yield from _on_hook(hook, hook.interface == facts.ours.uplink)


def _on_hook(hook: Hook, is_uplink: bool) -> Iterator[Finding]:
    place = f"the uplink {hook.interface}" if is_uplink else hook.interface
    if OURS not in hook.ingress:
        others = f"; there is {_list(hook.ingress)}" if hook.ingress else ""
        effect = (
            "no answer from the LAN reaches a guest, and forwards lead nowhere"
            if is_uplink
            else "its guest is cut off: the guard and the interface's settings drop what it sends"
        )
        yield Finding("hook-missing", "problem", f"our program is not on {place}{others}", effect, REPAIR)
    elif hook.ingress[0] != OURS:
        before = hook.ingress[: hook.ingress.index(OURS)]
        effect = (
            "it sees guests' answers and what comes to forwards first: what it drops or takes, VFR never has"
            if is_uplink
            else "it sees all that the guest sends first: what it takes meets no rule of VFR's, only the guard"
        )
        do = f"{REPAIR}, which puts ours first again; take the other off if it comes back"
        yield Finding("hook-before", "problem", f"{_list(before)} runs before us on {place}", effect, do)
    elif is_uplink and hook.ingress[1:]:
        effect = "none: it sees what is not for guests"
        yield Finding("hook-after", "ok", f"{_list(hook.ingress[1:])} runs behind us on {place}", effect)
    if hook.egress:
        effect = "it sees what guests send to the LAN, already under the host's address, and may drop or change it"
        if not is_uplink:
            effect = "on a TAP or a given device it sees what is delivered to the guest, and may drop or change it"
        do = (
            "see that it lets the host's address and VFR's ports pass"
            if is_uplink
            else "take it off if it is not yours"
        )
        yield Finding("hook-egress", "note", f"{_list(hook.egress)} looks at what leaves by {place}", effect, do)
    if hook.xdp:
        effect = "it sees frames before VFR: what it drops or sends elsewhere, VFR never has, nor counts"
        yield Finding("xdp", "note", f"an XDP program is on {place}", effect, "see that it passes VFR's ports")


def _is_ipv4(chain: Chain) -> bool:
    return chain.family in ("ip", "inet", "legacy ip")


def _closed(facts: Facts, hook: str) -> tuple[Chain, ...]:
    return tuple(c for c in facts.netfilter.chains if c.hook == hook and c.closes and _is_ipv4(c))


# How each maker is told to let vfr0 in, and a port out of it.
_LET_IN = {
    "ufw": "`ufw allow in on vfr0`",
    "firewalld": "`firewall-cmd --permanent --zone=trusted --add-interface=vfr0 && firewall-cmd --reload`",
}
_LET_OUT = {"ufw": "`ufw allow out on vfr0`"}


def _input(facts: Facts) -> Iterator[Finding]:
    """What guests may have of domain 0 enters the host by vfr0."""
    for chain in _closed(facts, "input"):
        who, text = (
            _named(chain.makers),
            f"{_named(chain.makers)} drops what it has not accepted for the host ({chain})",
        )
        effect = (
            "guests' packets to domain 0 come in by vfr0 and are asked here too, after VFR's rules; no others of theirs"
        )
        do = next((_LET_IN[m] for m in chain.makers if m in _LET_IN), f"let {chain} accept `iifname vfr0`")
        if chain.names_vfr0:
            yield Finding("input-closed", "ok", f"{text}, and has a rule about vfr0", effect)
        elif facts.ours.to_dom0:
            effect += f": what VFR's rules allow them of domain 0, {who} may still refuse"
            yield Finding("input-closed", "warning", text, effect, f"{do}: VFR's rules then decide alone")
        else:
            effect += (
                ". No rule of VFR's allows them anything there, so only answers to the host come, on its connections"
            )
            yield Finding("input-closed", "note", text, effect, f"once a rule allows more: {do}")


def _output(facts: Facts) -> Iterator[Finding]:
    for chain in _closed(facts, "output"):
        text = f"{_named(chain.makers)} drops what it has not accepted of the host's own ({chain})"
        effect = (
            "it decides what the host may say to its guests, and to its own forwards; guests' packets never meet it"
        )
        do = next((_LET_OUT[m] for m in chain.makers if m in _LET_OUT), f"let {chain} accept `oifname vfr0`")
        yield Finding("output-closed", "warning", text, effect, do)


def _forward(facts: Facts) -> Iterator[Finding]:
    """The famous one: Docker's policy cuts every other router's guests off, and not ours."""
    for chain in _closed(facts, "forward"):
        text = f"{_named(chain.makers)} drops what the host would forward ({chain})"
        effect = "none: guests' packets, to each other and to and from the LAN, are redirected and never meet it"
        yield Finding("forward-closed", "ok", text, effect)


def _before_vfr(facts: Facts) -> bool:
    """Whether what comes from the LAN meets netfilter before the fastpath."""
    return bool(facts.machine.bridge_netfilter) and facts.ours.uplink in facts.machine.bridges


def _prerouting(facts: Facts) -> Iterator[Finding]:
    for chain in _closed(facts, "prerouting"):
        text = f"{_named(chain.makers)} drops what it has not accepted at prerouting ({chain})"
        effect = "it decides about guests' packets to domain 0, by vfr0; all others of guests' never meet it"
        if _before_vfr(facts):
            effect = (
                "answers from the LAN to guests and connections to forwards are dropped here (see bridge-netfilter)"
            )
        severity: Severity = "problem" if _before_vfr(facts) else "warning"
        yield Finding("prerouting-closed", severity, text, effect, "let it accept `iifname vfr0`")


def _postrouting(facts: Facts) -> Iterator[Finding]:
    for chain in _closed(facts, "postrouting"):
        text = f"{_named(chain.makers)} drops what it has not accepted at postrouting ({chain})"
        effect = "it decides about the host's packets to guests, by vfr0; guests' own never meet it"
        yield Finding("postrouting-closed", "warning", text, effect, "let it accept `oifname vfr0`")


def _drops(facts: Facts) -> Iterator[Finding]:
    """Lists of addresses that "cannot be": 169.254.0.0/16 is on most of them."""
    for drop in facts.netfilter.drops:
        if drop.hook in ("prerouting", "input") and drop.net.overlaps(facts.ours.pool):
            text = f"{drop.where} drops what comes from {drop.net}, in which guests have their addresses"
            effect = "domain 0 hears nothing from guests, not even answers; guests' other packets never meet it"
            do = "let it accept `iifname vfr0` before that rule"
            yield Finding("guests-dropped", "problem" if facts.ours.exists else "warning", text, effect, do)


def _exposed(facts: Facts) -> Iterator[Finding]:
    """A port that is open although the host's firewall was never asked, which people do not expect."""
    open_ports = [f for f in facts.ours.forwards if f.domain and f.allowed]
    chains = _closed(facts, "input")
    if not chains or not open_ports:
        return
    for chain in chains:
        who = _named(chain.makers)
        shut = [f for f in open_ports if not any(p == f.protocol and a <= f.port <= b for p, a, b in chain.accepts)]
        if not shut:
            text = f"{who} is not asked about forwards, and would let them pass"
            yield Finding("forwards-unasked", "ok", text, "LAN to guest is decided by VFR's rules alone")
            continue
        ports = _list(f"{f.protocol} port {f.port} ({f.domain})" for f in shut)
        text = f"{who} is not asked about forwards: {ports} is open to the LAN by VFR's rules, although {who} has no"
        text += " rule that lets it in"
        do = f"close it with a rule, as `deny lan -> {shut[0].domain}`; or leave it if the LAN is meant to have it"
        effect = "a packet to a forward is redirected before any hook of netfilter"
        yield Finding("forwards-unasked", "warning", text, effect, do)


def _makers(facts: Facts) -> Iterator[Finding]:
    """Who is here at all, for whoever looks for a name."""
    for maker in dict.fromkeys(m for chain in facts.netfilter.chains for m in chain.makers):
        chains = [c for c in facts.netfilter.chains if maker in c.makers and _is_ipv4(c)]
        if chains:
            where = _list(f"{c.family} {c.table} {c.name}" for c in chains)
            effect = "only on what enters or leaves the host itself by vfr0; see what else is said of it"
            if not any(c.closes for c in chains):
                effect = "none that is not named elsewhere here"
            yield Finding(maker.lower(), "note", f"{maker} has rules here: {where}", effect)
    if facts.root and not facts.netfilter.error and not facts.netfilter.chains:
        yield Finding("firewall", "ok", "nobody else has rules in nftables or iptables here")


def _bridges(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine.bridge_netfilter is None:
        return
    if not machine.bridge_netfilter:
        yield Finding(
            "bridge-netfilter", "ok", "bridged packets are not shown to iptables (bridge-nf-call-iptables is 0)"
        )
    elif _before_vfr(facts):
        text = f"bridged packets are shown to iptables (bridge-nf-call-iptables is 1), and the uplink {facts.ours.uplink} is a bridge"
        effect = "what comes from the LAN meets the prerouting hook before VFR: rules there may drop or redirect it"
        do = "`sysctl net.bridge.bridge-nf-call-iptables=0` if nothing needs it"
        yield Finding("bridge-netfilter", "warning", text, effect, do)
    else:
        text = "bridged packets are shown to iptables (bridge-nf-call-iptables is 1)"
        effect = "none: VIFs and the uplink are no bridges"
        yield Finding("bridge-netfilter", "ok", text, effect)


# Ports


def _range(ports: tuple[int, int]) -> str:
    return f"{ports[0]}-{ports[1]}"


def _overlap(low: int, high: int, ports: tuple[int, int]) -> bool:
    return low <= ports[1] and ports[0] <= high


def _listeners(facts: Facts) -> Iterator[Finding]:
    to, ports = {(f.protocol, f.port): f.domain for f in facts.ours.forwards}, facts.ours.ports
    for one in facts.machine.listeners:
        who = one.program or "a program of the host"
        text = f"{who} has {one.protocol} port {one.port} on {one.address}"
        if one.address.startswith("127."):
            continue
        if (one.protocol, one.port) in to:
            yield _on_forward(one, text, to[one.protocol, one.port])
        elif ports[0] <= one.port <= ports[1]:
            effect = (
                "it keeps the port, and no guest gets it from now on; a guest that had it keeps its conversations."
                " `vfr nat enable` refuses while it is so"
            )
            do = f"end it, let it take a port outside {_range(ports)}, or choose another range with `--ports`"
            yield Finding("port-in-range", "warning", f"{text}, inside the guests' range {_range(ports)}", effect, do)


def _on_forward(one: Listener, text: str, domain: str | None) -> Finding:
    do = "end it, or `vfr nat enable --forwards LOW-HIGH`, or the rule file, without this one"
    if domain is None:
        effect = "none yet: the domain is not there. `vfr nat enable` and `vfr apply` refuse while it is so"
        return Finding("port-on-forward", "warning", f"{text}, which is kept for a forward", effect, do)
    effect = f"it hears nothing from the LAN, nor from the host: {domain} does"
    return Finding("port-on-forward", "problem", f"{text}, which is a forward to {domain}", effect, do)


def _published(facts: Facts) -> Iterator[Finding]:
    """Ports that others send on without a socket to be seen."""
    to = {(f.protocol, f.port): f.domain for f in facts.ours.forwards}
    for t in facts.netfilter.translations:
        if t.kind != "dnat":
            continue
        what = f"{_named(t.makers)} sends {t.protocol} port {t.low if t.low == t.high else _range((t.low, t.high))} elsewhere"
        taken = [end for end in to if t.low <= end[1] <= t.high and t.protocol in (end[0], None) and to[end]]
        if taken:
            effect = (
                f"from the LAN it leads to {to[taken[0]]}, since VFR comes first; from the host it may lead to either"
            )
            do = "publish another port, or `vfr nat enable --forwards LOW-HIGH` without this one"
            yield Finding("published-on-forward", "problem", f"{what} ({t.where}), which is a forward", effect, do)
        elif _overlap(t.low, t.high, facts.ours.ports) and not _has_socket(t, facts.machine):
            ports = _range(facts.ours.ports)
            effect = (
                "VFR drops what comes to it from the LAN (DROP_UNSOLICITED), since no socket of the host's has the port"
            )
            do = f"publish a port outside {ports}, or give guests another range with `vfr nat enable --ports`"
            text = f"{what} ({t.where}), inside the guests' range {ports}"
            yield Finding("published-in-range", "problem", text, effect, do)


def _has_socket(t: Translation, machine: Machine) -> bool:
    """Whether a proxy of the publisher's has the port too: that VFR sees, and leaves it alone."""
    return t.low == t.high and any((one.protocol, one.port) == (t.protocol, t.low) for one in machine.listeners)


def _masquerades(facts: Facts) -> Iterator[Finding]:
    """Whoever else is given the host's address, on the uplink and towards our guests."""
    ours = facts.ours
    all_ = [t for t in facts.netfilter.translations if t.kind == "masquerade"]
    out = [t for t in all_ if (not t.outs or ours.uplink in t.outs) and _overlap(t.low, t.high, ours.ports)]
    if out:
        text = f"{_named(m for t in out for m in t.makers)} gives others the host's address ({_list(t.where for t in out)})"
        effect = (
            f"where such a one speaks from a port in {_range(ours.ports)}, the answers are dropped as unsolicited, or"
            " taken for a guest's"
        )
        do = "have it use other ports, as libvirt's <nat><port start='32768' end='60999'/></nat>, or choose `--ports`"
        yield Finding("masquerade", "warning", text, effect, do)
    near = [t for t in all_ if not t.outs or "vfr0" in t.outs]
    if near and facts.machine.number("ip_forward"):
        text = f"{_named(m for t in near for m in t.makers)} may give others the host's address on vfr0 too"
        effect = "whoever is behind those interfaces can then reach guests as if it were domain 0"
        do = "`nft 'add table inet apart; add chain inet apart f { type filter hook forward priority 0; };"
        do += ' add rule inet apart f oifname "vfr0" drop\'`'
        yield Finding("masquerade-to-guests", "warning", text, effect, do)


# Settings


def _ephemeral(facts: Facts) -> Iterator[Finding]:
    words = facts.machine.sysctls.get("ip_local_port_range", "").split()
    if len(words) != 2:
        return
    low, high = int(words[0]), int(words[1])
    if _overlap(low, high, facts.ours.ports):
        text = f"net.ipv4.ip_local_port_range, {low}-{high}, overlaps the guests' range {_range(facts.ours.ports)}"
        effect = (
            "the host's own connections take ports of guests', who have fewer then; where both speak to one remote port,"
            " answers may go to the wrong one. `vfr nat enable` refuses while it is so"
        )
        do = "`sysctl net.ipv4.ip_local_port_range='32768 60999'`, or `vfr nat enable --ports LOW-HIGH`"
        yield Finding("ephemeral", "problem", text, effect, do)
    else:
        yield Finding(
            "ephemeral", "ok", f"the host's own ports {low}-{high} are apart from guests' {_range(facts.ours.ports)}"
        )


def _forwarding(facts: Facts) -> Iterator[Finding]:
    on = facts.machine.number("ip_forward")
    effect = "none: VFR needs no forwarding, and forwards nothing by it"
    yield Finding("ip-forward", "ok", f"net.ipv4.ip_forward is {on}", effect)


def _rp_filter(facts: Facts) -> Iterator[Finding]:
    names = {name: f"conf/{name}/rp_filter" for name in ("all", facts.ours.uplink or "", "vfr0")}
    said = [f"{n} {facts.machine.sysctls[p]}" for n, p in names.items() if p in facts.machine.sysctls]
    if said:
        effect = (
            "none: packets between guests and the LAN are not routed by the host, and all guests are routed to vfr0"
        )
        yield Finding("rp-filter", "ok", f"rp_filter is {_list(said)}", effect)


def _way_to_guests(facts: Facts) -> Iterator[Finding]:
    ours, way = facts.ours, facts.machine.way_to_guests
    if ours.exists and way != "vfr0" and not any(t.verb in ("route", "mount", "load") for t in ours.todo):
        text = f"the host's way to {ours.pool} is {f'by {way}' if way else 'unreachable'}, not by vfr0"
        effect = "the host does not reach its guests; with rp_filter, nor does it hear them"
        yield Finding("way-to-guests", "problem", text, effect, "look at `ip rule` and `ip route get 169.254.1.1`")


def _localnet(facts: Facts) -> Iterator[Finding]:
    names = ["all", *([facts.ours.uplink] if facts.ours.uplink else [])]
    on = [name for name in names if facts.machine.number(f"conf/{name}/route_localnet")]
    if on:
        text = f"net.ipv4.conf.{on[0]}.route_localnet is 1, and VFR did not set that"
        effect = "none for guests, whose packets to 127.0.0.0/8 VFR drops; but neighbours on the LAN can address it"
        do = "set it to 0 where nothing needs it, or see that the firewall drops 127.0.0.0/8 from the uplink"
        yield Finding("route-localnet", "note", text, effect, do)


Check = Callable[[Facts], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    _kernel,
    _not_looked_at,
    _router,
    _lock,
    _uplink,
    _not_as_wanted,
    _vifs,
    _settings,
    _hooks,
    _guard,
    _makers,
    _exposed,
    _input,
    _output,
    _forward,
    _prerouting,
    _postrouting,
    _drops,
    _bridges,
    _listeners,
    _published,
    _masquerades,
    _ephemeral,
    _forwarding,
    _rp_filter,
    _way_to_guests,
    _localnet,
)

"""The command line. Each command asks a Router, and shows the answer for people or, with --json, whole."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vfr import capture as sights
from vfr import flows as flowing
from vfr import naming
from vfr import rates as rating
from vfr import top as topping
from vfr.bursts import Outcome
from vfr.capturing import Capturing, Ended, File, take
from vfr.confirming import seconds
from vfr.doctor import has_problem
from vfr.errors import ConflictError, UsageError, VfrError
from vfr.router import DomainStatus, NatStatus, Router
from vfr.settings import DhcpWords, dns_servers
from vfr.watch import TICK_S, Told
from vfr.watch import watch as watching

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="VFR: a virtual firewall-router for guests.",
)
nat = typer.Typer(no_args_is_help=True, help="The way to the LAN, and the forwards from it.")
domain = typer.Typer(no_args_is_help=True, help="Guests.")
rules = typer.Typer(no_args_is_help=True, help="Rule files.")
app.add_typer(nat, name="nat")
app.add_typer(domain, name="domain")
app.add_typer(rules, name="rules")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _show(answer: Any, as_json: bool, human: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        human(answer)


def _line(answer: Any) -> str:
    """One line of JSON, where the answer is a stream."""
    return json.dumps(answer)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Plain columns: fast, and good to grep."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _range(text: str | None, option: str) -> tuple[int, int] | None:
    """`2-19`, or one number for a range of one."""
    if text is None:
        return None
    low, dash, high = text.partition("-")
    try:
        return int(low), int(high if dash else low)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a range; write it as 2-19") from None


def _show_domains(answer: list[dict[str, Any]]) -> None:
    if not answer:
        print("no domains; add one with `vfr domain add NAME --netns N`")
        return
    head = ("NAME", "ADDRESS", "SSH FROM THE LAN", "INTERFACE", "KIND", "RATES", "DHCP", "STATE")
    rows = [
        (
            d["name"],
            d["address"] + (f" (guest: {d['guest_address']})" if d["guest_address"] else ""),
            f"port {d['forward']}" if d["forward"] else "-",
            d["interface"],
            d["kind"],
            d["rates"] or "-",
            d["dhcp"],
            f"{d['state']}: {d['reason']}" if d["reason"] else d["state"],
        )
        for d in answer
    ]
    _table(head, rows)


def _forward_line(address: str, f: dict[str, Any]) -> str:
    more = f["ports"] - 1
    ends = [f"{port}-{port + more}" if more else f"{port}" for port in (f["outside_port"], f["inside_port"])]
    protocol = "" if f["protocol"] == "tcp" else f"{f['protocol']} "
    at = "127.0.0.1" if f["on"] == "host" else address
    there = f"{f['address']}:{ends[1]}" if f["address"] else "not there"
    return f"  {protocol}{at}:{ends[0]} -> {f['domain']} ({there})"


def _show_nat(answer: dict[str, Any]) -> None:
    if not answer["enabled"]:
        left = f"; {answer['domains']} domains stay, isolated" if answer["domains"] else ""
        print(f"NAT is off{left}")
        return
    print(
        f"NAT is on: domains reach the LAN by {answer['uplink']} as {answer['address']}"
        f" (rules: {answer['rules']}, ports {answer['ports']}, {answer['ports_per_domain']} a domain)"
    )
    if answer["uplink_rate"]:
        print(f"  they share {rating.short(answer['uplink_rate'])}bit/s of it when they want more")
    if answer["attached_by"] is None:
        print(f"but nothing is attached to {answer['uplink']}: run `vfr nat enable` to repair")
    if not answer["is_installed"]:
        print("  the running fastpath is another build than the installed one: run `vfr upgrade`")
    print(f"  guests that ask by DHCP are told: {answer['dhcp']}")
    used = [f for f in answer["forwards"] if f["domain"]]
    for f in used:
        print(_forward_line(answer["address"], f))
    if not used:
        print("  no domain has an address that a forward leads to")


def _show_stats(answer: dict[str, dict[str, dict[str, int]]]) -> None:
    rows = [
        (who, verdict, str(count["packets"]), str(count["bytes"]))
        for who, verdicts in answer.items()
        for verdict, count in verdicts.items()
    ]
    _table(("WHO", "VERDICT", "PACKETS", "BYTES"), rows)


def _show_preview(answer: dict[str, Any]) -> None:
    lines = [*answer["reach"], *(f"  {step}" for step in answer["steps"])]
    print("\n".join(lines) if lines else "nothing would change")


def _show_rule_stats(answer: list[dict[str, Any]]) -> None:
    rows = [(str(r["packets"]), str(r["bytes"]), r["where"], r["rule"]) for r in answer]
    _table(("PACKETS", "BYTES", "WHERE", "RULE"), rows)


def _domain(status: DomainStatus, as_json: bool) -> None:
    _show(asdict(status), as_json, lambda answer: _show_domains([answer]))


def _nat(status: NatStatus, as_json: bool) -> None:
    _show(asdict(status), as_json, _show_nat)


@nat.command("enable")
def nat_enable(
    uplink: Annotated[str | None, typer.Option(help="Interface to the LAN; that of the default route.")] = None,
    address: Annotated[str | None, typer.Option(help="Which of the uplink's addresses, if it has several.")] = None,
    forwards: Annotated[str | None, typer.Option(help="x for which 2200+x leads to 169.254.1.x:22 [2-19].")] = None,
    ports: Annotated[str | None, typer.Option(help="Outside ports that domains share [16384-32767].")] = None,
    ports_per_domain: Annotated[int | None, typer.Option(help="How many of them a domain owns [64].")] = None,
    rules: Annotated[Path | None, typer.Option(help="Rule file [rules/xen.rules].")] = None,
    uplink_rate: Annotated[
        str | None, typer.Option(help="Bits a second that the uplink takes, to be shared: 1G; none; auto [auto].")
    ] = None,
    json: Json = False,
) -> None:
    """Give every domain NAT to the LAN, and ssh from the LAN on port 2200+x."""
    with Router() as router:
        x, range_ = _range(forwards, "--forwards"), _range(ports, "--ports")
        rate = rating.bits("--uplink-rate", uplink_rate) if uplink_rate not in (None, "auto") else uplink_rate
        _nat(router.nat_enable(uplink, address, x, range_, ports_per_domain, rules, rate), json)


@nat.command("disable")
def nat_disable(json: Json = False) -> None:
    """Take back what `nat enable` made."""
    with Router() as router:
        _nat(router.nat_disable(), json)


@nat.command("status")
def nat_status(json: Json = False) -> None:
    """Show the uplink and where each forward leads."""
    with Router() as router:
        _nat(router.nat_status(), json)


def _given(options: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}


Rate = Annotated[str | None, typer.Option("--rate", "--rate-out", help="Bits a second that it sends: 100M; or none.")]
RateIn = Annotated[str | None, typer.Option(help="Bits a second that it is sent.")]
Pps = Annotated[str | None, typer.Option("--pps", "--pps-out", help="Packets a second that it sends: 20k; or none.")]
PpsIn = Annotated[str | None, typer.Option(help="Packets a second that it is sent.")]
Burst = Annotated[str | None, typer.Option("--burst", "--burst-ms", help="How far it may run ahead of these [250ms].")]


def _rates(
    rate: str | None, rate_in: str | None, pps: str | None, pps_in: str | None, burst: str | None
) -> dict[str, int]:
    """What was said of rates, as fields of Limits."""
    said: dict[str, tuple[Callable[[str, str], int], str, str | None]] = {
        "rate_out": (rating.bits, "--rate", rate),
        "rate_in": (rating.bits, "--rate-in", rate_in),
        "pps_out": (rating.packets, "--pps", pps),
        "pps_in": (rating.packets, "--pps-in", pps_in),
        "burst_ms": (rating.burst, "--burst", burst),
    }
    return {name: read(option, text) for name, (read, option, text) in said.items() if text is not None}


@domain.command("add")
def domain_add(
    names: Annotated[list[str] | None, typer.Argument(help="The domain's name; or several names.")] = None,
    netns: Annotated[str | None, typer.Option(help="A network namespace: its eth0 is made.")] = None,
    tap: Annotated[str | None, typer.Option(help="A TAP of this name is made.")] = None,
    device: Annotated[str | None, typer.Option(help="An interface that is there.")] = None,
    address: Annotated[str | None, typer.Option(help="Its address [the next free one].")] = None,
    mac: Annotated[str | None, typer.Option(help="Its MAC [derived from the name].")] = None,
    guest_address: Annotated[str | None, typer.Option(help="A clone: the address that its guest has.")] = None,
    guest_mac: Annotated[str | None, typer.Option(help="A clone: the MAC that its guest has.")] = None,
    guest_gateway: Annotated[str | None, typer.Option(help="A clone: what its guest has for a gateway.")] = None,
    rate: Rate = None,
    rate_in: RateIn = None,
    pps: Pps = None,
    pps_in: PpsIn = None,
    burst: Burst = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A file, or -, with a line each: NAME netns N [address A] ...")
    ] = None,
    json: Json = False,
) -> None:
    """Add a guest. Of several, each by itself: one that cannot be added leaves the others. With --netns and --tap a %
    stands for the guest's name then."""
    guest = {"guest_address": guest_address, "guest_mac": guest_mac, "guest_gateway": guest_gateway}
    place = {"netns": netns, "tap": tap, "device": device, "address": address, "mac": mac}
    rates = _rates(rate, rate_in, pps, pps_in, burst)
    if from_ or len(names or ()) > 1:
        _add_many(names or [], from_, netns, tap, (device, address, mac, *guest.values()), rates, json)
        return
    if not names:
        raise UsageError("name a domain, or say --from FILE")
    name = names[0]
    with Router() as router:
        _domain(router.add_domain(name, **place, **guest, limits=rates), json)


@domain.command("remove")
def domain_remove(
    names: Annotated[list[str] | None, typer.Argument(help="Names of domains.")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A file, or -, with a name at each line's start.")
    ] = None,
    json: Json = False,
) -> None:
    """Remove guests. Of several, each by itself: one that cannot be removed leaves the others."""
    wanted = [*(names or []), *(naming.names_in(from_) if from_ else ())]
    if not wanted:
        raise UsageError("name a domain, or say --from FILE")
    with Router() as router:
        if len(wanted) == 1:
            router.remove_domain(*wanted)
            failed = {}
        else:
            failed = {o.name: o.error for o in router.remove_domains(wanted, _tell_failed) if o.error}
    removed = [name for name in wanted if name not in failed]
    said = {"removed": removed, "failed": failed} if failed else {"removed": removed}
    if removed or json:
        _show(said, json, lambda _: print(f"removed {', '.join(removed)}"))
    _end(failed)


def _tell_failed(outcome: Outcome) -> None:
    """Errors are told as they come, where errors go."""
    if outcome.error:
        print(f"vfr: {outcome.name}: {outcome.error}", file=sys.stderr, flush=True)


def _end(failed: Collection[object]) -> None:
    if failed:
        raise typer.Exit(1)


def _add_many(
    names: Sequence[str],
    file: Path | None,
    netns: str | None,
    tap: str | None,
    others: Sequence[object],
    limits: Mapping[str, int],
    as_json: bool,
) -> None:
    if file and (names or limits or any(other is not None for other in (netns, tap, *others))):
        raise UsageError("with --from, names and all that is said of them stand in the file")
    lines, wrong = naming.domain_lines(file) if file else (naming.by_pattern(names, netns, tap, others, limits), [])
    outcomes = [Outcome(text, None, error, 0.0) for text, error in wrong]

    def told(outcome: Outcome) -> None:
        _tell_failed(outcome)
        if not outcome.error and not as_json:
            print(f"{outcome.name}: {outcome.address}", flush=True)

    for outcome in outcomes:
        told(outcome)
    with Router() as router:
        outcomes += router.add_domains(lines, told)
    if as_json:
        print(json.dumps([{k: v for k, v in asdict(o).items() if k != "seconds"} for o in outcomes], indent=2))
    _end([o for o in outcomes if o.error])


@domain.command("list")
def domain_list(json: Json = False) -> None:
    """List guests."""
    with Router() as router:
        _show([asdict(d) for d in router.domains()], json, _show_domains)


@domain.command("show")
def domain_show(name: str, json: Json = False) -> None:
    """Show one guest."""
    with Router() as router:
        answer = asdict(router.domain(name))
        _show(answer, json, lambda d: _table(("WHAT", "IS"), [(k, str(v)) for k, v in d.items()]))


def _show_carried(answer: dict[str, Any]) -> None:
    print(
        f"{answer['name']}: {answer['sessions']} sessions of its own, {answer['inbound']} from the LAN,"
        f" {answer['mappings']} mappings"
    )
    if answer["left_out"]:
        print(f"{answer['left_out']} sessions were left out: {answer['why']}")


@app.command()
def save(
    name: Annotated[str, typer.Argument(help="The domain's name.")],
    file: Annotated[Path, typer.Argument(help="Where to; it must not be there.")],
    json: Json = False,
) -> None:
    """Take a guest off, with its sessions, into a file."""
    with Router() as router:
        _show(asdict(router.save_domain(name, file)), json, _show_carried)


@app.command()
def restore(
    name: Annotated[str, typer.Argument(help="The domain's name.")],
    file: Annotated[Path, typer.Argument(help="What `vfr save` wrote.")],
    netns: Annotated[str | None, typer.Option(help="It hangs at this network namespace now.")] = None,
    tap: Annotated[str | None, typer.Option(help="It hangs at this TAP now, which is made.")] = None,
    device: Annotated[str | None, typer.Option(help="It hangs at this interface now.")] = None,
    without_sessions: Annotated[
        bool, typer.Option("--without-sessions", help="Name, address, MAC and limits only, with any ports.")
    ] = False,
    json: Json = False,
) -> None:
    """Put a guest back that was saved, here or on another host."""
    with Router() as router:
        carried = router.restore_domain(name, file, netns=netns, tap=tap, device=device, sessions=not without_sessions)
        _show(asdict(carried), json, _show_carried)


def _show_settings(answer: dict[str, int]) -> None:
    _table(("WHAT", "IS"), [(name.replace("_", "-"), str(value)) for name, value in answer.items()])


@domain.command("set")
@domain.command("limit")
def domain_limit(
    name: Annotated[str, typer.Argument(help="The domain's name.")],
    sessions: Annotated[int | None, typer.Option(help="Conversations that it opened.")] = None,
    inbound: Annotated[int | None, typer.Option(help="Conversations that the LAN opened to it.")] = None,
    half_open: Annotated[int | None, typer.Option(help="TCP conversations without an answer, each way.")] = None,
    new_per_s: Annotated[
        int | None, typer.Option(help="Conversations that it, and the LAN with it, may begin a second; 0: any.")
    ] = None,
    new_in_per_s: Annotated[
        int | None, typer.Option(help="And that anybody may begin with it; 0: as many of the LAN's, any of others'.")
    ] = None,
    errors_per_s: Annotated[int | None, typer.Option(help="ICMP errors sent to it a second.")] = None,
    events_per_s: Annotated[int | None, typer.Option(help="Drops that `vfr events` tells of a second.")] = None,
    fragments: Annotated[int | None, typer.Option(help="Datagrams in fragments at a time.")] = None,
    rate: Rate = None,
    rate_in: RateIn = None,
    pps: Pps = None,
    pps_in: PpsIn = None,
    burst: Burst = None,
    json: Json = False,
) -> None:
    """Show, or set, how much one guest may have: at once, and no conversation ends by it."""
    wanted = _given(
        {
            "sessions": sessions,
            "inbound": inbound,
            "half_open": half_open,
            "new_per_s": new_per_s,
            "errors_per_s": errors_per_s,
            "events_per_s": events_per_s,
            "fragments": fragments,
            "new_in_per_s": new_in_per_s,
        }
    )
    wanted |= _rates(rate, rate_in, pps, pps_in, burst)
    with Router() as router:
        answer = router.set_limits(name, **wanted) if wanted else router.limits(name)
    _show(asdict(answer), json, _show_settings)


@app.command()
def timers(
    tcp_opening: Annotated[int | None, typer.Option(help="TCP, until both ends have answered.")] = None,
    tcp_established: Annotated[int | None, typer.Option(help="TCP, while it is open.")] = None,
    tcp_closing: Annotated[int | None, typer.Option(help="TCP, after both FINs or a RST.")] = None,
    udp: Annotated[int | None, typer.Option(help="UDP.")] = None,
    dns: Annotated[int | None, typer.Option(help="UDP to port 53.")] = None,
    icmp: Annotated[int | None, typer.Option(help="Ping.")] = None,
    fragments: Annotated[int | None, typer.Option(help="From a datagram's first fragment to its last.")] = None,
    json: Json = False,
) -> None:
    """Show, or set, how many seconds of silence end a conversation."""
    wanted = _given(
        {
            "tcp_opening": tcp_opening,
            "tcp_established": tcp_established,
            "tcp_closing": tcp_closing,
            "udp": udp,
            "dns": dns,
            "icmp": icmp,
            "fragments": fragments,
        }
    )
    with Router() as router:
        answer = router.set_timers(**wanted) if wanted else router.timers()
    _show(asdict(answer), json, _show_settings)


def _show_dhcp(answer: dict[str, Any]) -> None:
    servers = ", ".join(answer["dns"]) or "none"
    rows = [("answered", "yes" if answer["on"] else "no"), ("dns", servers), ("lease", f"{answer['lease']} s")]
    _table(("WHAT", "IS"), [*rows, ("prefix", f"/{answer['prefix']}")])


@app.command()
def dhcp(
    name: Annotated[str | None, typer.Argument(help="A domain [all of which nothing else is said].")] = None,
    on: Annotated[bool | None, typer.Option("--on/--off", help="Whether DHCP is answered at all.")] = None,
    dns: Annotated[str | None, typer.Option(help="Up to three servers, as 192.0.2.53,192.0.2.54; or none.")] = None,
    lease: Annotated[int | None, typer.Option(help="Seconds after which a guest asks again.")] = None,
    prefix: Annotated[
        int | None, typer.Option(help="How much of its network a guest takes for its link: 32 or 16.")
    ] = None,
    inherit: Annotated[bool, typer.Option("--inherit", help="This domain is told what all are.")] = False,
    json: Json = False,
) -> None:
    """Show, or set, what guests are told by DHCP, beside their own address, the router's and the uplink's MTU."""
    words = DhcpWords(on, dns_servers(dns) if dns is not None else None, lease, prefix)
    if inherit and words.said():
        raise UsageError("--inherit stands alone: it takes back what was said of the domain")
    with Router() as router:
        answer = router.set_dhcp(name, None if inherit else words) if inherit or words.said() else router.dhcp(name)
    _show({**asdict(answer), "dns": [str(server) for server in answer.dns]}, json, _show_dhcp)


@app.command()
def sweep(json: Json = False) -> None:
    """Clear the tables of what has expired; never needed, since that counts for nothing."""
    with Router() as router:
        router.sweep()
    _show({"swept": True}, json, lambda _: print("what had expired is gone"))


def _show_event(event: dict[str, Any]) -> None:
    if event["untold"]:
        print(f"{event['who']}: {event['untold']} more went untold")
    ends = f"{event['src']}:{event['sport']} -> {event['dst']}:{event['dport']} {event['protocol']}"
    by = f"   ({event['where']}: {event['rule']})" if event["rule"] else ""
    print(f"{event['who']}: {event['verdict']} {ends}, {event['bytes']} bytes{by}", flush=True)


@app.command()
def events(
    count: Annotated[int | None, typer.Option(help="End after so many.")] = None,
    wait: Annotated[float | None, typer.Option(help="End after so many seconds without one.")] = None,
    json: Json = False,
) -> None:
    """Tell of drops, and of what rules with `log` let begin, as they happen: at a rate per domain (`vfr domain limit`)."""
    with Router() as router:
        for event in itertools.islice(router.events(wait), count):
            if json:
                print(_line(asdict(event)), flush=True)
            else:
                _show_event(asdict(event))


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go into the list instead of ending the process; a second one ends it."""
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def capture(
    name: Annotated[str, typer.Argument(help="A domain, or dom0.")],
    write: Annotated[str | None, typer.Option("--write", "-w", help="Into a pcapng file; - for a pipe.")] = None,
    count: Annotated[int | None, typer.Option(help="End after so many frames.", min=1)] = None,
    time: Annotated[float | None, typer.Option(help="End after so many seconds.", min=0.1)] = None,
    size: Annotated[int, typer.Option(help="End before the file has more MB.", min=1)] = 100,
    snaplen: Annotated[
        int, typer.Option(help=f"Keep so many bytes of a frame, up to {sights.SNAP_MAX}.")
    ] = sights.SNAP,
    rate: Annotated[int, typer.Option(help="Take so many frames a second; 0: any number.")] = sights.PER_S,
    dropped: Annotated[bool, typer.Option("--dropped", help="Only what is dropped.")] = False,
    verdict: Annotated[list[str] | None, typer.Option(help="Only what ends so, as to_lan or policy.")] = None,
    json: Json = False,
) -> None:
    """Show what is on a guest's VIF, frame by frame, with the verdict of each: a line for each, or a file for Wireshark,
    which has it as a comment. Ends with Ctrl-C."""
    wish = sights.wish(verdict or (), dropped, snaplen, rate)
    with Router() as router, router.capture(name, wish) as found, _noting_signals() as told:
        if write:
            ended = _into_file(found, Path(write) if write != "-" else None, size * 10**6, (count, time, told), snaplen)
        else:
            ended = take(found, lambda packet: _show_sight(packet, json), count, time, lambda: bool(told))
    print(f"{name}: {ended.taken} frames, {ended.totals}; {ended.why}", file=sys.stderr)
    if ended.error:
        raise ended.error


def _into_file(
    found: Capturing, path: Path | None, most: int, until: tuple[int | None, float | None, list[int]], snap: int
) -> Ended:
    count, time_s, told = until
    with File(path, most) as file:
        file.begin(found, snap)
        ended = take(found, file.add, count, time_s, lambda: bool(told))
        file.end(ended.totals)
    return ended


def _show_sight(packet: sights.Packet, as_json: bool) -> None:
    try:
        print(_line(asdict(packet) | {"data": packet.data.hex()}) if as_json else sights.line(packet), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it would be tried once more at the end
        raise


@app.command()
def stats(
    name: Annotated[str | None, typer.Argument()] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Per rule: what it decided about.")] = False,
    json: Json = False,
) -> None:
    """Show what became of packets: per domain, by verdict."""
    with Router() as router:
        if rules:
            _show([asdict(rule) for rule in router.rule_stats()], json, _show_rule_stats)
            return
        _show(router.stats(name), json, _show_stats)


@app.command()
def flows(
    name: Annotated[str | None, typer.Argument(help="A domain or dom0, at either end [all].")] = None,
    proto: Annotated[str | None, typer.Option(help="tcp, udp, icmp or a number.")] = None,
    state: Annotated[str | None, typer.Option(help=f"TCP's: {', '.join(flowing.STATES.values())}.")] = None,
    remote: Annotated[str | None, typer.Option(help="The other end's address, or a block of them.")] = None,
    port: Annotated[int | None, typer.Option(help="The port that the opener asked for.")] = None,
    limit: Annotated[int | None, typer.Option(help="Show so many at the most.", min=1)] = None,
    count: Annotated[bool, typer.Option("--count", help="Only say how many.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="With the rule that lets each begin.")] = False,
    json: Json = False,
) -> None:
    """Show the living conversations: who opened them, their state, how long they have been silent and still may be."""
    which = flowing.wanted(name, proto, state, remote, port)
    with Router() as router:
        found = router.flows(which, limit, rules)
        if count:
            total = sum(1 for _ in found)
            _show({"count": total}, json, lambda _: print(total))
        elif json:
            _stream_json(found)
        else:
            _stream_flows(found, limit)


def _stream_json(found: Iterable[flowing.Flow]) -> None:
    """One array, a line for each: it may be longer than memory."""
    start = "[\n"
    for flow in found:
        print(start + _line({name: getattr(flow, name) for name in flowing.Flow.__slots__}), end="")
        start = ",\n"
    print("[]" if start == "[\n" else "\n]")


def _stream_flows(found: Iterable[flowing.Flow], limit: int | None) -> None:
    total = 0
    print(flowing.HEAD)
    for flow in found:
        print(flowing.line(flow))
        total += 1
    more = ", and perhaps more: --limit" if total == limit else ""
    print(f"{total} conversation{'' if total == 1 else 's'}{more}")


@app.command()
def top(
    interval: Annotated[float, typer.Option(help="Seconds from one look to the next.")] = 2.0,
    sort: Annotated[str, typer.Option(help=f"What the first has most of: {', '.join(topping.SORTS)}.")] = "out",
    rows: Annotated[int | None, typer.Option(help="Show so many [what the terminal has room for; all].", min=1)] = None,
    count: Annotated[int | None, typer.Option(help="End after so many looks.", min=1)] = None,
    once: Annotated[bool, typer.Option("--once", help="The same as --count 1.")] = False,
    json: Json = False,
) -> None:
    """Show what goes on: per domain, packets and bits a second, conversations, drops and limits hit. With --json, a line
    for each look."""
    live = sys.stdout.isatty() and not json and not once
    with Router() as router, contextlib.suppress(KeyboardInterrupt):
        most = rows or (max(shutil.get_terminal_size().lines - 3, 1) if live else None)
        looks = itertools.islice(router.top(interval, sort, most), 1 if once else count)
        if live:
            _live(looks)
            return
        for look in looks:
            answer = {"interval_s": look.all[0].interval_s, "rows": [asdict(row) for row in look.shown]}
            print(_line(answer) if json else "\n".join(topping.lines(look)), flush=True)


def _live(looks: Iterable[topping.Look]) -> None:
    """One look in the place of the last, what is over a limit in bold."""
    from rich.live import Live
    from rich.text import Text

    with Live(Text("looking ..."), auto_refresh=False, screen=True) as screen:
        for look in looks:
            text = Text(no_wrap=True, overflow="crop")
            marked = [False, False, *(bool(row.limits) for row in look.shown)]
            for number, (row, hit) in enumerate(zip(topping.lines(look), marked, strict=True)):
                text.append(f"{row}\n", style="reverse" if number == 1 else "bold red" if hit else "")
            screen.update(text, refresh=True)


def _show_findings(answer: list[dict[str, Any]]) -> None:
    for finding in answer:
        print(f"{finding['severity']:8}{finding['id']}: {finding['text']}")
        if finding["effect"] and (finding["do"] or finding["severity"] != "ok"):
            print(f"{'':8}  effect: {finding['effect']}")
        if finding["do"]:
            print(f"{'':8}  do: {finding['do']}")
    counts = Counter(finding["severity"] for finding in answer)
    print(", ".join(f"{counts[kind]} {kind}" for kind in ("problem", "warning", "note", "ok")))


@app.command()
def doctor(json: Json = False) -> None:
    """Look for what on this host is in VFR's way: other firewalls, settings, ports. Exit status 1 for a problem."""
    with Router() as router:
        found = router.doctor()
    _show([asdict(finding) for finding in found], json, _show_findings)
    if has_problem(found):
        raise typer.Exit(1)


_NOT_ALL_UP = 3  # of `vfr up` alone: something is not there yet


def _show_up(answer: dict[str, Any]) -> None:
    nat = "NAT is on" if answer["nat"] else "NAT is off"
    print(f"{answer['domains']} domains are up; {nat}")
    for line in answer["waiting"]:
        print(f"  waiting: {line}")


@app.command()
def up(json: Json = False) -> None:
    """Put everything up as it was, as after a boot. Exit status 3 if something is not there yet, as the uplink's address:
    that comes with the next command, or with `vfr watch`."""
    with Router() as router:
        answer = router.up()
    _show(asdict(answer), json, _show_up)
    if answer.waiting:
        raise typer.Exit(_NOT_ALL_UP)


@app.command()
def watch(
    tick: Annotated[float, typer.Option(help="Look at least every so many seconds.", min=0.2)] = TICK_S,
    json: Json = False,
) -> None:
    """Follow the uplink, guests' interfaces, hooks and tables, and repair what others change: a line for each repair.
    Ends on SIGTERM."""

    def tell(told: Told) -> None:
        print(_line(asdict(told)) if json else told, flush=True)

    with Router() as router:
        watching(router, tell, tick)


def _show_upgrade(answer: dict[str, Any]) -> None:
    if not answer["changed"]:
        print(f"the installed fastpath ({answer['installed'][:12]}) is the one that runs")
        return
    print(f"the fastpath {answer['installed'][:12]} has taken over from {(answer['before'] or 'another')[:12]}")
    if answer["anew"]:
        print(f"  these began anew: {', '.join(answer['anew'])}")


@app.command()
def upgrade(
    lose_sessions: Annotated[
        bool, typer.Option("--lose-sessions", help="Also where tables are laid out otherwise; all begins anew then.")
    ] = False,
    json: Json = False,
) -> None:
    """Have the installed fastpath take over from the running one, under full traffic."""
    with Router() as router:
        _show(asdict(router.upgrade(lose_sessions)), json, _show_upgrade)


@app.command()
def apply(
    file: Path,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    confirm: Annotated[
        str | None, typer.Option(help="Go back by itself after so long, as 60s, unless confirmed.")
    ] = None,
    json: Json = False,
) -> None:
    """Put a file in force: rules, forwards, and domains and NAT if it speaks of them."""
    confirm_s = seconds(confirm) if confirm else None
    with Router() as router:
        if dry_run:
            preview = router.preview(file)
            _show(asdict(preview), json, _show_preview)
            return
        router.apply(file, confirm_s)
    answer = {"file": str(file), "confirm_within_s": confirm_s}
    until = f" for {confirm}; run `vfr confirm` to keep it" if confirm else ""
    _show(answer, json, lambda _: print(f"{file} is in force{until}"))


@app.command()
def confirm(
    no: Annotated[bool, typer.Option("--no", help="Go back at once.")] = False,
    json: Json = False,
) -> None:
    """Keep what was applied with --confirm."""
    with Router() as router:
        if not no:
            router.confirm()
        elif not router.go_back():
            raise ConflictError("nothing waits to be confirmed, so there is nothing to go back on")
    _show({"kept": not no}, json, lambda _: print("it is gone back on" if no else "it stays"))


@app.command()
def exposure(
    names: Annotated[list[str] | None, typer.Argument(help="Names of domains [all].")] = None,
    json: Json = False,
) -> None:
    """Show who reaches each guest: from the LAN, the host and other guests, and by which rule or forward."""
    from vfr.reach import exposure_lines

    with Router() as router:
        found = router.exposure(*(names or ()))
    _show([asdict(one) for one in found], json, lambda _: print("\n".join(exposure_lines(found)) or "no domains"))


@app.command()
def export(json: Json = False) -> None:
    """Print the running router as a file that `vfr apply` takes."""
    with Router() as router:
        text = router.export()
    _show({"file": text}, json, lambda _: print(text, end=""))


def _show_explanation(answer: dict[str, Any]) -> None:
    print(f"{answer['question']}: {'passes' if answer['passes'] else 'does not pass'}")
    rows = [*answer["stages"], *((f"back: {stage}", text) for stage, text in answer["back"])]
    verdict = f"{answer['verdict']}: " if answer["verdict"] else ""
    rows.append(("verdict", verdict + answer["meaning"]))
    rows += [("rule", f"{answer['where']}: {answer['rule']}")] if answer["rule"] else []
    rows += [("missing", line) for line in answer["missing"]]
    width = max(len(stage) for stage, _ in rows)
    for stage, text in rows:
        print(f"  {stage.ljust(width)}  {text}")


@app.command()
def explain(
    opener: Annotated[str, typer.Argument(metavar="FROM", help="A domain, dom0, lan, internet or an address.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same, or forward:PORT.")],
    what: Annotated[str, typer.Argument(metavar="PROTO/PORT", help="tcp/22, udp/53, icmp, gre, ether/0x889a, ...")],
    json: Json = False,
) -> None:
    """Say what would become of a packet, stage by stage, and which rule decides; exit status 1 if it does not pass."""
    with Router() as router:
        answer = asdict(router.explain(opener, target, what))
    _show(answer, json, _show_explanation)
    if not answer["passes"]:
        raise typer.Exit(1)


def _domain_names() -> list[str]:
    """Those that there are; a file can be checked where there can be no router, too."""
    try:
        return [d.name for d in Router().domains()]
    except VfrError:
        return []


@rules.command("check")
def rules_check(file: Path, json: Json = False) -> None:
    """Say whether a rule file is in order."""
    from vfr.policy import parse_document
    from vfr.policy.language import stray_names
    from vfr.router import read_file

    document = parse_document(read_file(file), file.name)
    strays = list(stray_names(document.rules, {*_domain_names(), *(d.name for d in document.domains or ())}))
    text = "\n".join([*(f"{file}: {stray}" for stray in strays), f"{file}: in order"])
    _show({"file": str(file), "ok": True, "notes": strays}, json, lambda _: print(text))


@rules.command("import-xen")
def rules_import_xen(
    file: Annotated[Path, typer.Argument(help="Lines as they were written to /proc/xeno/vfr.")],
    names: Annotated[list[str] | None, typer.Option(help="D=NAME: what Xen's domain D is called [domD].")] = None,
    json: Json = False,
) -> None:
    """Print Xen 1.x's rules as a rule file: what each did then, and the rule that says so today."""
    from vfr.policy import xen

    called = xen.parse_names(names or ())
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"the rule file {str(file)!r} cannot be read: {error.strerror}") from None
    found = xen.translate(xen.decode(data, file.name), file.name, called)
    _show(asdict(found) | {"ok": not found.refused}, json, lambda _: print(found, end=""))
    if found.refused:
        lines = ", ".join(map(str, found.refused))
        raise VfrError(f"not translated, in whole or in part: of {file.name}, line {lines}; the output says why")


def _run(arguments: list[str]) -> None:
    try:
        app(arguments, prog_name="vfr")
    except VfrError as error:
        print(f"vfr: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def main() -> None:
    """The `vfr` command."""
    _run(sys.argv[1:])


def xen_nat_enable() -> None:
    """`xen_nat_enable [disable|status] ...`: the old script's name for `vfr nat enable`."""
    arguments = sys.argv[1:]
    verb = arguments.pop(0) if arguments and arguments[0] in ("enable", "disable", "status") else "enable"
    _run(["nat", verb, *arguments])


if __name__ == "__main__":
    main()

"""What other programs have told netfilter: read from `nft -j list ruleset` and, where the kernel has tables of the
old kind, from `iptables-legacy-save`. Only reads.

Parsing is pure; what the words mean for VFR is vfr.doctor's affair. IPv6 alone is left out, as VFR has none.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from vfr.doctor import Chain, Drop, Netfilter, Translation

_OURS = {("inet", "vfr"), ("arp", "vfr")}
_FAMILIES = ("ip", "inet", "arp", "bridge", "netdev")
# Who made a chain or table, by the names it has inside. The iptables tables are shared by several.
_MAKERS = {
    "ufw": r"ufw-",
    "firewalld": r"firewalld$",
    "Docker": r"DOCKER|docker-",
    "libvirt": r"LIBVIRT_|libvirt_",
    "podman": r"netavark|NETAVARK",
    "Kubernetes": r"KUBE-|kube-proxy",
    "fail2ban": r"f2b-",
}
_PACKAGES = {"nft": "nftables", "iptables-legacy-save": "iptables"}
_ENDS, _TRANSLATES, _MASQUERADES = ("drop", "reject"), ("dnat", "redirect"), ("masquerade", "snat")
Expression = dict[str, Any]


@dataclass(slots=True)
class _Table:
    """A table as it is read: its chains, base chains and rules."""

    base: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rules: dict[str, list[list[Expression]]] = field(default_factory=dict)


def _statements(rule: Sequence[Expression]) -> Iterator[tuple[str, Any]]:
    """Each statement's name and value; what iptables says in its own words is called by that, in small letters."""
    for expression in rule:
        for name, value in expression.items():
            if name == "xt" and isinstance(value, dict):
                kind = value.get("name", "").lower()
                yield (kind if value.get("type") == "target" else f"xt {kind}"), {}
            else:
                yield name, value


def _verdict(rule: Sequence[Expression]) -> str:
    return next((name for name, _ in _statements(rule) if name in (*_ENDS, "accept", "jump", "goto")), "")


def _is_for_all(rule: Sequence[Expression]) -> bool:
    """Whether nothing narrows the rule down."""
    return all(name in (*_ENDS, "counter", "log", "xt comment") for name, _ in _statements(rule))


def _matches(rule: Sequence[Expression], kind: str, name: str) -> Iterator[Any]:
    """What a match asks for: of a field of a payload ("payload", "dport") or of meta ("meta", "iifname")."""
    for statement, value in _statements(rule):
        left = value.get("left", {}) if statement == "match" else {}
        asked = left.get(kind) if isinstance(left, dict) else None
        if isinstance(asked, dict) and name in (asked.get("field"), asked.get("key")) and value["op"] in ("==", "in"):
            yield {"protocol": asked.get("protocol"), "right": value["right"]}


def _ranges(right: Any) -> Iterator[tuple[int, int]]:
    """Ports, as numbers, ranges and sets of these."""
    if isinstance(right, int):
        yield right, right
    elif isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        yield int(low), int(high)
    elif isinstance(right, dict) and "set" in right:
        for element in right["set"]:
            yield from _ranges(element)


def _nets(right: Any) -> Iterator[IPv4Network]:
    """IPv4 networks, likewise."""
    if isinstance(right, dict) and "set" in right:
        for element in right["set"]:
            yield from _nets(element)
    elif isinstance(right, dict) and "prefix" in right and ":" not in str(right["prefix"]["addr"]):
        yield IPv4Network(f"{right['prefix']['addr']}/{right['prefix']['len']}", strict=False)
    elif isinstance(right, str) and re.fullmatch(r"[\d.]+", right):
        yield IPv4Network(right)


def _ports(rule: Sequence[Expression]) -> Iterator[tuple[str, int, int]]:
    for match in _matches(rule, "payload", "dport"):
        for low, high in _ranges(match["right"]):
            yield match["protocol"], low, high


def _makers(words: Sequence[str]) -> tuple[str, ...]:
    found = [maker for maker, form in _MAKERS.items() if any(re.match(form, word) for word in words)]
    return tuple(found)


def _tables(listing: Mapping[str, Any]) -> dict[tuple[str, str], _Table]:
    tables: dict[tuple[str, str], _Table] = {}
    for item in listing["nftables"]:
        for kind, what in item.items():
            if kind not in ("chain", "rule") or (what["family"], what["table"]) in _OURS:
                continue
            table = tables.setdefault((what["family"], what["table"]), _Table())
            if kind == "rule":
                table.rules.setdefault(what["chain"], []).append(what["expr"])
                continue
            table.names.append(what["name"])
            if "hook" in what:
                table.base.append(what)
    return {name: table for name, table in tables.items() if name[0] in _FAMILIES}


def _reached(table: _Table, start: str) -> Iterator[tuple[str, list[Expression]]]:
    """The rules of a chain and of those that it leads to."""
    todo, seen = [start], set()
    while todo:
        chain = todo.pop()
        if chain in seen:
            continue
        seen.add(chain)
        for rule in table.rules.get(chain, []):
            yield chain, rule
            todo += [value["target"] for name, value in _statements(rule) if name in ("jump", "goto")]


def _chain(family: str, name: str, table: _Table, base: Mapping[str, Any]) -> Chain:
    own, reached = table.rules.get(base["name"], []), list(_reached(table, base["name"]))
    last = own[-1] if own else []
    accepting = [rule for _, rule in reached if _verdict(rule) == "accept"]
    near = [m["right"] for _, rule in reached for m in _matches(rule, "meta", "iifname") if _verdict(rule) != "drop"]
    return Chain(
        family=family,
        table=name,
        name=base["name"],
        hook=base["hook"],
        makers=_makers([name, *(chain for chain, _ in reached)]),
        closes=base.get("policy") == "drop" or (_verdict(last) in _ENDS and _is_for_all(last)),
        accepts=tuple(port for rule in accepting for port in _ports(rule)),
        names_vfr0="vfr0" in near,
    )


def _drops(family: str, name: str, table: _Table, base: Mapping[str, Any]) -> Iterator[Drop]:
    """Rules that drop whatever comes from some network."""
    for _, rule in _reached(table, base["name"]):
        if _verdict(rule) in _ENDS:
            for match in _matches(rule, "payload", "saddr"):
                yield from (Drop(f"{family} {name} {base['name']}", base["hook"], net) for net in _nets(match["right"]))


def _translations(family: str, name: str, table: _Table) -> Iterator[Translation]:
    """What is sent elsewhere by its port, and what is given the host's own address. A port may also lead on to
    the chain that sends it elsewhere."""
    for chain, rules in table.rules.items():
        for rule in rules:
            said = {statement for statement, _ in _statements(rule)}
            makers = _makers([name, chain])
            if said & {*_TRANSLATES, "jump", "goto"}:
                for protocol, low, high in _ports(rule):
                    yield Translation(f"{family} {name} {chain}", makers, "dnat", protocol, low, high)
            elif said & {*_MASQUERADES}:
                outs = tuple(str(m["right"]) for m in _matches(rule, "meta", "oifname"))
                low, high = _source_ports(rule)
                yield Translation(f"{family} {name} {chain}", makers, "masquerade", None, low, high, outs)


def _source_ports(rule: Sequence[Expression]) -> tuple[int, int]:
    """Which ports a masquerade is told to take; any, if it is not told, or in iptables' own words."""
    for name, value in _statements(rule):
        if name in _MASQUERADES and isinstance(value, dict) and "port" in value:
            return next(_ranges(value["port"]), (1, 65535))
    return 1, 65535


def parse(text: str) -> Netfilter:
    """What `nft -j list ruleset` printed."""
    chains: list[Chain] = []
    drops: list[Drop] = []
    translations: list[Translation] = []
    for (family, name), table in _tables(json.loads(text)).items():
        for base in table.base:
            chains.append(_chain(family, name, table, base))
            drops += _drops(family, name, table, base)
        if any(base.get("type") == "nat" for base in table.base):
            translations += _translations(family, name, table)
    return Netfilter(tuple(chains), tuple(drops), tuple(translations))


def parse_legacy(text: str) -> Netfilter:
    """What `iptables-legacy-save` printed."""
    tables = list(_legacy_tables(text))
    return Netfilter(
        tuple(
            _legacy_chain(table, name, rules, p) for table, policies, rules in tables for name, p in policies.items()
        ),
        (),
        tuple(
            t for table, _, rules in tables for chain, rule in rules for t in _legacy_translations(table, chain, rule)
        ),
    )


def _legacy_chain(table: str, name: str, rules: Sequence[tuple[str, str]], policy: str) -> Chain:
    own = [rule for chain, rule in rules if chain == name]
    ending = own[-1] if own else ""
    return Chain(
        family="legacy ip",
        table=table,
        name=name,
        hook=name.lower(),
        makers=_makers(re.findall(r"-[jg] (\S+)", "\n".join(own))),
        closes=policy == "DROP" or re.match(r"-j (DROP|REJECT)\b", ending) is not None,
        accepts=tuple(port for _, rule in rules if rule.endswith("-j ACCEPT") for port in _legacy_ports(rule)),
        names_vfr0=any("-i vfr0 " in rule and "DROP" not in rule for _, rule in rules),
    )


def _legacy_translations(table: str, chain: str, rule: str) -> Iterator[Translation]:
    where, makers = f"legacy ip {table} {chain}", _makers([chain])
    if re.search(r"-j (DNAT|REDIRECT)\b", rule):
        for protocol, low, high in _legacy_ports(rule):
            yield Translation(where, makers, "dnat", protocol, low, high)
    elif re.search(r"-j (MASQUERADE|SNAT)\b", rule):
        outs = tuple(re.findall(r"(?<!! )-o (\S+)", rule))
        yield Translation(where, makers, "masquerade", None, 1, 65535, outs)


def _legacy_tables(text: str) -> Iterator[tuple[str, dict[str, str], list[tuple[str, str]]]]:
    """Each table's name, the policies of its base chains, and its rules as (chain, the rest)."""
    for part in re.split(r"^\*", text, flags=re.M)[1:]:
        policies = dict(re.findall(r"^:(\S+) (ACCEPT|DROP)", part, flags=re.M))
        yield part.split()[0], policies, re.findall(r"^-A (\S+) (.*)$", part, flags=re.M)


def _legacy_ports(rule: str) -> Iterator[tuple[str, int, int]]:
    found = re.search(r"-p (tcp|udp)\b.*?--dports? (\S+)", rule)
    for piece in found[2].split(",") if found else []:
        low, _, high = piece.partition(":")
        assert found is not None
        yield found[1], int(low), int(high or low)


def _run(*argv: str) -> tuple[str, str]:
    """A command's output, and why there is none."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "", f"the {argv[0]} command is missing: apt install {_PACKAGES[argv[0]]}"
    return (done.stdout, "") if done.returncode == 0 else ("", done.stderr.strip() or f"{argv[0]} failed")


def _has_legacy_tables() -> bool:
    path = Path("/proc/net/ip_tables_names")
    return path.exists() and bool(path.read_text().split())


def read() -> Netfilter:
    """Everything in force in this network namespace that is not ours. Needs root."""
    text, error = _run("nft", "-j", "list", "ruleset")
    if error:
        return Netfilter(error=error)
    found = parse(text)
    if not _has_legacy_tables():
        return found
    text, error = _run("iptables-legacy-save")
    old = parse_legacy(text)
    return Netfilter(
        (*found.chains, *old.chains),
        found.drops,
        (*found.translations, *old.translations),
        f"iptables of the old kind is in use here, and cannot be looked at: {error}" if error else "",
    )

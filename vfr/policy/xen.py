"""Xen 1.x's rules in VFR's language: what each line let through then, and the rule that says so today.

Pure: text -> Translation (a Translated for each line) -> text, which is itself a rule file. `xen_parser` has how a
line was read, `xen_engine` where packets went. Nothing comes out wider than what the engine let through: a domain may
open to another what it could then, with whatever source; the LAN, what each of its addresses could. What cannot be
said so is not said, and `refusal` has the reason. Answers are not counted: they come back by themselves today.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from vfr.errors import UsageError
from vfr.policy.language import RuleError
from vfr.policy.rules import ANY, DOM0, LAN
from vfr.policy.xen_engine import (
    ALL_BITS,
    LINK_LOCAL,
    Engine,
    Entry,
    Pattern,
    contiguous,
    overlap,
    source_of,
    target_of,
    within,
)
from vfr.policy.xen_engine import DOM0 as DOM0_VIF
from vfr.policy.xen_parser import EVERYBODY, PHYS, PROTOCOLS, SPECIAL, WIRE, NetRule, Reading, Vif, read_line

VIFS_OF_A_DOMAIN = 8
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?")
_RESERVED = (ANY, LAN, DOM0, "internet")
_NO_HOST = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))
_CONTROL = set("\t\v\f\r")


@dataclass(frozen=True, slots=True)
class Allow:
    """One rule of VFR's. `opener` and `target` are names, any, lan, or a block of addresses behind the uplink."""

    opener: str
    target: str

    def __str__(self) -> str:
        return f"allow {self.opener} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Translated:
    """One line. `then` is what it let through; `refusal` says what of it is not in `rules`, and why; `instead` are
    rules to consider, with the reason in `hint`."""

    line: int
    text: str
    then: str = ""
    rules: tuple[Allow, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: str = ""
    hint: str = ""
    instead: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """A domain that the rules know, what it is called here, and the addresses that were its own."""

    domain: int
    name: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Translation:
    """A whole file."""

    file: str
    domains: tuple[Owner, ...]
    lines: tuple[Translated, ...]

    @property
    def refused(self) -> tuple[int, ...]:
        """The lines of which something is not translated."""
        return tuple(t.line for t in self.lines if t.refusal)

    def __str__(self) -> str:
        return "\n".join(_rendered(self)) + "\n"


@dataclass(frozen=True, slots=True)
class _Said:
    """What of a rule can be said today, and why not the rest."""

    rules: tuple[Allow, ...] = ()
    refusal: str = ""
    notes: tuple[str, ...] = ()


# Input


def decode(data: bytes, file: str) -> str:
    """The text of a file. RuleError: it is no text, and where that shows."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        raise _no_text(before, file, f"byte 0x{data[error.start]:02x}") from None
    for at, c in enumerate(text):
        if unicodedata.category(c) == "Cc" and c != "\n" and c not in _CONTROL:
            raise _no_text(text[:at], file, f"control character 0x{ord(c):02x}")
    return text


def _no_text(before: str, file: str, what: str) -> RuleError:
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return RuleError(file, line, column, f"{what} is not text; give the lines that were written to /proc/xeno/vfr")


def parse_names(pairs: Iterable[str]) -> dict[int, str]:
    """`3=web` -> {3: "web"}. UsageError: it is none, or two domains would have one name."""
    names: dict[int, str] = {}
    for pair in pairs:
        number, _, name = pair.partition("=")
        if not re.fullmatch("[0-9]{1,20}", number) or not _NAME.fullmatch(name):
            raise UsageError(f"--names {pair!r} is not DOMAIN=NAME; write it as 3=web")
        domain, own = int(number), re.fullmatch(r"dom(\d+)", name)
        if domain == 0 or name in _RESERVED or (own and name != f"dom{domain}"):
            raise UsageError(f"--names {pair!r}: {'domain 0 is dom0' if domain == 0 else f'{name} is taken'}")
        if names.get(domain, name) != name or name in {n for d, n in names.items() if d != domain}:
            raise UsageError(f"--names {pair!r}: a domain has one name, and a name one domain")
        names[domain] = name
    return names


# Words for what the engine did


def _quad(address: int) -> str:
    return str(IPv4Address(address))


def _block(pattern: Pattern) -> IPv4Network:
    return IPv4Network((pattern[0] & pattern[1], pattern[1].bit_count()))


def _which(pattern: Pattern, one: str, several: str) -> str:
    """`pattern` in words, '' if it is every address."""
    if pattern[1] == 0:
        return ""
    if pattern[1] == ALL_BITS:
        return f"{one} {_quad(pattern[0])}"
    if contiguous(pattern[1]):
        return f"{several} {_block(pattern)}"
    return f"{several} {_quad(pattern[0] & pattern[1])} by the mask {_quad(pattern[1])}"


def _vif(vif: Vif) -> str:
    if vif[0] == SPECIAL:
        return {WIRE: "the wire", EVERYBODY: "everybody"}.get(vif, "nobody")
    return f"domain {vif[0]}" + (f"'s interface {vif[1]}" if vif[1] else "")


def _then(rule: NetRule) -> str:
    """What the rule matched, and where it sent that."""
    if not rule.ports_match:
        return "nothing"
    source = _which(source_of(rule), "with source", "with a source in")
    target = _which(target_of(rule), "for", "for addresses in") or "whatever address it is for"
    what = {"any": "IP and ARP", "ip": "IP", "arp": "ARP alone"}.get(PROTOCOLS[rule.proto], "IP, or nothing")
    end = "nowhere" if rule.dstdom == SPECIAL and rule.dstidx != PHYS else f"to {_vif(rule.destination)}"
    return f"from {_vif(rule.source)}{' ' if source else ''}{source} {end}, {target}; {what}"


# One rule

_HOSTS_OWN = "No rule: what the host and the LAN say to each other is the host's own affair, and its own firewall's."


class _Translator:
    """All rules of a file know each other: who owns an address, and which rule came first."""

    def __init__(self, engine: Engine, names: Mapping[int, str]) -> None:
        self.engine, self.names = engine, names
        self.vifs = engine.vifs()
        known = {vif[0] for vif in self.vifs}
        self.somebody = next((n, 0) for n in range(1, len(known) + 2) if n not in known)

    def name(self, domain: int) -> str:
        """What a domain of Xen's is called here."""
        return self.names.get(domain, f"dom{domain}")

    def domains(self) -> tuple[Owner, ...]:
        """All domains that rules name, with the addresses of their first interface."""
        numbers = sorted({vif[0] for vif in self.vifs})
        return tuple(Owner(n, self.name(n), tuple(map(_quad, self.engine.addresses((n, 0))))) for n in numbers)

    def say(self, entry: Entry) -> _Said:
        """The entry in VFR's language."""
        return self._never(entry) or self._unsayable(entry.rule) or self._sayable(entry)

    def _never(self, entry: Entry) -> _Said | None:
        """What let nothing through, or only what needs no rule."""
        rule, target = entry.rule, entry.rule.destination
        if PROTOCOLS[rule.proto] == "arp":
            return _Said(notes=("No rule: VFR answers a domain's ARP itself, for the peers it may talk to.",))
        if rule.srcdom == SPECIAL and rule.source not in (WIRE, EVERYBODY):
            return _Said(notes=("No rule: it let nothing through, since nothing came from there.",))
        if rule.source == target:
            return _Said(notes=("No rule: it let nothing through, since Xen sent nothing back to where it came from.",))
        if target == WIRE and rule.srcaddrmask >= LINK_LOCAL[1] and within(rule.srcaddr, LINK_LOCAL):
            return _Said(notes=("No rule: it let nothing through; no link-local source went on the wire.",))
        if {rule.source, target} == {DOM0_VIF, WIRE}:
            return _Said(notes=(_HOSTS_OWN,))
        return None

    def _unsayable(self, rule: NetRule) -> _Said | None:
        """What has no words today."""
        reason = _about_protocol(rule) or _about_vifs(rule) or _about_masks(rule)
        return _Said(refusal=reason) if reason else None

    def _sayable(self, entry: Entry) -> _Said:
        rule = entry.rule
        if rule.destination == WIRE:
            target, reason = self._remote(target_of(rule))
        else:
            target, reason = self.name(rule.dstdom), ""
        if reason:
            return _Said(refusal=reason)
        if rule.source == EVERYBODY:
            if rule.srcaddrmask == 0:
                return self._from_everybody(entry, target)
            return self._from_whoever_has(entry, target)
        if rule.source == WIRE:
            return self._from_lan(entry, target)
        opener = self.name(rule.srcdom)
        own = self.engine.addresses(rule.source)
        if own and not any(within(a, source_of(rule)) for a in own):
            return _Said(refusal=f"none of {opener}'s own addresses was a source that it let through")
        if self._reaches(entry, rule.source):
            return _Said((Allow(opener, target),))
        return self._nothing_left(entry, rule.source)

    def _reaches(self, entry: Entry, sender: Vif) -> bool:
        if not entry.is_to_vif:
            return self.engine.reaches_wire(entry, sender)
        return self.engine.reaches_vif(entry, sender)

    def _remote(self, pattern: Pattern) -> tuple[str, str]:
        """Addresses behind the uplink as VFR names them, or why it does not."""
        block = _block(pattern)
        if pattern[1] == 0:
            return LAN, ""
        if pattern[1] == ALL_BITS and pattern[0] in self.engine.owners:
            whose = _vif(min(self.engine.owners[pattern[0]]))
            return "", f"{_quad(pattern[0])} is {whose}'s own address, and so not behind the uplink"
        if pattern[1] >= LINK_LOCAL[1] and overlap(pattern, LINK_LOCAL):
            return "", f"{block} is link-local, and nothing with such an address crosses the uplink"
        if any(block.subnet_of(net) for net in _NO_HOST):
            return "", f"{block} is no host's: VFR carries no broadcast and no multicast"
        return str(block), ""

    def _from_lan(self, entry: Entry, target: str) -> _Said:
        opener, reason = self._remote(source_of(entry.rule))
        if reason:
            return _Said(refusal=reason)
        if self.engine.reaches_vif_from_wire(entry):
            return _Said((Allow(opener, target),))
        return self._nothing_left(entry, WIRE)

    def _nothing_left(self, entry: Entry, sender: Vif) -> _Said:
        """Other rules had what this one matched, or some of it, and VFR's rules have no order to say that by."""
        rivals = sorted(e.line for e in self.engine.rivals(entry, sender))
        who = f"line{'s' if len(rivals) > 1 else ''} {', '.join(map(str, rivals[:4]))}{', ...' if rivals[4:] else ''}"
        return _Said(refusal=f"what came from {_vif(sender)} was taken elsewhere, in whole or in part, by {who}")

    def _from_everybody(self, entry: Entry, target: str) -> _Said:
        """`any`, if everybody was let through; else those who were."""
        senders = [vif for vif in self.vifs if vif[1] == 0 and vif != entry.rule.destination]
        if entry.rule.destination == WIRE:
            senders = [vif for vif in senders if vif != DOM0_VIF]
        elif DOM0_VIF not in senders and entry.rule.destination != DOM0_VIF:
            senders.insert(0, DOM0_VIF)
        from_lan = entry.is_to_vif and entry.rule.destination != DOM0_VIF
        lan_reaches = not from_lan or self.engine.reaches_vif_from_wire(entry)
        missing = [vif for vif in (*senders, self.somebody) if not self._reaches(entry, vif)]
        if lan_reaches and not missing:
            return _Said((Allow(ANY, target),))
        missing += [] if lan_reaches else [WIRE]
        rules = [Allow(self.name(vif[0]), target) for vif in senders if vif not in missing]
        rules += [Allow(LAN, target)] if from_lan and lan_reaches else []
        whose = ", ".join("domains not named here" if vif == self.somebody else _vif(vif) for vif in missing)
        elsewhere = self._nothing_left(entry, missing[0]).refusal
        return _Said(tuple(rules), f"not from {whose}, as {elsewhere}" if rules else elsewhere)

    def _from_whoever_has(self, entry: Entry, target: str) -> _Said:
        """From everybody with such a source: the domains that have such an address, and the LAN's."""
        pattern, end = source_of(entry.rule), entry.rule.destination
        owners = {vif for a, vifs in self.engine.owners.items() if within(a, pattern) for vif in vifs}
        senders = [v for v in sorted(owners - {end}) if v[1] == 0 and {v, end} != {DOM0_VIF, WIRE}]
        missing = [vif for vif in senders if not self._reaches(entry, vif)]
        rules = tuple(Allow(self.name(vif[0]), target) for vif in senders if vif not in missing)
        refusal = self._nothing_left(entry, missing[0]).refusal if missing else ""
        is_own = pattern[1] == ALL_BITS and pattern[0] in self.engine.owners
        if entry.is_to_vif and end != DOM0_VIF and not is_own:
            from_lan = self._from_lan(entry, target)
            return _Said(rules + from_lan.rules, refusal or from_lan.refusal)
        if not senders and end == DOM0_VIF and not is_own:
            return _Said(notes=(_HOSTS_OWN,))
        if not senders:
            refusal = f"no other domain here has {_which(pattern, 'the address', 'an address in')}"
        return _Said(rules, refusal)

    # Explanations

    def explain(self, entry: Entry, said: _Said, reading: Reading) -> Translated:
        """All there is to tell of a rule, but for its line's text."""
        hint, instead = self._meant(entry, reading)
        notes = (*_omitted(reading), *reading.notes, *_odd(reading.rule), *said.notes)
        if said.rules:
            notes = (*notes, *self._today(entry.rule))
            hint, instead = (hint, instead) if instead else self._narrower(entry.rule)
        return Translated(entry.line, "", _then(entry.rule), said.rules, notes, said.refusal, hint, instead)

    def _meant(self, entry: Entry, reading: Reading) -> tuple[str, tuple[str, ...]]:
        """The rule as its author seems to have meant it, where ports or tcp and udp did not count."""
        rule = entry.rule
        protocols = [PROTOCOLS[rule.proto]] if PROTOCOLS[rule.proto] in ("tcp", "udp") else ["tcp", "udp"]
        ports = _ports(rule, reading)
        if ports is None or PROTOCOLS[rule.proto] == "arp" or (not ports and len(protocols) > 1):
            return "", ()
        plain = self.say(replace(entry, rule=replace(rule, proto=0, srcportmask=0, dstportmask=0)))
        lines = tuple(f"{allow} {p}{ports}" for allow in plain.rules for p in protocols)
        return ("If this is what was meant, write it so:", lines) if lines else ("", ())

    def _narrower(self, rule: NetRule) -> tuple[str, tuple[str, ...]]:
        """What people had such a rule for, in less."""
        if _is_inbound(rule) and rule.dstdom:
            name = self.name(rule.dstdom)
            ssh = (f"allow {LAN} -> {name} tcp 22", f"allow {DOM0} -> {name}")
            return "That is wide. `vfr nat enable` leads port 2200+x to ssh, for which less will do:", ssh
        if _is_to_dom0(rule):
            out = (f"allow {self.name(rule.srcdom)} -> {LAN}",)
            return "If domain 0 was there to masquerade it (xen_nat_enable), today's rule for that is:", out
        return "", ()

    def _today(self, rule: NetRule) -> list[str]:
        """What became of the parts of a rule that need none, and the rules that Xen's own tools wrote."""
        notes = []
        if rule.source not in (WIRE, EVERYBODY) and rule.srcaddrmask:
            notes.append("That its source is its own address needs no rule today: the interface is the identity.")
        if _is_to_dom0(rule):
            notes.append("Xen's own rule: what a link-local source sends goes to domain 0 only, all of its services.")
        elif rule.source[1] == 0 and rule.destination == WIRE and rule.srcaddrmask == ALL_BITS:
            notes.append("Xen's own rule for the way out; today by NAT, under the host's address.")
        elif _is_inbound(rule):
            notes.append(
                "Xen's own rule for the way in. The LAN, domain 0 and every domain reached it, with whatever source."
                if rule.dstdom
                else "Domain 0's own rule, made for each of its addresses: everybody reached all of its services."
            )
        return notes


def _is_inbound(rule: NetRule) -> bool:
    return rule.source == EVERYBODY and not rule.srcaddrmask and rule.dstaddrmask == ALL_BITS and rule.dstidx == 0


def _is_to_dom0(rule: NetRule) -> bool:
    link_local = rule.srcaddrmask == ALL_BITS and within(rule.srcaddr, LINK_LOCAL)
    return link_local and rule.srcdom != SPECIAL and rule.destination == DOM0_VIF and target_of(rule)[1] == 0


def _about_protocol(rule: NetRule) -> str:
    if not rule.ports_match:
        return "ports never matched: Xen compared them with 0, so this rule let nothing through"
    if PROTOCOLS[rule.proto] in ("tcp", "udp"):
        return (
            f"proto={PROTOCOLS[rule.proto]} was compared with a byte of the Ethernet source address, so this rule let"
            " through nothing or everything, as a network card had it"
        )
    return ""


def _about_vifs(rule: NetRule) -> str:
    if rule.dstdom == SPECIAL and rule.dstidx != PHYS:
        return "it led nowhere, and dropped what it matched last; a deny would say more than that"
    for domain, index in (rule.source, rule.destination):
        if domain == SPECIAL or index == 0:
            continue
        if index >= VIFS_OF_A_DOMAIN:
            return f"interface {index} of domain {domain}: Xen gave a domain {VIFS_OF_A_DOMAIN} at most"
        which = "second" if index == 1 else f"{index + 1}th" if index > 2 else "third"
        return f"domain {domain}'s {which} interface: VFR gives a domain one; add a domain of its own for it"
    return ""


def _about_masks(rule: NetRule) -> str:
    for name, mask in (("srcaddrmask", rule.srcaddrmask), ("dstaddrmask", rule.dstaddrmask)):
        if not contiguous(mask):
            return f"{name} {_quad(mask)} is no prefix length, and VFR has no other blocks of addresses"
    if rule.destination != WIRE and rule.dstaddrmask not in (0, ALL_BITS):
        return f"{_block(target_of(rule))} was sent to {_vif(rule.destination)}; VFR sends a domain what is for its own address"
    return ""


def _omitted(reading: Reading) -> list[str]:
    """The ends that a line does not name."""
    notes = []
    for side, word in (("src", "from"), ("dst", "to")):
        if not reading.given & {side, f"{side}dom", f"{side}idx"}:
            notes.append(f"No {side} and no {side}dom: it was {word} domain 0.")
    return notes


def _odd(rule: NetRule) -> list[str]:
    """What did not do what it says."""
    notes = ["COUNT let through as ACCEPT did, and counted nothing."] if rule.action else []
    for side in ("src", "dst"):
        if getattr(rule, f"{side}addr") and not getattr(rule, f"{side}addrmask"):
            notes.append(f"{side}addr without {side}addrmask matched every address.")
        if getattr(rule, f"{side}port") and not getattr(rule, f"{side}portmask"):
            notes.append(f"{side}port without {side}portmask matched every port.")
    return notes


def _ports(rule: NetRule, reading: Reading) -> str | None:
    """The target's ports as a rule of VFR's ends, '' for all; None if it cannot say them."""
    if rule.srcport or rule.srcportmask:
        return None
    if "dstport" not in reading.given:
        return ""
    mask = rule.dstportmask or 0xFFFF
    free = ~mask & 0xFFFF
    if free & (free + 1):
        return None
    low = rule.dstport & mask
    return f" {low}-{low + free}" if free else f" {low}"


# The file


def _plain(text: str) -> str:
    """A line that has no ends of lines in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _delete(live: list[Entry], line: int, rule: NetRule) -> Translated:
    """The newest rule that is equal in all fields is gone."""
    for at in range(len(live) - 1, -1, -1):
        if live[at].rule == rule:
            took = f"It took the rule of line {live.pop(at).line} away."
            return Translated(line, "", notes=(took,))
    none = (
        "It took nothing away: no rule was equal to it in every field. (Before March 2004 Xen ran off its list here.)"
    )
    return Translated(line, "", notes=(none,))


def _comment(line: int, reading: Reading) -> Translated:
    """A line that begins with #. Xen knew no comments."""
    if not reading.command or reading.command == "PRINT":
        return Translated(line, "")
    reason = "a comment here; but Xen knew none, and added a rule of this line if it was written to /proc/xeno/vfr"
    return Translated(line, "", refusal=reason)


def _without_rule(line: int, text: str, reading: Reading) -> Translated | None:
    if text.lstrip().startswith("#"):
        return _comment(line, reading)
    if reading.ignored:
        ignored = f"Xen ignored this line: {reading.ignored}." if text.strip() else ""
        return Translated(line, "", notes=(ignored,) if ignored else ())
    if reading.command == "PRINT":
        return Translated(line, "", notes=("PRINT showed the rules on Xen's console.",))
    return None


def translate(text: str, file: str, names: Mapping[int, str]) -> Translation:
    """All lines of a file, each as if it had been written to /proc/xeno/vfr by itself, in their order."""
    texts = text.split("\n")
    texts = texts[:-1] if texts[-1] == "" else texts
    readings = {n: read_line(line) for n, line in enumerate(texts, 1)}
    done: dict[int, Translated] = {}
    live: list[Entry] = []
    for n, reading in readings.items():
        other = _without_rule(n, texts[n - 1], reading)
        if other is None and reading.command == "DELETE":
            other = _delete(live, n, reading.rule)
        if other is None:
            live.append(Entry(n, reading.rule, -n))
        else:
            done[n] = other
    translator = _Translator(Engine(tuple(reversed(live))), names)
    for entry in live:
        done[entry.line] = _live(translator, entry, readings[entry.line])
    gone = Translated(0, "", notes=("A later line took this rule away again.",))
    lines = tuple(replace(done.get(n, gone), line=n, text=_plain(texts[n - 1])) for n in readings)
    return Translation(file, translator.domains(), lines)


def _live(translator: _Translator, entry: Entry, reading: Reading) -> Translated:
    if reading.unknown:
        reason = f"{reading.unknown!r} is no command of Xen's, which took it for ADD"
        return Translated(entry.line, "", _then(entry.rule), refusal=_plain(reason))
    return translator.explain(entry, translator.say(entry), reading)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(_plain(text), 116, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _head(whole: Translation) -> list[str]:
    about = f"Rules of Xen 1.x's virtual firewall-router, from {whole.file}. Above each is its line, and what it did."
    lines = [*_wrapped(about), "# Answers to what is allowed come back by themselves; then they needed a rule."]
    for owner in whole.domains:
        several = " (VFR gives a domain one address)" if owner.domain and len(owner.addresses) > 1 else ""
        own = ", ".join(owner.addresses) or "its address is in no rule"
        lines += _wrapped(f"domain {owner.domain} is {owner.name}: {own}{several}")
    return lines


def _rendered(whole: Translation) -> list[str]:
    lines, said = _head(whole), dict[Allow, int]()
    for t in whole.lines:
        if not t.text.strip():
            continue
        lines += ["", *(_wrapped(t.text.lstrip("# ")) if _is_bare(t) else [f"# {t.line}: {t.text}"])]
        lines += _wrapped(f"then: {t.then}") if t.then else []
        for note in t.notes:
            lines += _wrapped(note)
        lines += _wrapped(f"not translated: {t.refusal}") if t.refusal else []
        for rule in t.rules:
            lines.append(f"# said by line {said[rule]}: {rule}" if rule in said else str(rule))
            said.setdefault(rule, t.line)
        if t.refusal or any(said[rule] == t.line for rule in t.rules):
            lines += _suggested(t.hint, t.instead)
    return lines


def _is_bare(t: Translated) -> bool:
    """A comment of the author's, to be kept as it is."""
    return t.text.lstrip().startswith("#") and not t.refusal


def _suggested(hint: str, instead: Sequence[str]) -> list[str]:
    return [*_wrapped(hint), *(f"#     {line}" for line in instead)] if instead else []

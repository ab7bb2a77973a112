# SPDX-License-Identifier: Apache-2.0
"""Reads scenario files; the grammar is in docs/conformance.md.

A file becomes a list of Step. Nothing is run here; every error of writing is a ScenarioError with
file and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import scenario_agree as agree
import scenario_fec as fec
from scenario_packets import ACCECN, FLAG_BITS, ICMP_KINDS

NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
LEGS = {"inner": 0, "outer": 1}
ANY = None

TIME = re.compile(
    r"(?P<sign>[+@])(?P<at>[\d.]+(?:ns|us|ms|s|m|h)?)(?:~(?P<slack>[\d.]+(?:ns|us|ms|s|m|h)))?$"
)
RANGE = r"(?P<start>-?\d+|\*)(?::(?P<end>-?\d+|\*)\((?P<length>\d+|\*)\)|:(?P<burst>\d+)/(?P<each>\d+))?"
PACKET = re.compile(
    rf"(?P<flags>[{''.join(FLAG_BITS)}\-]+)\s+{RANGE}"
    r"(?:\s+ack\s+(?P<ack>-?\d+|\*))?(?:\s+win\s+(?P<win>\S+))?"
    r"(?:\s+<(?P<options>[^>]*)>)?(?:\s+\{(?P<attrs>[^}]*)\})?\s*$"
)
ICMP = re.compile(
    r"icmp\s+(?P<kind>[a-z\-]+)(?:\s+mtu\s+(?P<mtu>\d+))?(?:\s+quote\s+(?P<quote>-?\d+|\*))?"
    r"(?:\s+\{(?P<attrs>[^}]*)\})?\s*$"
)
COMPARE = re.compile(r"(?P<name>[A-Za-z_.]+)(?P<op>==|=|!=|<=|>=|<|>)(?P<value>\S+)$")
IN_ATTRS = {
    "badsum",
    "badipsum",
    "truncate",
    "doff",
    "pad",
    "frag",
    "tos",
    "ttl",
    "label",
    "ace",
    "urg",
    "port",
    "garble",
    "csum_ok",
    "more",
    "src",
    "link",
    "mtu",
    "gso",
    *fec.ATTRS,
}
OUT_ATTRS = {"tos", "ttl", "label", "ace", "gso", "len", "port", "urg", "link"}
PLAIN_OPTIONS = ("sackOK", "nop", "eol", "nots", "nosack", "noaccecn", "noagree")
VERBS = {
    "open",
    "app",
    "action",
    "no",
    "unreachable",
    "state",
    "info",
    "count",
    "quiet",
    "skip",
    "isn",
}
VERBS |= {"abort", "wait"}


class ScenarioError(Exception):
    """Something in a scenario is wrong: in its writing, or between what it expects and what
    the core did.
    """

    def __init__(self, path: Path, line: int, text: str) -> None:
        super().__init__(text)
        self.path, self.line = path, line

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.args[0]}"


@dataclass
class Packet:
    """A packet line. None stands for `*` or for what is not written."""

    leg: int
    inbound: bool
    flags: str
    seq: int | None
    end: int | None
    length: int | None
    each: int | None  # a run of segments with so many payload bytes each
    ack: int | None
    win: str | None
    options: list[tuple[str, tuple[int | None, ...]]] | None
    attrs: dict[str, int]


@dataclass
class IcmpLine:
    """An ICMP error; quote is the quoted segment's sequence number, relative."""

    leg: int
    inbound: bool
    kind: str
    mtu: int | None
    quote: int | None
    attrs: dict[str, int]


@dataclass
class Step:
    """One line. at_ns: relative to the step before, or to the start if absolute."""

    line: int
    text: str
    at_ns: int = 0
    absolute: bool = False
    slack_ns: int | None = None
    verb: str = ""
    words: list[str] = field(default_factory=list)
    packet: Packet | IcmpLine | None = None


@dataclass
class Scenario:
    """A file: its title (the first comment), its configuration, its steps."""

    path: Path
    title: str
    config: dict[str, str]
    steps: list[Step]


def duration_ns(text: str) -> int:
    """ "1.5ms" in ns; a bare number is seconds."""
    match = re.fullmatch(r"([\d.]+)(ns|us|ms|s|m|h)?", text)
    if not match:
        raise ValueError(f"{text!r} is not a time")
    return round(float(match[1]) * NS[match[2] or "s"])


def _number(text: str | None) -> int | None:
    return None if text in (None, "*") else int(text)


def _attrs(text: str | None, known: set[str]) -> dict[str, int]:
    out = {}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, value = item.partition(" ")
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(sorted(known))}")
        out[name] = int(value, 0) if value else 1
    return out


def _option(text: str) -> tuple[str, tuple[int | None, ...]]:
    name, *values = text.split()
    if name == "raw":
        return name, tuple(bytes.fromhex("".join(values)))
    if name == "sack":
        flat = [_number(edge) for block in values for edge in block.split(":")]
        if len(flat) % 2 or not flat:
            raise ValueError("sack takes blocks start:end")
        return name, tuple(flat)
    if name in ACCECN:
        if len(values) > 3:
            raise ValueError(f"{name} takes up to three counters")
        return name, tuple(_number(value) for value in values)
    if name in agree.ROLES:
        if len(values) not in (1, 2):
            raise ValueError(f"{name} takes features, and a value if it is not the right one")
        return name, (_number(values[0]), _number(values[1]) if len(values) > 1 else None)
    counts = {"mss": 1, "wscale": 1, "ts": 2, "parity": 1, "repaired": 1}
    counts |= dict.fromkeys(PLAIN_OPTIONS, 0)
    if name not in counts:
        raise ValueError(f"{name!r} is no option")
    if len(values) != counts[name]:
        raise ValueError(f"{name} takes {counts[name]} values")
    return name, tuple(_number(value) for value in values)


def _packet(leg: int, inbound: bool, text: str) -> Packet | IcmpLine:
    known = IN_ATTRS if inbound else OUT_ATTRS
    if match := ICMP.match(text):
        if match["kind"] not in ICMP_KINDS:
            raise ValueError(f"{match['kind']!r} is not one of {', '.join(ICMP_KINDS)}")
        mtu, quote = _number(match["mtu"]), _number(match["quote"])
        return IcmpLine(leg, inbound, match["kind"], mtu, quote, _attrs(match["attrs"], known))
    match = PACKET.match(text)
    if not match:
        raise ValueError(
            f"{text!r} is no packet: FLAGS START:END(LENGTH) [ack N] [win N] [<options>] [{{attributes}}]"
        )
    flags = match["flags"].replace("-", "")
    start, end, length = _number(match["start"]), _number(match["end"]), _number(match["length"])
    each = _number(match["each"])
    if each:
        end = int(match["burst"])
        length = end - start if start is not None else None
    elif match["end"] is None:
        end, length = start, 0
    extra = ("S" in flags) + ("F" in flags)
    if None not in (start, end, length) and end - start != length and end - start != length + extra:
        raise ValueError(f"{start}:{end} is not {length} bytes")
    if inbound and (start is None or length is None):
        raise ValueError("a packet to the core needs numbers")
    options = None
    if match["options"] is not None:
        options = [
            _option(part) for part in filter(None, (p.strip() for p in match["options"].split(",")))
        ]
    attrs = _attrs(match["attrs"], known)
    return Packet(
        leg,
        inbound,
        flags,
        start,
        end,
        length,
        each,
        _number(match["ack"]),
        match["win"],
        options,
        attrs,
    )


def _step(number: int, text: str) -> Step:
    step = Step(number, text)
    words = text.split()
    if match := TIME.match(words[0]):
        step.at_ns = duration_ns(match["at"])
        step.absolute = match["sign"] == "@"
        step.slack_ns = duration_ns(match["slack"]) if match["slack"] else None
        text = text.split(None, 1)[1] if len(words) > 1 else ""
        words = words[1:]
    if not words:
        raise ValueError("a time alone says nothing; write `wait`")
    if words[0] in LEGS and len(words) > 2 and words[1] in ("<", ">"):
        step.packet = _packet(LEGS[words[0]], words[1] == "<", text.split(None, 2)[2])
    elif words[0] in VERBS:
        step.verb, step.words = words[0], words[1:]
    else:
        raise ValueError(
            f"{words[0]!r} begins no line; a line is a packet or one of {', '.join(sorted(VERBS))}"
        )
    return step


def parse(path: Path) -> Scenario:
    """The scenario in a file; ScenarioError if it is not well written."""
    config: dict[str, str] = {}
    steps: list[Step] = []
    title = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if text.startswith("#"):
            title = title or ("" if "SPDX" in text else text.lstrip("# "))
            continue
        text = re.sub(r"\s+#.*$", "", text)
        if not text:
            continue
        try:
            if text.split()[0] == "config":
                if steps:
                    raise ValueError("config comes before everything else")
                config |= dict(word.split("=", 1) for word in text.split()[1:])
            else:
                steps.append(_step(number, text))
        except ValueError as error:
            raise ScenarioError(path, number, str(error)) from None
    if not title or not steps:
        raise ScenarioError(
            path, 1, "a scenario begins with a comment that says what it shows, and has steps"
        )
    return Scenario(path, title, config, steps)

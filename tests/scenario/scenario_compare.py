# SPDX-License-Identifier: Apache-2.0
"""Packets of the core's against the lines that expect them, and as text in the
scenarios' own words.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import scenario_agree as agree
from scenario_core import ACK, INNER, LINKS, OUTER, RST, SYN
from scenario_grammar import COMPARE, NS, IcmpLine, Packet
from scenario_packets import ACE_SHIFT, FLAG_BITS, Icmp, Tcp

STRICT_FLAGS = "SFR."
OPERATORS = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
ABSENT = {
    "nots": ("ts",),
    "nosack": ("sack",),
    "noaccecn": ("accecn0", "accecn1"),
    "noagree": (*agree.ROLES, *agree.COUNTS),
    "nop": (),
}
PORT = 80


class MismatchError(Exception):
    """What the core did is not what the line says."""


@dataclass
class Flow:
    """What the end beyond a leg knows of one connection. Sequence numbers of the script are
    relative to the two.
    """

    isn: int
    core_isn: int | None = None
    win: int = 65535
    ts: bool = False
    ts_base: int = 1000  # the far end's clock: ts_base + ms since the start
    core_ts_first: int = 0
    core_ts_last: int = 0
    link: int = LINKS[OUTER]  # by which what the core sends must go
    nonce: int = agree.NONCE  # of the far end's last offer
    core_nonce: int = 0  # of the core's

    def relative(self, packet: Tcp) -> tuple[int, int]:
        """(seq, ack) as scripts write them: signed, relative to the initial sequence numbers."""

        def signed(value: int) -> int:
            return (value + 2**31) % 2**32 - 2**31

        if (
            self.core_isn is None
        ):  # a reset of what never was a connection: seq is the ack it answers
            return packet.seq, signed(packet.ack - self.isn)
        return signed(packet.seq - self.core_isn), signed(packet.ack - self.isn)


@dataclass
class Sent:
    """A packet of the core's. at and start (of the scenario): ns of the core's clock."""

    at: int
    start: int
    leg: int
    packet: Tcp | Icmp
    flow: Flow

    def __str__(self) -> str:
        packet = self.packet
        at = f"{(self.at - self.start) / NS['s']:.6f} {'inner' if self.leg == INNER else 'outer'} >"
        if isinstance(packet, Icmp):
            return f"{at} icmp {packet.kind} mtu {packet.mtu} quote {(packet.seq - self.flow.isn) % 2**32}"
        seq, ack = self.flow.relative(packet)
        options = ",".join(_show_option(self.flow, name, values) for name, values in packet.options)
        n = len(packet.payload)
        text = f"{at} {flag_text(packet.flags)} {seq}:{seq + n}({n})"
        text += f" ack {ack}" if packet.flags & ACK else ""
        return f"{text} win {packet.win} <{options}>"


def port_of(leg: int, packet: Tcp | Icmp) -> int:
    """The remote peer's port; what an ICMP error quotes went the other way."""
    remote_sends = (leg == INNER) == isinstance(packet, Tcp)
    return packet.sport if remote_sends else packet.dport


def flag_text(flags: int) -> str:
    """Flags as scripts write them."""
    return "".join(name for name, bit in FLAG_BITS.items() if flags & bit) or "-"


def _show_option(flow: Flow, name: str, values: tuple[int, ...]) -> str:
    if name == "sack":
        edges = [(v - flow.isn) % 2**32 for v in values]
        return "sack " + " ".join(f"{a}:{b}" for a, b in zip(edges[::2], edges[1::2], strict=True))
    if name == "ts":
        return f"ts {(values[0] - flow.core_ts_first) % 2**32} {values[1]}"
    return " ".join([name, *map(str, values)])


def differences(line: Packet | IcmpLine, sent: Sent) -> list[str]:
    """What of a packet is not as its line says, one text each."""
    packet, flow = sent.packet, sent.flow
    port = port_of(sent.leg, packet)
    pairs: list[tuple[str, Any, Any]] = [("port", line.attrs.get("port", PORT), port)]
    if isinstance(line, IcmpLine) or isinstance(packet, Icmp):
        if not isinstance(packet, Icmp) or not isinstance(line, IcmpLine):
            return ["one is ICMP, the other TCP"]
        pairs += [("kind", line.kind, packet.kind), ("mtu", line.mtu, packet.mtu)]
        pairs += [("quote", line.quote, (packet.seq - flow.isn) % 2**32)]
        pairs += _link_pairs(line, sent)
        return [
            f"{name}: {want} wanted, {got} got"
            for name, want, got in pairs
            if want is not None and want != got
        ]
    seq, ack = flow.relative(packet)
    shown = flag_text(packet.flags)
    pairs += [("flag " + f, f in line.flags, f in shown) for f in STRICT_FLAGS]
    pairs += [("flag " + f, True, f in shown) for f in line.flags if f not in STRICT_FLAGS]
    pairs += [
        ("seq", line.seq, seq),
        ("length", line.length, len(packet.payload)),
        ("ack", line.ack, ack),
    ]
    pairs += [
        ("tos", line.attrs.get("tos"), packet.tos),
        ("ttl", line.attrs.get("ttl"), packet.ttl),
        ("label", line.attrs.get("label"), packet.label),
        ("ace", line.attrs.get("ace"), packet.flags >> ACE_SHIFT & 7),
        ("gso", line.attrs.get("gso"), packet.gso_size),
        ("len", line.attrs.get("len"), packet.total_len),
        ("urg", line.attrs.get("urg"), packet.urgent),
    ]
    pairs += _link_pairs(line, sent)
    wrong = [
        f"{name}: {want} wanted, {got} got"
        for name, want, got in pairs
        if want is not None and want != got
    ]
    if line.win not in (None, "*") and not _compare_win(line.win, packet.win):
        wrong.append(f"win: {line.win} wanted, {packet.win} got")
    return wrong + _option_differences(line, packet, flow)


def _link_pairs(line: Packet | IcmpLine, sent: Sent) -> list[tuple[str, Any, Any]]:
    packet, usual = sent.packet, sent.flow.link
    if isinstance(packet, Tcp) and packet.flags & (SYN | RST) and packet.link == LINKS[OUTER]:
        usual = LINKS[OUTER]  # an answer without a connection
    return [("link", line.attrs.get("link", usual), packet.link)] if sent.leg == OUTER else []


def _compare_win(want: str | None, got: int) -> bool:
    match = COMPARE.match(f"win{want}" if want and not want[0].isdigit() else f"win={want}")
    if not match:
        raise MismatchError(f"win {want} is no comparison")
    return bool(OPERATORS[match["op"]](got, int(match["value"])))


def _option_differences(line: Packet, packet: Tcp, flow: Flow) -> list[str]:
    if line.options is None:
        return []
    got = dict(packet.options)
    wrong = []
    for name, wanted in line.options:
        values = wanted
        if name in ABSENT:
            wrong += [f"option {absent}: not wanted" for absent in ABSENT[name] if absent in got]
            continue
        if name not in got:
            wrong.append(f"option {name}: missing")
            continue
        have: list[int] = list(got[name])
        if name == "sack":
            have = [(v - flow.isn) % 2**32 for v in have]
        if name in ("answer", "confirm") and values[1] is None:
            nonce = flow.nonce if name == "answer" else flow.core_nonce
            values = (values[0], agree.check_value(nonce, agree.ROLES[name], have[0]))
        if name == "ts":
            have[0] = (have[0] - flow.core_ts_first) % 2**32
        if len(have) != len(values) or any(
            w is not None and w != h for w, h in zip(values, have, strict=True)
        ):
            wrong.append(f"option {name}: {values} wanted, {tuple(have)} got")
    return wrong

# SPDX-License-Identifier: Apache-2.0
"""A core in virtual time with what is at both of its ends: what comes is given to it, what it
sends is noted and waits for a line that expects it.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import scenario_fec as fec
from scenario_compare import PORT, Flow, MismatchError, Sent, flag_text, port_of
from scenario_core import ACK, FIN, INNER, LINKS, OUTER, SYN, App, Core, stream
from scenario_grammar import NS
from scenario_packets import Icmp, Tcp
from scenario_setup import Setup

RING = 40


class Bench:
    """One core, its clock, its two ends and their queues."""

    def __init__(self, built: tuple[Any, Any], setup: Setup, start: int) -> None:
        self.setup, self.start = setup, start
        self.core = Core(built, start, setup.core)
        self.flows: dict[tuple[int, int], Flow] = {}
        self.queue: dict[int, deque[Sent]] = {INNER: deque(), OUTER: deque()}
        self.trace: deque[str] = deque(maxlen=RING)
        self.apps: dict[int, App] = {}
        self.app_on = False
        self.more = False  # another packet comes before the core is asked what it has to send

    def tell(self, text: str) -> None:
        """What happened now, for whoever reads of a failure."""
        self.trace.append(f"{(self.core.now - self.start) / NS['s']:.6f} {text}")

    # -- the clock --

    def _pull(self) -> None:
        """Takes every packet that the core has now."""
        again = True
        while again:
            again = False
            for leg in (OUTER, INNER):
                while packet := self.core.get(leg):
                    again = True
                    self._note(leg, packet)

    def _note(self, leg: int, packet: Tcp | Icmp) -> None:
        flow = self.flow(leg, port_of(leg, packet))
        if isinstance(packet, Tcp):
            if packet.flags & SYN:
                flow.core_isn = packet.seq
                offer = dict(packet.options).get("offer")
                flow.core_nonce = offer[1] if offer else flow.core_nonce
            ts = dict(packet.options).get("ts")
            if ts:
                flow.core_ts_last = ts[0]
                flow.core_ts_first = flow.core_ts_first or ts[0]
        sent = Sent(self.core.now, self.start, leg, packet, flow)
        self.trace.append(str(sent))
        self._check_content(flow, sent)
        if leg == INNER and self.app_on:
            if isinstance(packet, Tcp):
                self.app(packet.sport).packet(packet)
            else:
                self.app(PORT).state = packet.kind
            return
        self.queue[leg].append(sent)

    def _check_content(self, flow: Flow, sent: Sent) -> None:
        packet = sent.packet
        if not isinstance(packet, Tcp) or not packet.payload or flow.core_isn is None:
            return
        at = (packet.seq - flow.core_isn) % 2**32 - 1
        origin = INNER if sent.leg == OUTER else OUTER
        if "parity" in dict(packet.options):
            fec.check(packet.payload, functools.partial(stream, origin))
            return
        if packet.payload != stream(origin, at, len(packet.payload)):
            raise MismatchError(f"the core sent bytes that were never given to it: {sent}")

    def settle(self) -> int:
        """Everything that is due at this instant; when to come again."""
        for _ in range(100_000):
            self._pull()
            due = self.core.poll()
            if due > self.core.now:
                return due
        raise MismatchError("the core asks to be polled again and again at the same time")

    def advance(self, to: int, until: int | None = None) -> None:
        """Runs the clock to `to`, or until a packet is there on leg `until`."""
        if self.more and to <= self.core.now:
            return
        while True:
            due = self.settle()
            if until is not None and self.queue[until]:
                return
            if due > to:
                break
            self.core.now = due
        self.core.now = max(self.core.now, to)
        self.settle()

    # -- the ends --

    def flow(self, leg: int, port: int) -> Flow:
        """Of the end beyond that leg; port: the remote one."""
        return self.flows.setdefault((leg, port), Flow(self.setup.isns[leg]))

    def app(self, port: int = PORT) -> App:
        """The application's socket, which answers from now on."""
        self.app_on = True
        if port not in self.apps:
            self.apps[port] = App(
                self.setup.family,
                port,
                self.setup.inner_mtu,
                self.setup.isns[INNER],
                self._from_app,
            )
        return self.apps[port]

    def _from_app(self, tcp: Tcp) -> None:
        self.tell(f"inner < {flag_text(tcp.flags)} ({len(tcp.payload)})")
        self.put(INNER, tcp.dport, tcp.pack(), {})

    def put(self, leg: int, port: int, data: bytes, attrs: dict[str, int]) -> None:
        """Bytes arrive at the core."""
        link = attrs.get("link", LINKS[leg])
        if leg == INNER:
            self.flow(OUTER, port).link = link or self.flow(OUTER, port).link
        mtu, csum_ok = attrs.get("mtu", self.setup.mtu), bool(attrs.get("csum_ok"))
        self.core.put(leg, data, link, mtu, csum_ok, attrs.get("gso", 0))

    # -- what waits --

    def take(self, flags: int) -> None:
        """The next packet on the outer leg, which must be there, and has these flags."""
        self.settle()
        if not self.queue[OUTER]:
            raise MismatchError(f"the core did not send {flag_text(flags)}")
        sent = self.queue[OUTER].popleft()
        if not isinstance(sent.packet, Tcp) or sent.packet.flags & (SYN | ACK | FIN | 4) != flags:
            raise MismatchError(f"{flag_text(flags)} wanted, got {sent}")

    def nothing_left(self) -> None:
        """Fails if the core sent what no line has expected."""
        for leg in (OUTER, INNER):
            if self.queue[leg]:
                raise MismatchError(
                    f"before this line the core sent {self.queue[leg][0]}, which no line expects"
                )

# SPDX-License-Identifier: Apache-2.0
"""What the far ends send, by the lines of a scenario: segments, bent ones, and ICMP errors."""

from __future__ import annotations

import functools

import scenario_agree as agree
import scenario_fec as fec
from scenario_bench import Bench
from scenario_compare import PORT, Flow, MismatchError
from scenario_core import ACK, INNER, OUTER, stream
from scenario_grammar import NS, IcmpLine, Packet
from scenario_packets import (
    ACE_SHIFT,
    FLAG_BITS,
    HOST,
    HOST_PORT,
    PEER,
    ROUTER,
    Icmp,
    Tcp,
    checksum,
)


class Sender:
    """Sends to the core of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def packet(self, line: Packet) -> None:
        """A packet line towards the core."""
        pieces = [(line.seq or 0, line.length or 0)]
        if line.each:
            stops = range(line.seq or 0, line.end or 0, line.each)
            pieces = [(at, min(line.each, (line.end or 0) - at)) for at in stops]
        for seq, length in pieces:
            self._send_one(line, seq, length)

    def _send_one(self, line: Packet, seq: int, length: int) -> None:
        port, family = line.attrs.get("port", PORT), self.bench.setup.family
        flow = self.bench.flow(line.leg, port)
        core_isn = flow.core_isn or 0
        flags = sum(FLAG_BITS[name] for name in line.flags) | line.attrs.get("ace", 0) << ACE_SHIFT
        ack = (core_isn + line.ack if line.ack is not None else 0) % 2**32
        if line.ack is None and flags & ACK:
            raise MismatchError("a packet to the core with the ACK flag needs ack N")
        src, dst = (HOST, PEER) if line.leg == INNER else (PEER, HOST)
        ports = (HOST_PORT, port) if line.leg == INNER else (port, HOST_PORT)
        payload = stream(line.leg, max(seq - ("S" not in line.flags), 0), length)
        if "fec_s" in line.attrs:
            payload = fec.made(line.attrs, functools.partial(stream, line.leg))[:length]
        if "garble" in line.attrs:
            payload = bytes(byte ^ 0xFF for byte in payload)
        tcp = Tcp(
            src[family], dst[family], *ports, flow.isn + seq, ack, flags,
            flow.win if line.win is None else int(line.win),
            self._in_options(line, flow, core_isn), payload,
            line.attrs.get("tos", 0), line.attrs.get("urg", 0), ttl=line.attrs.get("ttl", 64),
            label=line.attrs.get("label", 0),
        )  # fmt: skip
        if "src" in line.attrs:
            tcp.src = {
                4: {0: "0.0.0.0", 1: "224.0.0.1", 2: "255.255.255.255"},
                6: {0: "::", 1: "ff02::1", 2: "::ffff:192.0.2.9"},
            }[family][line.attrs["src"]]
        if "S" in line.flags:
            flow.ts = any(name == "ts" for name, _ in tcp.options)
        self.bench.tell(
            f"{'inner' if line.leg == INNER else 'outer'} < "
            f"{line.flags} {seq}:{seq + length}({length}) ack {line.ack}"
        )
        self.bench.put(line.leg, port, self._bend(tcp, line.attrs), line.attrs)
        self.bench.more = "more" in line.attrs
        if not self.bench.more:
            self.bench.settle()

    def _in_options(
        self, line: Packet, flow: Flow, core_isn: int
    ) -> list[tuple[str, tuple[int, ...]]]:
        out: list[tuple[str, tuple[int, ...]]] = []
        names = {name for name, _ in line.options or []}
        clock = flow.ts_base + (self.bench.core.now - self.bench.start) // NS["ms"]
        if flow.ts and not names & {"ts", "nots"} and "S" not in line.flags:
            out.append(("ts", (clock, flow.core_ts_last)))
        for name, values in line.options or []:
            if name == "sack":
                out.append((name, tuple(core_isn + int(v or 0) for v in values)))
            elif name == "ts":
                value, echo = values
                out.append(
                    (
                        name,
                        (
                            clock if value is None else value,
                            flow.core_ts_last if echo is None else flow.core_ts_first + echo,
                        ),
                    )
                )
            elif name in agree.ROLES:
                out.append((name, self._agreeing(name, values, flow)))
            elif name != "nots":
                out.append((name, tuple(int(v or 0) for v in values)))
        return out

    def _agreeing(self, name: str, values: tuple[int | None, ...], flow: Flow) -> tuple[int, int]:
        """Features and value of an option of scenario_agree."""
        features, value = int(values[0] or 0), values[1]
        if name == "offer":
            flow.nonce = agree.NONCE if value is None else value
            return features, flow.nonce
        nonce = flow.core_nonce if name == "answer" else flow.nonce
        right = agree.check_value(nonce, agree.ROLES[name], features)
        return features, right if value is None else value

    def _bend(self, tcp: Tcp, attrs: dict[str, int]) -> bytes:
        data = bytearray(tcp.pack(attrs.get("doff")))
        ip_len = 20 if self.bench.setup.family == 4 else 40
        if "badsum" in attrs:
            data[ip_len + 16] ^= 0x55
        if "badipsum" in attrs:
            data[10] ^= 0x55
        if "frag" in attrs:
            data[6:8] = b"\x20\x00"
            data[10:12] = b"\0\0"
            data[10:12] = checksum(bytes(data[:20])).to_bytes(2, "big")
        if "truncate" in attrs:
            data = data[: attrs["truncate"]]
        return bytes(data) + b"\0" * attrs.get("pad", 0)

    def icmp(self, line: IcmpLine) -> None:
        """An ICMP error that quotes a segment of the core's."""
        port, family = line.attrs.get("port", PORT), self.bench.setup.family
        flow = self.bench.flow(line.leg, port)
        src, dst = (HOST, PEER) if line.leg == OUTER else (PEER, HOST)
        ports = (HOST_PORT, port) if line.leg == OUTER else (port, HOST_PORT)
        seq = (flow.core_isn or 0) + (line.quote or 0)
        quoted = Tcp(src[family], dst[family], *ports, seq, 0, ACK)
        sender = ROUTER if line.leg == OUTER else HOST
        error = Icmp(sender[family], src[family], line.kind, line.mtu or 0, *ports, seq)
        data = bytearray(error.pack(quoted))
        if "badsum" in line.attrs:
            data[22 if family == 4 else 42] ^= 0x55
        self.bench.tell(f"< icmp {line.kind} quote {line.quote}")
        self.bench.put(
            line.leg, port, bytes(data[: line.attrs.get("truncate", len(data))]), line.attrs
        )
        self.bench.settle()

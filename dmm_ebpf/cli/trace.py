# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf trace`: the segments of user stacks as lines, made of a capture of their headers."""

from __future__ import annotations

import asyncio
import contextlib
import time

from dmm_ebpf import pcapng
from dmm_ebpf.cli import output
from dmm_ebpf.cli.capture import ending
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.capture import Capture, Wanted
from dmm_ebpf.records.segment import SegmentRow
from dmm_ebpf.show import segments

HEADER_BYTES = 14 + 4 + 60 + 60  # Ethernet with a VLAN tag, the longest of IPv4, the longest of TCP
_NS_PER_S = 1_000_000_000


def trace(
    instance: str,
    stacks: tuple[str, ...],
    legs: tuple[str, ...],
    *,
    count: int | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Until Ctrl-C, SIGTERM, count frames, seconds, or the end of the processes."""
    wanted = Wanted(stacks, legs, HEADER_BYTES, verb="trace")
    errors = asyncio.run(_trace(Capture(instance, wanted), count, seconds, as_json))
    if errors:
        raise errors[0]


async def _trace(
    capture: Capture, count: int | None, seconds: float | None, as_json: bool
) -> list[DmmError]:
    lines = 0
    async with capture:
        with ending(capture.end, seconds):
            async with contextlib.aclosing(capture.parts(count)) as parts:
                async for part, _ in parts:
                    for packet in pcapng.packets(part):
                        _print(packet, *capture.interfaces[packet.interface], as_json=as_json)
                        lines += 1
                        if lines == count:
                            return []
    return capture.errors


def _print(packet: pcapng.Packet, stack: str, leg: str, *, as_json: bool) -> None:
    direction = {pcapng.INBOUND: "in", pcapng.OUTBOUND: "out"}.get(packet.flags, "?")
    segment = segments.read(packet.data)
    if as_json:
        output.print_json_line(
            SegmentRow(packet.time_ns, stack, leg, direction, segment, packet.whole_bytes)
        )
        return
    seconds, rest = divmod(packet.time_ns, _NS_PER_S)
    clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"
    print(f"{clock} {stack} {leg} {direction} {segments.text(segment)}", flush=True)

# SPDX-License-Identifier: Apache-2.0
"""pcapng: what is written is read by tcpdump, several streams become one file, and a stream
is not believed.
"""

from __future__ import annotations

import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf import pcapng

ARP = bytes.fromhex(
    "ffffffffffff0200000000010806000108000604000102000000000ac0000201000000000000c0000202"
)


def packet(interface: int, frame: bytes = ARP, time_ns: int = 0) -> bytes:
    padded = frame + bytes(-len(frame) % 4)
    body = (
        struct.pack(
            "=IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), len(frame)
        )
        + padded
    )
    length = len(body) + 12
    return struct.pack("=II", pcapng.ENHANCED_PACKET, length) + body + struct.pack("=I", length)


def test_tcpdump_reads_what_is_written(tmp_path):
    file = tmp_path / "a.pcapng"
    file.write_bytes(pcapng.header([("eth0", "outer"), ("dmm-0.0.in", "inner")], 4096) + packet(1))
    said = subprocess.run(
        ["tcpdump", "-n", "-r", str(file)], capture_output=True, text=True, check=True
    )
    assert "who-has 192.0.2.2 tell 192.0.2.1" in said.stdout


@given(st.lists(st.binary(max_size=90), max_size=8), st.integers(1, 50), st.integers(0, 30))
def test_blocks_come_whole_however_they_are_cut(frames, cut, first):
    stream = pcapng.Stream("wan", first, 2)
    data = b"".join(packet(number % 2, frame) for number, frame in enumerate(frames))
    fed = [stream.feed(data[at : at + cut]) for at in range(0, len(data), cut)]
    assert b"".join(found for found, _ in fed) == b"".join(
        packet(first + number % 2, frame) for number, frame in enumerate(frames)
    )
    assert sum(count for _, count in fed) == len(frames)


def test_no_more_blocks_than_are_wanted():
    assert pcapng.Stream("wan", 0, 1).feed(packet(0) * 5, 2) == (packet(0) * 2, 2)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pcapng.section(), "type 0xa0d0d0a"),
        (struct.pack("=II", pcapng.ENHANCED_PACKET, 31), "31 bytes"),
        (struct.pack("=II", pcapng.ENHANCED_PACKET, 0), "0 bytes"),
        (struct.pack("=II", pcapng.ENHANCED_PACKET, 1 << 31), f"{1 << 31} bytes"),
        (packet(2), "interface 2"),
        (packet(0)[:-4] + bytes(4), "interface 0"),
    ],
)
def test_what_is_no_stream_of_packets_ends_it(data, why):
    with pytest.raises(pcapng.StreamError, match=why):
        pcapng.Stream("wan", 0, 2).feed(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_blocks_or_refused(data):
    try:
        found, _ = pcapng.Stream("wan", 0, 2).feed(data)
    except pcapng.StreamError:
        return
    assert data.startswith(found)


@given(st.binary(max_size=300))
def test_any_file_is_blocks_or_refused(data):
    try:
        for _kind, body in pcapng.blocks(data):
            assert len(body) < len(data)
    except pcapng.StreamError:
        pass

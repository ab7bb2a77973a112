# SPDX-License-Identifier: Apache-2.0
"""Segments in words: tcpdump says the same of the same bytes, and nothing is too broken to be told
of.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf import pcapng
from dmm_ebpf.show import segments

MACS = bytes.fromhex("020000000002020000000001")
OPTIONS = bytes.fromhex("020405b40402080a000000010000000201030307")
SACK = bytes.fromhex("0101050a0000000a00000014")


def tcp(options: bytes = b"", payload: bytes = b"", flags: int = 0x18) -> bytes:
    padded = options + bytes(-len(options) % 4)
    offset = (20 + len(padded)) // 4 << 12 | flags
    return struct.pack("!HHIIHHHH", 40000, 443, 7, 9, offset, 1000, 0, 0) + padded + payload


def ip4(rest: bytes, protocol: int = 6, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(rest), 1, fragment, 64, protocol, 0)
    return MACS + b"\x08\x00" + head + bytes([192, 0, 2, 1, 203, 0, 113, 7]) + rest


def ip6(rest: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(rest), 6, 64)
    ends = bytes.fromhex("20010db800000000000000000000000120010db8000000000000000000000002")
    return MACS + b"\x86\xdd" + head + ends + rest


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (
            ip4(tcp(OPTIONS, flags=2)),
            "192.0.2.1:40000 > 203.0.113.7:443 SYN seq 7 win 1000 len 0 "
            "[mss 1460, sackOK, TS val 1 ecr 2, wscale 7]",
        ),
        (
            ip6(tcp(SACK, b"abc")),
            "[2001:db8::1]:40000 > [2001:db8::2]:443 PSH,ACK seq 7 ack 9 win 1000 len 3 "
            "[sack 10-20]",
        ),
        (ip4(tcp(flags=0)), "192.0.2.1:40000 > 203.0.113.7:443 none seq 7 win 1000 len 0"),
        (ip4(b"", protocol=17), "192.0.2.1 > 203.0.113.7 IP protocol 17"),
        (ip4(b"x" * 8, fragment=2), "192.0.2.1 > 203.0.113.7 IPv4 fragment at 16"),
        (ip4(tcp())[:40], "192.0.2.1 > 203.0.113.7 TCP, cut short"),
        (MACS + b"\x08\x06", "02:00:00:00:00:01 > 02:00:00:00:00:02 type 0x0806"),
        (b"", "- > - cut short"),
    ],
)
def test_a_line(frame: bytes, said: str) -> None:
    assert segments.text(segments.read(frame)) == said


@given(st.binary(max_size=120), st.sampled_from([0x0800, 0x86DD, 0x8100]))
def test_anything_is_told(rest: bytes, kind: int) -> None:
    assert segments.text(segments.read(MACS + struct.pack("!H", kind) + rest))


@given(st.binary(max_size=40))
def test_any_options_are_told(options: bytes) -> None:
    said = segments.read(ip4(tcp(options)))
    assert not said.why
    assert all(text.isprintable() for text in said.options)


def test_tcpdump_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    frame = ip4(tcp(OPTIONS, b"abc"))
    body = struct.pack("=IIIII", 0, 0, 0, len(frame), len(frame)) + frame + bytes(-len(frame) % 4)
    block = struct.pack("=II", pcapng.ENHANCED_PACKET, len(body) + 12) + body
    file.write_bytes(
        pcapng.header([("eth0", "outer")], 4096) + block + struct.pack("=I", len(body) + 12)
    )
    argv = ["tcpdump", "-n", "-S", "-r", str(file)]
    theirs = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    ours = segments.read(frame)
    found = re.search(
        r"seq (\d+):\d+, ack (\d+), win (\d+), options \[(.*?)\], length (\d+)", theirs
    )
    assert found is not None
    assert found.groups()[:3] == (str(ours.seq), str(ours.ack), str(ours.window))
    assert found[4].replace("nop,", "").replace(",eol", "").split(",") == ours.options
    assert int(found[5]) == ours.length_bytes

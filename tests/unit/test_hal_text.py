# SPDX-License-Identifier: Apache-2.0
"""What hal and userstack do with bytes alone: netlink framing, pid files,
specs, control messages.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf.hal import stackdevice
from dmm_ebpf.hal.netlink import attributes, messages
from dmm_ebpf.userstack import pidfile
from dmm_ebpf.userstack.spec import NicSpec, StackSpec


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_read_as_written(pairs):
    assert list(attributes(b"".join(attribute(k, v) for k, v in pairs), 0)) == pairs


@given(st.binary(max_size=300))
def test_no_bytes_make_the_framing_fail(data):
    for _kind, body in messages(data):
        list(attributes(body, 0))


def test_names_of_the_devices_of_a_process(tmp_path: Path):
    nics = [NicSpec(7 + slot, f"eth{slot}", slot, 2, bytes(6), 1500) for slot in (0, 3)]
    name = stackdevice.name_of(5)
    spec = StackSpec("i", "wan", 3, 5, name, nics, 5, tmp_path, 7)
    assert spec.devices() == ["dmm-5.0.in", "dmm-5.3.in", "dmm-5.0.out", "dmm-5.3.out"]
    last = stackdevice.name_of(stackdevice.MAX_K - 1)
    assert len(stackdevice.outer(last, 15)) < 16, "IFNAMSIZ"


def test_pid_file(tmp_path: Path):
    path = tmp_path / "stack-x.pid"
    assert pidfile.read(path) is None
    pidfile.write(path, 12, 345)
    assert pidfile.read(path) == (12, 345)
    path.write_text("nonsense")
    assert pidfile.read(path) is None
    assert pidfile.start_time(os.getpid()) > 0
    assert pidfile.start_time(4194303) == 0
    fd = pidfile.open_process(os.getpid(), pidfile.start_time(os.getpid()))
    assert fd is not None
    os.close(fd)


def test_spec_survives_json(tmp_path: Path):
    nic = NicSpec(7, "eth0", 1, 2, bytes(range(6)), 1500)
    spec = StackSpec("i", "wan", 3, 0, "dmm-0", [nic], 5, tmp_path, 7, congestion="cubic")
    assert StackSpec.from_json(spec.to_json()) == spec
    assert spec.control_path == tmp_path / "stack-wan.sock"

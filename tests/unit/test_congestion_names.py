# SPDX-License-Identifier: Apache-2.0
"""The congestion controls and transports of user stacks: the core and the policy know the same
ones.
"""

from __future__ import annotations

import re
from pathlib import Path

from dmm_ebpf.userstack._core import ffi, lib

from dmm_ebpf.kit.names import CONTROLS, TRANSPORTS

ROOT = Path(__file__).resolve().parents[2]
CC = ROOT / "dmm_ebpf/userstack/core/cc"


def test_a_policy_knows_the_congestion_controls_of_the_core() -> None:
    """cc_find() has those of its list alone, each under the name that its own file gives it."""
    listed = re.findall(r"&cc_(\w+)", (CC / "cc.c").read_text(encoding="utf-8"))
    named = {
        symbol: name
        for file in CC.glob("cc_*.c")
        for symbol, name in re.findall(
            r'const struct cc_ops cc_(\w+) = \{\s*\.name = "(\w+)"',
            file.read_text(encoding="utf-8"),
        )
    }
    assert sorted(named) == sorted(listed)
    assert sorted(named.values()) == sorted(CONTROLS)


def test_a_policy_knows_the_transports_of_the_core() -> None:
    named = []
    while (name := lib.dmm_core_transport(len(named))) != ffi.NULL:
        named.append(ffi.string(name).decode())
    assert tuple(named) == TRANSPORTS


def test_a_core_has_the_transport_that_it_is_given() -> None:
    config = ffi.new("struct dmm_core_config *", {"transport": b"tcp"})
    core = lib.dmm_core_create(config)
    assert core != ffi.NULL
    lib.dmm_core_destroy(core)
    config.transport = b"carrier pigeon"
    assert lib.dmm_core_create(config) == ffi.NULL


def test_a_core_that_runs_takes_another_transport_by_name() -> None:
    core = lib.dmm_core_create(ffi.new("struct dmm_core_config *"))
    assert (
        lib.dmm_core_set_transport(core, b"carrier pigeon"),
        lib.dmm_core_set_transport(core, b"tcp"),
    ) == (0, 1)
    lib.dmm_core_destroy(core)

# SPDX-License-Identifier: Apache-2.0
"""The options of a user stack on their way from a policy to C: by name, none lost, none misread."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from dmm_ebpf.userstack._core import ffi, lib

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.policy.model import UserStack
from dmm_ebpf.userstack.engine import set_options


def _config(options: dict[str, Any]) -> Any:
    config = ffi.new("struct dmm_engine_config *")
    set_options(config, options)
    return config


def test_every_option_has_a_member() -> None:
    members = {
        name
        for of in ("engine", "core")
        for name, _ in ffi.typeof(f"struct dmm_{of}_config").fields
    }
    told = {one.name for one in fields(UserStack) if one.metadata["process"]}
    assert {"sndbuf_bytes", "rcvbuf_bytes", "syn_cookies", "busy_poll_us"} <= told <= members


def test_what_a_policy_says_gets_there() -> None:
    stack = UserStack(kind="user", sndbuf_bytes=1 << 20, syn_cookies="always", busy_poll_us=50)
    config = _config(stack.process_options())
    assert (config.core.sndbuf_bytes, config.core.syn_cookies) == (
        1 << 20,
        lib.DMM_SYN_COOKIES_ALWAYS,
    )
    assert config.busy_poll_us == 50
    assert config.core.latency == lib.DMM_LATENCY_AUTO
    assert config.core.rcvbuf_bytes == 0, "C chooses what the policy leaves out"
    assert ffi.string(_config({"congestion": "wan"}).core.congestion) == b"wan"


@pytest.mark.parametrize(
    ("written", "budget_ppm", "residual_ppm", "parity_ppm"),
    [
        (None, 0, 0, 0),
        ({"budget": "5%"}, 50_000, 0, 0),
        ({"budget": "0%", "residual": "0.2 %"}, 0xFFFFFFFF, 2_000, 0),
        ({"budget": "100%", "residual": "100%", "parity": "100%"}, *[1_000_000] * 3),
        ({"parity": "0%"}, 0, 0, 0xFFFFFFFF),
    ],
)
def test_what_redundancy_may_cost(
    written: dict[str, str] | None, budget_ppm: int, residual_ppm: int, parity_ppm: int
) -> None:
    keys = {"kind": "user", "latency": "low"} | ({"redundancy": written} if written else {})
    core = _config(UserStack.read(keys).process_options()).core
    assert core.latency == lib.DMM_LATENCY_LOW
    assert (core.redundancy_budget_ppm, core.redundancy_residual_ppm) == (budget_ppm, residual_ppm)
    assert core.parity_most_ppm == parity_ppm


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonsense", 1),
        ("nonsense", "x"),
        ("syn_cookies", "on"),
        ("latency", "high"),
        ("busy_poll_us", "auto"),
        ("busy_poll_us", -1),
        ("sndbuf_bytes", 1 << 40),
        ("congestion", 7),
        ("congestion", "x" * 40),
    ],
)
def test_what_c_lacks_is_refused(name: str, value: object) -> None:
    with pytest.raises(DmmError, match=f"cannot start a stack with {name}"):
        _config({name: value})

# SPDX-License-Identifier: Apache-2.0
"""The BPF programs are small enough for the running kernel's verifier, with room for what comes."""

from __future__ import annotations

import bench_verify
import pytest

from dmm_ebpf.loader import verify
from dmm_ebpf.loader.spec import PROGRAMS
from dmm_ebpf.loader.verify import Verified

# Measured on 6.1, 6.12 and 6.18: 15,607 for sockops, 7,400 for connect6, 2,300 for xdp, below 500 for the others.
PROCESSED_MAX = 30_000
ALL_PROCESSED_MAX = 60_000
STATES_MAX = 1_500  # one program's
STACK_MAX_BYTES = 512  # MAX_BPF_STACK, of a program and the deepest of its steps


def _rounded(depth: str) -> int:
    """As check_max_stack_depth() counts."""
    return max(32, (int(depth) + 31) // 32 * 32)


@pytest.fixture(scope="module")
def found() -> dict[str, Verified]:
    return {one.program: one for one in bench_verify.bench_verify()}


@pytest.mark.parametrize("name", [spec.name for spec in PROGRAMS])
def test_a_program_is_within_bounds(found: dict[str, Verified], name: str) -> None:
    one = found[name]
    assert one.instructions <= one.processed * 2, "most of it is looked at"
    assert one.processed <= PROCESSED_MAX < verify.INSTRUCTIONS_LIMIT / 4
    assert one.states_total <= STATES_MAX
    own, *steps = one.stack_bytes.split("+")
    assert _rounded(own) + max(map(_rounded, steps), default=0) <= STACK_MAX_BYTES


def test_all_together(found: dict[str, Verified]) -> None:
    assert sum(one.processed for one in found.values()) <= ALL_PROCESSED_MAX

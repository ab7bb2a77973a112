# SPDX-License-Identifier: Apache-2.0
"""The BPF programs are small enough for the running kernel's verifier, with room for what comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bench.verify
from dmm_ebpf.loader import compile as compiling
from dmm_ebpf.loader import protocolprobe, verify
from dmm_ebpf.loader.link import PSEUDO_FUNC, link, references, uses
from dmm_ebpf.loader.spec import EARLIER, GROUP_MADE, PROGRAMS, PROTOCOL, STEPS
from dmm_ebpf.loader.verify import Verified

# Measured on 6.18: 43,700 for tcin and 37,100 for sockops; 209,800 for all, of which what a SYN
# asks for and the iterator that finds old listeners are 3,000, and datagrams 48,600: those that
# peers begin are 12,600 of them. It was 156,200 before programs could choose their stack, and is
# 16,500 more since rules have exceptions, ports and devices; executables are 1,700. Adaptive routes
# of what others open are 9,400: 4,500 of them sockops', 2,200 tcin's.
# Routes beside a policy are 15,700: 17,300 more for tcin, which looks routes up in three places,
# and 14,500 less for connect().
# The way through the nodes of routes[] is called: as a step it was looked at for each way there
# until nothing new was found, and made 483,200 of all, 160,100 of them tcin's. Now they are
# 331,800, tcin's 68,800; on 6.1, which looked at a step but once, 183,000, where they were 148,000.
PROCESSED_MAX = 105_000
ALL_PROCESSED_MAX = 500_000
STATES_MAX = 5_500  # one program's
NAMES = [spec.name for spec in (*PROGRAMS, EARLIER, GROUP_MADE)]
NAMES += [PROTOCOL.name] if protocolprobe.macros() else []  # where the kernel takes it at all
STACK_MAX_BYTES = 512  # MAX_BPF_STACK, of a program and the deepest of its steps


# What optimize_bpf_loop() adds to a function with loops, behind the check
LOOP_SPILLS = 24


def _depths(name: str, stack_bytes: str) -> Iterator[int]:
    """Bytes of the stack from the program to each step, as check_max_stack_depth() counts before
    Linux 6.8: rounded to 32 bytes for each function.
    """
    code = compiling.code()
    numbers = {step: number for number, step in enumerate(STEPS)}
    linked = link(name, code, STEPS)
    depths = dict(
        zip(
            (one for one, _ in linked.functions or [(name, 0)]), stack_bytes.split("+"), strict=True
        )
    )

    def below(function: str, above: int) -> Iterator[int]:
        wanted = uses(code[function])
        loops = any(references(code[function], PSEUDO_FUNC))
        own = int(depths[function]) - LOOP_SPILLS * loops
        here = above + max(32, (own + 31) // 32 * 32)
        yield here
        for step, number in numbers.items():
            if number in wanted:
                yield from below(step, here)

    return below(name, 0)


@pytest.fixture(scope="module")
def found() -> dict[str, Verified]:
    return {one.program: one for one in bench.verify.bench_verify()}


@pytest.mark.parametrize("name", NAMES)
def test_a_program_is_within_bounds(found: dict[str, Verified], name: str) -> None:
    one = found[name]
    assert one.instructions <= one.processed * 2, "most of it is looked at"
    assert one.processed <= PROCESSED_MAX < verify.INSTRUCTIONS_LIMIT / 4
    assert one.states_total <= STATES_MAX
    assert max(_depths(name, one.stack_bytes)) <= STACK_MAX_BYTES


def test_all_together(found: dict[str, Verified]) -> None:
    assert sum(one.processed for one in found.values()) <= ALL_PROCESSED_MAX

# SPDX-License-Identifier: Apache-2.0
"""What the running kernel's verifier has to do for each program: loaded, asked, and closed again;
nothing is attached.

The kernel gives up beyond 1,000,000 instructions that it has looked at, or 8,192 branches that wait
to be followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dmm_ebpf.loader import link, programs
from dmm_ebpf.loader.compile import features
from dmm_ebpf.loader.maps import Map
from dmm_ebpf.loader.spec import EARLIER, GROUP_MADE, PROGRAMS, PROTOCOL, STEPS

INSTRUCTIONS_LIMIT = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS
_SAID = re.compile(
    r"processed (?P<processed>\d+) insns .*max_states_per_insn (?P<states_per_insn>\d+) "
    r"total_states (?P<states_total>\d+) peak_states (?P<states_peak>\d+)"
)


@dataclass(frozen=True)
class Verified:
    """One program. instructions: its size, steps of loops included; processed: those that the
    verifier looked at, again for every way that leads to them. states: of the verifier's, most for
    one instruction, all, and most kept at once.
    stack_bytes: of the program and of each step. ms: of wall time.
    """

    program: str
    instructions: int
    processed: int
    states_per_insn: int
    states_total: int
    states_peak: int
    stack_bytes: str
    ms: float


def parse(program: str, instructions: int, log: str) -> Verified:
    """What the verifier's log of a program that it took says (BPF_LOG_STATS)."""
    said = _SAID.search(log)
    time = re.search(r"verification time (\d+) usec", log)
    stack = re.search(r"stack depth ([\d+]+)", log)
    if not said or not time or not stack:
        raise ValueError(f"the verifier's log of {program} has no figures: {log!r}")
    figures = {name: int(value) for name, value in said.groupdict().items()}
    return Verified(program, instructions, stack_bytes=stack[1], ms=int(time[1]) / 1000, **figures)


def verify(code: Mapping[str, bytes], opened: Mapping[str, Map]) -> list[Verified]:
    """Every program, in the order of spec.PROGRAMS, then spec.EARLIER and spec.PROTOCOL where the
    kernel has what they are for, and spec.GROUP_MADE. code: what compile_programs() gave. Raises as
    load_programs().
    """
    linked = programs.linked(code, programs.map_fds(opened))
    found = []
    for spec in PROGRAMS:
        fd, log = programs.load(spec, linked[spec.name])
        os.close(fd)
        found.append(parse(spec.name, len(linked[spec.name].code) // 8, log))
    iterator = programs.iterator_id(features())
    if iterator is not None:
        fd, log = programs.load_earlier(code, opened, iterator)
        os.close(fd)
        size = len(link.link(EARLIER.name, code, STEPS).code) // 8
        found.append(parse(EARLIER.name, size, log))
    if any(one.startswith("DMM_NET_COOKIE=") for one in features()):
        fd, log = programs.load_protocol(code, opened)
        os.close(fd)
        size = len(link.link(PROTOCOL.name, code, STEPS).code) // 8
        found.append(parse(PROTOCOL.name, size, log))
    fd, log = programs.load_group_made(code, opened)
    os.close(fd)
    found.append(
        parse(GROUP_MADE.name, len(link.link(GROUP_MADE.name, code, STEPS).code) // 8, log)
    )
    return found

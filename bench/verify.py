# SPDX-License-Identifier: Apache-2.0
"""What the running kernel's verifier has to do for each BPF program: figures of one kernel,
with no rival.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from dmm_ebpf.loader import compile as compiling
from dmm_ebpf.loader import programs, verify
from dmm_ebpf.loader.verify import Verified


def bench_verify() -> list[Verified]:
    """Every program, loaded once."""
    opened = programs.create_maps()
    try:
        return verify.verify(compiling.code(), opened)
    finally:
        programs.close_maps(opened)


def verify_table(found: Sequence[Verified]) -> Table:
    """One line a program, and their sums."""
    table = Table(
        title=f"the verifier's work; it gives up at {verify.INSTRUCTIONS_LIMIT:,}",
        title_justify="left",
    )
    table.add_column("program")
    for name in ("insns", "looked at", "states", "at once", "one insn", "stack", "ms"):
        table.add_column(name, justify="right")
    for one in found:
        figures = (
            one.instructions,
            one.processed,
            one.states_total,
            one.states_peak,
            one.states_per_insn,
        )
        table.add_row(
            one.program.removeprefix("dmm_"),
            *(f"{figure:,}" for figure in figures),
            one.stack_bytes,
            f"{one.ms:.1f}",
        )
    sums = (sum(one.instructions for one in found), sum(one.processed for one in found))
    table.add_row(
        "all",
        *(f"{figure:,}" for figure in sums),
        "",
        "",
        "",
        "",
        f"{sum(one.ms for one in found):.1f}",
    )
    return table

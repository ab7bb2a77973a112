# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md, from the results of a whole run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from compat.case import CARRIERS, FAMILIES, IP4
from compat.limits import Limit, limit_of
from compat.run import DIFFERS, KERNELS, SAME, UNTRIED, Result

HEAD = """\
# Compatibility

What else is on a host goes on working, whichever stack carries a flow.
This page is generated: `sudo tools/compat --page` tries every cell on the running kernel and writes it.

Each case is tried four times in one run: without dmm-ebpf, which is the *reference*, and with it attached, once for
each carrier: the **kernel**'s stack, and a user stack by its port **af_xdp** or **tap**.
A real program connects, or listens, and carries a payload both ways, hashed; what it sees (addresses, errno, whole
data) and what the host sees (counters, entries, devices, rates) is compared with the reference.

| word | meaning |
|---|---|
| same | as without dmm-ebpf, and the carrier named carries the flow |
| kernel's | as without dmm-ebpf, and the kernel carries the flow, with the reason below |
| differs | not as without dmm-ebpf; why is said below |
| untried | the kernel that this page was made on lacks what the case needs |

Directions: *connect* and *listen* are of a program on the host; *forward* is a container that connects through the
host, *published* one whose port the host publishes by DNAT.
A verdict stands for IPv4 and IPv6 unless it names one.
One with a version behind it was tried under that kernel, in an emulated machine (`--kernel`).

A case is one declaration in `compat/cases`; cells that are known not to hold stand in
`compat/limits.toml`, with why.
The tests try the quick cases (all of them with `DMM_COMPAT=all`), and fail for a cell that differs and is not named
there, and for one that is named and holds.
"""


def page(results: list[Result], limits: list[Limit]) -> str:
    """The page's text."""
    notes: dict[str, int] = {}
    lines = [HEAD, _summary(results)]
    for group, members in groupby(results, key=lambda r: r.group):
        lines += [
            f"\n## {group}\n",
            f"| case | direction | {' | '.join(CARRIERS)} |",
            "|---|---|---|---|---|",
        ]
        for (case, direction), cells in groupby(members, key=lambda r: (r.case, r.direction)):
            row = list(cells)
            words = [_cell([r for r in row if r.carrier == c], limits, notes) for c in CARRIERS]
            lines.append(f"| {case} | {direction} | {' | '.join(words)} |")
    if notes:
        lines += ["\n## Why\n", *(f"{number}. {why}" for why, number in notes.items())]
    return "\n".join(lines) + "\n"


def _summary(results: list[Result]) -> str:
    release = os.uname().release
    counts = Counter(r.verdict for r in results)
    said = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in (SAME, KERNELS, DIFFERS, UNTRIED)
    )
    return f"On Linux {'.'.join(release.split('.')[:2])}: {len(results)} cells, {said}."


def _cell(results: Iterable[Result], limits: list[Limit], notes: dict[str, int]) -> str:
    by_family = {r.family: _word(r, limits, notes) for r in results}
    words = set(by_family.values())
    if not words:
        return "not run"
    if len(words) == 1 and (len(by_family) == len(FAMILIES)):
        return words.pop()
    return ", ".join(
        f"{'IPv4' if family == IP4 else 'IPv6'} {word}" for family, word in by_family.items()
    )


def _word(result: Result, limits: list[Limit], notes: dict[str, int]) -> str:
    there = f" ({result.kernel})" if result.kernel else ""
    if result.verdict == SAME:
        return SAME + there
    limit = limit_of(result, limits)
    why = limit.why if limit else result.detail or "not known"
    if result.verdict == UNTRIED:
        why = f"Could not be tried here: {result.detail}"
    number = notes.setdefault(why[0].upper() + why[1:].rstrip(".") + ".", len(notes) + 1)
    return f"{result.verdict}{there} [{number}](#why)"

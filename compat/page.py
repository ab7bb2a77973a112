# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md, from the results of a whole run on one kernel, and what is known of
others.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby

from compat.case import CARRIERS, FAMILIES, IP4
from compat.limits import Limit, limit_of
from compat.results import Place, place
from compat.run import DIFFERS, KERNELS, SAME, UNTRIED, Result

WIDTH = 100
_FLOWS_WORDS = {
    "device": "the flow leaves by a device that the stack does not serve",
    "peer": "a connection from outside that came by the kernel, by a rule of this host's or since "
    "the stack is not on that device",
}
HEAD = """\
# Compatibility

What else is on a host goes on working, whichever stack carries a flow.
This page is generated: `sudo tools/compat --page` tries every cell on the running kernel and
writes it.
With `--results FILE` what is tried is kept, in slices too, and what that file has of another
kernel (`--kernel 6.1`, in an emulated machine) is said beside.

Each case is tried four times in one run: without dmm-ebpf, which is the *reference*, and with it
attached, once for each carrier: the **kernel**'s stack, and a user stack by its port **af_xdp**
or **tap**.
A real program connects, or listens, and carries a payload both ways, hashed; what it sees
(addresses, errno, whole data) and what the host sees (counters, entries, devices, rates) is
compared with the reference.

| word | meaning |
|---|---|
| same | as without dmm-ebpf, and the carrier named carries the flow |
| kernel's | as without dmm-ebpf, and the kernel carries the flow, with the reason below |
| differs | not as without dmm-ebpf; why is said below |
| untried | the kernel that this page was made on lacks what the case needs |

Directions: *connect* and *listen* are of a program on the host; *forward* is a container that
connects through the host, *published* one whose port the host publishes by DNAT.
A verdict stands for IPv4 and IPv6 unless it names one, and for every kernel of the first table
below that has tried the cell, unless it names one.

A case is one declaration in `compat/cases`; cells that are known not to hold stand in
`compat/limits.toml`, with why.
The tests try the quick cases (all of them with `DMM_COMPAT=all`), and fail for a cell that
differs and is not named there, and for one that is named and holds.
"""

_Notes = dict[str, int]


def page(results: list[Result], beside: Mapping[str, list[Result]], limits: list[Limit]) -> str:
    """The page's text. results: of every cell, on one kernel; beside: of others, by their series,
    as many as there are.
    """
    notes: _Notes = {}
    others = {kernel: {place(r): r for r in found} for kernel, found in beside.items() if found}
    lines = [HEAD, *(_summary(found) for found in (results, *beside.values()) if found)]
    lines += _tried(results, others)
    for group, members in groupby(results, key=lambda r: r.group):
        lines += [
            f"\n## {group}\n",
            f"| case | direction | {' | '.join(CARRIERS)} |",
            "|---|---|---|---|---|",
        ]
        for (case, direction), cells in groupby(members, key=lambda r: (r.case, r.direction)):
            row = list(cells)
            words = [
                _cell([r for r in row if r.carrier == c], others, limits, notes) for c in CARRIERS
            ]
            lines.append(f"| {case} | {direction} | {' | '.join(words)} |")
    if notes:
        lines += ["\n## Why\n", *(f"{number}. {why}" for why, number in notes.items())]
    return "".join(_wrapped(line) + "\n" for line in "\n".join(lines).split("\n"))


def _wrapped(line: str) -> str:
    """A line of the page in the width of pages, unless it is a table's."""
    if len(line) <= WIDTH or line.startswith("|"):
        return line
    number = re.match(r"\d+\. ", line)
    indent = " " * len(number[0]) if number else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _summary(results: list[Result]) -> str:
    counts = Counter(r.verdict for r in results)
    said = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in (SAME, KERNELS, DIFFERS, UNTRIED)
    )
    families = {r.family for r in results}
    only = "" if len(families) > 1 else f" of {'IPv4' if IP4 in families else 'IPv6'} alone"
    return f"On Linux {results[0].kernel}: {len(results)} cells{only}, {said}."


def _tried(results: list[Result], others: Mapping[str, Mapping[Place, Result]]) -> list[str]:
    """How many cells of each group were tried, by kernel."""
    kernels = [results[0].kernel, *others]
    tried = {kernels[0]: Counter(r.group for r in results if r.verdict != UNTRIED)}
    for kernel, found in others.items():
        tried[kernel] = Counter(r.group for r in found.values() if r.verdict != UNTRIED)
    every = Counter(r.group for r in results)
    heads = " | ".join(f"tried on {kernel}" for kernel in kernels)
    lines = [f"\n| group | cells | {heads} |", "|---|---|" + "---|" * len(kernels)]
    for group, count in every.items():
        counts = " | ".join(str(tried[kernel][group]) for kernel in kernels)
        lines.append(f"| {group} | {count} | {counts} |")
    return lines


def _cell(
    results: Iterable[Result],
    others: Mapping[str, Mapping[Place, Result]],
    limits: list[Limit],
    notes: _Notes,
) -> str:
    by_family = {r.family: _words(r, others, limits, notes) for r in results}
    words = set(by_family.values())
    if not words:
        return "not run"
    if len(words) == 1 and (len(by_family) == len(FAMILIES)):
        return words.pop()
    return ", ".join(
        f"{'IPv4' if family == IP4 else 'IPv6'} {word}" for family, word in by_family.items()
    )


def _words(
    result: Result,
    others: Mapping[str, Mapping[Place, Result]],
    limits: list[Limit],
    notes: _Notes,
) -> str:
    """The cell's word, and that of each other kernel on which it is another."""
    there = {
        kernel: found[place(result)] for kernel, found in others.items() if place(result) in found
    }
    tried = {kernel: r for kernel, r in there.items() if r.verdict != UNTRIED}
    if result.verdict == UNTRIED and tried:
        return ", ".join(f"{_word(r, limits, notes)} ({kernel})" for kernel, r in tried.items())
    word = _word(result, limits, notes)
    said = {kernel: _word(r, limits, notes) for kernel, r in tried.items()}
    return "; ".join(
        [word, *(f"on {kernel} {other}" for kernel, other in said.items() if other != word)]
    )


def _reason(detail: str) -> str:
    """Why the kernel carries a cell's flow: of what `flows` says in a word (docs/operations.md), a
    sentence.
    """
    meant = _FLOWS_WORDS.get(detail)
    return f"{meant} (`flows`: `{detail}`)" if meant else detail


def _word(result: Result, limits: list[Limit], notes: _Notes) -> str:
    if result.verdict == SAME:
        return SAME
    limit = limit_of(result, limits)
    why = limit.why if limit else _reason(result.detail) or "not known"
    if result.verdict == UNTRIED:
        why = f"Could not be tried on Linux {result.kernel}: {result.detail}"
    number = notes.setdefault(why[0].upper() + why[1:].rstrip(".") + ".", len(notes) + 1)
    return f"{result.verdict} [{number}](#why)"

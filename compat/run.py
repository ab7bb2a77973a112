# SPDX-License-Identifier: Apache-2.0
"""Runs cells on their sites, and compares each with the reference of the same run.

On a fast machine most of a cell's time is waiting, so many sites work at once, each with a part of
the cells. On a slow one (DMM_LAB_PATIENCE) the sites themselves are what takes long: an attach
takes as long as ten cells, and each director and stack process has work at rest. There each carrier
has one site for all cells, which stays, and only as many work at once as there are carriers.
"""

from __future__ import annotations

import fnmatch
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compat.case import CARRIERS, REFERENCE, USER, Case
from compat.cases import CASES
from compat.cell import Cell, Seen
from compat.site import Site, Untried
from dmm_ebpf.errors import DmmError
from lab.waiting import patient

SAME, KERNELS, DIFFERS, UNTRIED = "same", "kernel's", "differs", "untried"
WORKERS = 8  # sites at once
SHARD = 60  # cells of one site, about


@dataclass(frozen=True)
class Spot:
    """Where a cell is in the table, its carrier left out."""

    case: Case
    site: str
    direction: str
    family: str

    @property
    def name(self) -> str:
        """As --only and the tests have it."""
        return f"{self.case.key}, {self.direction}, {self.family}"


@dataclass(frozen=True)
class Result:
    """A cell's verdict.

    detail: what differs, or why the kernel serves, or what is missing here. kernel: where it was
    tried, as series() has it.
    """

    group: str
    case: str
    direction: str
    family: str
    carrier: str
    verdict: str
    detail: str
    facts: dict[str, Any]
    seconds: float
    kernel: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def series(release: str = "") -> str:
    """Of a kernel's release ("6.1.0-57-amd64"), or of that which runs, what the page calls it
    ("6.1").
    """
    return ".".join((release or os.uname().release).split(".")[:2])


def spots(only: Iterable[str] = (), *, quick: bool = False) -> list[Spot]:
    """The cells that are asked for. only: patterns of groups or of "GROUP: NAME"; none means all.
    quick: the cases that say so, in one family each but for their first direction.
    """
    patterns = tuple(only)

    def is_wanted(case: Case) -> bool:
        if quick and not case.quick:
            return False
        return not patterns or any(
            fnmatch.fnmatchcase(text, pattern)
            for text in (case.group, case.key)
            for pattern in patterns
        )

    return [
        Spot(case, site, direction, family)
        for case in CASES
        if is_wanted(case)
        for site in case.sites
        for direction in case.directions
        for family in case.families
        if not quick or family == case.families[0] or direction == case.directions[0]
    ]


def run(
    wanted: list[Spot],
    directory: Path,
    carriers: Iterable[str] = CARRIERS,
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Every cell, by every carrier and without any; the results in the order of wanted. done: told
    of each as soon as it is known, by one thread at a time.
    """
    carriers = tuple(carriers)
    seen = _Found(carriers, done)
    stopping = threading.Event()
    is_slow = patient(1) > 1
    sites = list(dict.fromkeys(spot.site for spot in wanted))
    with ThreadPoolExecutor(len(carriers) + 1 if is_slow else WORKERS) as pool:
        running = [
            pool.submit(_run_site, site, carrier, part, directory, found=seen, stopping=stopping)
            for site in sites
            for carrier in (REFERENCE, *carriers)
            for part in _shards([spot for spot in wanted if spot.site == site], is_slow)
        ]
        try:
            for future in running:
                future.result()
        except BaseException:
            stopping.set()  # each site ends with the cell that it is at
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return seen.results(wanted)


class _Found:
    """What cells have shown, and what follows once the reference has shown it, too."""

    def __init__(self, carriers: tuple[str, ...], done: Callable[[Result], None]) -> None:
        self._carriers = carriers
        self._done = done
        self._lock = threading.Lock()
        self._seen: dict[str, dict[str, Seen]] = {}
        self._results: dict[tuple[str, str], Result] = {}

    def add(self, carrier: str, spot: Spot, seen: Seen) -> None:
        """One cell of a carrier, or of the reference."""
        with self._lock:
            by_carrier = self._seen.setdefault(spot.name, {})
            by_carrier[carrier] = seen
            reference = by_carrier.get(REFERENCE)
            if reference is None:
                return
            for one in self._carriers:
                key = (spot.name, one)
                if one in by_carrier and key not in self._results:
                    self._results[key] = _result(spot, one, reference, by_carrier[one])
                    self._done(self._results[key])

    def results(self, wanted: Iterable[Spot]) -> list[Result]:
        """All of them, in the order of wanted."""
        return [self._results[spot.name, one] for spot in wanted for one in self._carriers]


def _shards(wanted: list[Spot], is_slow: bool) -> list[list[Spot]]:
    count = 1 if is_slow else -(-len(wanted) // SHARD)
    return [wanted[number::count] for number in range(count)]


def _run_site(
    kind: str,
    carrier: str,
    wanted: list[Spot],
    directory: Path,
    *,
    found: _Found,
    stopping: threading.Event,
) -> None:
    """The cells of one site by one carrier. A cell that breaks the site gets a new one for
    those that follow.

    Raises DmmError when the hosts cannot be made, or dmm-ebpf does not attach to the plain one.
    """
    left = list(wanted)
    while left and not stopping.is_set():
        spot, seen = None, None
        try:
            with Site(kind, carrier, directory) as site:
                while left and not stopping.is_set():
                    if spot is not None and seen is not None:
                        found.add(carrier, spot, seen)
                    spot, seen, began = left.pop(0), None, time.monotonic()
                    seen = Cell(spot.case, site, spot.family, spot.direction).observe()
                    seen.seconds = time.monotonic() - began
            if spot is not None and seen is not None:
                found.add(carrier, spot, seen)  # the site could be ended after it, too
        except Untried as error:
            for one in left:
                found.add(carrier, one, Seen(untried=str(error)))
            left = []
        except (DmmError, OSError, TimeoutError, ValueError) as error:
            if spot is None:  # no hosts, or nothing attached: the next ones would fare no better
                raise
            found.add(carrier, spot, Seen({"broken": str(error)}))


def _result(spot: Spot, carrier: str, reference: Seen, seen: Seen) -> Result:
    verdict, detail = verdict_of(spot, carrier, reference, seen)
    return Result(
        spot.case.group, spot.case.name, spot.direction, spot.family, carrier,
        verdict, detail, seen.facts, round(seen.seconds, 2), series(),
    )  # fmt: skip


def verdict_of(spot: Spot, carrier: str, reference: Seen, seen: Seen) -> tuple[str, str]:
    """The word for a cell, and what there is to say of it."""
    if reference.untried:
        return UNTRIED, reference.untried
    if seen.untried:
        return DIFFERS, f"cannot be set up: {seen.untried}"
    if reference.facts.get("rate", "held") != "held":
        why = "its rate does not hold without us either"
        return (UNTRIED, why) if patient(1) > 1 else (DIFFERS, f"the case is wrong: {why}")
    parts = [
        f"{name}: {_text(seen.facts.get(name))} instead of {_text(reference.facts.get(name))}"
        for name in {**reference.facts, **seen.facts}
        if seen.facts.get(name) != reference.facts.get(name)
    ]
    if parts:
        return DIFFERS, "; ".join(parts)
    if carrier in USER and seen.carried == "kernel":
        return KERNELS, seen.reason or _why_not_ours(spot)
    return SAME, ""


def _why_not_ours(spot: Spot) -> str:
    if spot.case.server == "bystander" and spot.direction == "listen":
        return "no socket of the attached cgroup"
    return ""


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"[{'; '.join(_text(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{'; '.join(f'{k} {_text(v)}' for k, v in value.items())}}}"
    return str(value)

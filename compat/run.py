# SPDX-License-Identifier: Apache-2.0
"""Runs cells on their sites, and compares each with the reference of the same run."""

from __future__ import annotations

import fnmatch
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
WORKERS = 8  # sites at once: most of a cell's time is waiting
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
    tried, if not here.
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
    done: Callable[[str, Spot], None] = lambda carrier, spot: None,
) -> list[Result]:
    """Every cell, by every carrier and without any; the results in the order of wanted."""
    carriers = tuple(carriers)
    stopping = threading.Event()
    sites = list(dict.fromkeys(spot.site for spot in wanted))
    with ThreadPoolExecutor(WORKERS) as pool:
        running = [
            (
                carrier,
                pool.submit(
                    _run_site, site, carrier, part, directory, done=done, stopping=stopping
                ),
            )
            for site in sites
            for carrier in (REFERENCE, *carriers)
            for part in _shards([spot for spot in wanted if spot.site == site])
        ]
        seen: dict[str, dict[str, Seen]] = {carrier: {} for carrier in (REFERENCE, *carriers)}
        try:
            for carrier, future in running:
                seen[carrier] |= future.result()
        except BaseException:
            stopping.set()  # each site ends with the cell that it is at
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [
        _result(spot, carrier, seen[REFERENCE][spot.name], seen[carrier][spot.name])
        for spot in wanted
        for carrier in carriers
    ]


def _shards(wanted: list[Spot]) -> list[list[Spot]]:
    count = -(-len(wanted) // SHARD)
    return [wanted[number::count] for number in range(count)]


def _run_site(
    kind: str,
    carrier: str,
    wanted: list[Spot],
    directory: Path,
    *,
    done: Callable[[str, Spot], None],
    stopping: threading.Event,
) -> dict[str, Seen]:
    """The cells of one site by one carrier. A cell that breaks the site gets a new one for
    those that follow.

    Raises DmmError when the hosts cannot be made, or dmm-ebpf does not attach to the plain one.
    """
    found: dict[str, Seen] = {}
    left = list(wanted)
    while left and not stopping.is_set():
        spot = None
        try:
            with Site(kind, carrier, directory) as site:
                while left and not stopping.is_set():
                    spot = left.pop(0)
                    found[spot.name] = Seen({"broken": "the cell could not be ended"})
                    began = time.monotonic()
                    found[spot.name] = Cell(spot.case, site, spot.family, spot.direction).observe()
                    found[spot.name].seconds = time.monotonic() - began
                    done(carrier, spot)
        except Untried as error:
            found |= {spot.name: Seen(untried=str(error)) for spot in left}
            left = []
        except (DmmError, OSError, TimeoutError, ValueError) as error:
            if spot is None:  # no hosts, or nothing attached: the next ones would fare no better
                raise
            found[spot.name] = Seen({"broken": str(error)})
    return found


def _result(spot: Spot, carrier: str, reference: Seen, seen: Seen) -> Result:
    verdict, detail = _verdict(spot, carrier, reference, seen)
    return Result(
        spot.case.group, spot.case.name, spot.direction, spot.family, carrier,
        verdict, detail, seen.facts, round(seen.seconds, 2),
    )  # fmt: skip


def _verdict(spot: Spot, carrier: str, reference: Seen, seen: Seen) -> tuple[str, str]:
    if reference.untried:
        return UNTRIED, reference.untried
    if reference.facts.get("rate", "held") != "held":
        why = "its rate does not hold without us either"
        return (UNTRIED, why) if patient(1) > 1 else (DIFFERS, f"the case is wrong: {why}")
    if seen.untried:
        return DIFFERS, f"cannot be set up: {seen.untried}"
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

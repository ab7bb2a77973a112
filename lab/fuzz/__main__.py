#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Long fuzzing of the user-space TCP: wire parsing alone, and whole connections, with libFuzzer,
ASan and UBSan.

The corpus is kept from run to run under build/fuzz/TARGET/corpus and made smaller at the end of
each. What is found is made smaller as well and stays in build/fuzz/TARGET/crashes. Exit status: 0
nothing found, 1 something found, 2 no run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.fuzz.fuzzlab import ROOT, SELF_TEST, TARGETS, BuildError, Target

LONGEST_INPUT_S = 20
MINIMISE_S = 20
SAY_EVERY_S = 60
STATUS = re.compile(r"^#(\d+)\s.*cov: (\d+)", re.MULTILINE)
REASON = re.compile(r"(broken: .*|SUMMARY: .*|runtime error: .*)")


def say(text: str) -> None:
    print(f"fuzz: {text}", flush=True)


class Place:
    """Where a target's program, corpus, crashes and logs are."""

    def __init__(self, directory: Path, target: Target) -> None:
        self.base = directory / target.name
        self.corpus, self.crashes, self.logs = (
            self.base / n for n in ("corpus", "crashes", "logs")
        )
        for path in (self.corpus, self.crashes, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        self.program = self.base / f"fuzz-{target.digest()}"

    def build(self, target: Target) -> None:
        """Compiles the program unless its sources are those it was compiled from."""
        if self.program.exists():
            return
        say(f"{target.name}: building")
        for old in self.base.glob("fuzz-*"):
            old.unlink()
        target.build(self.program)


def progress(place: Place, workers: int) -> tuple[int, int]:
    """(inputs tried, coverage) from the workers' logs."""
    runs = coverage = 0
    for number in range(workers):
        found = STATUS.findall((place.logs / f"{number}.log").read_text(errors="replace"))
        if found:
            runs += int(found[-1][0])
            coverage = max(coverage, int(found[-1][1]))
    return runs, coverage


def reason(text: str) -> str:
    """What a crash's output says first."""
    match = REASON.search(text)
    return match[1] if match else "it ended by a signal"


def fuzz(target: Target, place: Place, seconds: float, workers: int) -> None:
    """Runs the workers for so long, or until one finds something."""
    common = [
        str(place.program), f"-max_total_time={max(1, round(seconds))}", f"-max_len={target.max_len}",
        f"-timeout={LONGEST_INPUT_S}", "-rss_limit_mb=2048", "-reload=10", f"-artifact_prefix={place.crashes}/",
    ]  # fmt: skip
    processes = []
    try:
        for number in range(workers):
            with (place.logs / f"{number}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen([*common, str(place.corpus)], stdout=log, stderr=log)
                )
        told = time.monotonic()
        while any(process.poll() is None for process in processes):
            running = next(process for process in processes if process.poll() is None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(2)
            if any(process.poll() not in (None, 0) for process in processes):
                break
            if time.monotonic() - told > SAY_EVERY_S:
                told = time.monotonic()
                runs, coverage = progress(place, workers)
                say(
                    f"{target.name}: {runs} inputs, coverage {coverage}, {len(list(place.corpus.iterdir()))} kept"
                )
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()


def minimise_corpus(target: Target, place: Place) -> None:
    """Keeps of the corpus what adds to coverage."""
    smaller = place.base / "corpus.new"
    shutil.rmtree(smaller, ignore_errors=True)
    smaller.mkdir()
    command = [
        str(place.program),
        "-merge=1",
        f"-max_len={target.max_len}",
        f"-artifact_prefix={place.logs}/",
    ]
    done = subprocess.run([*command, smaller, place.corpus], capture_output=True, check=False)
    if done.returncode or not any(smaller.iterdir()):
        shutil.rmtree(smaller)
        return
    shutil.rmtree(place.corpus)
    smaller.rename(place.corpus)


def minimise_crash(target: Target, place: Place, crash: Path) -> tuple[Path, str]:
    """A smaller input that fails too, and what it says."""
    small = crash.with_name(f"small-{crash.name}")
    command = [
        str(place.program),
        "-minimize_crash=1",
        f"-max_total_time={MINIMISE_S}",
        "-runs=50000",
    ]
    subprocess.run(
        [*command, f"-exact_artifact_path={small}", str(crash)], capture_output=True, check=False
    )
    for candidate in (small, crash):
        if not candidate.exists():
            continue
        repeat = [str(place.program), f"-timeout={LONGEST_INPUT_S}", str(candidate)]
        done = subprocess.run(repeat, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            return candidate, reason(done.stderr)
    return crash, "it did not happen again on its own"


def run_target(target: Target, directory: Path, seconds: float, workers: int) -> int:
    """How many faults were found."""
    place = Place(directory, target)
    place.build(target)
    before = set(place.crashes.iterdir())
    target.write_seeds(place.corpus)
    fuzz(target, place, seconds, workers)
    runs, coverage = progress(place, workers)
    found = sorted(set(place.crashes.iterdir()) - before)
    if not found:
        minimise_corpus(target, place)
    for crash in found:
        small, why = minimise_crash(target, place, crash)
        say(f"{target.name}: found {why}; repeat it with: {place.program} {small}")
    kept = len(list(place.corpus.iterdir()))
    outcome = f"{len(found)} faults" if found else "nothing found"
    say(f"{target.name}: {runs} inputs, coverage {coverage}, {kept} inputs kept, {outcome}")
    return len(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together (10)")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes"
    )
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "build" / "fuzz", help="build/fuzz"
    )
    parser.add_argument(
        "--self-test", action="store_true", help="a target with a fault, to see it reported"
    )
    given = parser.parse_args()
    if given.minutes <= 0:
        sys.stderr.write(
            f"fuzz: cannot run for {given.minutes:g} minutes: it takes more than none\n"
        )
        sys.exit(2)
    if given.workers <= 0:
        sys.stderr.write(f"fuzz: cannot run {given.workers} workers: it takes at least one\n")
        sys.exit(2)
    return given


def main() -> int:
    given = arguments()
    os.nice(19)
    targets = list(TARGETS.values()) if given.target == "all" else [TARGETS[given.target]]
    if given.self_test:
        targets = [SELF_TEST]
    share = sum(target.share for target in targets)
    faults = 0
    try:
        for target in targets:
            faults += run_target(
                target,
                given.directory.resolve(),
                given.minutes * 60 * target.share / share,
                given.workers,
            )
    except BuildError as error:
        sys.stderr.write(f"fuzz: {error}\n")
        return 2
    except KeyboardInterrupt:
        say("stopped; the corpus is kept")
        return 130
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

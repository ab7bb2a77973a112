# SPDX-License-Identifier: Apache-2.0
"""Pytest's side of the laboratory: fixtures, and a leak check around every test that uses
one of them.

Leaks that can be told to be ours (named by our pid, or marked in a process's environment) always
fail the test. State of the whole host (pins, instance directories, ip rules, links and cgroups of
the root namespace) can only be compared when nobody else changes it: DMM_LAB_EXCLUSIVE=1, which
tools/test sets, turns that on. DMM_LAB_EXCLUSIVE=run is for several workers of one run (pytest -n):
the whole host is compared around all of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmm_ebpf.rd.life.attaching import detach
from lab import Cgroup, Lab, cgroup2_mount, random_file
from lab.cgroups import PREFIX as CGROUP_PREFIX
from lab.cgroups import remove_cgroups_of_the_dead
from lab.hosts import LAB_VARIABLE, NETNS_PREFIX, STATE_DIR, clean
from lab.netns import NETNS_DIR, pids, start_time

EXCLUSIVE = "DMM_LAB_EXCLUSIVE"
INSTANCE = "t{pid}x{number}"
INSTANCE_DIRS = (Path("/sys/fs/bpf/dmm-ebpf"), Path("/run/dmm-ebpf"))


def _names(directory: Path, pattern: str = "*") -> set[str]:
    with contextlib.suppress(OSError):
        return {str(path) for path in directory.glob(pattern)}
    return set()


def _lines(*command: str) -> set[str]:
    return set(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    )


def _marked_processes(mark: str) -> set[str]:
    found = set()
    for pid in pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(re.fullmatch(mark.encode(), word) for word in words):
                command = (
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
                found.add(f"{pid} {command}")
    return found


def _children() -> set[str]:
    """Processes whose parent is this one, with their start time: a zombie is a leak as well."""
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = set()
    for path in listed:
        with contextlib.suppress(OSError):
            found |= {f"{pid} started {start_time(int(pid))}" for pid in path.read_text().split()}
    return found


def is_whole(scope: str) -> bool:
    """Whether the whole host is this run's, and compared around each "1": test, "run": run."""
    return os.environ.get(EXCLUSIVE) == scope


def snapshot(whole: bool = False) -> dict[str, set[str]]:
    """What exists now of everything that a test could leave behind, by kind; of the whole
    host where a test has it for itself, or if it is asked for.
    """
    own = os.getpid()
    found = {
        "namespace": _names(NETNS_DIR, f"{NETNS_PREFIX}*.{own}.*"),
        "laboratory": _names(STATE_DIR, f"*.{own}.*"),
        "cgroup": _names(cgroup2_mount(), f"{CGROUP_PREFIX}{own}.*"),
        "process in a laboratory": _marked_processes(rf"{LAB_VARIABLE}=.*\.{own}\.\d+"),
        "child process": _children(),
        "pin or instance": {
            name for d in INSTANCE_DIRS for name in _names(d, f"*{instance_name('')}*")
        },
    }
    if whole or is_whole("1"):
        found |= {
            "pin": {name for d in INSTANCE_DIRS for name in _names(d, "**/*")},
            "any namespace": _names(NETNS_DIR),
            "any cgroup": _names(cgroup2_mount(), "**/"),
            "ip rule": _lines("ip", "-4", "rule")
            | {f"-6 {line}" for line in _lines("ip", "-6", "rule")},
            "link": {line.partition("@")[0] for line in _lines("ip", "-br", "link")},
        }
    return found


def leaks(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    """What is there now and was not before, and the other way round, a line each.

    That a child of before has ended since is no harm; that something of the host's has gone is.
    """
    left = [
        f"{kind} left: {name}" for kind in before for name in sorted(after[kind] - before[kind])
    ]
    lost = [
        f"{kind} lost: {name}"
        for kind in before
        if kind != "child process"
        for name in sorted(before[kind] - after[kind])
    ]
    return left + lost


def assert_no_leaks(before: dict[str, set[str]], after: dict[str, set[str]]) -> None:
    """Fails the test with a list of its leaks."""
    if found := leaks(before, after):
        pytest.fail(
            "the test did not leave the host as it was:\n" + "\n".join(found), pytrace=False
        )


def instance_name(number: int | str) -> str:
    """The name of a dmm-ebpf instance of this test process, which no other test process uses."""
    return INSTANCE.format(pid=os.getpid(), number=number)


def _instances_of_the_dead() -> list[str]:
    pattern = re.compile(
        INSTANCE.format(pid=r"(\d+)", number=r"\d+[a-z]?")
    )  # a letter: of whose making
    names = {Path(path).name for directory in INSTANCE_DIRS for path in _names(directory)}
    found = [match for name in names if (match := pattern.fullmatch(name))]
    return [match[0] for match in found if start_time(int(match[1])) is None]


def _clear_host() -> None:
    """Removes what a run that was killed has left: it would change the host whenever a
    test meets it.
    """
    clean()
    remove_cgroups_of_the_dead()
    for instance in _instances_of_the_dead():
        detach(instance)


BEFORE = pytest.StashKey[dict[str, set[str]]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Nothing of an earlier run is in the way of this one."""
    if hasattr(session.config, "workerinput"):
        return
    if is_whole("1") or is_whole("run"):
        _clear_host()
    if is_whole("run"):
        session.config.stash[BEFORE] = snapshot(whole=True)


@pytest.hookimpl(trylast=True)  # the workers have gone
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves something on the host, or takes something away, has failed."""
    before = session.config.stash.get(BEFORE, None)
    if before is not None and (found := leaks(before, snapshot(whole=True))):
        print("\nthe run did not leave the host as it was:", *found, sep="\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Compares the host before and after; every other fixture here stands on it, so it
    is checked last.
    """
    before = snapshot()
    yield
    assert_no_leaks(before, snapshot())


@pytest.fixture
def lab(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[Lab]:
    """A laboratory with no hosts yet, named after the test; closed, with all its processes,
    at the end.
    """
    name = re.sub(r"[^a-zA-Z0-9_]", "_", request.node.name)[:30]
    with Lab(name) as made:
        yield made


@pytest.fixture
def make_cgroup(no_leaks: None) -> Iterator[Callable[[], Cgroup]]:
    """Makes fresh cgroups, as many as are asked for; all are killed and removed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Cgroup())


@pytest.fixture
def cgroup(make_cgroup: Callable[[], Cgroup]) -> Cgroup:
    """One fresh cgroup."""
    return make_cgroup()


@pytest.fixture
def instance(no_leaks: None) -> Callable[[], str]:
    """Names for dmm-ebpf instances; what is left in /run or bpffs under such a name
    fails the test.
    """
    names = iter(range(1000))
    return lambda: instance_name(next(names))


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, str]]:
    """A file of so many bytes of noise, and its SHA-256; made once per size in a run. Do
    not change it.
    """
    directory = tmp_path_factory.mktemp("payload")
    directory.chmod(0o755)
    made: dict[int, tuple[Path, str]] = {}

    def make(size_bytes: int) -> tuple[Path, str]:
        if size_bytes not in made:
            path = directory / f"{size_bytes}.bin"
            made[size_bytes] = (path, random_file(path, size_bytes, seed=size_bytes))
        return made[size_bytes]

    return make


def pytest_report_header(config: Any) -> str:
    """Says which leak check is on."""
    if is_whole("1"):
        return "leak check: whole host"
    around = ", and the whole host around the run" if is_whole("run") else f" ({EXCLUSIVE}=1: all)"
    return f"leak check: own things{around}"

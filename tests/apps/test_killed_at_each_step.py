# SPDX-License-Identifier: Apache-2.0
"""A director that is killed right before any step of attach, policy apply, take-over or detach:
what it leaves decides about new connections, and the next one takes it over or clears it away.
So does one that adds a live route which takes the whole policy.

The steps are those that a director takes which lives (stepping.py). By default one of each kind is
tried; DMM_SIGNALS=all tries each.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import LIFE_S, Command, Subject, placed

from dmm_ebpf.rd.director.rundir import RunDir
from lab import Cgroup, Host, Lab, wait_for

STEPPING = Path(__file__).with_name("stepping.py")
EVERY = os.environ.get("DMM_SIGNALS") == "all"
CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20):
    print("open")
"""
REFUSED = """
import errno, socket
sock = socket.socket()
sock.setblocking(False)
found = sock.connect_ex(("192.0.2.1", 443))
print(found == errno.EACCES)
"""


class Stepper(Subject):
    """An instance whose director tells its steps. last: of the next director, the one before which
    it is killed.
    """

    def __init__(self, instance: str, host: Host, cgroup: Cgroup, policy: Path) -> None:
        super().__init__(instance, host, cgroup, policy)
        self.told = policy.with_name("steps")
        self.last = ""

    def start(self, *words: str | Path) -> Command:
        if words[0] not in {"attach", "detach"}:
            return super().start(*words)
        self.told.unlink(missing_ok=True)
        log = self.policy.with_name(f"said{next(self._numbers)}.log")
        argv = [sys.executable, str(STEPPING), str(self.told), self.last, "--"]
        return Command([*argv, *map(str, words)], log)

    def steps(self) -> list[str]:
        """Those of the latest director, so far."""
        return self.told.read_text().splitlines()

    def apply(self, processes: int) -> Command:
        """`policy apply` of a file with that many processes of the stack, to its end."""
        path = self.write(self.policy.with_name(f"with{processes}.toml"), processes=processes)
        command = self.start("policy", "apply", path, "--instance", self.instance)
        command.wait(LIFE_S)
        return command

    def route(self) -> Command:
        """`route add` of what the policy has no stack for, to its end."""
        words = ("add", "192.0.2.1", "stack", "prohibit", "table", "t")
        command = self.start("route", *words, "--instance", self.instance)
        command.wait(LIFE_S)
        return command

    def killed_at(self, step: str, *, then: str) -> None:
        """Start a director that is to be killed there: by itself, or after it serves by what is
        then asked of it ("apply", "route", "detach").
        """
        self.last = step
        director = self.attach()
        self.last = ""
        if then and self.wait(Subject.serves, director, "it to serve"):
            if then == "apply":
                self.apply(2)
            elif then == "route":
                self.route()
            else:
                director.send_signal(signal.SIGTERM)
        assert director.wait(LIFE_S) == -signal.SIGKILL, (step, director.said())
        # A child that it was about to start has its lock until it is another program.
        wait_for(lambda: not RunDir(self.instance).is_locked(), LIFE_S, f"{step}: the lock's end")


@pytest.fixture
def stepper(lab: Lab, make_cgroup, instance, tmp_path: Path) -> Iterator[Stepper]:
    yield from placed(Stepper, lab, make_cgroup(), instance(), tmp_path)


@pytest.fixture
def reach(stepper: Stepper, lab: Lab) -> Iterator[tuple[str, int]]:
    """An address that answers, in another host."""
    other = lab.hosts["o"]
    with other.call(lambda: socket.create_server(("", 0), backlog=64)) as listener:
        yield other.ip4, listener.getsockname()[1]


def _ends(steps: list[str]) -> list[str]:
    """One of each kind, the first or the last in turn; or all."""
    if EVERY:
        return steps
    kinds: dict[str, list[str]] = {}
    for step in steps:
        kinds.setdefault(step.rpartition(" ")[0], []).append(step)
    return [kind[-(turn % 2)] for turn, kind in enumerate(kinds.values())]


def _answers(stepper: Stepper, reach: tuple[str, int]) -> None:
    """A new connection of the cgroup's is made, whoever serves it."""
    words = ["/usr/bin/python3", "-c", CONNECT, reach[0], str(reach[1])]
    assert stepper.cgroup.run(words, host=stepper.host, timeout=40).stdout == "open\n"


def _recorded(stepper: Stepper, phase: str) -> list[str]:
    """The steps of a phase, of a director that lives."""
    director = stepper.attached()
    if phase == "take-over":
        director.end(signal.SIGKILL)
        director = stepper.attached()
    before = len(stepper.steps())
    if phase == "apply":
        assert stepper.apply(2).returncode == 0
    if phase == "route":
        assert stepper.route().returncode == 0
    after = len(stepper.steps())
    assert director.end(signal.SIGTERM)[0] == 0, director.said()
    if phase == "detach":
        return stepper.steps()[before:]
    asked = phase in {"apply", "route"}
    return stepper.steps()[before:after] if asked else stepper.steps()[:before]


def _refuses(stepper: Stepper) -> bool:
    """Whether the live route is in force."""
    words = ["/usr/bin/python3", "-c", REFUSED]
    return stepper.cgroup.run(words, host=stepper.host).stdout == "True\n"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["attach", "apply", "route", "take-over", "detach"])
def test_whoever_comes_next_finds_its_way(
    stepper: Stepper, reach: tuple[str, int], phase: str
) -> None:
    steps = _ends(_recorded(stepper, phase))
    assert len(steps) > 5
    for step in steps:
        if phase == "take-over":
            stepper.attached().end(signal.SIGKILL)
        stepper.killed_at(step, then=phase if phase in {"apply", "route", "detach"} else "")
        _answers(stepper, reach)
        was_refused = phase == "route" and _refuses(stepper)
        again = stepper.attached()
        _answers(stepper, reach)
        if was_refused:
            assert _refuses(stepper), f"killed before {step}, it has lost a route"
        second = stepper.start("status", "--instance", stepper.instance)
        assert second.wait(LIFE_S) == 0, (step, second.said())
        code, said = again.end(signal.SIGTERM)
        assert code == 0 and "Traceback" not in said, (step, said)
        stepper.assert_nothing_left(f"{phase}, killed before {step}")

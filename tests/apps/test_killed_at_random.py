# SPDX-License-Identifier: Apache-2.0
"""A director that is killed at any moment of attach, another policy, a take-over, a reload or
detach, beside the steps that it tells of (test_killed_at_each_step.py): the next one takes over or
clears away what is there, one at a time, and in the end nothing is left.

One moment of each is drawn; DMM_SIGNALS=all draws twenty. A failure names all that were drawn, and
DMM_SEED draws them again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import LIFE_S, Command, Subject, placed

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.rd.director.rundir import RunDir
from lab import Lab, wait_for

ROUNDS = 20 if os.environ.get("DMM_SIGNALS") == "all" else 1
SEED = int(os.environ.get("DMM_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


class Lives:
    """The directors of one instance, one after the other. moments: those at which one was killed.
    lengths_s: how long each phase takes here and now.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.moments = [f"seed {SEED}"]
        self._draw = random.Random(SEED)
        self._lengths_s: dict[str, float] = {}

    def learn(self) -> None:
        """From one life in which nobody is killed."""
        began = time.monotonic()
        director = self.subject.attached()
        self._lengths_s["attach"] = time.monotonic() - began
        began = time.monotonic()
        asking = self._apply(2)
        assert asking.wait(LIFE_S) == 0, asking.said()
        self._lengths_s["apply"] = self._lengths_s["reload"] = time.monotonic() - began
        began = time.monotonic()
        self.ends_well(director)
        self._lengths_s["detach"] = time.monotonic() - began

    def attach(self) -> None:
        """Begin, and be killed before it serves, or right then."""
        self._killed(self.subject.attach(), "attach")

    def apply(self, director: Command, processes: int) -> None:
        """Be asked for another policy, and killed."""
        asking = self._apply(processes)
        self._killed(director, "apply")
        asking.wait(LIFE_S)
        assert "Traceback" not in asking.said(), (self.moments, asking.said())

    def reload(self, director: Command, processes: int) -> None:
        """Be told to read the policy again, which is another one now, and killed."""
        self.subject.write(self.subject.policy, processes=processes)
        director.send_signal(signal.SIGHUP)
        self._killed(director, "reload")

    def detach(self, director: Command) -> None:
        """Be told to take all away, and killed."""
        director.send_signal(signal.SIGTERM)
        self._killed(director, "detach")

    def next(self) -> Command:
        """One that serves, whatever the last one left; it alone."""
        director = self.subject.attach()

        def serves() -> bool:
            # A child of the one that was killed may have its socket for a moment.
            with contextlib.suppress(DmmError), Client(self.subject.instance) as rd:
                return rd.status().pid == director.pid
            return director.poll() is not None

        wait_for(serves, LIFE_S, f"the next one to serve: {self.moments}")
        assert director.poll() is None, (self.moments, director.said())
        assert self.subject.director() == director.pid, self.moments
        return director

    def ends_well(self, director: Command) -> None:
        """It detaches, and nothing is left."""
        code, said = director.end(signal.SIGTERM)
        assert code == 0 and "Traceback" not in said, (self.moments, said)
        self.subject.assert_nothing_left(f"{self.moments}")

    def _apply(self, processes: int) -> Command:
        path = self.subject.policy.with_name("other.toml")
        self.subject.write(path, processes=processes)
        return self.subject.start("policy", "apply", path, "--instance", self.subject.instance)

    def _killed(self, director: Command, phase: str) -> None:
        """The director alone, which may have ended by itself."""
        after_s = self._draw.uniform(0, self._lengths_s[phase])
        self.moments.append(f"{phase}, after {after_s:.3f} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            director.wait(after_s)
        _, said = director.end(signal.SIGKILL)
        assert "Traceback" not in said, (self.moments, said)
        # A child that it was about to start has its lock until it is another program.
        wait_for(lambda: not RunDir(self.subject.instance).is_locked(), LIFE_S, "the lock's end")


@pytest.fixture
def lives(lab: Lab, make_cgroup, instance, tmp_path: Path) -> Iterator[Lives]:
    for subject in placed(Subject, lab, make_cgroup(), instance(), tmp_path):
        yield Lives(subject)


@pytest.mark.timeout(240 + 240 * ROUNDS)
def test_whenever_it_is_killed_the_next_one_finds_its_way(lives: Lives) -> None:
    lives.learn()
    for number in range(ROUNDS):
        lives.attach()
        lives.apply(lives.next(), 2 + number % 2)
        lives.attach()  # a take-over
        lives.reload(lives.next(), 3 - number % 2)
        lives.detach(lives.next())
        director = lives.next()
        second = lives.subject.attach()
        assert second.wait(LIFE_S) != 0, f"{lives.moments}: two directors serve it"
        assert "Traceback" not in second.said(), (lives.moments, second.said())
        lives.ends_well(director)

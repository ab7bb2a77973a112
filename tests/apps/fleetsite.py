# SPDX-License-Identifier: Apache-2.0
"""A fleet on hosts of the laboratory: its etcd, its instances, and what an operator says to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from lab import fleet, wait_for
from lab.commandline import CLI
from lab.etcd import Cluster
from lab.fleet import Following

PEER = "10.9.9.9:443"


@contextlib.contextmanager
def standing(lab, make_cgroup, directory, monkeypatch, names=("a", "b", "c")) -> Iterator[Fleet]:
    """A fleet whose hosts keep what they have to in that directory, until it ends."""
    monkeypatch.setenv("STATE_DIRECTORY", str(directory / "state"))
    made = Fleet(lab, make_cgroup, directory, names)
    with made.stack:
        yield made


class Fleet:
    """Hosts, their etcd, and what follows it."""

    def __init__(self, lab, make_cgroup, directory, names) -> None:
        self.lab = lab
        self.make_cgroup = make_cgroup
        self.directory = directory
        self.hosts = fleet.hosts(lab, names)
        self.stack = contextlib.ExitStack()
        self.etcd: Any = None
        self.place = ""

    def serve(self, members: int = 3, **options: Any) -> Cluster:
        made = Cluster(self.hosts[:members], self.directory / "etcd", **options)
        self.etcd = self.stack.enter_context(made)
        self.place = made.place()
        return made

    def follow(self, number: int, *labels: str, **options: Any) -> Following:
        host, cgroup = self.hosts[number], self.make_cgroup()
        made = Following(host, cgroup, self.place, self.directory, labels=labels, **options)
        return self.stack.enter_context(made)

    def await_listed(self, count: int) -> None:
        wait_for(lambda: len(self.rows()) == count, 30, f"{count} hosts to be listed")

    def controller(self, *words: str, code: int = 0) -> Any:
        """What a command of an operator's, on the first host, says as JSON."""
        argv = [*CLI, "controller", *words, "--etcd", self.place, "--json"]
        done = self.hosts[0].run(argv, check=False, timeout=90)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert len(done.stderr.splitlines()) <= (1 if code else 0), done.stderr
        return json.loads(done.stdout)

    def push(self, text: str, *words: str, code: int = 0) -> Any:
        file = self.directory / "fleet.toml"
        file.write_text(text)
        return self.controller("push", str(file), *words, code=code)

    def rows(self) -> dict[str, Any]:
        return {one["host"]: one for one in self.controller("hosts")["hosts"]}


def stack_of(following: Following) -> str:
    """Which stack new flows of an instance get."""
    words = ("route", "get", PEER, "--cgroup", str(following.cgroup.path))
    return following.ask(*words)["stack"]


def central(following: Following) -> dict[str, Any]:
    return following.ask("status")[0]["central"]


def await_state(following: Following, state: str, **wanted: Any) -> dict[str, Any]:
    """What status says once it is that."""

    def look() -> dict[str, Any] | None:
        now = central(following)
        fits = now["state"] == state and all(now[key] == value for key, value in wanted.items())
        return now if fits else None

    try:
        return wait_for(look, 30, f"{following.host.name} to be {state}")
    except TimeoutError as error:
        raise AssertionError(f"{central(following)}\n{following.log.read_text()}") from error

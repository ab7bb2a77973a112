# SPDX-License-Identifier: Apache-2.0
"""A fleet whose parts are killed at random, under load: what `tools/soak kills` does.

Three hosts, each with a member of etcd, an instance that follows the policy there, flows that stay
open and flows that come and go; an operator pushes two policies in turn. Meanwhile members,
directors and stack processes are killed, whoever is next by the seed, and members and directors
are started again a moment later; two members may be down at once, so etcd also loses its quorum. A
run proves something only if some of each kind were killed.

What must hold: no flow that the kernel serves is lost, or loses a byte; every new flow has a stack
that one of the two policies names for it (newflows.py); and once all is there again, every host
takes a push.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dmm_ebpf.errors import DmmError
from lab import Cgroup, Host, Lab, fleet, wait_for
from lab.commandline import CLI
from lab.etcd import Cluster
from lab.fleet import Following
from lab.netns import pids_in
from lab.steady import Pace, Sender, echo_server
from lab.waiting import patient, wait_pid_gone

KERNEL_PORT, USER_PORT = 7001, 7002
KEPT_FLOWS = 50  # of each host
EVERY_S = 0.5  # a message of each
MESSAGE_BYTES = 200
PAUSE_S = (0.2, 1.2)  # between two kills
DOWN_S = (0.2, 4.0)  # until what was killed is started again
PUSH_EVERY_S = 3.0
HEALED_S = 120.0
GONE_S = 10.0
STACK_PROCESS = "dmm_ebpf.userstack.process"  # in its command line
KINDS = ("member", "director", "stack")
LAN = {"lan": "cubic", "far": "reno"}
TOLERATED = {0, 1, 75}  # of a push: some did not take it in time, or etcd has no quorum
RESET = {"ECONNRESET", "ECONNABORTED", "EPIPE"}
POLICY = """
[stacks.lan]
kind = "kernel"
congestion = "cubic"
[stacks.far]
kind = "kernel"
congestion = "reno"
[stacks.wan]
kind = "user"
io = "tap"
fallback = "{stack}"

[[rules]]
table = "all"
choose = ["lan"]    # so that programs are told who serves them

[[tables.all.routes]]
to = "default"
stack = "{stack}"
[[tables.all.routes]]
to = "default"
proto = "tcp"
ports = "{port}"
stack = "wan"
"""


@dataclass
class Summary:
    """killed: by kind. pushes: by exit code. kept: flows that stayed open, and the messages that
    they carried. served, failed: new flows, by port and by stack or errno. found: in words.
    """

    seed: int
    seconds: float
    killed: Counter[str] = field(default_factory=Counter)
    pushes: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    messages: int = 0
    served: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)

    def command(self) -> str:
        """What does the same again, as far as the machine's own pace allows."""
        return f"tools/soak kills --seconds {self.seconds:g} --seed {self.seed}"

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return vars(self)


class _Site:
    """The hosts and what runs on them; start() and stop() are for _Reaper."""

    def __init__(self, lab: Lab, directory: Path, stack: ExitStack) -> None:
        os.environ["STATE_DIRECTORY"] = str(directory / "state")
        self.directory = directory
        self.hosts = fleet.hosts(lab, ["a", "b", "c"])
        self.server = lab.hosts["router"]
        self.etcd = stack.enter_context(Cluster(self.hosts, directory / "etcd"))
        self.cgroups = [stack.enter_context(Cgroup()) for _ in self.hosts]
        for port in (KERNEL_PORT, USER_PORT):
            echo_server(self.server, port, directory / f"echo-{port}.log")
        place = self.etcd.place()
        self.instances = [
            stack.enter_context(Following(host, cgroup, place, directory))
            for host, cgroup in zip(self.hosts, self.cgroups, strict=True)
        ]

    def push(self, number: int, within_s: float) -> int:
        """One of two policies in turn; the command's exit code."""
        text = POLICY.replace("{stack}", list(LAN)[number % 2]).replace("{port}", str(USER_PORT))
        file = self.directory / "fleet.toml"
        file.write_text(text)
        words = ["controller", "push", str(file), "--within", f"{within_s:g}"]
        argv = [*CLI, *words, "--etcd", self.etcd.place(), "--json"]
        return self.hosts[0].run(argv, check=False, timeout=within_s + 120).returncode

    def stack_pids(self, host: Host) -> list[int]:
        """Of the stack processes on a host."""
        return [pid for pid in pids_in(host.netns_path) if STACK_PROCESS in _command(pid)]


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _ended(pid: int) -> bool:
    """Kills that process; whether it was there, and is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return wait_pid_gone(pid, GONE_S)


class _Reaper:
    """Kills, and has others start again what does not do so itself."""

    def __init__(self, site: _Site, seed: int, killed: Counter[str]) -> None:
        self._site = site
        self._noise = random.Random(seed)
        self._killed = killed
        self._over = threading.Event()  # nobody sets it before the end: a clock
        self._pool = ThreadPoolExecutor(len(site.hosts) * 2, "soak-start")
        self._starting: dict[str, Future[None]] = {}

    def run(self, seconds: float) -> None:
        """Until then."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            kind, number = self._noise.choice(KINDS), self._noise.randrange(len(self._site.hosts))
            down_s = self._noise.uniform(*DOWN_S)
            if self._kill(kind, number, down_s):
                self._killed[kind] += 1
            self._over.wait(min(left, self._noise.uniform(*PAUSE_S)))

    def _kill(self, kind: str, number: int, down_s: float) -> bool:
        if kind == "stack":
            pids = self._site.stack_pids(self._site.hosts[number])
            ended = [_ended(one) for one in pids]
            return any(ended)
        name = f"{kind} {number}"
        if not self._starting.get(name, _DONE).done():
            return False
        if kind == "member":
            member = self._site.etcd.members[number]
            member.kill()
            self._start(name, down_s, lambda: self._site.etcd.start_one(member))
        else:
            instance = self._site.instances[number]
            instance.kill_director()
            self._start(name, down_s, instance.restart)
        return True

    def _start(self, name: str, down_s: float, start: Callable[[], object]) -> None:
        def later() -> None:
            self._over.wait(down_s)
            start()

        self._starting[name] = self._pool.submit(later)

    def heal(self) -> None:
        """Returns when all is started again. Raises what a start did."""
        self._over.set()
        self._pool.shutdown()
        for one in self._starting.values():
            one.result()
        self._site.etcd.start()


def _done() -> Future[None]:
    made: Future[None] = Future()
    made.set_result(None)
    return made


_DONE = _done()


class _Load:
    """What the hosts do meanwhile."""

    def __init__(self, site: _Site, seconds: float) -> None:
        messages = round((seconds + HEALED_S / 4) / EVERY_S)
        pace = Pace(KEPT_FLOWS, messages, MESSAGE_BYTES, EVERY_S)
        self._pace = pace
        to = (site.server.ip4, KERNEL_PORT)
        hosts = list(zip(site.hosts, site.cgroups, strict=True))
        self._kept = [Sender("ask", host, to, pace, cgroup) for host, cgroup in hosts]
        allowed = {KERNEL_PORT: LAN, USER_PORT: {**LAN, "wan": ""}}
        words = [sys.executable, "-m", "soak.newflows", site.server.ip4, json.dumps(allowed)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._coming = [
            cgroup.spawn(words, host=host, env=environment, text=True, **pipes)
            for host, cgroup in hosts
        ]

    def end(self, summary: Summary) -> None:
        """Have it end, and add what came of it."""
        for process in self._coming:
            out, _ = process.communicate(timeout=patient(HEALED_S))
            if process.returncode:
                summary.found.append(f"what makes new flows ended with {process.returncode}")
                continue
            told = json.loads(out)
            summary.served.update(told["served"])
            summary.failed.update(told["failed"])
            summary.found += told["wrong"]
        for sender in self._kept:
            kept = sender.result()
            summary.kept += len(kept.life_s)
            summary.messages += len(kept.message_s)
            lost = "a flow of the kernel's was lost"
            summary.found += [f"{lost}: {why}" for why in kept.failed.values()]
            late = KEPT_FLOWS * self._pace.messages - len(kept.message_s)
            if late and not kept.failed:
                summary.found.append(f"{late} messages were never answered, and nothing failed")


def _push_until(site: _Site, over: threading.Event, summary: Summary) -> None:
    number = 0
    while not over.wait(PUSH_EVERY_S):
        number += 1
        code = site.push(number, 1)
        summary.pushes[str(code)] += 1
        if code not in TOLERATED:
            summary.found.append(f"a push ended with {code}")


def judge(summary: Summary) -> None:
    """What a run that found nothing must have done."""
    missing = [kind for kind in KINDS if not summary.killed[kind]]
    summary.found += [f"no {kind} was killed: nothing is proven" for kind in missing]
    for failure, count in summary.failed.items():
        port, why = failure.split()
        # Who kills a stack resets its flows; one that was only decided for it connects anew.
        if port == str(KERNEL_PORT) or why not in RESET:
            summary.found.append(f"{count} new flows to port {port} failed: {why}")
    ports = {one.split()[0] for one in summary.served}
    summary.found += [
        f"no flow to port {port} was served"
        for port in (KERNEL_PORT, USER_PORT)
        if str(port) not in ports
    ]
    if f"{USER_PORT} wan" not in summary.served:
        summary.found.append("no flow was served by the user stack: nothing is proven")


def _reaches(instance: Following) -> bool:
    """Whether it has etcd."""
    return bool(instance.ask("status")[0]["central"]["reached"])


def _heal(site: _Site, reaper: _Reaper, summary: Summary) -> None:
    """All is started again, and takes a push."""
    try:
        reaper.heal()
        for one in site.instances:
            what = f"{one.host.name} to reach etcd"
            wait_for(partial(_reaches, one), HEALED_S, what)
        code = site.push(0, HEALED_S)
        if code:
            summary.found.append(f"the push after all was started again ended with {code}")
    except (DmmError, TimeoutError, subprocess.SubprocessError) as error:
        summary.found.append(f"not all came back: {error}")


def soak(seconds: float, seed: int, say: Callable[[str], object]) -> Summary:
    """seconds: while things are killed. say: told what is done now."""
    summary = Summary(seed, seconds)
    with Lab("kills") as lab, ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        say("three hosts, etcd, and an instance on each")
        site = _Site(lab, directory, stack)
        if code := site.push(0, HEALED_S):
            raise DmmError("begin to kill", why=f"the first push ended with {code}")
        load = _Load(site, seconds)
        say(f"killing for {seconds:g} s")
        over = threading.Event()
        reaper = _Reaper(site, seed, summary.killed)
        operator = threading.Thread(target=_push_until, args=(site, over, summary))
        operator.start()
        try:
            reaper.run(seconds)
        finally:
            over.set()
            operator.join()
        say("starting again what was killed")
        _heal(site, reaper, summary)
        load.end(summary)
    judge(summary)
    return summary

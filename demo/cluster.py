# SPDX-License-Identifier: Apache-2.0
"""The story that tools/demo --cluster tells: three hosts, an etcd of three members, one policy that
is pushed to canaries first, refused, and rolled back, while real programs fetch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.syntax import Syntax

from demo.telling import expect, tell
from lab import Cgroup, Host, Lab, curl_fetch, fleet, nginx, random_file, wait_for
from lab.commandline import CLI
from lab.etcd import Cluster
from lab.fleet import Following
from lab.waiting import patient

FILE_BYTES = 2_000_000
PORT = 80

POLICY = """\
[hosts]                     # which hosts, by label
edge = "role=edge"

[stacks.lan]
kind = "kernel"
congestion = "cubic"

[stacks.wan]                # a user-space TCP stack: its own process on each host that has a route to it
kind = "user"
congestion = "wan"

[[rules]]                   # on edges alone: the rest of the policy is for all
hosts = "edge"
direction = "listen"
table = "lan"

[[rules]]
table = "web"

[[tables.lan.routes]]
to = "default"
stack = "lan"

[[tables.web.routes]]
to = "default"
proto = "tcp"
ports = "80"
stack = "{stack}"
"""
REFUSED = POLICY.replace('"cubic"', '"cubik"')


class Story:
    """Hosts, etcd, instances, and what is told about them."""

    def __init__(self, lab: Lab, directory: Path, stack: ExitStack, progress: Progress) -> None:
        os.environ["STATE_DIRECTORY"] = str(directory / "state")
        self.directory = directory
        self.progress = progress
        self.hosts = fleet.hosts(lab, ["berlin", "dakar", "lima"])
        self.etcd = stack.enter_context(Cluster(self.hosts, directory / "etcd"))
        labels = {"berlin": ["role=canary"], "dakar": ["role=edge"], "lima": []}
        self.cgroups = {one.name: stack.enter_context(Cgroup()) for one in self.hosts}
        self.instances = {
            one.name: stack.enter_context(
                Following(
                    one,
                    self.cgroups[one.name],
                    self.etcd.place(),
                    directory,
                    labels=labels[one.name],
                )
            )
            for one in self.hosts
        }
        router = self.hosts[0].lab.links[0].b.host
        file = directory / "www" / "file.bin"
        file.parent.mkdir()
        self.sha256 = random_file(file, FILE_BYTES)
        self.server: Host = router
        nginx(router, file.parent, directory / "nginx", port=PORT)
        for one in self.hosts:
            self.say(f"host {one.name}: {' '.join(labels[one.name]) or 'no label'}")
        self.say(f"dmm-ebpf attach --policy {self.etcd.place()} … on each")

    def say(self, text: str) -> None:
        """One line of the story."""
        self.progress.console.print(f"  {text}")

    def controller(self, *words: str | Path, code: int = 0) -> str:
        """An operator's command, on berlin; what it prints is shown, and returned."""
        shown = " ".join(one.name if isinstance(one, Path) else one for one in words)
        self.say(f"[bold]dmm-ebpf controller {shown}[/]")
        argv = [*CLI, "controller", *words, "--etcd", self.etcd.place()]
        done = self.hosts[0].run(argv, check=False, timeout=patient(120))
        said = str(done.stdout) + str(done.stderr)
        for line in said.splitlines():
            self.progress.console.print(f"    {line}", markup=False)
        expect(done.returncode == code, f"its exit code is {done.returncode}, not {code}")
        return said

    def policy(self, stack: str, text: str = POLICY) -> Path:
        """A policy file by which web traffic gets that stack."""
        file = self.directory / "fleet.toml"
        file.write_text(text.replace("{stack}", stack))
        return file

    def stacks(self) -> dict[str, str]:
        """Which stack a fetch from each host gets."""
        answers = {}
        for name, one in self.instances.items():
            where = f"{self.server.ip4}:{PORT}"
            words = ("route", "get", where, "--cgroup", str(one.cgroup.path))
            answers[name] = str(one.ask(*words)["stack"])
        return answers

    def fetch(self) -> None:
        """curl on each host gets the file whole, and from whom."""
        url = f"http://{self.server.ip4}:{PORT}/file.bin"
        for host in self.hosts:
            got = curl_fetch(host, url, cgroup=self.cgroups[host.name], timeout=60)
            expect(got.sha256 == self.sha256, f"what {host.name} fetched is not the file")
        told = ", ".join(f"{name} by [cyan]{stack}[/]" for name, stack in self.stacks().items())
        self.say(f"curl: {told}; sha256 [green]right[/]")

    def status(self, name: str) -> dict[str, Any]:
        """What `dmm-ebpf status` on a host says of the fleet."""
        said: dict[str, Any] = self.instances[name].ask("status")[0]["central"]
        return said


def first(s: Story) -> None:
    """The first push goes to all."""
    names = {one.name for one in s.hosts}

    def listed() -> bool:
        keys = s.etcd.ctl("get", "/", "--prefix", "--keys-only") or ""
        return all(f"/{one}/" in keys for one in names)

    wait_for(listed, 30, "all hosts to be listed")
    file = s.policy("lan")
    s.progress.console.print(Syntax(file.read_text(), "toml", background_color="default"))
    s.controller("push", file, "--note", "the LAN's")
    s.fetch()
    expect(set(s.stacks().values()) == {"lan"}, "not all have the push")


def canary(s: Story) -> None:
    """The next one goes to the canary, then to all."""
    s.controller("push", s.policy("wan"), "--canary", "role=canary", "--note", "wan for the web")
    s.fetch()
    expect(set(s.stacks().values()) == {"wan"}, "not all have the push")


def refused(s: Story) -> None:
    """A push that the canary refuses reaches nobody else."""
    said = s.controller("push", s.policy("wan", REFUSED), "--canary", "role=canary", code=1)
    expect('"cubik" is not loaded' in said, "it does not say why")
    s.controller("hosts")
    s.fetch()
    expect(set(s.stacks().values()) == {"wan"}, "what was in force has changed")


def rollback(s: Story) -> None:
    """Back to the first one."""
    s.controller("diff", code=1)
    s.controller("rollback", "1", "--note", "as it was")
    s.fetch()
    expect(set(s.stacks().values()) == {"lan"}, "not all have what was brought back")


def quorum(s: Story) -> None:
    """Two of three members die, and hosts go on."""
    for one in s.etcd.members[:2]:
        one.kill()
    s.say("two of three members of etcd are killed")
    lost = wait_for(lambda: s.status("lima")["lost"], 30, "the quorum to be missed")
    s.say(f"dmm-ebpf status on lima: NO ETCD: {lost}")
    s.fetch()
    s.etcd.start()
    wait_for(lambda: s.status("lima")["reached"], 30, "etcd to be reached again")
    s.say("they are started again, and lima follows")
    s.controller("hosts")


STEPS: list[tuple[str, Callable[[Story], None]]] = [
    ("A policy is pushed to all hosts", first),
    ("A push goes to the canary first, then to all", canary),
    ("A push that the canary refuses", refused),
    ("Rolled back", rollback),
    ("etcd loses its quorum", quorum),
]


def main() -> int:
    """Tell the story; 0 if all was as told."""
    return tell("dmm-ebpf: one policy for many hosts", Story, STEPS)


if __name__ == "__main__":
    sys.exit(main())

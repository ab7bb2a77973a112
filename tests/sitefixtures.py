# SPDX-License-Identifier: Apache-2.0
"""Fixtures for end-to-end tests: two hosts with real programs, and dmm-ebpf attached as a user
would attach it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Cgroup, Host, Lab
from lab.routed import Routed

WAN = """
[stacks.wan]
kind = "user"
transport = "tcp"
congestion = "wan"

[stacks.lan]
kind = "kernel"
congestion = "cubic"
dscp = "af21"

[[rules]]
name = "shop"
cgroup = "{cgroup}"
table = "shop"

[[tables.shop.routes]]
to = "default"
stack = "wan"
"""


def by(io: str, *devices: str) -> str:
    """WAN with that io, and on these devices if any are named."""
    named = f"devices = {json.dumps(devices)}\n" if devices else ""
    return WAN.replace('kind = "user"\n', f'kind = "user"\nio = "{io}"\n{named}')


def with_udp(io: str, *devices: str) -> str:
    """The same for a stack that carries UDP, too."""
    return by(io, *devices).replace('kind = "user"\n', 'kind = "user"\nudp = true\n')


XDP, TAP, AUTO = by("af_xdp"), by("tap"), by("auto")


class Site:
    """A client and a server host with a link, and what is started on them."""

    def __init__(self, lab: Lab, make_cgroup: Callable[[], Cgroup], directory: Path) -> None:
        self.lab = lab
        self.client = lab.host("client", tcp_buffers=64 << 20)
        self.server = lab.host("server", tcp_buffers=64 << 20)
        self.directory = directory
        self.client_cgroup = make_cgroup()
        self.server_cgroup = make_cgroup()
        self.stack = contextlib.ExitStack()
        self.link: Any = None

    def wire(self, **options: Any) -> None:
        self.link = self.lab.wire(self.client, self.server, **options)

    def wan(self, **options: Any) -> None:
        self.link = self.lab.wan(self.client, self.server, **options)

    def attach_client(self, policy: str | None = XDP, kind: type[Routed] = Routed) -> Routed:
        return self.stack.enter_context(
            kind(self.client, self.client_cgroup, policy, self.directory)
        )

    def attach_server(self, policy: str | None = XDP) -> Routed:
        return self.stack.enter_context(
            Routed(self.server, self.server_cgroup, policy, self.directory)
        )


@pytest.fixture
def site(lab: Lab, make_cgroup: Callable[[], Cgroup], tmp_path: Path) -> Iterator[Site]:
    tmp_path.chmod(0o755)
    made = Site(lab, make_cgroup, tmp_path)
    with made.stack:
        yield made


@pytest.fixture
def wired(site: Site) -> Site:
    """The two hosts joined by a plain wire."""
    site.wire()
    return site


def python(host: Host, cgroup: Cgroup, script: str, *args: str, timeout: float = 60) -> str:
    """What an unmodified Python program prints, run on a host in a cgroup."""
    done = cgroup.run(["/usr/bin/python3", "-c", script, *args], host=host, timeout=timeout)
    return str(done.stdout).strip()


@pytest.fixture(name="python")
def python_fixture() -> Callable[..., str]:
    return python

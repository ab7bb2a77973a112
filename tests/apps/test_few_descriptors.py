# SPDX-License-Identifier: Apache-2.0
"""A shell or a service manager that lets a program open few files, unless it asks for more."""

from __future__ import annotations

from sitefixtures import TAP, Site
from talking import Talker, echo

from lab.commandline import CLI
from lab.routed import Routed

FEW = 64  # maps and programs alone are more


class Limited(Routed):
    """Attached under that limit."""

    def _command(self) -> tuple[str, ...]:
        return ("prlimit", f"--nofile={FEW}:", *CLI)


def test_attach_serves_under_a_low_limit_of_open_files(wired: Site) -> None:
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(TAP, kind=Limited)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert talker.flow(routed)["stack"] == "wan"
    routed.apply(TAP.replace('name = "shop"', 'name = "other"'))
    assert talker.says("send 100000") == "True"

# SPDX-License-Identifier: Apache-2.0
"""Sandboxes of a unit (systemd.exec(5)) that take away what an attach needs: one sentence says
what, and nothing is left; and the hardening that it bears.
"""

from __future__ import annotations

import pytest

from dmm_ebpf.loader import instances
from lab.commandline import CLI
from lab.systemd import Systemd

POLICY = """
[stacks.wan]
kind = "user"

[[rules]]
table = "t"

[[tables.t.routes]]
to = "default"
stack = "wan"
"""
UNIT = """
[Service]
Type={kind}
RemainAfterExit=yes
ExecStart={program} attach --instance {instance} --netns {netns} --cgroup {cgroup} --policy {policy}
ExecStop={program} detach --instance {instance}
SuccessExitStatus=SIGTERM
StandardError=truncate:{log}
{options}
"""
TAKEN = {
    "RestrictNamespaces=yes": "CAP_SYS_ADMIN is needed; root has it unless a unit's sandbox",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6": "has to name AF_NETLINK, too",
    "ProcSubset=pid": "cannot read /proc/sys/kernel/random/boot_id: No such file or directory",
    "PrivateDevices=yes": "a unit's PrivateDevices= hides it",
    "ProtectKernelTunables=yes": "/proc/sys must be writable",
    "ProtectSystem=strict": "read-only file system",
}
BORNE = """
ProtectSystem=full
ProtectHome=yes
ProtectHostname=yes
ProtectClock=yes
ProtectKernelModules=yes
ProtectProc=invisible
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
SystemCallArchitectures=native
"""


class _Unit:
    def __init__(self, systemd, wired, instance):
        self.systemd, self.log = systemd, wired.directory / "attach.log"
        policy = wired.directory / "policy.toml"
        policy.write_text(POLICY)
        self.facts = {
            "program": " ".join(CLI),
            "instance": instance,
            "netns": wired.client.netns_path,
            "cgroup": systemd.root or "/",
            "policy": policy,
            "log": self.log,
        }

    def start(self, options, kind="notify"):
        """Whether it did."""
        self.systemd.install(attach_service=UNIT.format(options=options, kind=kind, **self.facts))
        done = self.systemd.run(["systemctl", "start", "attach.service"], check=False)
        return done.returncode == 0


@pytest.fixture
def unit(wired, instance):
    with Systemd(wired.client_cgroup, wired.directory / "systemd.log") as systemd:
        made = _Unit(systemd, wired, instance())
        yield made
        systemd.ctl("stop", "attach.service", check=False)


def test_what_a_sandbox_takes_away_is_said_and_nothing_is_left(unit):
    for options, sentence in TAKEN.items():
        assert not unit.start(options), options
        last = unit.log.read_text().splitlines()[-1]
        assert last.startswith("dmm-ebpf: cannot "), (options, last)
        assert sentence in last, options
        assert unit.facts["instance"] not in instances(), options


def test_a_unit_may_be_hardened(unit):
    assert unit.start(BORNE), unit.log.read_text()
    assert unit.facts["instance"] in instances()
    unit.systemd.ctl("stop", "attach.service")
    assert unit.facts["instance"] not in instances()

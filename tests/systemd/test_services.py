# SPDX-License-Identifier: Apache-2.0
"""Services of a real systemd: restarted, stopped, not there yet, in slices and scopes; and dmm-ebpf
as one of them.

On the host systemd is booted in namespaces of its own; `tools/test` also runs this in the emulated
machine, where systemd has booted Linux 6.1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.rd.director import rundir
from lab import nginx, wait_for
from lab.systemd import UNITS, Systemd

ROOT = Path(__file__).resolve().parents[2]
CLI = Path(sys.executable).with_name("dmm-ebpf")
RESTARTS = 10
BYTES = 200_000
WITHIN_S = 20.0
FIRST = -10  # nice(2)

POLICY = """
[stacks.wan]
kind = "user"
congestion = "wan"

[[rules]]
name = "shop"
{selector}
table = "all"

[[tables.all.routes]]
to = "default"
proto = "tcp"
stack = "wan"
"""

# Connects as the first thing that it does; then what is written into its pipe goes out, and what
# comes in to a file.
SHOP = """
[Unit]
StartLimitIntervalSec=0

[Service]
Type=exec
NetworkNamespacePath={netns}
ExecStart=/bin/bash -c 'exec 3<>/dev/tcp/{address}/80; exec 4<&0; cat <&4 >&3 & exec cat <&3'
StandardInput=file:{pipe}
StandardOutput=truncate:{out}
"""

# Holds a processor, as a service of its own, at the priority of others.
BUSY = """
[Service]
ExecStart=/bin/sh -c 'while :; do :; done'
"""


class Shop:
    """A service that gets a file over its first connection, which stays open."""

    def __init__(self, systemd, wired, payload):
        self.systemd = systemd
        path, self.sha256 = payload(BYTES)
        nginx(wired.server, path.parent, wired.directory / "nginx")
        self.request = f"GET /{path.name} HTTP/1.1\r\nHost: shop\r\n\r\n".encode()
        self.pipe, self.out = wired.directory / "pipe", wired.directory / "out"
        os.mkfifo(self.pipe)
        self.fd = os.open(self.pipe, os.O_RDWR)
        self.unit = SHOP.format(
            netns=wired.client.netns_path, address=wired.server.ip4, pipe=self.pipe, out=self.out
        )

    def gets(self, times=1):
        """Asks for the file, whose every copy over this connection so far has to be whole."""
        os.write(self.fd, self.request)

        def bodies():
            _, *answers = self.out.read_bytes().split(b"HTTP/1.1 200 OK\r\n")
            found = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
            return found if len(found) == times and len(found[-1]) >= BYTES else None

        for body in wait_for(bodies, WITHIN_S, "the file"):
            assert hashlib.sha256(body).hexdigest() == self.sha256


class Service:
    """dmm-ebpf@.service of the repository, as an instance of its own, with its files in a
    directory of the test's.
    """

    def __init__(self, systemd, name, wired):
        self.systemd, self.name, self.directory = systemd, name, wired.directory
        self.log = wired.directory / "director.log"
        self.netns = wired.client.netns_path
        self.unit = f"dmm-ebpf@{name}.service"
        text = (ROOT / "systemd" / "dmm-ebpf@.service").read_text()
        text = text.replace("/usr/local/bin/dmm-ebpf", str(CLI)).replace(
            "/etc/dmm-ebpf", str(self.directory)
        )
        systemd.write(
            UNITS / "dmm-ebpf@.service", f"{text}\n[Service]\nStandardError=append:{self.log}\n"
        )
        systemd.ctl("daemon-reload")

    def configure(self, attach, selector=""):
        (self.directory / f"{self.name}.env").write_text(
            f'ATTACH="--netns {self.netns} {attach}"\n'
        )
        (self.directory / f"{self.name}.toml").write_text(POLICY.format(selector=selector))

    def start(self, attach, selector=""):
        self.configure(attach, selector)
        try:
            self.systemd.ctl("start", self.unit)
        except Exception as error:
            error.add_note(self.log.read_text() if self.log.exists() else "no log")
            raise

    def cli(self, *words, check=True):
        return self.systemd.run([CLI, *words, "--instance", self.name], check=check)

    def ask(self, *words):
        return json.loads(self.cli(*words, "--json").stdout)

    def call(self, method):
        """What the Resource Director answers; ask() takes ten times as long."""
        with Client(self.name) as client:
            return client.call(method)

    def stack(self, name):
        return next(one for one in self.call("stacks") if one["name"] == name)

    def flow(self, group):
        """The one open flow of a cgroup; one of its process before may be in TIME_WAIT."""

        def found():
            return [
                f
                for f in self.call("flows")
                if f["cgroup"] == group and f["state"] == "ESTABLISHED"
            ]

        try:
            (flow,) = wait_for(found, WITHIN_S, "the service's flow")
        except TimeoutError as error:
            error.add_note(f"all flows: {self.call('flows')}; the log: {self.log.read_text()}")
            raise
        return flow

    def director(self):
        """Its process, as systemd numbers it."""
        return self.systemd.show(self.unit, "MainPID")

    def close(self):
        self.systemd.ctl("stop", self.unit, check=False)
        self.cli("detach", check=False)


@pytest.fixture
def systemd(wired):
    with Systemd(wired.client_cgroup, wired.directory / "systemd.log") as made:
        yield made


@pytest.fixture
def service(systemd, wired, instance, monkeypatch):
    monkeypatch.setattr(rundir, "ROOT", systemd.files / rundir.ROOT.relative_to("/"))
    with contextlib.closing(Service(systemd, instance(), wired)) as made:
        yield made


@pytest.fixture
def shop(systemd, wired, payload):
    made = Shop(systemd, wired, payload)
    systemd.install(shop_service=made.unit)
    yield made
    systemd.ctl("stop", "shop.service", check=False)
    os.close(made.fd)


def _ends(flow):
    return flow["src"], flow["sport"]


@pytest.fixture
def busy(systemd):
    """Each processor has something else to do, and one more thing waits for one. The Resource
    Director and the service have to share; what the test itself starts goes first.
    """
    names = [f"busy{number}" for number in range((os.cpu_count() or 1) + 1)]
    systemd.install(**{f"{name}_service": BUSY for name in names})
    systemd.ctl("start", *names)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)
    systemd.ctl("stop", *names)


@pytest.mark.parametrize("director", ["busy", "stopped"])
@pytest.mark.parametrize("by", ["rule", "unit"])
def test_a_service_is_routed_from_its_first_connection_after_each_restart(
    systemd, service, shop, by, director, request
):
    group = f"{systemd.root}/system.slice/shop.service"
    if by == "rule":
        service.start(f"--cgroup {systemd.root}/system.slice", f'cgroup = "{group}"')
        status = service.call("status")
        assert [one["cgroup"] for one in status["pending"]] == [group]
    else:
        service.start("--unit shop")
        (missing,) = wait_for(lambda: service.call("status")["missing"], WITHIN_S, "status to tell")
        assert missing["what"].endswith(group)
    if director == "busy":
        request.getfixturevalue("busy")
    pid = service.director()
    seen = set()
    for number in range(RESTARTS + 1):
        if director == "stopped":
            systemd.run(["kill", "-STOP", pid])
        systemd.ctl("restart", "shop.service")
        shop.gets()
        if director == "stopped":
            systemd.run(["kill", "-CONT", pid])
        flow = service.flow(group)
        assert (number, flow["stack"], flow["wanted"]) == (number, "wan", "wan")
        seen.add(_ends(flow))
    assert len(seen) == RESTARTS + 1
    assert _ends(flow) in [_ends(one) for one in service.ask("flows") if one["stack"] == "wan"]
    wait_for(
        lambda: [service.call("status")[key] for key in ("missing", "pending")] == [[], []],
        WITHIN_S,
        "status to tell that all is well",
    )


def test_what_a_service_manager_does_with_an_instance(systemd, service, shop, wired):
    """Ordered before the service, stopped services, scopes, a restart with open flows, a crash,
    a reload, a stop.
    """
    group = f"{systemd.root}/system.slice/shop.service"
    service.configure("--unit shop")
    systemd.write(
        UNITS / "shop.service.d" / "after.conf",
        f"[Unit]\nWants={service.unit}\nAfter={service.unit}\n",
    )
    systemd.ctl("daemon-reload")
    systemd.ctl("start", "shop.service")
    shop.gets()
    flow = service.flow(group)
    assert flow["stack"] == "wan"
    assert systemd.show(service.unit, "StatusText").endswith(f"is attached to {group}")

    stack = service.stack("wan")["pid"]
    for way in (["restart"], ["kill", "--signal=KILL"]):
        before = service.director()
        systemd.ctl(*way, service.unit)
        wait_for(
            lambda before=before: (
                service.director() not in {before, "0"}
                and systemd.show(service.unit, "ActiveState") == "active"
            ),
            WITHIN_S,
            "the next Resource Director",
        )
        after = service.flow(group)
        assert (_ends(after), after["stack"]) == (_ends(flow), "wan")
    shop.gets(times=2)
    assert service.stack("wan")["pid"] == stack

    systemd.ctl("stop", "shop.service")
    (missing,) = wait_for(lambda: service.call("status")["missing"], WITHIN_S, "status to tell")
    assert missing["what"].endswith(group)
    systemd.ctl("start", "shop.service")
    shop.gets()
    assert service.flow(group)["stack"] == "wan"
    wait_for(
        lambda: not service.call("status")["missing"], WITHIN_S, "status to tell that all is well"
    )

    service.configure("--unit shop", "uid = 4294967294")
    systemd.ctl("reload", service.unit)
    assert (
        service.ask("route", "get", f"{wired.server.ip4}:80", "--cgroup", group)["stack"]
        == "kernel"
    )
    systemd.ctl("stop", service.unit)
    assert systemd.show(service.unit, "Result") == "success"
    assert service.cli("status", check=False).returncode == 1


def test_scopes_and_services_of_a_slice_are_routed(systemd, service, wired, payload):
    path, sha256 = payload(BYTES)
    nginx(wired.server, path.parent, wired.directory / "nginx")
    service.start(f"--cgroup {systemd.root}/shop.slice", f'cgroup = "{systemd.root}/shop.slice"')
    status = service.call("status")
    assert status["missing"] and status["pending"]
    out = wired.directory / "got"
    url = f"http://{wired.server.ip4}/{path.name}"
    systemd.install(
        batch_service=f"""
[Service]
Type=oneshot
Slice=shop.slice
NetworkNamespacePath={wired.client.netns_path}
ExecStart=curl -so {out} {url}
"""
    )
    enter = ["nsenter", f"--net={wired.client.netns_path}", "curl", "-so", out, url]
    for command in (
        ["systemd-run", "--scope", "--quiet", "--slice=shop.slice", *enter],
        ["systemctl", "start", "batch.service"],
    ):
        systemd.run(command)
        assert hashlib.sha256(out.read_bytes()).hexdigest() == sha256
        out.unlink()
    wait_for(
        lambda: not service.call("status")["missing"], WITHIN_S, "status to tell that all is well"
    )
    assert service.call("status")["pending"] == []
    assert service.stack("wan")["counters"]["active_open"] == 2


def test_who_connects_to_an_activated_service_is_served_by_the_stack(systemd, service, wired):
    """What systemd listens at is in the cgroup of the socket's unit; the service, of a user that
    is made for it, takes it over.
    """
    group = f"{systemd.root}/system.slice/web.socket"
    service.start(f"--cgroup {systemd.root}/system.slice", f'cgroup = "{group}"')
    script = (
        "import socket; l = socket.socket(fileno=3)\\n"
        "while True: c, _ = l.accept(); c.sendall(b'hello'); c.recv(1)"
    )
    systemd.install(
        web_socket=f"[Socket]\nListenStream=0.0.0.0:7600\nNetworkNamespacePath={wired.client.netns_path}\n",
        web_service="[Service]\nDynamicUser=yes\n"
        f'ExecStart=/usr/bin/python3 -c "{script}"\n'
        f"NetworkNamespacePath={wired.client.netns_path}\n",
    )
    for turn in range(2):
        systemd.ctl("restart", "web.socket")
        wait_for(lambda: service.call("listeners"), WITHIN_S, "the listener")
        assert [one["cgroup"] for one in service.call("listeners")] == [group]
        with wired.server.call(
            socket.create_connection, (wired.client.ip4, 7600), WITHIN_S
        ) as client:
            assert client.recv(5) == b"hello"
            assert (turn, service.flow(group)["stack"]) == (turn, "wan")
        systemd.ctl("stop", "web.socket", "web.service")
        wait_for(lambda: not service.call("listeners"), WITHIN_S, "the listener to be gone")

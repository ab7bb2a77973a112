# SPDX-License-Identifier: Apache-2.0
"""Containers of podman and docker themselves, by their names: an unmodified curl in one, over
a user stack.

tools/bootstrap installs both. What an engine that is not there, or does not run, says
is the failure.
"""

from __future__ import annotations

import re
import subprocess

import pytest
from sitefixtures import TAP, by

from lab import curl_fetch, nginx, wait_for
from lab.commandline import CLI
from lab.engines import Docker, Podman
from lab.routed import Routed
from lab.waiting import patient, wait_pid_gone

BYTES = 20_000_000  # more than the buffers of a socket hold
ENGINES = {"podman": Podman, "docker": Docker}
INSIDE = TAP.replace('cgroup = "{cgroup}"\n', "")
OUTSIDE = by("tap", "eth0")
PUBLISHED = OUTSIDE.replace(
    'cgroup = "{cgroup}"', 'direction = "forward"\nin_interface = "eth0"'
).replace('to = "default"\n', 'to = "default"\nproto = "tcp"\nports = "8080-8089"\n')


class InContainer(Routed):
    """Attached to a container, whose name the instance's policy does not need."""

    name = "web"

    def _where(self):
        return ("--container", self.name)


@pytest.fixture(params=ENGINES)
def engine(request, wired, make_cgroup, monkeypatch):
    """An engine on the client's host, whose clients, dmm-ebpf among them, find it."""
    with ENGINES[request.param](wired.client, make_cgroup()) as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def served(wired, payload):
    """The server's file: its address and its hash."""
    path, sha256 = payload(BYTES)
    server = nginx(wired.server, path.parent, wired.directory / "nginx")
    return server.url(path.name), sha256


# curl in a container, whose output nobody reads until a line comes: so long its connection stays.
# Then its hash.
HELD = 'exec 3<&0; curl -sS --fail "$@" </dev/null | { read go <&3; sha256sum; }'


def fetch(engine, name, *options):
    """Starts it; hash_of() ends it."""
    return engine.popen(
        *("exec", "--interactive", name, "/bin/sh", "-c", HELD, "sh", *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def hash_of(process):
    return process.communicate("go\n", timeout=patient(60))[0].split()[0]


def only_flow(routed, *filters):
    """The one open flow that these options of `dmm-ebpf flows` leave, once there is one."""
    return wait_for(lambda: routed.ask("flows", "--state", "established", *filters), 20, "a flow")[
        0
    ]


def test_a_container_by_its_name(engine, wired, served):
    """Its cgroup and its namespace are found, and its curl is carried by a stack on
    its own eth0.
    """
    url, sha256 = served
    number = engine.start("web")
    pid = engine.ask("inspect", "--format", "{{.State.Pid}}", "web")
    inside = wired.stack.enter_context(
        InContainer(wired.client, engine.parent, INSIDE, wired.directory)
    )
    (status,) = inside.ask("status")
    assert status["cgroup"].endswith(number)
    assert inside.stack("wan")["nics"] == ["eth0"]

    got = fetch(engine, "web", url)
    flow = only_flow(inside, "--container", "web")
    assert hash_of(got) == sha256
    assert (flow["stack"], flow["comm"], flow["dst"]) == ("wan", "curl", wired.server.ip4)
    assert flow["src"] == engine.address("web")
    assert inside.stack("wan")["counters"]["active_open"] == 1

    asked = ("route", "get", f"{wired.server.ip4}:80", "--instance", inside.instance, "--json")
    for named in (("--container", number[:12]), ("--pid", pid)):
        assert '"stack": "wan"' in inside.cli(*asked, *named).stdout


def test_a_program_of_a_container_by_its_file(engine, wired, served):
    """Which is the image's as that container has it, and no other's of the same path."""
    url, sha256 = served
    for name in ("web", "other"):
        engine.start(name)
    pid = engine.ask("inspect", "--format", "{{.State.Pid}}", "web")
    driver = '{{with .GraphDriver}}{{index .Data "MergedDir"}}{{end}}'
    merged = engine.ask("inspect", "--format", driver, "web", check=False)
    roots = [f"/proc/{pid}/root", *([merged] if merged.startswith("/") else [])]
    for root in roots:
        rule = f'executable = "{root}/bin/curl"'
        outside = Routed(
            wired.client,
            engine.parent,
            OUTSIDE.replace('cgroup = "{cgroup}"', rule),
            wired.directory,
            options=("--containers",),
        )
        with outside:
            for name, stack in (("web", "wan"), ("other", "kernel")):
                got = fetch(engine, name, url)
                assert only_flow(outside, "--container", name)["stack"] == stack, root
                assert hash_of(got) == sha256


def test_the_end_of_a_container_is_that_of_its_instance(engine, wired):
    """An engine keeps the namespace by a mount, whose end is the namespace's: only we would be
    left in it.
    """
    engine.start("web")
    inside = wired.stack.enter_context(
        InContainer(wired.client, engine.parent, INSIDE, wired.directory)
    )
    engine.ask("rm", "--force", *engine.at_once, "web")
    assert wait_pid_gone(inside.process.pid, 30), inside.log.read_text()
    assert inside.process.wait() == 0, inside.log.read_text()
    assert "the network namespace was deleted" in inside.log.read_text()


def test_the_host_carries_what_its_containers_open(engine, wired, served):
    """One director outside; a rule by the cgroup of one of two containers, behind the engine's
    bridge and its NAT.
    """
    url, sha256 = served
    group = f'cgroup = "{engine.group(engine.start("web"))}"'
    engine.start("other")
    policy = OUTSIDE.replace('cgroup = "{cgroup}"', group)
    outside = Routed(
        wired.client, engine.parent, policy, wired.directory, options=("--containers",)
    )
    wired.stack.enter_context(outside)

    got, other = fetch(engine, "web", url), fetch(engine, "other", url)
    flow = only_flow(outside, "--container", "web")
    assert (flow["stack"], flow["why"], flow["comm"], flow["dst"]) == (
        "wan",
        "",
        "curl",
        wired.server.ip4,
    )
    assert flow["src"] == engine.address("web")
    assert only_flow(outside, "--container", "other")["stack"] == "kernel"
    # The server sees the host alone: the engine's masquerade has translated both.
    seen = wired.server.run(
        ["ss", "-Htn", "state", "established", "sport", "=", ":80"]
    ).stdout.splitlines()
    assert [line.split()[-1].rpartition(":")[0] for line in seen] == [wired.client.ip4] * 2
    assert (hash_of(got), hash_of(other)) == (sha256, sha256)
    assert outside.stack("wan")["counters"]["active_open"] == 1


def test_the_dead_peer_keys_hold_in_a_container_of_other_sysctls(engine, wired, served):
    """What the stack says counts for a program that says nothing, and the container's sysctls for
    what the stack leaves out.
    """
    url, sha256 = served
    sysctls = ("tcp_keepalive_time=11", "tcp_keepalive_intvl=7")
    engine.start("web", options=[f"--sysctl=net.ipv4.{one}" for one in sysctls])
    pid = engine.ask("inspect", "--format", "{{.State.Pid}}", "web")
    policy = OUTSIDE.replace('kind = "user"\n', 'kind = "user"\nkeepalive_time_s = 33\n')
    routed = wired.stack.enter_context(
        Routed(wired.client, engine.parent, policy, wired.directory, options=("--containers",))
    )
    for own, most in (((), 33), (("--keepalive-time", "70"), 70)):
        words = own or ("--no-keepalive",)
        got = fetch(engine, "web", *words, url)
        flow = only_flow(routed, "--container", "web")
        assert (flow["stack"], flow["kind"]) == ("wan", "container")
        shown = subprocess.run(
            ["nsenter", "--net", "--target", pid, "ss", "-Htno", "state", "established"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        left = re.search(r"timer:\(keepalive,(?:(\d+)min)?(?:(\d+)(?:\.\d+)?sec)?", shown)
        assert left, shown
        seconds = 60 * int(left[1] or 0) + int(left[2] or 0)
        assert most - 12 < seconds <= most, shown
        assert hash_of(got) == sha256


def test_the_host_carries_what_comes_by_a_published_port(engine, wired, payload):
    """The engine's DNAT leads from the host's port to the container's; the stack is the host's."""
    path, sha256 = payload(BYTES)
    options = ("--publish", "8080:80", "--volume", f"{path.parent}:/www:ro")
    engine.start("web", "/bin/httpd", "-f", "-p", "80", "-h", "/www", options=options)
    outside = wired.stack.enter_context(
        Routed(wired.client, engine.parent, PUBLISHED, wired.directory)
    )
    url = f"http://{wired.client.ip4}:8080/{path.name}"
    got = curl_fetch(wired.server, url, timeout=30)
    assert got.sha256 == sha256, got.stderr
    assert outside.stack("wan")["counters"]["passive_open"] == 1


def test_what_does_not_run_is_said(engine, wired):
    engine.start("gone", "/bin/true")
    wait_for(
        lambda: "exited" in engine.ask("inspect", "--format", "{{.State.Status}}", "gone"),
        20,
        "its end",
    )
    for name, why in (
        ("gone", "it does not run (it is exited); start it first"),
        ("none", 'says "'),
    ):
        done = subprocess.run(
            [*CLI, "flows", "--container", name], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert f"cannot find the container '{name}': " in done.stderr and why in done.stderr

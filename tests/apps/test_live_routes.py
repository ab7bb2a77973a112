# SPDX-License-Identifier: Apache-2.0
"""Single routes of a running instance: what is added is there for the next connect(), also beside a
million routes; what is refused; what a reload, another policy and a take-over make of them.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from sitefixtures import Site
from talking import Talker, echo, program

from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.records.status import Status
from lab import wait_for
from lab.routed import Routed

POLICY = """
[stacks.lan]
kind = "kernel"
dscp = "af21"
[stacks.no]
kind = "reject"
errno = "EACCES"
[[rules]]
cgroup = "{cgroup}"
table = "shop"
[[tables.shop.routes]]
to = "203.0.113.0/24"
proto = "tcp"
ports = "443, 8000-8100"
stack = "lan"
[[tables.shop.routes]]
to = "192.0.2.0/24"
stack = "no"
"""
MILLION = POLICY.split("[[tables", maxsplit=1)[0] + '[tables.shop]\nroutes_from = "many.csv"\n'
# Connects to the address and port of each line, and says how that ended
CONNECTS = """
import errno, socket, sys
for line in sys.stdin:
    host, port = line.split()
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setblocking(False)
    print(errno.errorcode.get(sock.connect_ex((host, int(port))), "OK"), flush=True)
    sock.close()
"""
ROUTE = ("203.0.113.0/24", "proto", "tcp", "port", "443", "stack", "no")


class Connecting:
    """A program of the attached cgroup, as long-lived as a server."""

    def __init__(self, site: Site) -> None:
        self.process = program(site.client, site.client_cgroup, CONNECTS)

    def refused(self, host: str, port: int = 443) -> bool:
        """Whether the policy refuses a connection."""
        self.process.stdin.write(f"{host} {port}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() == errno.errorcode[errno.EACCES]


@pytest.fixture
def connecting(site: Site) -> Iterator[Callable[[], Connecting]]:
    made: list[Connecting] = []

    def make() -> Connecting:
        made.append(Connecting(site))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()


def _route(routed: Routed, *words: str) -> str:
    return str(routed.cli("route", *words, "--instance", routed.instance).stdout)


def _refusal(routed: Routed, *words: str) -> str:
    done = routed.cli("route", *words, "--instance", routed.instance, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return str(done.stderr)


def _status(routed: Routed) -> Status:
    with Client(routed.instance) as client:
        return client.status()


def _listed(routed: Routed) -> list[str]:
    return _route(routed, "show", "--live").splitlines()


def test_a_route_is_there_for_the_next_connection(site: Site, connecting) -> None:
    routed, now = site.attach_client(POLICY), connecting()
    assert not now.refused("203.0.113.9")
    assert _route(routed, "replace", *ROUTE) == (
        "+ 203.0.113.0/24 proto tcp port 443 stack no table shop live\n"
    )
    assert now.refused("203.0.113.9")
    assert not now.refused("203.0.113.9", 8050), "the policy's other ports are as they were"
    _route(routed, "add", "203.0.113.9", "stack", "lan")
    assert not now.refused("203.0.113.9"), "the longer prefix wins"
    assert now.refused("203.0.113.8")
    _route(routed, "add", "192.0.2.0/25", "port", "80", "stack", "lan", "table", "shop")
    assert [now.refused("192.0.2.1", port) for port in (80, 443)] == [False, True]
    _route(routed, "add", "default", "proto", "tcp", "port", "1-1023", "stack", "no")
    assert [now.refused("198.51.100.1", port) for port in (80, 1024)] == [True, False]
    assert now.refused("2001:db8::1", 22)
    assert not now.refused("203.0.113.9", 80)

    asked = routed.ask("route", "get", "203.0.113.7:443")
    assert (asked["stack"], asked["route"], asked["live"]) == ("no", "203.0.113.0/24 tcp 443", True)
    assert "live" not in routed.ask("route", "get", "203.0.113.7:8000")
    explained = routed.ask("policy", "explain", "203.0.113.7:443")
    seen = [(one["where"], one["outcome"]) for one in explained["rules"][0]["routes"]]
    assert seen == [
        ("live route of table shop", "decides"),
        ("route 1 of table shop", "same"),
        ("live route of table shop", "shorter prefix"),
    ]
    assert _status(routed).live_routes == 5
    shown = routed.cli("status", "--instance", routed.instance).stdout
    assert "5 live routes" in shown
    assert "+" not in _route(routed, "flush")
    assert not now.refused("203.0.113.8")
    assert _listed(routed) == []


def test_what_is_listed_can_be_typed_back(site: Site) -> None:
    routed = site.attach_client(POLICY)
    _route(routed, "replace", *ROUTE)
    _route(routed, "add", "2001:db8::/32", "udp", "port", "53,5353-5355", "via", "blackhole")
    live = _listed(routed)
    assert live == [
        "203.0.113.0/24 proto tcp port 443 stack no table shop live",
        "2001:db8::/32 proto udp port 53,5353-5355 stack blackhole table shop live",
    ]
    everything = _route(routed, "show").splitlines()
    assert everything == [
        *live,
        "203.0.113.0/24 proto tcp port 443,8000-8100 stack lan table shop",
        "192.0.2.0/24 stack no table shop",
    ]
    _route(routed, "del", *live[0].split())
    assert _listed(routed) == live[1:]
    batch = site.directory / "batch"
    batch.write_text("\n".join(["# as listed", *live[:1], "198.51.100.0/24 stack no"]))
    _route(routed, "add", "--batch", str(batch))
    assert len(_listed(routed)) == 3


def test_refusals_change_nothing(site: Site) -> None:
    routed = site.attach_client(POLICY)
    _route(routed, "replace", *ROUTE)
    before = (_status(routed).generation, _listed(routed))
    assert "exists (EEXIST), with stack no" in _refusal(routed, "add", *ROUTE)
    told = _refusal(routed, "add", "192.0.2.0/24", "stack", "lan")
    assert "exists (EEXIST): route 2 of table shop has it, with stack no" in told
    assert "no such live route (ESRCH)" in _refusal(routed, "del", "198.51.100.1")
    told = _refusal(routed, "del", "192.0.2.0/24")
    assert "it is the policy's own, route 2 of table shop" in told
    assert "leads to stack no" in _refusal(routed, "del", *ROUTE[:5], "stack", "lan")
    assert 'no stack "wan"' in _refusal(routed, "add", "198.51.100.1", "stack", "wan")
    assert 'no table "x"' in _refusal(routed, "add", "::1", "stack", "no", "table", "x")
    assert "host bits" in _refusal(routed, "add", "198.51.100.1/24", "stack", "no")
    assert "no stack is named" in _refusal(routed, "add", "198.51.100.1")
    assert "is no word of a route" in _refusal(routed, "add", *ROUTE, "metric", "5")
    overlap = ("203.0.113.0/24", "tcp", "port", "440-445", "stack", "lan")
    _route(routed, "add", *overlap)  # a range stands behind an exact port
    contrary = _refusal(routed, "add", *overlap[:3], "441-450", *overlap[4:5], "no")
    assert "the live route 203.0.113.0/24 tcp 440-445 sends port 441 to stack lan" in contrary
    _route(routed, "del", *overlap)
    batch = site.directory / "batch"
    batch.write_text(f"198.51.100.7 stack no\n{' '.join(ROUTE)}\n")
    assert "EEXIST" in _refusal(routed, "add", "--batch", str(batch))
    assert _listed(routed) == before[1]
    done = routed.cli("route", "add", *ROUTE, "--instance", routed.instance, "--json", check=False)
    assert json.loads(done.stdout)["error"]["exit_code"] == done.returncode == 2


def test_only_root_may(site: Site) -> None:
    routed = site.attach_client(POLICY)
    words = [*ROUTE, "--instance", routed.instance]
    script = "from dmm_ebpf.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "route", "replace", *words],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False,
        env=os.environ | {"HOME": "/"},
    )  # fmt: skip
    assert done.returncode == 77, done.stderr
    assert _listed(routed) == []


def test_they_outlive_reload_another_policy_and_a_director(site: Site, connecting) -> None:
    routed, now = site.attach_client(POLICY), connecting()
    _route(routed, "replace", *ROUTE)
    _route(routed, "add", "198.51.100.0/24", "stack", "lan")
    live = _listed(routed)
    routed.apply(POLICY + "# again\n")
    assert _listed(routed) == live
    assert now.refused("203.0.113.9")
    for _ in range(3):
        routed.kill_director()
        assert now.refused("203.0.113.9"), "without a director"
        routed.restart()
        assert now.refused("203.0.113.9")
        assert _listed(routed) == live
    _route(routed, "del", *ROUTE)
    assert not now.refused("203.0.113.9")
    routed.kill_director()
    routed.restart()
    assert not now.refused("203.0.113.9")
    assert _listed(routed) == live[1:]
    assert "no such live route" in _refusal(routed, "del", *ROUTE)

    routed.apply(POLICY.replace("lan", "wlan"))
    assert _listed(routed) == []
    assert "198.51.100.0/24 stack lan table shop is gone" in routed.log.read_text()


def test_show_and_diff_tell_of_them(site: Site) -> None:
    routed = site.attach_client(POLICY)
    here = ("--instance", routed.instance)
    assert routed.cli("policy", "show", *here).stdout == routed.policy_file.read_text()
    _route(routed, "replace", *ROUTE)
    _route(routed, "add", "198.51.100.0/24", "stack", "lan")
    shown = routed.cli("policy", "show", *here).stdout
    added = shown.removeprefix(routed.policy_file.read_text()).splitlines()
    assert [one.removeprefix("#   ") for one in added[1:]] == _listed(routed)
    assert all(one.startswith("#") for one in added), "what is shown is a policy still"
    rows = json.loads(routed.cli("policy", "show", *here, "--json").stdout)["live"]
    assert [one["to"] for one in rows] == ["203.0.113.0/24", "198.51.100.0/24"]

    same = routed.cli("policy", "diff", str(routed.policy_file), *here)
    assert "live routes that stay beside it: 2;" in same.stderr
    other = routed.policy_file.with_name("other.toml")
    other.write_text(routed.policy_file.read_text().replace("lan", "wlan"))
    diff = routed.cli("policy", "diff", str(other), *here, check=False)
    assert "- route 198.51.100.0/24 stack lan table shop live\n" in diff.stdout
    assert "203.0.113.0/24 proto tcp port 443 stack no" not in diff.stdout
    assert "live routes that stay beside it: 1;" in diff.stderr
    tried = routed.cli("policy", "apply", "--dry-run", *here, str(other), "--json")
    assert json.loads(tried.stdout)["live_routes"] == 1


def test_a_flow_keeps_the_name_of_its_route(wired: Site) -> None:
    routed = wired.attach_client(POLICY)
    echo(wired.server, wired.server_cgroup)
    _route(routed, "add", f"{wired.server.ip4}/32", "stack", "lan")
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert talker.says("send 1000") == "True"

    def named() -> tuple[str, str]:
        (flow,) = routed.flows(pid=talker.process.pid)
        return flow["stack"], flow["route"]

    name = ("lan", f"{wired.server.ip4}/32 live")
    assert named() == name
    _route(routed, "del", wired.server.ip4)
    assert named() == name
    routed.kill_director()
    assert named() == name
    routed.restart()
    assert named() == name
    for _ in range(3):
        routed.apply()
        assert named() == name


def test_a_stack_that_no_route_named_is_started(wired: Site) -> None:
    routed = wired.attach_client('[stacks.wan]\nkind = "user"\nio = "tap"\n' + POLICY)
    echo(wired.server, wired.server_cgroup)
    _route(routed, "add", f"{wired.server.ip4}/32", "stack", "wan")
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert talker.says("send 1000") == "True"
    assert talker.flow(routed)["stack"] == "wan"


# Opens connections until it is told that it is enough, and has the latest of them
HOLDS = """
import collections, select, socket, sys
server = socket.create_server(("127.0.0.1", 0))
held = collections.deque()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    held.append((socket.create_connection(server.getsockname()), server.accept()[0]))
    while len(held) > 400:
        for end in held.popleft():
            end.close()
print("enough", flush=True)
sys.stdin.read()
"""


def test_each_flow_is_decided_by_one_generation(site: Site) -> None:
    """While routes are changed as fast as they can be, by one of two for a single address."""
    routed = site.attach_client(POLICY + '[stacks.far]\nkind = "kernel"\n')
    held = program(site.client, site.client_cgroup, HOLDS)
    assert held.stdout.readline() == "ready\n"
    decided = {}
    try:
        with Client(routed.instance) as client:
            for number in range(300):
                route = {"to": "127.0.0.0/8", "stack": ("lan", "far")[number % 2]}
                if number % 3:
                    route |= {"proto": "tcp", "ports": "1024-65535"}
                generation = client.route_change("replace", [route]).generation
                found = client.route_get(addr="127.0.0.1", port=40000)
                decided[generation] = found.stack, f"{found.route} live"
            held.stdin.write("enough\n")
            held.stdin.flush()
            assert held.stdout.readline() == "enough\n"
            flows = [one for one in client.flows() if one.direction == "connect"]
        told = {one.generation: (one.stack, one.route) for one in flows}
        assert len(told) > 3, "nothing was changed while flows began"
        for one in flows:
            assert (one.stack, one.route) == decided[one.generation], one.generation
    finally:
        held.kill()
        held.communicate()


def _million(site: Site, count: int) -> None:
    with (site.directory / "many.csv").open("w", encoding="ascii") as file:
        for number in range(count):
            first = (11 << 24) + number * 64
            address = ".".join(str(first >> bits & 255) for bits in (24, 16, 8, 0))
            file.write(f"{address}/26,tcp,443,lan\n")


@pytest.mark.timeout(600)  # a million routes are read twice
def test_beside_a_million_routes(site: Site, connecting) -> None:
    """Each command's answer comes after its change: what connects then has the new route."""
    _million(site, 1_000_000)
    routed, now = site.attach_client(MILLION), connecting()
    took: list[float] = []
    with Client(routed.instance, timeout_s=60) as client:
        for number in range(0, 1_000_000, 25_000):
            first = (11 << 24) + number * 64
            to = ".".join(str(first >> bits & 255) for bits in (24, 16, 8, 0))
            route = {"to": f"{to}/26", "proto": "tcp", "ports": "443", "stack": "no"}
            assert not now.refused(to)
            with pytest.raises(UsageError, match="EEXIST"):
                client.route_change("add", [route])
            took.append(client.route_change("replace", [route]).took_ms)
            assert now.refused(to)
            assert not now.refused(to[: to.rindex(".")] + ".65")
            if number % 50_000:
                client.route_change("del", [route])
                assert not now.refused(to)
        assert client.status().live_routes == 20
    print(f"a change took {sorted(took)[len(took) // 2]:.2f} ms in the median of {len(took)}")
    routed.kill_director()
    routed.restart()
    assert now.refused("11.0.0.1")
    wait_for(lambda: len(_listed(routed)) == 20, 60, "the live routes after a take-over")

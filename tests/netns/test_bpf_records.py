# SPDX-License-Identifier: Apache-2.0
"""Flow records as the Resource Director shows them: completed by inet_diag, and events only
while somebody follows.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from bpf_lab import Agent, dual_listener, u32

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader import bpf, bpffs
from dmm_ebpf.loader.maps import Map
from dmm_ebpf.rd.api.client import Client
from lab import Cgroup, Host, Lab
from lab.routed import Routed
from lab.waiting import wait_for

POLICY = """
[[rules]]
cgroup = "{cgroup}"
table = "t"
[[tables.t.routes]]
to = "default"
stack = "kernel"
"""


@dataclass
class Watched:
    """An instance on a cgroup of host a, an agent in it, and a listener on host b."""

    a: Host
    b: Host
    routed: Routed
    agent: Agent
    far: socket.socket

    @property
    def port(self) -> int:
        """Where b listens."""
        return int(self.far.getsockname()[1])

    def events_on(self) -> bool:
        """control[0].flags, from the pin."""
        folder = bpffs.instance_dir(self.routed.instance)
        assert folder is not None
        with Map(bpf.obj_get(str(folder / "maps" / "control"))) as control:
            value = control.lookup(u32(0)) or b""
        return bool(abi.unpack("dmm_control", value).flags & C.DMM_CONTROL_EVENTS)

    def shown(self, name: str) -> list[dict[str, object]]:
        """What `dmm-ebpf flows` says of one of the agent's sockets."""
        return self.routed.flows(cookie=self.agent.cookie(name))


@pytest.fixture
def watched(lab: Lab, cgroup: Cgroup, tmp_path: Path) -> Iterator[Watched]:
    """Detached at the end."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    with ExitStack() as stack:
        routed = stack.enter_context(Routed(a, cgroup, POLICY, tmp_path))
        far = stack.enter_context(b.call(dual_listener))
        yield Watched(a, b, routed, Agent(cgroup, a), far)


def established(watched: Watched) -> Callable[[dict[str, object]], bool]:
    """Whether a line is that of the socket x, whole."""
    local = watched.agent("s['x'].getsockname()")

    def whole(row: dict[str, object]) -> bool:
        ends = [row[key] for key in ("src", "sport", "dst", "dport", "state")]
        return ends == [*local, watched.b.ip4, watched.port, "ESTABLISHED"]

    return whole


def test_flows_are_whole_with_and_without_a_director(watched: Watched) -> None:
    agent = watched.agent
    agent.open("x")
    agent.connect("x", watched.b.ip4, watched.port)
    whole = established(watched)
    peer, _ = watched.far.accept()
    with peer:
        agent("s['x'].sendall(bytes(5000))")
        assert len(peer.recv(5000, socket.MSG_WAITALL)) == 5000
        for _ in range(2):
            (row,) = watched.shown("x")
            assert whole(row) and row["pid"] == agent.pid and row["table"] == "t"
            assert row["bytes_sent"] in (5000, 5001) and row["srtt_us"]  # tcp_info counts the SYN
            if watched.routed.process.poll() is None:
                watched.routed.kill_director()
        watched.routed.restart()
        assert whole(*watched.shown("x"))


def test_a_connect_under_way_is_shown_and_a_failed_one_is_not(watched: Watched) -> None:
    watched.b.ip(f"route add blackhole {watched.a.ip4}/32")
    watched.a.ip("route del default")
    agent = watched.agent
    agent.open("x")
    agent("s['x'].setblocking(False)")
    agent(f"s['x'].connect_ex(({watched.b.ip4!r}, {watched.port}))")
    agent.open("y")
    with pytest.raises(OSError, match="unreachable"):
        agent.connect("y", "198.51.100.1", 80)
    (row,) = watched.shown("x")
    assert (row["state"], row["src"], row["sport"]) == ("SYN_SENT", *agent("s['x'].getsockname()"))
    assert watched.shown("y") == []


def test_events_are_made_only_while_somebody_follows(watched: Watched) -> None:
    def talk() -> int:
        watched.agent.open("x")
        watched.agent.connect("x", watched.b.ip4, watched.port)
        cookie = watched.agent.cookie("x")
        watched.agent.close("x")
        watched.far.accept()[0].close()
        return cookie

    talk()
    assert not watched.events_on()
    with Client(watched.routed.instance) as client, client.stream("follow") as events:
        wait_for(watched.events_on, 5, "the follower to be known")
        cookie, kinds = talk(), []
        for event in events:
            if event.get("cookie") == cookie:
                kinds.append(event["type"])
            if "close" in kinds:
                break
        assert kinds == ["connect", "established", "close"]

    def nobody() -> bool:
        talk()  # a follower that has hung up is noticed when there is something to tell it
        return not watched.events_on()

    wait_for(nobody, 5, "the follower to be forgotten")


def test_events_of_a_killed_directors_followers_end_with_the_next(watched: Watched) -> None:
    with Client(watched.routed.instance) as client, client.stream("follow"):
        wait_for(watched.events_on, 5, "the follower to be known")
        watched.routed.kill_director()
        assert watched.events_on()
    watched.routed.restart()
    assert not watched.events_on()

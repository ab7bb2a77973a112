# SPDX-License-Identifier: Apache-2.0
"""Flow records and events: from the SYN to the close, for connecting and accepted sockets, and
never a stray one.
"""

from __future__ import annotations

import socket
import struct

import pytest
from bpf_lab import Agent, Bench, Policy, bench, dual_listener, follow, u32

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.loader import EventReader, create_routes_map
from dmm_ebpf.rd.director.flows import pair_text
from lab.waiting import wait_for

__all__ = ["bench"]

ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE, CLOSE_WAIT = 1, 2, 4, 5, 7, 8


def ends(flow) -> tuple[str, int, str, int]:
    """(local address, local port, remote address, remote port)."""
    return pair_text(flow.pair)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_flow_from_connect_to_close(bench: Bench, family: str) -> None:
    agent, address = bench.agent, getattr(bench.b, family)
    agent("libc.prctl(15, b'buyer', 0, 0, 0)")
    agent.open("x", socket.AF_INET if family == "ip4" else socket.AF_INET6)
    cookie = agent.cookie("x")
    assert bench.flow(cookie) is None
    agent.connect("x", address, bench.port)
    local = agent("s['x'].getsockname()[:2]")
    peer, _ = bench.far.accept()
    with peer:
        syn = bench.event(C.DMM_EVENT_CONNECT, cookie)
        assert syn.flow.state == SYN_SENT and ends(syn.flow) == (*local, address, bench.port)
        up = bench.event(C.DMM_EVENT_ESTABLISHED, cookie)
        assert up.flow.state == ESTABLISHED and up.time_ns >= syn.time_ns
        flow = bench.flow(cookie)
        assert flow is not None and ends(flow) == (*local, address, bench.port)
        assert flow.pair.family == (socket.AF_INET if family == "ip4" else socket.AF_INET6)
        assert flow.pair.proto == socket.IPPROTO_TCP
        assert abi.text(flow.decision.comm) == "buyer" and flow.decision.pid == agent.pid
        assert flow.opened_ns <= flow.updated_ns
        agent("s['x'].sendall(bytes(300000))")
        received = 0
        while received < 300000:
            received += len(peer.recv(65536))
        peer.sendall(bytes(5000))
        assert agent("len(s['x'].recv(5000, socket.MSG_WAITALL))") == 5000
        peer.shutdown(socket.SHUT_WR)
        wait_for(
            lambda: (f := bench.flow(cookie)) is not None and f.state == CLOSE_WAIT, 5, "CLOSE_WAIT"
        )
        agent.close("x")
        assert peer.recv(1) == b""
    end = bench.event(C.DMM_EVENT_CLOSE, cookie).flow
    assert end.srtt_us > 0 and ends(end) == (*local, address, bench.port)
    assert end.state == CLOSE and bench.flow(cookie) is None
    # tcp_info(7) counts a SYN and a FIN as one byte each.
    assert end.bytes_sent - 300000 in (0, 1, 2) and end.bytes_received - 5000 in (0, 1)


@pytest.mark.parametrize("where", ["0.0.0.0", "::"])
def test_an_accepted_flow_is_recorded_with_its_listeners_facts(bench: Bench, where: str) -> None:
    agent = bench.agent
    agent("libc.prctl(15, b'seller', 0, 0, 0)")
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    port = agent.listen("l", where, family=family)
    with bench.b.call(lambda: socket.create_connection((bench.a.ip4, port), 10)) as peer:
        agent.accept("l", "x")
        cookie = agent.cookie("x")
        flow = bench.event(C.DMM_EVENT_ESTABLISHED, cookie).flow
        assert ends(flow) == (bench.a.ip4, port, *peer.getsockname())
        assert flow.pair.family == socket.AF_INET
        assert flow.decision.direction == C.DMM_DIR_LISTEN and flow.decision.listening == 0
        assert (flow.decision.pid, abi.text(flow.decision.comm)) == (agent.pid, "seller")
        agent.close("x")
        assert peer.recv(1) == b""
    assert bench.event(C.DMM_EVENT_CLOSE, cookie).flow.decision.pid == agent.pid
    assert bench.flows() == []
    assert bench.listener(where, port) is not None


def test_a_refused_connect_leaves_no_record(bench: Bench) -> None:
    bench.agent.open("x")
    cookie = bench.agent.cookie("x")
    with pytest.raises(ConnectionRefusedError):
        bench.agent.connect("x", bench.b.ip4, 1)
    bench.event(C.DMM_EVENT_CONNECT, cookie)
    assert bench.event(C.DMM_EVENT_CLOSE, cookie).flow.state == CLOSE
    assert bench.flows() == []


def unsent(bench: Bench, name: str = "x") -> int:
    """A socket whose connect() fails before any SYN; its cookie."""
    bench.agent.open(name)
    with pytest.raises(OSError, match="unreachable"):
        bench.agent.connect(name, "198.51.100.1", 80)
    return int(bench.agent.cookie(name))


def test_a_record_of_a_connect_without_a_route_goes_with_its_socket(bench: Bench) -> None:
    bench.a.ip("route del default")
    cookie = unsent(bench)
    flow = bench.flow(cookie)
    assert flow is not None and flow.state == 0 and ends(flow)[2:] == ("198.51.100.1", 80)
    bench.agent("t = os.dup(s['x'].fileno())")
    bench.agent("q = os.fork()\nif not q: os._exit(0)\nos.waitpid(q, 0)")
    bench.agent.close("x")
    assert bench.flow(cookie) is not None, "a duplicate of the descriptor holds the socket"
    bench.agent("os.close(t)")
    assert bench.flow(cookie) is None
    second = unsent(bench, "y")
    bench.agent.process.kill()
    bench.agent.process.wait()
    wait_for(lambda: bench.flow(second) is None, 5, "the killed program's socket to be released")


def test_a_socket_may_connect_again_after_it_failed(bench: Bench) -> None:
    bench.a.ip("route del default")
    cookie = unsent(bench)
    bench.agent.connect("x", bench.b.ip4, bench.port)
    flow = bench.flow(cookie)
    assert flow is not None and ends(flow)[2:] == (bench.b.ip4, bench.port)
    assert len(bench.flows()) == 1
    bench.agent.close("x")
    bench.far.accept()[0].close()
    bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert bench.flow(cookie) is None


def test_a_refusal_after_a_failure_leaves_no_record(bench: Bench) -> None:
    bench.a.ip("route del default")
    cookie = unsent(bench)
    Policy().rule(1).stack(9, C.DMM_STACK_REJECT).route(1, "0.0.0.0/0", 9).apply(bench.attached)
    with pytest.raises(PermissionError):
        bench.agent.connect("x", bench.b.ip4, bench.port)
    assert bench.flow(cookie) is None


def test_disconnecting_ends_a_flow_and_the_socket_may_have_another(bench: Bench) -> None:
    agent = bench.agent
    agent.open("x")
    cookie = agent.cookie("x")
    for _ in range(2):
        agent.connect("x", bench.b.ip4, bench.port)
        assert bench.flow(cookie) is not None
        agent("libc.connect(s['x'].fileno(), bytes(16), 16)")  # AF_UNSPEC, connect(2)
        bench.event(C.DMM_EVENT_CLOSE, cookie)
        bench.events.clear()
        assert bench.flow(cookie) is None


def test_a_flow_ends_at_time_wait(bench: Bench) -> None:
    agent = bench.agent
    agent.open("x")
    agent.connect("x", bench.b.ip4, bench.port)
    cookie = agent.cookie("x")
    peer, _ = bench.far.accept()
    agent("s['x'].shutdown(socket.SHUT_WR)")
    assert peer.recv(1) == b""
    wait_for(lambda: (f := bench.flow(cookie)) is not None and f.state == FIN_WAIT2, 5, "FIN_WAIT2")
    peer.close()
    bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert bench.flow(cookie) is None


def test_a_descriptor_that_a_child_keeps_keeps_the_flow(bench: Bench) -> None:
    agent = bench.agent
    agent.open("x")
    agent.connect("x", bench.b.ip4, bench.port)
    cookie = agent.cookie("x")
    agent("r, w = os.pipe()\nk = os.fork()\nif not k: os.close(w); os.read(r, 1); os._exit(0)")
    agent.close("x")
    peer, _ = bench.far.accept()
    assert bench.flow(cookie) is not None
    agent("os.close(w); os.waitpid(k, 0)")
    assert peer.recv(1) == b""
    peer.close()
    bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert bench.flow(cookie) is None


def test_a_program_that_left_the_cgroup_keeps_its_flows(bench: Bench, make_cgroup) -> None:
    """A socket belongs to the cgroup that it was made in (cgroups(7))."""
    bench.a.ip("route del default")
    cookie = unsent(bench)
    bench.agent.open("y")
    bench.agent.connect("y", bench.b.ip4, bench.port)
    up = bench.agent.cookie("y")
    (make_cgroup().path / "cgroup.procs").write_text(str(bench.agent.pid))
    assert bench.flow(cookie) is not None and bench.flow(up) is not None
    for name in ("x", "y"):
        bench.agent.close(name)
    bench.far.accept()[0].close()
    bench.event(C.DMM_EVENT_CLOSE, up)
    assert bench.flows() == []


def test_while_nobody_follows_there_is_no_event_and_no_record_is_left(bench: Bench) -> None:
    follow(bench.attached, 0)
    agent = bench.agent
    port = agent.listen("l", "127.0.0.1")
    agent.open("x")
    cookie = agent.cookie("x")
    agent.connect("x", "127.0.0.1", port)
    agent.accept("l", "y")
    flow = bench.flow(cookie)
    assert flow is not None and flow.state == 0 and ends(flow)[2:] == ("127.0.0.1", port)
    agent("s['x'].sendall(bytes(1000))")
    agent("s['x'].shutdown(socket.SHUT_WR)")
    flow = bench.flow(cookie)
    assert flow is not None and flow.state in (FIN_WAIT1, FIN_WAIT2)
    assert ends(flow) == (*agent("s['x'].getsockname()"), "127.0.0.1", port)
    for name in ("y", "x", "l"):
        agent.close(name)
    wait_for(lambda: not bench.flows(), 5, "the flows to end")
    with pytest.raises(ConnectionRefusedError):
        agent.open("z")
        agent.connect("z", "127.0.0.1", port)
    agent.close("z")
    assert bench.flows() == [] and bench.reader.read() == []


@pytest.mark.parametrize("how", ["close", "exit", "follow"])
def test_a_connect_given_up_unwatched_leaves_no_record(bench: Bench, how: str) -> None:
    follow(bench.attached, 0)
    bench.b.ip(f"route add blackhole {bench.a.ip4}/32")
    agent = Agent(bench.cgroup, bench.a)
    agent.open("x")
    agent("s['x'].setblocking(False)")
    agent(f"s['x'].connect_ex(({bench.b.ip4!r}, {bench.port}))")
    flow = bench.flow(agent.cookie("x"))
    assert flow is not None and flow.state == 0
    if how == "exit":
        agent.process.kill()
        agent.process.wait()
    else:
        if how == "follow":
            follow(bench.attached)
        agent.close("x")
    wait_for(lambda: not bench.flows(), 5, "the record to go")


def near_flow(owner: int) -> bytes:
    """A struct dmm_near_flow that is taken, or with owner 0 is free."""
    return abi.pack(abi.new("dmm_near_flow", owner=owner, flow={"cookie": owner}))


def take_all_places(bench: Bench) -> None:
    """Fills flows[] with strangers."""
    places = range(C.DMM_NEAR_FLOWS)
    values = b"".join(near_flow((1 << 63) + i) for i in places)
    bench.attached.maps["flows"].update_batch(b"".join(u32(i) for i in places), values, len(places))


def free_place(bench: Bench, index: int) -> None:
    """Makes room in flows[]."""
    bench.attached.maps["flows"].update(u32(index % C.DMM_NEAR_FLOWS), near_flow(0))


def more_count(bench: Bench) -> int:
    """How many records the programs believe to be in more_flows[]; that many there are."""
    (count,) = struct.unpack("=Q", bench.attached.maps["more_count"].lookup(u32(0)) or b"")
    assert bench.attached.maps.more_flows.count() == count
    return int(count)


def test_more_flows_than_the_near_map_holds(bench: Bench) -> None:
    take_all_places(bench)
    agent = bench.agent
    for name in ("x", "y"):
        agent.open(name)
        agent.connect(name, bench.b.ip4, bench.port)
    cookies = [agent.cookie(name) for name in ("x", "y")]
    more = bench.attached.maps["more_flows"]
    assert {struct.pack("=Q", cookie) for cookie in cookies} == {key for key, _ in more.items()}
    assert len(bench.flows()) == C.DMM_NEAR_FLOWS + 2 and more_count(bench) == 2
    for cookie in cookies:
        assert bench.event(C.DMM_EVENT_ESTABLISHED, cookie).flow.decision.pid == agent.pid
    bench.a.ip("route del default")
    failed = unsent(bench, "z")
    assert more_count(bench) == 3
    for index in range(C.DMM_NEAR_FLOWS):
        free_place(bench, index)
    agent.connect("z", bench.b.ip4, bench.port)  # from now on there is room in the near map
    cookies.append(failed)
    assert len(bench.flows()) == 3 and more_count(bench) == 2
    for name in ("x", "y", "z"):
        agent.close(name)
        bench.far.accept()[0].close()
    for cookie in cookies:
        bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert bench.flows() == [] and bench.count(C.DMM_CNT_FLOWS_FULL) == 0 and more_count(bench) == 0


def test_a_flow_whose_place_is_taken_has_its_neighbour(bench: Bench) -> None:
    bench.a.ip("route del default")
    bench.agent.open("x")
    cookie = bench.agent.cookie("x")
    take_all_places(bench)
    free_place(bench, cookie ^ 1)
    for address in ("198.51.100.1", "198.51.100.2"):
        with pytest.raises(OSError, match="unreachable"):
            bench.agent.connect("x", address, 80)
        index = (cookie ^ 1) % C.DMM_NEAR_FLOWS
        near = bench.attached.maps.flows[index]
        assert (near.owner, near.flow.cookie) == (cookie, cookie) and ends(near.flow)[2:] == (
            address,
            80,
        )
        assert more_count(bench) == 0
        free_place(bench, cookie)  # the second connect() stays where the first was
    assert len(bench.flows()) == C.DMM_NEAR_FLOWS - 1
    bench.agent.close("x")
    assert bench.flow(cookie) is None and len(bench.flows()) == C.DMM_NEAR_FLOWS - 2


def test_a_record_that_is_being_written_is_not_shown(bench: Bench) -> None:
    half = abi.new("dmm_near_flow", owner=7, flow={"cookie": 6})
    bench.attached.maps.flows[7] = half
    assert bench.flows() == []
    bench.attached.maps["flows"].update(u32(7), near_flow(7))
    assert [flow.cookie for flow in bench.flows()] == [7]


def test_a_connect_given_up_leaves_no_record(bench: Bench) -> None:
    bench.b.ip(f"route add blackhole {bench.a.ip4}/32")
    agent = bench.agent
    agent.open("x")
    cookie = agent.cookie("x")
    agent("s['x'].setblocking(False)")
    agent(f"s['x'].connect_ex(({bench.b.ip4!r}, {bench.port}))")
    flow = bench.flow(cookie)
    assert flow is not None and flow.state == SYN_SENT
    agent.close("x")
    bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert bench.flow(cookie) is None


def test_a_reset_and_a_killed_program_close_their_flows(bench: Bench) -> None:
    agent = Agent(bench.cgroup, bench.a)
    for name in ("x", "y"):
        agent.open(name)
        agent.connect(name, bench.b.ip4, bench.port)
    cookies = [agent.cookie(name) for name in ("x", "y")]
    peers = [bench.far.accept()[0] for _ in cookies]
    peers[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peers[0].close()
    bench.event(C.DMM_EVENT_CLOSE, cookies[0])
    agent.process.kill()
    agent.process.wait()
    assert peers[1].recv(1) == b""
    peers[1].close()
    bench.event(C.DMM_EVENT_CLOSE, cookies[1])
    assert bench.flows() == []


def test_figures_are_those_of_the_last_change_of_state(bench: Bench) -> None:
    agent = bench.agent
    agent.open("x")
    agent.connect("x", bench.b.ip4, bench.port)
    cookie = agent.cookie("x")
    peer, _ = bench.far.accept()
    with peer:
        bench.b.ip(f"route add blackhole {bench.a.ip4}/32")
        agent("s['x'].sendall(b'lost')")

        def resent() -> bool:
            rows = bench.a.call(lambda: sockdiag.list_tcp(listeners=False))
            return any(r.cookie == cookie and r.total_retrans > 0 for r in rows)

        wait_for(resent, 10, "a retransmission")
        bench.b.ip(f"route del blackhole {bench.a.ip4}/32")
        assert peer.recv(4) == b"lost"
        flow = bench.flow(cookie)
        assert flow is not None and flow.retransmits == 0
        peer.shutdown(socket.SHUT_WR)
        wait_for(
            lambda: (f := bench.flow(cookie)) is not None and f.state == CLOSE_WAIT, 5, "CLOSE_WAIT"
        )
    flow = bench.flow(cookie)
    assert flow is not None and flow.retransmits > 0 and flow.srtt_us > 0


def test_many_flows_and_none_is_lost(bench: Bench) -> None:
    agent, n = bench.agent, 300
    bench.far.listen(n)
    agent(f"p = [socket.create_connection(({bench.b.ip4!r}, {bench.port})) for _ in range({n})]")
    kept = sorted(flow.cookie for flow in bench.flows())
    cookies = agent("[struct.unpack('=Q', q.getsockopt(1, 57, 8))[0] for q in p]")
    assert kept == sorted(cookies)
    peers = [bench.far.accept()[0] for _ in range(n)]
    agent("for q in p: q.close()")
    for peer in peers:
        assert peer.recv(1) == b""
        peer.close()
    for cookie in cookies:
        bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert bench.flows() == []
    for kind in (C.DMM_EVENT_CONNECT, C.DMM_EVENT_ESTABLISHED, C.DMM_EVENT_CLOSE):
        assert sum(e.type == kind for e in bench.events) == n
    assert bench.count(C.DMM_CNT_EVENTS_LOST) == 0


def test_a_full_event_ring_is_counted_and_what_was_there_stays(bench: Bench) -> None:
    bench.reader.close()
    agent = bench.agent
    record = abi.sizeof("dmm_event") + 8
    needed = C.DMM_EVENTS_BYTES // record // 2 + 200  # a listener that comes and goes: two events
    agent(
        f"for _ in range({needed}):\n l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); l.close()"
    )
    lost = bench.count(C.DMM_CNT_EVENTS_LOST)
    assert lost > 0
    with EventReader(bench.attached.maps["events"].fd) as reader:
        events = reader.read()
    assert len(events) + lost == 2 * needed
    pairs = [C.DMM_EVENT_LISTEN, C.DMM_EVENT_UNLISTEN] * needed
    assert [e.type for e in events] == pairs[: len(events)]


def test_maps_items_and_lookups_of_every_kind(bench: Bench) -> None:
    maps = bench.attached.maps
    assert maps.rules.count() == 2 * C.DMM_MAX_CHECKS
    assert len(list(maps["counters"].items())) == C.DMM_CNT_MAX
    assert maps.nics.count() == 0
    for i in range(5):
        maps.seats[i] = abi.new("dmm_seat", seat=i)
    assert {k for k, _ in maps["seats"].items()} == {u32(i) for i in range(5)}
    assert maps.seats.delete(3) and not maps.seats.delete(3)
    assert maps["seats"].lookup(u32(3)) is None
    Policy().route(1, "10.0.0.0/8", 1).route(1, "10.1.0.0/16", 2).apply(bench.attached)
    with create_routes_map("ports", 3) as trie:
        keys = [abi.pack(abi.new("dmm_port_key", prefixlen=64, portset=i)) for i in range(3)]
        value = abi.pack(abi.new("dmm_port_value", stack=1))
        trie.update_batch(b"".join(keys), value * 3, 3)
        assert {k for k, _ in trie.items()} == set(keys)


def test_the_far_host_can_listen_twice(bench: Bench) -> None:
    """Guards the fixture: the far listener is outside the instance's namespace, so nothing of
    it is recorded.
    """
    with bench.b.call(dual_listener):
        assert bench.attached.maps.listeners.count() == 0

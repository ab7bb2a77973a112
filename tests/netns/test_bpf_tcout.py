# SPDX-License-Identifier: Apache-2.0
"""The program at a NIC's egress: SYNs and owned flows go to their process, everything else
to the wire.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from bpf_lab import Bench, Policy, bench, process_full, processes_up
from seat_lab import ACK, SYN, Seat, Segment, begin, connect, mac_of, pair, serve_nic

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from lab.waiting import wait_for, wait_readable

__all__ = ["bench"]

STACK, FALLBACK, DSCP = 5, 3, 10


@pytest.fixture
def seats(bench: Bench) -> Iterator[list[Seat]]:
    """Two processes of stack 5, both up, on host a's NIC; no policy yet."""
    serve_nic(bench.a, bench.attached)
    with ExitStack() as stack:
        made = [
            bench.a.call(Seat, bench.attached, bench.a.nic.name, STACK, process)
            for process in (0, 1)
        ]
        for seat in made:
            stack.callback(seat.close)
        processes_up(bench.attached, STACK, 0b11, [seat.seat for seat in made])
        yield made


def route_to_stack(bench: Bench) -> None:
    """All that a connects to goes to stack 5; where that cannot be, by the kernel with a DSCP."""
    policy = Policy().rule(1).user(STACK, fallback=FALLBACK)
    policy.stack(FALLBACK, C.DMM_STACK_KERNEL, flags=C.DMM_SET_DSCP, dscp=DSCP)
    policy.route(1, "0.0.0.0/0", STACK).route(1, "::/0", STACK).apply(bench.attached)


def decision(bench: Bench, name: str = "x"):
    """Of a socket of the agent's."""
    flow = bench.flow(bench.agent.cookie(name))
    assert flow is not None
    return abi.unpack("dmm_decision", abi.pack(abi.ffi.addressof(flow.decision)))


def at_far(bench: Bench, timeout: float = 0) -> bool:
    """Whether somebody has connected to b."""
    return wait_readable(bench.far.fileno(), timeout)


def by_kernel(bench: Bench) -> tuple[socket.socket, bytes]:
    """A connection of the agent's x to b; b's end and the flow as a has it."""
    bench.agent.open("x")
    bench.agent.connect("x", bench.b.ip4, bench.port)
    peer = bench.far.accept()[0]
    peer.settimeout(10)
    lport = int(bench.agent("s['x'].getsockname()[1]"))
    return peer, pair(bench.a.ip4, lport, bench.b.ip4, bench.port)


def own(bench: Bench, flow: bytes, seat: Seat) -> None:
    """xdp_flows: that process has it."""
    entry = abi.new("dmm_xdp_flow", stack=STACK, seat=seat.seat, process=seat.process)
    bench.attached.maps["xdp_flows"].update(flow, abi.pack(entry))


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_syn_goes_to_the_process_that_was_chosen(
    bench: Bench, seats: list[Seat], family: str
) -> None:
    route_to_stack(bench)
    address = getattr(bench.b, family)
    bench.agent.open("x", socket.AF_INET6 if family == "ip6" else socket.AF_INET)
    begin(bench.agent, "x", address, bench.port)
    made = decision(bench)
    assert (made.stack, made.wanted, made.taken, made.why) == (STACK, STACK, 1, 0)
    syn = seats[made.process].segment(SYN)
    assert (syn.src, syn.dst, syn.dport) == (getattr(bench.a, family), address, bench.port)
    assert seats[1 - made.process].segments() == []
    assert not at_far(bench)
    assert bench.count(C.DMM_CNT_SYN_LET_GO) == 0


def test_a_connection_that_a_process_has_opened(bench: Bench, seats: list[Seat]) -> None:
    """From the SYN-ACK on everything is the process's, and the socket has the options of
    the inner leg.
    """
    route_to_stack(bench)
    bench.agent.open("x")
    connect(bench.agent, seats, mac_of(bench.a), "x", bench.b.ip4, bench.port)
    made = decision(bench)
    assert (made.stack, made.taken, made.why) == (STACK, 1, 0)
    assert bench.agent.congestion("x") == "reno" and bench.agent.tos("x") == 0
    assert bench.agent.mark("x") == 0
    bench.agent("s['x'].sendall(b'question')")
    carried = seats[made.process]
    wait_for(
        lambda: any(one.payload == b"question" for one in carried.segments()),
        10,
        "what the app sent",
    )
    assert not at_far(bench)


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("down", C.DMM_WHY_DOWN),
        ("full", C.DMM_WHY_FULL),
        ("device", C.DMM_WHY_DEVICE),
        ("filter", C.DMM_WHY_FILTER),
    ],
)
def test_a_syn_that_its_process_can_take_no_more_goes_to_the_wire(
    bench: Bench, seats: list[Seat], reason: str, why: int
) -> None:
    """Between connect() and the SYN's coming to the NIC, which a firewall delays here to
    the SYN's repetition.
    """
    route_to_stack(bench)
    chain = "add table inet t; add chain inet t c { type filter hook output priority 0; }; "
    bench.a.run(["nft", chain + "add rule inet t c tcp flags syn drop"])
    bench.agent.open("x")
    begin(bench.agent, "x", bench.b.ip4, bench.port)
    assert (decision(bench).stack, decision(bench).taken) == (STACK, 0)
    for seat in seats:
        if reason == "full":
            process_full(bench.attached, STACK, seat.process, C.DMM_FULL_FRAMES)
        elif reason == "device":
            seat.lead(0)
    if reason == "down":
        processes_up(bench.attached, STACK, 0, [seat.seat for seat in seats])
    if reason == "filter":
        set_behind(bench)
    bench.a.run(["nft", "delete table inet t"])
    assert at_far(bench, 10)
    with bench.far.accept()[0]:
        wait_for(lambda: bench.agent.tos("x") == DSCP << 2, 5, "the fallback's options")
        made = decision(bench)
        assert (made.stack, made.wanted, made.taken, made.why) == (FALLBACK, STACK, 0, why)
        bench.agent("s['x'].send(b'by the kernel')")
    assert bench.count(C.DMM_CNT_SYN_LET_GO) == 1
    assert [seat.segments() for seat in seats] == [[], []]


def set_behind(bench: Bench) -> None:
    """A filter of others comes before ours on host a's NIC."""
    index = bench.a.call(socket.if_nametoindex, bench.a.nic.name)
    entry = bench.attached.maps.nics[index]
    entry.behind = 1
    bench.attached.maps.nics[index] = entry


def test_a_filter_that_keeps_the_syn_from_us_is_told(bench: Bench, seats: list[Seat]) -> None:
    """By the device by which it has left."""
    route_to_stack(bench)
    set_behind(bench)
    bench.attached.detach_tcx(bench.a.call(socket.if_nametoindex, bench.a.nic.name))
    peer, _ = by_kernel(bench)
    with peer:
        made = decision(bench)
        assert (made.stack, made.why) == (FALLBACK, C.DMM_WHY_FILTER)
    assert [seat.segments() for seat in seats] == [[], []]


@pytest.mark.parametrize(("reason", "why"), [("down", C.DMM_WHY_DOWN), ("full", C.DMM_WHY_FULL)])
def test_a_taken_syn_that_nobody_has_claimed_goes_to_the_wire_when_it_is_repeated(
    bench: Bench, seats: list[Seat], reason: str, why: int
) -> None:
    """The process has died with it, or hangs: the kernel may still serve it."""
    route_to_stack(bench)
    bench.agent.open("x")
    begin(bench.agent, "x", bench.b.ip4, bench.port)
    chosen = seats[decision(bench).process]
    chosen.segment(SYN)
    if reason == "full":
        process_full(bench.attached, STACK, chosen.process, C.DMM_FULL_CONNECTIONS)
    else:
        places = [seat.seat for seat in seats]
        processes_up(bench.attached, STACK, 0b11 & ~(1 << chosen.process), places)
    assert at_far(bench, 10)
    made = decision(bench)
    assert (made.wanted, made.taken, made.why) == (STACK, 0, why)


def test_a_device_that_the_stack_does_not_serve(bench: Bench, seats: list[Seat]) -> None:
    """Our program is not there, or the device is no NIC of ours: the kernel serves, and the
    record says why.
    """
    route_to_stack(bench)
    bench.attached.maps.nics.delete(seats[0].nic)
    bench.agent.open("x")
    bench.agent.connect("x", bench.b.ip4, bench.port)
    made = decision(bench)
    assert (made.stack, made.wanted, made.taken, made.why) == (FALLBACK, STACK, 0, C.DMM_WHY_DEVICE)
    assert bench.agent.tos("x") == DSCP << 2
    assert [seat.segments() for seat in seats] == [[], []]


def test_an_owned_flow_is_its_process_whatever_the_socket_says(
    bench: Bench, seats: list[Seat]
) -> None:
    """As a flow behind a translation is known: by the packet alone, and its socket is tied
    to it then.
    """
    peer, flow = by_kernel(bench)
    with peer:
        assert decision(bench).taken == 0
        own(bench, flow, seats[1])
        bench.agent("s['x'].sendall(b'mine')")
        wait_for(
            lambda: any(s.payload == b"mine" for s in seats[1].segments()), 10, "what the app sent"
        )
        made = decision(bench)
        assert (made.stack, made.process, made.taken) == (STACK, 1, 1)
        assert not wait_readable(peer.fileno(), 0.3)
        assert seats[0].segments() == []


def test_an_owned_flow_without_a_device_is_dropped_and_counted(
    bench: Bench, seats: list[Seat]
) -> None:
    """Its peer knows other sequence numbers; once there is a device, the repetition goes there."""
    peer, flow = by_kernel(bench)
    with peer:
        own(bench, flow, seats[0])
        seats[0].lead(0)
        bench.agent("s['x'].sendall(b'nowhere')")
        assert bench.count(C.DMM_CNT_INNER_DROPPED) >= 1
        assert not wait_readable(peer.fileno(), 0.3)
        seats[0].lead(seats[0].ifindex)
        wait_for(
            lambda: any(s.payload == b"nowhere" for s in seats[0].segments()), 10, "its repetition"
        )
        assert not wait_readable(peer.fileno(), 0)


def test_a_flow_that_its_process_has_given_up_never_goes_to_the_wire(
    bench: Bench, seats: list[Seat]
) -> None:
    """The process's connection is over and the socket does not know it yet: its numbers mean
    nothing to the peer. The process is asked once more; without one it is dropped.
    """
    route_to_stack(bench)
    bench.agent.open("x")
    connect(bench.agent, seats, mac_of(bench.a), "x", bench.b.ip4, bench.port)
    carried = seats[decision(bench).process]
    lport = int(bench.agent("s['x'].getsockname()[1]"))
    carried.disown(pair(bench.a.ip4, lport, bench.b.ip4, bench.port))
    carried.segments()
    bench.agent("s['x'].sendall(b'once more')")
    wait_for(
        lambda: any(s.payload == b"once more" for s in carried.segments()), 10, "what the app sent"
    )
    carried.lead(0)
    wait_for(lambda: bench.count(C.DMM_CNT_INNER_DROPPED), 10, "its repetition to be dropped")
    # A stranger's ACK on the wire would have been answered by a reset, which ends the connection.
    assert bench.agent("s['x'].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 0
    flow = bench.flow(bench.agent.cookie("x"))
    assert flow is not None and carried.segments() == []


def test_a_packet_sockets_frames_pass(bench: Bench, seats: list[Seat]) -> None:
    """The process sends an owned flow's packets so: they are for the wire."""
    wanted = Segment(bench.a.ip4, bench.b.ip4, 40000, 9, seq=77, flags=ACK, payload=b"to the wire")
    own(bench, wanted.pair, seats[0])

    def opened(name: str) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        made.bind((name, 0x0003))
        return made

    with (
        closing(bench.a.call(opened, bench.a.nic.name)) as sender,
        closing(bench.b.call(opened, bench.b.nic.name)) as receiver,
    ):
        frame = wanted.pack(mac_of(bench.b))
        sender.send(frame)
        receiver.settimeout(10)
        while receiver.recv(2048) != frame:
            pass
    assert seats[0].segments() == []
    assert bench.count(C.DMM_CNT_INNER_DROPPED) == 0


def test_the_kernels_flows_pass(bench: Bench, seats: list[Seat]) -> None:
    """Both ways, opened by either, while the stack has others."""
    own(bench, pair(bench.a.ip4, 1, bench.b.ip4, bench.port), seats[0])
    peer, _ = by_kernel(bench)
    with peer:
        bench.agent("s['x'].sendall(b'x' * 300_000)")
        got = 0
        while got < 300_000:
            got += len(peer.recv(1 << 20))
        port = bench.agent.listen("l", "0.0.0.0")
        with bench.b.call(socket.create_connection, (bench.a.ip4, port), 10) as client:
            bench.agent.accept("l", "y")
            bench.agent("s['y'].sendall(b'hello')")
            assert client.recv(100) == b"hello"
    assert [seat.segments() for seat in seats] == [[], []]
    assert bench.count(C.DMM_CNT_SYN_LET_GO) == bench.count(C.DMM_CNT_INNER_DROPPED) == 0

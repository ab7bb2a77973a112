# SPDX-License-Identifier: Apache-2.0
"""What a stack process asks of the program at its own device, and what it is granted: real devices,
real sockets, every answer there when write(2) returns.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from bpf_lab import netns_cookie, u32
from seat_lab import Seat, pair

from dmm_ebpf import abi, loader
from lab import Cgroup, Host, Lab

C = abi.C
STACK = 5
HERE = ("127.0.0.1", "::1")


class Flows:
    """xdp_flows and sockets of the host."""

    def __init__(self, host: Host, attached: loader.Attached, askers: list[Seat]) -> None:
        self.host = host
        self.attached = attached
        self.askers = askers

    def owner(self, flow: bytes) -> int | None:
        """The seat of the flow's owner in xdp_flows, or None."""
        value = self.attached.maps["xdp_flows"].lookup(flow)
        return None if value is None else int(abi.unpack("dmm_xdp_flow", value).seat)


def pair_of(sock: socket.socket) -> bytes:
    """struct dmm_addr_pair of a connected socket."""
    (laddr, lport), (raddr, rport) = sock.getsockname()[:2], sock.getpeername()[:2]
    return pair(laddr, lport, raddr, rport)


@pytest.fixture
def flows(lab: Lab, cgroup: Cgroup, instance: Callable[[], str]) -> Iterator[Flows]:
    """Two processes of a stack, whose NIC is lo: one by AF_XDP, the other by tc."""
    host = lab.host("a")
    with ExitStack() as stack:
        name = instance()
        stack.callback(loader.detach, name)
        attached = loader.attach(name, cgroup.path, netns_cookie=netns_cookie(host))
        stack.callback(attached.close)
        askers = [host.call(Seat, attached, "lo", STACK, number) for number in (0, 1)]
        for asker in askers:
            stack.callback(asker.close)
        yield Flows(host, attached, askers)


def connected(host: Host, address: str) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over lo."""

    def make() -> tuple[socket.socket, socket.socket]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with closing(socket.socket(family)) as listener:
            listener.bind((address, 0))
            listener.listen()
            app = socket.socket(family)
            app.connect(listener.getsockname())
            return app, listener.accept()[0]

    return host.call(make)


def serve(flows: Flows, sock: socket.socket, seat: Seat) -> None:
    """The socket's storage: that process is to serve it."""
    way = abi.new(
        "dmm_way", stack=STACK, process=seat.process, seat=seat.seat, state=C.DMM_WAY_TAKEN
    )
    flows.attached.maps.ways[sock.fileno()] = way


@pytest.mark.parametrize("address", HERE)
def test_a_connection_of_the_kernels_cannot_be_claimed(flows: Flows, address: str) -> None:
    app, accepted = connected(flows.host, address)
    with app, accepted:
        assert not flows.askers[0].claim(pair_of(app))
        assert flows.owner(pair_of(app)) is None


@pytest.mark.parametrize("address", HERE)
def test_a_flow_that_no_socket_has_is_claimed_and_given_up(flows: Flows, address: str) -> None:
    free = pair(address, 1000, address, 2000)
    assert flows.askers[1].claim(free)
    assert flows.owner(free) == flows.askers[1].seat
    assert flows.askers[1].claim(free)  # again
    flows.askers[1].disown(free)
    assert flows.owner(free) is None


def test_a_flow_of_anothers_is_neither_claimed_nor_given_up(flows: Flows) -> None:
    first, second = flows.askers
    free = pair("127.0.0.1", 1000, "127.0.0.1", 2000)
    assert first.claim(free)
    assert not second.claim(free)
    second.disown(free)
    assert flows.owner(free) == first.seat


def test_the_storage_of_its_socket_says_whose_a_flow_is(flows: Flows) -> None:
    """A port is used again and the new connection falls to another process: the old one's end
    leaves it alone.
    """
    first, second = flows.askers
    app, accepted = connected(flows.host, "127.0.0.1")
    with app, accepted:
        serve(flows, app, second)
        assert not first.claim(pair_of(app))
        old = abi.pack(abi.new("dmm_xdp_flow", stack=STACK, seat=first.seat))
        flows.attached.maps["xdp_flows"].update(pair_of(app), old)
        assert second.claim(pair_of(app))
        made = abi.unpack(
            "dmm_xdp_flow", flows.attached.maps["xdp_flows"].lookup(pair_of(app)) or b""
        )
        assert (made.stack, made.seat, made.process) == (STACK, second.seat, 1)
        first.disown(pair_of(app))
        assert flows.owner(pair_of(app)) == second.seat


def test_a_listener_is_in_nobodys_way(flows: Flows) -> None:
    def listen() -> socket.socket:
        made = socket.socket()
        made.bind(("127.0.0.1", 0))
        made.listen()
        return made

    with flows.host.call(listen) as listener:
        assert flows.askers[0].claim(
            pair("127.0.0.1", listener.getsockname()[1], "127.0.0.1", 2000)
        )


def _load(flows: Flows, number: int) -> tuple[int, int]:
    value = (
        flows.attached.maps["stack_load"].lookup(u32(STACK * C.DMM_MAX_PROCESSES + number)) or b""
    )
    load = abi.unpack("dmm_stack_load", value)
    return int(load.full), int(load.beat_ns)


def test_a_process_speaks_for_itself_alone(flows: Flows) -> None:
    before = time.monotonic_ns()
    flows.askers[1].ask(C.DMM_ASK_STATE, full=C.DMM_FULL_MEMORY)
    full, beat_ns = _load(flows, 1)
    assert full == C.DMM_FULL_MEMORY
    assert (
        0 <= time.monotonic_ns() - beat_ns < time.monotonic_ns() - before + 20_000_000
    )  # coarse: a tick
    assert _load(flows, 0) == (0, 0)


def test_cookies_are_out_for_a_while_and_the_latest_counts(flows: Flows) -> None:
    def until_ns() -> int:
        value = flows.attached.maps["cookie_state"].lookup(u32(STACK)) or b""
        return int(abi.unpack("dmm_cookie_state", value).until_ns)

    soon = time.monotonic_ns() + 60 * 10**9
    flows.askers[0].ask(C.DMM_ASK_STATE, until_ns=soon)
    flows.askers[1].ask(C.DMM_ASK_STATE, until_ns=soon - 1)
    flows.askers[1].ask(C.DMM_ASK_STATE, until_ns=1 << 63)
    assert until_ns() == soon


def test_what_asks_never_reaches_the_host(flows: Flows) -> None:
    """Nor does what only looks so: too short, too long, of no such kind."""
    asker = flows.askers[0]

    def received() -> list[bytes]:
        with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))) as tap:
            tap.bind(("lo", 0x0003))
            tap.setblocking(False)
            asker.ask(C.DMM_ASK_STATE)
            asker.disown(bytes(40))
            asker.ask(99)
            link = bytes(12) + C.DMM_ASK_TYPE.to_bytes(2, "big")
            asker.write(link)
            asker.write(link + bytes(abi.sizeof("dmm_ask")))
            asker.write(bytes(12) + b"\x88\xb6" + bytes(46))  # another kind of frame, which goes on
            got = []
            while True:
                try:
                    got.append(tap.recv(2048))
                except BlockingIOError:
                    return got

    kinds = [frame[12:14] for frame in flows.host.call(received)]
    assert kinds == [b"\x88\xb6"]
    assert asker.read() == b""


def test_a_device_without_a_seat_gives_the_host_nothing(flows: Flows) -> None:
    """Nor can it ask for anything."""
    asker = flows.askers[0]
    flows.attached.maps.seats.delete(asker.ifindex)
    free = pair("127.0.0.1", 1000, "127.0.0.1", 2000)
    asker.ask(C.DMM_ASK_CLAIM, free)
    assert flows.owner(free) is None and asker.read() == b""

# SPDX-License-Identifier: Apache-2.0
"""What a stack process asks of the program at its own TUN device, and what it is granted: real devices, real sockets,
every answer there when write(2) returns.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from bpf_lab import MARK_MASK, USER_MARK, netns_cookie, u32
from dmm_ebpf.userstack._core import ffi, lib
from lab import Cgroup, Host, Lab

from dmm_ebpf import abi, loader
from dmm_ebpf.hal import tcfilter

C = abi.C
SO_MARK = 36
VNET_HEADER = bytes(10)
STACK = 5
HERE = ("127.0.0.1", "::1")


class Asker:
    """A process of user stack STACK as far as the kernel sees it: its TUN device."""

    def __init__(self, attached: loader.Attached, number: int, tap: int) -> None:
        self.name = f"dmm-{number}"
        self.number = number
        self.mark = USER_MARK + (number << 20)
        error = ffi.new("struct dmm_hal_error *")
        self.fd: int = lib.dmm_tun_open(self.name.encode(), error)
        assert self.fd >= 0, ffi.string(error.what)
        assert lib.dmm_tun_up(self.name.encode(), 1500, 100, error) >= 0
        ifindex = socket.if_nametoindex(self.name)
        entry = abi.new("dmm_tun_mark", mark=self.mark, mask=MARK_MASK, stack=STACK, tap=tap, process=number)
        attached.maps["tun_marks"].update(u32(ifindex), abi.pack(entry))
        tcfilter.attach(ifindex, attached.ingress_fd())
        self.drain()

    def drain(self) -> None:
        """Forgets what the kernel has sent by itself."""
        while self.read():
            pass

    def read(self) -> bytes:
        """The next packet from the kernel, or nothing."""
        try:
            return os.read(self.fd, 2048)[len(VNET_HEADER) :]
        except BlockingIOError:
            return b""

    def write(
        self, op: int, pair: bytes = bytes(40), *, conn: int = 0, full: int = 0, until_ns: int = 0
    ) -> None:
        """Asks."""
        ask = abi.new("dmm_ask", op=op, conn=conn, full=full, cookies_until_ns=until_ns)
        ask.ip[0], ask.ip[3], ask.ip[9] = 0x45, abi.sizeof("dmm_ask"), C.DMM_ASK_PROTOCOL
        data = abi.pack(ask)
        os.write(self.fd, VNET_HEADER + data[: len(data) - len(pair)] + pair)

    def claim(self, pair: bytes, conn: int = 7) -> bool:
        """Whether the claim was granted."""
        self.write(C.DMM_ASK_CLAIM, pair, conn=conn)
        while data := self.read():
            if len(data) == abi.sizeof("dmm_ask") and data[9] == C.DMM_ASK_PROTOCOL:
                answer = abi.unpack("dmm_ask", data)
                assert (answer.op, answer.conn) == (C.DMM_ASK_REFUSED, conn)
                return False
        return True

    def disown(self, pair: bytes) -> None:
        """Gives a flow up."""
        self.write(C.DMM_ASK_DISOWN, pair)


class Flows:
    """xdp_flows and sockets of the host."""

    def __init__(self, host: Host, attached: loader.Attached, askers: list[Asker]) -> None:
        self.host = host
        self.attached = attached
        self.askers = askers

    def owner(self, pair: bytes) -> int | None:
        """The tap of the flow's owner in xdp_flows, or None."""
        value = self.attached.maps["xdp_flows"].lookup(pair)
        return None if value is None else int(abi.unpack("dmm_xdp_flow", value).tap)


def pair_of(sock: socket.socket) -> bytes:
    """struct dmm_addr_pair of a connected socket."""
    (laddr, lport), (raddr, rport) = sock.getsockname()[:2], sock.getpeername()[:2]
    return pair(laddr, lport, raddr, rport)


def pair(laddr: str, lport: int, raddr: str, rport: int) -> bytes:
    made = abi.new("dmm_addr_pair", proto=socket.IPPROTO_TCP)
    family = socket.AF_INET6 if ":" in laddr else socket.AF_INET
    made.family = family
    for name, text in (("laddr", laddr), ("raddr", raddr)):
        packed = socket.inet_pton(family, text)
        abi.ffi.memmove(
            getattr(made, name), packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed, 16
        )
    made.lport_be, made.rport_be = socket.htons(lport), socket.htons(rport)
    return abi.pack(made)


@pytest.fixture
def flows(lab: Lab, cgroup: Cgroup, instance: Callable[[], str]) -> Iterator[Flows]:
    host = lab.host("a")
    with ExitStack() as stack:
        name = instance()
        stack.callback(loader.detach, name)
        attached = loader.attach(name, cgroup.path, netns_cookie=netns_cookie(host), mark_mask=MARK_MASK)
        stack.callback(attached.close)
        askers = [host.call(Asker, attached, number, tap) for number, tap in ((0, 0), (1, 2))]
        for asker in askers:
            stack.callback(os.close, asker.fd)
        yield Flows(host, attached, askers)


def connected(host: Host, address: str, mark: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over lo; the first bears the mark."""

    def make() -> tuple[socket.socket, socket.socket]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with closing(socket.socket(family)) as listener:
            listener.bind((address, 0))
            listener.listen()
            app = socket.socket(family)
            app.connect(listener.getsockname())
            app.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            return app, listener.accept()[0]

    return host.call(make)


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
    assert flows.owner(free) == 2
    assert flows.askers[1].claim(free)  # again
    flows.askers[1].disown(free)
    assert flows.owner(free) is None


def test_a_flow_of_anothers_is_neither_claimed_nor_given_up(flows: Flows) -> None:
    first, second = flows.askers
    free = pair("127.0.0.1", 1000, "127.0.0.1", 2000)
    assert first.claim(free)
    assert not second.claim(free)
    second.disown(free)
    assert flows.owner(free) == 0


def test_the_mark_of_its_socket_says_whose_a_flow_is(flows: Flows) -> None:
    """A port is used again and the new connection falls to another process: the old one's end leaves it alone."""
    first, second = flows.askers
    app, accepted = connected(flows.host, "127.0.0.1", second.mark | 1)
    with app, accepted:
        assert not first.claim(pair_of(app))
        old = abi.pack(abi.new("dmm_xdp_flow", stack=STACK, tap=0))
        flows.attached.maps["xdp_flows"].update(pair_of(app), old)
        assert second.claim(pair_of(app))
        assert flows.owner(pair_of(app)) == 2
        first.disown(pair_of(app))
        assert flows.owner(pair_of(app)) == 2


def test_a_listener_is_in_nobodys_way(flows: Flows) -> None:
    def listen() -> socket.socket:
        made = socket.socket()
        made.bind(("127.0.0.1", 0))
        made.listen()
        return made

    with flows.host.call(listen) as listener:
        assert flows.askers[0].claim(pair("127.0.0.1", listener.getsockname()[1], "127.0.0.1", 2000))


def _load(flows: Flows, number: int) -> tuple[int, int]:
    value = flows.attached.maps["stack_load"].lookup(u32(STACK * C.DMM_MAX_PROCESSES + number)) or b""
    load = abi.unpack("dmm_stack_load", value)
    return int(load.full), int(load.beat_ns)


def test_a_process_speaks_for_itself_alone(flows: Flows) -> None:
    before = time.monotonic_ns()
    flows.askers[1].write(C.DMM_ASK_STATE, full=C.DMM_FULL_MEMORY)
    full, beat_ns = _load(flows, 1)
    assert full == C.DMM_FULL_MEMORY
    assert 0 <= time.monotonic_ns() - beat_ns < time.monotonic_ns() - before + 20_000_000  # coarse: a tick
    assert _load(flows, 0) == (0, 0)


def test_cookies_are_out_for_a_while_and_the_latest_counts(flows: Flows) -> None:
    def until_ns() -> int:
        value = flows.attached.maps["cookie_state"].lookup(u32(STACK)) or b""
        return int(abi.unpack("dmm_cookie_state", value).until_ns)

    soon = time.monotonic_ns() + 60 * 10**9
    flows.askers[0].write(C.DMM_ASK_STATE, until_ns=soon)
    flows.askers[1].write(C.DMM_ASK_STATE, until_ns=soon - 1)
    flows.askers[1].write(C.DMM_ASK_STATE, until_ns=1 << 63)
    assert until_ns() == soon


def test_what_asks_never_reaches_the_host(flows: Flows) -> None:
    def received() -> int:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(dict(zip(names, values, strict=True))["InReceives"])

    host = flows.host
    before = host.call(received)
    flows.askers[0].write(C.DMM_ASK_STATE)
    flows.askers[0].disown(bytes(40))
    flows.askers[0].write(99)
    assert host.call(received) == before
    other = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20, 0, 0, 1, C.DMM_ASK_PROTOCOL, 0, bytes(4), bytes(4))
    os.write(flows.askers[0].fd, VNET_HEADER + other)
    assert host.call(received) == before + 1

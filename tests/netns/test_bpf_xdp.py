# SPDX-License-Identifier: Apache-2.0
"""The XDP program's verdict on hand-made frames (BPF_PROG_TEST_RUN): what it gives to a stack,
and what not.

A test run without a device behaves as if the frame came in on lo, queue 0; so nics[1] stands
for the NIC.
"""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from bpf_lab import (
    Policy,
    counter,
    flip,
    listener_key,
    netns_cookie,
    process_full,
    processes_up,
    stack_up,
    u32,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seat_lab import pair
from xdp_frames import (
    ACK,
    FIN,
    PORT,
    PSH,
    RST,
    SYN,
    THEIRS,
    THEM4,
    THEM6,
    US4,
    US6,
    eth,
    icmp4,
    icmp6,
    ip4,
    ip6,
    tcp,
)

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.loader import bpf
from lab import Cgroup, Host, Lab, wait_for

PASS, REDIRECT = 2, 4
SHOT = 2  # of tc
STACK, SLOT, LO = 5, 2, 1


def xsk(stack: ExitStack) -> socket.socket:
    """An AF_XDP socket with all that XSKMAP asks for; never bound to a device."""
    area = mmap.mmap(-1, 64 * 4096)
    sock = stack.enter_context(socket.socket(44, socket.SOCK_RAW))
    pointer = ctypes.addressof(ctypes.c_char.from_buffer(area))
    sock.setsockopt(283, 4, struct.pack("=QQIIII", pointer, 64 * 4096, 4096, 0, 0, 0))
    for ring in (5, 6, 2):  # fill, completion, rx
        sock.setsockopt(283, ring, struct.pack("=i", 64))
    return sock


@dataclass
class Steer:
    """An attached instance whose XDP program is run on frames in host's namespace."""

    host: Host
    attached: loader.Attached

    def run(self, frame: bytes) -> int:
        """The verdict; the frame must come out as it went in."""
        done = self.host.call(bpf.prog_test, self.attached.progs["dmm_xdp"], frame)
        assert done.data == frame
        return int(done.retval)

    def tc(self, frame: bytes) -> int:
        """The verdict of the program at tc ingress, which sees what XDP has passed."""
        return int(self.host.call(bpf.prog_test, self.attached.progs["dmm_tcin"], frame).retval)

    def own(
        self,
        laddr: str,
        raddr: str,
        lport: int = PORT,
        rport: int = THEIRS,
        stack: int = STACK,
        process: int = 0,
    ) -> None:
        """xdp_flows: a process of a stack owns this flow."""
        owner = abi.pack(abi.new("dmm_xdp_flow", stack=stack, seat=process + 1, process=process))
        self.attached.maps["xdp_flows"].update(pair(laddr, lport, raddr, rport), owner)

    def listen(self, address: str, table: int, port: int = PORT) -> None:
        """listeners: as TCP_LISTEN_CB would write it, for both halves."""
        entry = abi.new("dmm_listener", count=1)
        entry.tables[0] = entry.tables[1] = table
        self.attached.maps.listeners[listener_key(address, port)] = entry

    def count(self, number: int) -> int:
        """A counter."""
        return counter(self.attached, number)


@pytest.fixture
def steer(lab: Lab, cgroup: Cgroup, instance: Callable[[], str]) -> Iterator[Steer]:
    """lo as a NIC of stack 5 with an AF_XDP socket, a listener policy that gives everybody
    to stack 5.
    """
    host = lab.host("a")
    host.ip(f"addr add {US4}/24 dev lo", f"addr add {US6}/64 dev lo")
    with ExitStack() as stack:
        name = instance()
        stack.callback(loader.detach, name)
        attached = loader.attach(name, cgroup.path, netns_cookie=netns_cookie(host))
        stack.callback(attached.close)
        nic = abi.pack(abi.new("dmm_nic", slot=SLOT, stack=STACK))
        attached.maps["nics"].update(u32(LO), nic)
        attached.maps.xsks[SLOT * C.DMM_MAX_QUEUES] = xsk(stack).fileno()
        Policy().user(STACK).user(STACK + 1).route(1, "0.0.0.0/0", STACK).route(
            1, "::/0", STACK
        ).apply(attached)
        stack_up(attached, STACK)
        yield Steer(host, attached)


def test_owned_flows_go_to_their_stack(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    for flags in (ACK, SYN, SYN | ACK, RST, FIN | ACK, PSH | ACK, 0):
        assert steer.run(eth(ip4(tcp(flags=flags)))) == REDIRECT
        assert steer.run(eth(ip6(tcp(flags=flags)))) == REDIRECT
    assert steer.run(eth(ip4(tcp(), options=b"\1" * 8))) == REDIRECT
    assert steer.run(eth(ip4(tcp(), options=b"\1" * 40))) == REDIRECT
    assert steer.count(C.DMM_CNT_XDP_FLOW) == 16
    assert steer.count(C.DMM_CNT_XDP_NO_SOCKET) == 0


def test_every_other_flow_passes(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    frames = [
        ip4(tcp(sport=THEIRS + 1)),
        ip4(tcp(dport=PORT + 1)),
        ip4(tcp(), src="198.51.100.8"),
        ip4(tcp(), dst="192.0.2.2"),
        ip4(tcp(sport=PORT, dport=THEIRS), src=US4, dst=THEM4),
        ip4(tcp(), proto=17),
        ip4(tcp(), proto=0),
        ip6(tcp(), src="2001:db8:f::8"),
        ip6(tcp(), proto=17),
    ]
    for frame in frames:
        assert steer.run(eth(frame)) == PASS


def test_the_flow_of_a_stack_on_another_nic_passes(steer: Steer) -> None:
    steer.own(US4, THEM4, stack=STACK + 1)
    assert steer.run(eth(ip4(tcp()))) == PASS


@pytest.mark.parametrize("frag", [0x2000, 0x2001, 1, 0x1FFF, 0x3FFF])
def test_fragments_pass(steer: Steer, frag: int) -> None:
    steer.own(US4, THEM4)
    assert steer.run(eth(ip4(tcp(), frag=frag))) == PASS


def test_vlan_extension_headers_and_oddities_pass(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    for frame in (
        bytes(12) + struct.pack("!HHH", 0x8100, 5, 0x0800) + ip4(tcp()),
        bytes(12) + struct.pack("!HHH", 0x88A8, 5, 0x86DD) + ip6(tcp()),
        eth(ip4(tcp()), 0x0806),
        eth(ip4(tcp()), 0x86DD),
        eth(ip6(tcp()), 0x0800),
        eth(ip4(tcp(), version=6), 0x0800),
        eth(bytes([0x44]) + ip4(tcp())[1:]),  # a header length below 20 bytes
        *(
            eth(ip6(struct.pack("!BBHI", 6, 0, 0, 0) + tcp(), proto=p))
            for p in (0, 43, 44, 51, 60, 135)
        ),
    ):
        assert steer.run(frame) == PASS


def test_truncated_frames_pass(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    quoted = icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4))
    quoted6 = icmp6(1, ip6(tcp(PORT, THEIRS), US6, THEM6))
    for frame, enough in (
        (eth(ip4(tcp())), 14 + 40),
        (eth(ip6(tcp())), 14 + 60),
        (eth(ip4(tcp(), options=bytes(12))), 14 + 52),
        (quoted, 14 + 28 + 28),
        (quoted6, 14 + 48 + 48),
    ):
        for length in range(14, len(frame) + 1):
            assert steer.run(frame[:length]) == (REDIRECT if length >= enough else PASS), length


@pytest.mark.parametrize("address", [US4, "0.0.0.0", "::"])
def test_a_syn_for_a_listener_goes_to_the_peers_stack(steer: Steer, address: str) -> None:
    steer.listen(address, 1)
    assert steer.run(eth(ip4(tcp(flags=SYN)))) == REDIRECT
    assert steer.run(eth(ip4(tcp(flags=SYN | PSH | 0xC0)))) == REDIRECT  # ECN-setup SYN (RFC 3168)
    assert steer.count(C.DMM_CNT_XDP_LISTENER) == 2
    for flags in (ACK, SYN | ACK, SYN | RST, SYN | FIN, RST, FIN, 0):
        assert steer.run(eth(ip4(tcp(flags=flags)))) == PASS
    assert steer.run(eth(ip4(tcp(flags=SYN, dport=PORT + 1)))) == PASS


def cookies(steer: Steer, seconds: float, stack: int = STACK) -> None:
    """cookie_state: the stack's last cookie expires in so many seconds."""
    state = abi.new("dmm_cookie_state", until_ns=time.monotonic_ns() + int(seconds * 1e9))
    steer.attached.maps.cookie_state[stack] = state


@pytest.mark.parametrize("wrap", [ip4, ip6])
def test_acks_go_to_the_stack_while_it_has_cookies_out(
    steer: Steer, wrap: Callable[..., bytes]
) -> None:
    steer.listen("::", 1)
    ack = eth(wrap(tcp()))
    assert steer.run(ack) == PASS
    cookies(steer, 60, STACK + 1)
    assert steer.run(ack) == PASS
    cookies(steer, 60)
    for flags in (ACK, ACK | PSH, ACK | FIN | PSH):
        assert steer.run(eth(wrap(tcp(flags=flags)))) == REDIRECT
    for flags in (SYN | ACK, RST | ACK, RST, FIN, 0):
        assert steer.run(eth(wrap(tcp(flags=flags)))) == PASS
    assert steer.run(eth(wrap(tcp(dport=PORT + 1)))) == PASS
    assert steer.count(C.DMM_CNT_XDP_COOKIE) == 3
    Policy().user(STACK).user(6).route(1, "0.0.0.0/0", 6).route(1, "::/0", 6).apply(
        steer.attached, 2
    )
    assert steer.run(ack) == PASS
    flip(steer.attached, 1)
    assert steer.run(ack) == REDIRECT
    stack_up(steer.attached, STACK, 0)
    assert steer.run(ack) == PASS
    stack_up(steer.attached, STACK)
    cookies(steer, -1)
    assert steer.run(ack) == PASS


@pytest.mark.parametrize("wrap", [ip4, ip6])
def test_a_full_stack_leaves_syns_to_the_kernel_and_keeps_the_rest(
    steer: Steer, wrap: Callable[..., bytes]
) -> None:
    steer.listen("::", 1)
    syn = eth(wrap(tcp(flags=SYN)))
    process_full(steer.attached, STACK + 1, 0, C.DMM_FULL_MEMORY)
    assert steer.run(syn) == REDIRECT
    process_full(steer.attached, STACK, 0, C.DMM_FULL_MEMORY)
    assert steer.run(syn) == PASS
    assert steer.count(C.DMM_CNT_XDP_FULL) == 1
    cookies(steer, 60)
    assert steer.run(eth(wrap(tcp()))) == REDIRECT  # it may answer a cookie from before
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    for flags in (SYN, ACK):
        assert steer.run(eth(wrap(tcp(flags=flags)))) == REDIRECT
    assert steer.count(C.DMM_CNT_XDP_FULL) == 1
    process_full(steer.attached, STACK, 0, 0)
    assert steer.run(eth(wrap(tcp(flags=SYN, sport=THEIRS + 1)))) == REDIRECT


@pytest.mark.parametrize(("us", "them", "wrap"), [(US4, THEM4, ip4), (US6, THEM6, ip6)])
def test_acks_and_syns_of_the_kernels_own_connections_pass(
    steer: Steer, us: str, them: str, wrap: Callable[..., bytes]
) -> None:
    steer.host.ip(f"addr add {them}/{128 if ':' in them else 32} dev lo")
    steer.listen(us, 1)
    cookies(steer, 60)
    family = socket.AF_INET6 if ":" in us else socket.AF_INET
    with ExitStack() as stack:
        server, client = (
            stack.enter_context(steer.host.call(socket.socket, family)) for _ in range(2)
        )
        server.bind((us, PORT))
        server.listen()
        client.bind((them, 0))
        client.connect((us, PORT))
        accepted, (_, sport, *_) = server.accept()
        frame, again = (eth(wrap(tcp(sport=sport, flags=flags))) for flags in (ACK, SYN))
        assert steer.run(frame) == PASS
        assert steer.run(again) == PASS
        for flags in (ACK, SYN):  # a listener is no connection
            assert steer.run(eth(wrap(tcp(sport=sport ^ 1, flags=flags)))) == REDIRECT
        accepted.close()  # first, so its end is in TIME_WAIT
        assert client.recv(1) == b""
        client.close()
        assert steer.run(frame) == PASS
        assert steer.run(again) == REDIRECT
    assert steer.run(eth(wrap(tcp(sport=sport ^ 1)))) == REDIRECT


@pytest.mark.parametrize("address", [US6, "::"])
def test_an_ipv6_syn_for_a_listener(steer: Steer, address: str) -> None:
    steer.listen(address, 1)
    steer.listen("0.0.0.0", 1, PORT + 1)
    assert steer.run(eth(ip6(tcp(flags=SYN)))) == REDIRECT
    assert steer.run(eth(ip6(tcp(flags=SYN, dport=PORT + 1)))) == PASS


@pytest.mark.parametrize(
    "ends", [("fe80::7", US6), (THEM6, "fe80::1"), ("febf:ffff::7", "fe80::1")]
)
def test_ipv6_link_local_addresses_pass(steer: Steer, ends: tuple[str, str]) -> None:
    src, dst = ends
    steer.listen("::", 1)
    steer.own(dst, src)
    steer.own(US6, THEM6)
    assert steer.run(eth(ip6(tcp(), src, dst))) == PASS
    assert steer.run(eth(ip6(tcp(flags=SYN, sport=THEIRS + 1), src, dst))) == PASS
    assert steer.run(icmp6(2, ip6(tcp(PORT, THEIRS), US6, THEM6), src="fe80::9")) == PASS
    assert steer.run(eth(ip6(tcp(flags=SYN), "fec0::7", US6))) == REDIRECT


def test_the_exact_listener_comes_before_the_wildcard(steer: Steer) -> None:
    steer.listen("0.0.0.0", 1)
    steer.listen(US4, 0)
    assert steer.run(eth(ip4(tcp(flags=SYN)))) == PASS
    assert steer.run(eth(ip4(tcp(flags=SYN), dst="192.0.2.9"))) == REDIRECT


def test_a_syn_passes_unless_its_route_says_this_stack(steer: Steer) -> None:
    steer.listen("::", 1)
    syn = eth(ip4(tcp(flags=SYN)))
    Policy().user(STACK).user(6).stack(7, C.DMM_STACK_KERNEL).route(1, f"{THEM4}/32", 7).route(
        1, "0.0.0.0/0", STACK
    ).apply(steer.attached, 2)
    assert steer.run(syn) == PASS
    assert steer.run(eth(ip4(tcp(flags=SYN), src="198.51.100.8"))) == REDIRECT
    Policy().user(STACK).user(6).route(1, "0.0.0.0/0", 6).apply(steer.attached, 3)
    stack_up(steer.attached, 6)
    assert steer.run(syn) == PASS
    Policy().user(STACK).route(1, "192.0.2.0/24", STACK).apply(steer.attached, 4)
    assert steer.run(syn) == PASS
    ported = Policy().user(STACK).route(1, "0.0.0.0/0", 0, portset=3)
    ported.ports(3, PORT, 16, STACK, route=1).ports(3, THEIRS, 16, 7, route=2).apply(
        steer.attached, 5
    )
    assert steer.run(syn) == REDIRECT
    assert steer.run(eth(ip4(tcp(flags=SYN, dport=PORT + 1)))) == PASS
    stack_up(steer.attached, STACK, 0)
    assert steer.run(syn) == PASS
    stack_up(steer.attached, STACK)
    flip(steer.attached, 0)
    assert steer.run(syn) == PASS


def test_a_wildcard_listener_does_not_draw_what_is_forwarded(steer: Steer) -> None:
    steer.listen("::", 1)
    steer.host.ip("link add d0 type veth peer name d1", "link set d0 up", "link set d1 up")
    steer.host.ip("addr add 203.0.113.1/24 dev d0", "addr add 2001:db8:d::1/64 dev d0 nodad")
    for name in ("ipv4.conf.all.forwarding", "ipv4.conf.lo.forwarding", "ipv6.conf.all.forwarding"):
        steer.host.sysctl(f"net.{name}", 1)
    # It has routes once the kernel has heard of the carrier.
    table = ["ip", "-6", "route", "show", "table", "local"]
    wait_for(lambda: "2001:db8:d::1" in steer.host.run(table).stdout, 10, "an address of its own")
    for src, dst, wrap in ((THEM4, "203.0.113.77", ip4), (THEM6, "2001:db8:d::77", ip6)):
        assert steer.run(eth(wrap(tcp(flags=SYN), src, dst))) == PASS
    for src, dst, wrap in ((THEM4, "203.0.113.1", ip4), (THEM6, "2001:db8:d::1", ip6)):
        assert steer.run(eth(wrap(tcp(flags=SYN), src, dst))) == REDIRECT


def test_icmp_errors_about_an_owned_flow(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    quote4, quote6 = ip4(tcp(PORT, THEIRS), US4, THEM4), ip6(tcp(PORT, THEIRS), US6, THEM6)
    for kind in range(20):
        assert steer.run(icmp4(kind, quote4)) == (REDIRECT if kind in (3, 11, 12) else PASS)
    for kind in (0, 1, 2, 3, 4, 5, 128, 129, 135, 136):
        assert steer.run(icmp6(kind, quote6)) == (REDIRECT if kind in (1, 2, 3, 4) else PASS)
    assert steer.run(icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4, options=bytes(4)))) == REDIRECT
    assert steer.run(icmp4(3, quote4[:28])) == REDIRECT  # the 8 bytes that RFC 792 promises
    assert steer.count(C.DMM_CNT_XDP_ICMP) == 3 + 4 + 2


def test_icmp_errors_about_anything_else_pass(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    for frame in (
        icmp4(3, ip4(tcp(PORT, THEIRS), US4, "198.51.100.8")),
        icmp4(3, ip4(tcp(PORT + 1, THEIRS), US4, THEM4)),
        icmp4(3, ip4(tcp(THEIRS, PORT), THEM4, US4)),
        icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4, proto=17)),
        icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4, frag=0x0010)),
        icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4), dst="192.0.2.2"),
        icmp4(3, ip6(tcp(PORT, THEIRS), US6, THEM6)),
        icmp6(1, ip4(tcp(PORT, THEIRS), US4, THEM4) + bytes(40)),
        icmp6(1, ip6(tcp(PORT, THEIRS), US6, THEM6), dst="2001:db8::2"),
        icmp6(1, ip6(tcp(PORT, THEIRS), US6, THEM6, proto=44)),
    ):
        assert steer.run(frame) == PASS


def test_an_owned_flow_without_a_socket_is_dropped_by_tc_and_counted(steer: Steer) -> None:
    steer.own(US4, THEM4)
    assert steer.attached.maps.xsks.delete(SLOT * C.DMM_MAX_QUEUES)
    assert steer.run(eth(ip4(tcp()))) == PASS
    assert steer.tc(eth(ip4(tcp()))) == SHOT
    assert (steer.count(C.DMM_CNT_XDP_NO_SOCKET), steer.count(C.DMM_CNT_XDP_FLOW)) == (1, 0)


def test_a_flow_of_another_process_is_left_to_tc(steer: Steer) -> None:
    quote = icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4))
    for process, verdict in ((1, PASS), (0, REDIRECT)):
        steer.own(US4, THEM4, process=process)
        for frame in (eth(ip4(tcp())), quote):
            assert steer.run(frame) == verdict
            if process:
                assert steer.tc(frame) == SHOT, "a process without a device"
    assert steer.count(C.DMM_CNT_XDP_NO_SOCKET) == 2


def test_without_a_stack_whose_sockets_take_them_all_frames_pass(steer: Steer) -> None:
    """So a NIC's flows are moved to the TAP devices by one write, and back."""
    steer.own(US4, THEM4)
    steer.listen("::", 1)
    frames = [eth(ip4(tcp())), eth(ip4(tcp(sport=THEIRS + 1, flags=SYN)))]
    for stack, verdict in ((0, PASS), (STACK, REDIRECT)):
        nic = abi.pack(abi.new("dmm_nic", slot=SLOT, stack=stack))
        steer.attached.maps["nics"].update(u32(LO), nic)
        assert [steer.run(frame) for frame in frames] == [verdict] * 2


def test_frames_to_another_address_than_the_nics_are_for_tc(steer: Steer) -> None:
    """A macvlan's above it, for example."""
    steer.own(US4, THEM4)
    nic = abi.new("dmm_nic", slot=SLOT, stack=STACK, mac=list(bytes.fromhex("020000000001")))
    steer.attached.maps["nics"].update(u32(LO), abi.pack(nic))
    frame = eth(ip4(tcp()))[6:]
    for address, verdict in (("020000000001", REDIRECT), ("020000000002", PASS)):
        assert steer.run(bytes.fromhex(address) + frame) == verdict


def test_in_generic_mode_a_syn_is_for_tc(steer: Steer) -> None:
    """XDP is not told through which tunnel it came."""
    steer.own(US4, THEM4)
    steer.listen("::", 1)
    nic = abi.new("dmm_nic", slot=SLOT, stack=STACK, generic=1)
    steer.attached.maps["nics"].update(u32(LO), abi.pack(nic))
    assert steer.run(eth(ip4(tcp(sport=THEIRS + 1, flags=SYN)))) == PASS
    assert steer.run(eth(ip4(tcp()))) == REDIRECT


def test_what_a_process_sends_to_an_app_passes_generic_xdp_unmarked(steer: Steer) -> None:
    steer.own(US4, THEM4)
    frame = eth(ip4(tcp()))
    marked = frame[:6] + bytes([frame[6] | 1]) + frame[7:]
    done = steer.host.call(bpf.prog_test, steer.attached.progs["dmm_xdp"], marked)
    assert (done.retval, done.data) == (PASS, frame)
    assert steer.tc(frame) == SHOT, "by who it is alone, tc lets nothing of a flow pass"


def test_syns_are_spread_over_the_processes_and_a_flow_keeps_its_own(steer: Steer) -> None:
    """What is for another process than the first passes."""
    steer.listen("::", 1)
    syns = [eth(ip4(tcp(port, flags=SYN))) for port in range(40000, 40200)]
    syns += [eth(ip6(tcp(port, flags=SYN))) for port in range(40000, 40200)]

    def to_second() -> set[int]:
        return {i for i, syn in enumerate(syns) if steer.run(syn) == PASS}

    assert to_second() == set()
    processes_up(steer.attached, STACK, 0b11, [1, 2])
    second = to_second()
    assert len(syns) / 3 < len(second) < len(syns) / 1.5
    assert to_second() == second
    processes_up(steer.attached, STACK, 0b111, [1, 2, 3])
    others = to_second()
    processes_up(steer.attached, STACK, 0b011, [1, 2, 3])
    assert to_second() <= others, "the death of one process moved the flows of another"
    process_full(steer.attached, STACK, 0, C.DMM_FULL_MEMORY)
    assert len(to_second()) == len(syns)
    assert steer.count(C.DMM_CNT_XDP_FULL) > 0, "a full process's SYNs went to another one"
    process_full(steer.attached, STACK, 0, 0)
    processes_up(steer.attached, STACK, 0b001, [1, 2, 3])
    assert to_second() == set(), "a process that is down was chosen"
    processes_up(steer.attached, STACK, 0b010, [1, 2, 3])
    assert len(to_second()) == len(syns)


def test_a_device_that_is_no_nic_of_ours_passes_everything(steer: Steer) -> None:
    steer.own(US4, THEM4)
    steer.listen("::", 1)
    steer.attached.maps.nics.delete(LO)
    assert steer.run(eth(ip4(tcp()))) == PASS
    assert steer.run(eth(ip4(tcp(flags=SYN)))) == PASS


def expected(frame: bytes) -> int:
    """The rules of bpf/xdp.h once more, written the slow way, for one owned flow per family
    and no listeners.
    """

    def owned(version: int, local: bytes, remote: bytes, lport: int, rport: int) -> bool:
        us, them = (US4, THEM4) if version == 4 else (US6, THEM6)
        same = (
            local == ipaddress.ip_address(us).packed and remote == ipaddress.ip_address(them).packed
        )
        return same and (lport, rport) == (PORT, THEIRS)

    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\0" and len(packet) >= 20 and packet[0] >> 4 == 4 and packet[0] & 15 >= 5:
        if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
            return PASS
        version, proto, error, src, dst = 4, packet[9], (3, 11, 12), packet[12:16], packet[16:20]
        rest = packet[(packet[0] & 15) * 4 :]
    elif kind == b"\x86\xdd" and len(packet) >= 40 and packet[0] >> 4 == 6:
        version, proto, error, src, dst = 6, packet[6], (1, 2, 3, 4), packet[8:24], packet[24:40]
        rest = packet[40:]
        if any(a[0] == 0xFE and a[1] & 0xC0 == 0x80 for a in (src, dst)):
            return PASS
    else:
        return PASS
    if proto == 6 and len(rest) >= 20:
        sport, dport = struct.unpack_from("!HH", rest)
        return REDIRECT if owned(version, dst, src, dport, sport) else PASS
    quote = rest[8:]
    if proto != (1 if version == 4 else 58) or len(quote) < 20 or rest[0] not in error:
        return PASS
    if version == 4:
        head = (quote[0] & 15) * 4
        fits = (
            quote[0] >> 4 == 4
            and head >= 20
            and quote[9] == 6
            and not quote[6] & 0x1F
            and not quote[7]
        )
        from_, to = quote[12:16], quote[16:20]
    else:
        head = 40
        fits = len(quote) >= 40 and quote[0] >> 4 == 6 and quote[6] == 6
        from_, to = quote[8:24], quote[24:40]
    if not fits or from_ != dst or len(quote) < head + 8:
        return PASS
    sport, dport = struct.unpack_from("!HH", quote, head)
    return REDIRECT if owned(version, from_, to, sport, dport) else PASS


SEEDS = [
    eth(ip4(tcp())),
    eth(ip6(tcp())),
    eth(ip4(tcp(flags=SYN), options=bytes(8))),
    icmp4(3, ip4(tcp(PORT, THEIRS), US4, THEM4)),
    icmp4(11, ip4(tcp(PORT, THEIRS), US4, THEM4, options=bytes(12))),
    icmp6(2, ip6(tcp(PORT, THEIRS), US6, THEM6)),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good frame with some bytes changed, and cut or grown; or noise behind a
    good Ethernet header.
    """
    frame = bytearray(draw(st.sampled_from(SEEDS)))
    if draw(st.integers(0, 9)) == 0:
        return bytes(frame[:14]) + draw(st.binary(max_size=120))
    for _ in range(draw(st.integers(0, 3))):
        frame[draw(st.integers(12, len(frame) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(14, len(frame) + 20))
    return bytes(frame[:cut].ljust(min(cut, len(frame) + 20), b"\0"))


@settings(
    max_examples=1500,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(frame=mutated())
def test_any_frame_gets_the_verdict_that_the_rules_give(steer: Steer, frame: bytes) -> None:
    steer.own(US4, THEM4)
    steer.own(US6, THEM6)
    done = bpf.prog_test(steer.attached.progs["dmm_xdp"], frame)
    assert done.data == frame
    assert done.retval == expected(frame)

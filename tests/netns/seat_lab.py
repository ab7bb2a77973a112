# SPDX-License-Identifier: Apache-2.0
"""A process of a user stack as far as the kernel sees it: its TAP device for the inner leg on a
NIC, its place in the maps, and the least TCP that opens a connection: what comes out of the device
is answered by frames written to it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bpf_lab import Agent, u32
from dmm_ebpf.userstack._core import ffi, lib
from pieces import checksum

from dmm_ebpf import abi, loader
from dmm_ebpf.hal import stackdevice, tcfilter, tuning
from lab import Host
from lab.waiting import wait_for, wait_readable

C = abi.C
FIN, SYN, RST, ACK = 1, 2, 4, 16
SLOT = 3  # of the one NIC that is served
VNET_HEADER = bytes(10)
_FRAME_BYTES = 70_000


def pair(laddr: str, lport: int, raddr: str, rport: int) -> bytes:
    """struct dmm_addr_pair."""
    made = abi.new(
        "dmm_addr_pair",
        laddr=abi.addr16(laddr),
        raddr=abi.addr16(raddr),
        lport_be=socket.htons(lport),
        rport_be=socket.htons(rport),
        family=socket.AF_INET6 if ":" in laddr else socket.AF_INET,
        proto=socket.IPPROTO_TCP,
    )
    return abi.pack(made)


@dataclass(frozen=True)
class Segment:
    """A TCP segment in an Ethernet frame."""

    src: str
    dst: str
    sport: int
    dport: int
    seq: int = 0
    ack: int = 0
    flags: int = SYN
    payload: bytes = b""

    @property
    def pair(self) -> bytes:
        """Its flow, as the host has it that sends it."""
        return pair(self.src, self.sport, self.dst, self.dport)

    def answer(self, flags: int, seq: int = 0) -> Segment:
        """What its receiver says to it."""
        taken = self.seq + len(self.payload) + bool(self.flags & (SYN | FIN))
        return Segment(self.dst, self.src, self.dport, self.sport, seq, taken % 2**32, flags)

    def pack(self, to: bytes) -> bytes:
        """The frame; to: a MAC address."""
        family = socket.AF_INET6 if ":" in self.src else socket.AF_INET
        src, dst = socket.inet_pton(family, self.src), socket.inet_pton(family, self.dst)
        tcp = struct.pack(
            ">HHIIBBHHH",
            self.sport,
            self.dport,
            self.seq,
            self.ack,
            5 << 4,
            self.flags,
            65535,
            0,
            0,
        )
        tcp += self.payload
        pseudo = src + dst + struct.pack(">II", len(tcp), socket.IPPROTO_TCP)
        tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp)) + tcp[18:]
        link = to + b"\2\0\0\0\0\x99"
        if family == socket.AF_INET6:
            return (
                link
                + b"\x86\xdd"
                + struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64)
                + src
                + dst
                + tcp
            )
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0) + src + dst
        return link + b"\x08\0" + ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + tcp

    @classmethod
    def parse(cls, frame: bytes) -> Segment | None:
        """None: it is none."""
        kind, packet = frame[12:14], frame[14:]
        if kind == b"\x08\0" and packet[9] == socket.IPPROTO_TCP:
            family, src, dst, tcp = socket.AF_INET, packet[12:16], packet[16:20], packet[20:]
        elif kind == b"\x86\xdd" and packet[6] == socket.IPPROTO_TCP:
            family, src, dst, tcp = socket.AF_INET6, packet[8:24], packet[24:40], packet[40:]
        else:
            return None
        sport, dport, seq, ack, offset, flags = struct.unpack_from(">HHIIBB", tcp)
        ends = socket.inet_ntop(family, src), socket.inet_ntop(family, dst)
        return cls(*ends, sport, dport, seq, ack, flags, tcp[(offset >> 4) * 4 :])


class Seat:
    """Process number process of a stack, on one NIC. Made in the host's namespace."""

    def __init__(
        self,
        attached: loader.Attached,
        nic: str,
        stack: int,
        process: int = 0,
        *,
        k: int | None = None,
    ) -> None:
        """k: its number in the namespace; None: as process."""
        self.process = process
        k = process if k is None else k
        self.seat = k + 1
        self.name = stackdevice.inner(stackdevice.name_of(k), SLOT)
        self._attached = attached
        error = ffi.new("struct dmm_hal_error *")
        self.fd: int = lib.dmm_tap_open(self.name.encode(), error)
        assert self.fd >= 0, ffi.string(error.what)
        tuning.prepare_device(self.name)
        assert lib.dmm_tap_up(self.name.encode(), 1500, 100, error) >= 0, ffi.string(error.what)
        self.ifindex = socket.if_nametoindex(self.name)
        self.nic = socket.if_nametoindex(nic)
        entry = abi.new("dmm_seat", stack=stack, process=process, seat=self.seat, nic=self.nic)
        attached.maps.seats[self.ifindex] = entry
        self.lead(self.ifindex)
        tcfilter.attach(self.ifindex, attached.ingress_fd())

    def lead(self, ifindex: int) -> None:
        """inner_devs[]; 0: to nowhere."""
        key = u32((self.seat - 1) * C.DMM_MAX_NICS + SLOT)
        self._attached.maps["inner_devs"].update(key, u32(ifindex))

    def read(self) -> bytes:
        """The next frame from the kernel, without its virtio_net header, or nothing."""
        try:
            return os.read(self.fd, _FRAME_BYTES)[len(VNET_HEADER) :]
        except BlockingIOError:
            return b""

    def segments(self) -> list[Segment]:
        """The TCP segments that are there."""
        found = (Segment.parse(frame) for frame in iter(self.read, b""))
        return [one for one in found if one is not None]

    def segment(self, flags: int) -> Segment:
        """Waits for one with those flags alone."""
        got: list[Segment] = []

        def find() -> Segment | None:
            wait_readable(self.fd, 0.05)
            got.extend(self.segments())
            return next((one for one in got if one.flags & (FIN | SYN | RST | ACK) == flags), None)

        found = wait_for(find, 10.0, f"a segment with flags {flags:#x}")
        assert found is not None
        return found

    def write(self, frame: bytes) -> None:
        """A frame to the device."""
        os.write(self.fd, VNET_HEADER + frame)

    def send(self, segment: Segment, to: bytes) -> None:
        """As the process sends to the app."""
        self.write(segment.pack(to))

    def ask(
        self, op: int, flow: bytes = bytes(40), *, conn: int = 0, full: int = 0, until_ns: int = 0
    ) -> None:
        """struct dmm_ask."""
        ask = abi.new("dmm_ask", op=op, conn=conn, full=full, cookies_until_ns=until_ns)
        ask.eth[12], ask.eth[13] = C.DMM_ASK_TYPE >> 8, C.DMM_ASK_TYPE & 0xFF
        data = abi.pack(ask)
        at = abi.offset("dmm_ask", "pair")
        self.write(data[:at] + flow + data[at + len(flow) :])

    def claim(self, flow: bytes, conn: int = 7) -> bool:
        """Whether the claim was granted; if not, the flow is another's."""
        answer = self.answer(flow, conn)
        assert answer in {None, C.DMM_ASK_TAKEN}
        return answer is None

    def answer(self, flow: bytes, conn: int = 7) -> int | None:
        """What a claim is answered; None: it was granted."""
        self.ask(C.DMM_ASK_CLAIM, flow, conn=conn)
        while data := self.read():
            if data[12:14] == C.DMM_ASK_TYPE.to_bytes(2, "big"):
                answer = abi.unpack("dmm_ask", data)
                assert answer.conn == conn
                return int(answer.op)
        return None

    def disown(self, flow: bytes) -> None:
        """Gives a flow up."""
        self.ask(C.DMM_ASK_DISOWN, flow)

    def accept(self, to: bytes) -> int:
        """Answers every SYN that is there as the process does when the far host has: claims its
        flow, and sends a SYN-ACK. How many there were.
        """
        syns = [one for one in self.segments() if one.flags & (SYN | ACK) == SYN]
        for syn in syns:
            assert self.claim(syn.pair)
            self.send(syn.answer(SYN | ACK, seq=7000), to)
        return len(syns)

    def close(self) -> None:
        """Device and process are gone; their places stay."""
        os.close(self.fd)


def serve_nic(host: Host, attached: loader.Attached) -> None:
    """Our tc programs on the host's NIC, by tcx."""

    def put() -> None:
        index = socket.if_nametoindex(host.nic.name)
        attached.maps.nics[index] = abi.new("dmm_nic", slot=SLOT)
        if not attached.attach_tcx(index):
            tcfilter.attach_nic(index, attached.tc_fds(), "dmm:test")

    host.call(put)


def mac_of(host: Host) -> bytes:
    """Of its NIC."""
    (link,) = json.loads(host.run(["ip", "-j", "link", "show", host.nic.name]).stdout)
    return bytes.fromhex(link["address"].replace(":", ""))


def connect(
    agent: Agent, seats: Iterable[Seat], mac: bytes, name: str, address: str, port: int
) -> None:
    """agent.connect(), while the processes answer what comes to them."""
    taking = list(seats)
    agent.post(f"s[{name!r}].settimeout(10); s[{name!r}].connect(({address!r}, {port}))")
    assert agent.process.stdout is not None
    done = agent.process.stdout.fileno()
    while True:
        ready, _, _ = select.select([done, *(seat.fd for seat in taking)], [], [], 20)
        assert ready, "connect() does not end"
        for seat in taking:
            if seat.fd in ready:
                seat.accept(mac)
        if done in ready:
            agent.answer()
            return


def begin(agent: Agent, name: str, address: str, port: int) -> None:
    """Sends a SYN, and does not wait for what becomes of it."""
    agent(f"s[{name!r}].setblocking(False)")
    assert agent(f"s[{name!r}].connect_ex(({address!r}, {port}))") == errno.EINPROGRESS


@contextmanager
def two_seats(host: Host, attached: loader.Attached, stack: int) -> Iterator[list[Seat]]:
    """Two processes of a stack on the host's NIC."""
    with ExitStack() as closing:
        made = [host.call(Seat, attached, host.nic.name, stack, process) for process in (0, 1)]
        for seat in made:
            closing.callback(seat.close)
        yield made

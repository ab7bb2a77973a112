# SPDX-License-Identifier: Apache-2.0
"""A stack process that knows nothing of dmm-ebpf but its contract, as
docs/develop/write-a-stack-process.md tells it: it forwards what it gets, both ways.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

MARK, ASK = 0x646D6D, b"\x88\xb5"
CLAIM, DISOWN, STATE, REFUSED = 1, 2, 3, 4
FIN, SYN, RST, ACK = 1, 2, 4, 16
VNET, ETH = 10, 14
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_UP = 2, 0x1000, 0x4000, 1
TUNSETIFF, TUNSETOFFLOAD, TUNATTACHFILTER, TUNSETVNETHDRSZ = (
    *(0x400454CA, 0x400454D0, 0x401054D5),
    0x400454D8,
)
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU = 0x8913, 0x8914, 0x8922
SO_PEERCRED = 17


def only_marked(fd: int) -> None:
    """What has not the mark is not read (linux/filter.h)."""
    code = b"".join(
        struct.pack("=HBBI", *one)
        for one in (
            (0x20, 0, 0, 0xFFFFF014),
            (0x15, 0, 1, MARK),
            (6, 0, 0, 0xFFFFFFFF),
            (6, 0, 0, 0),
        )
    )
    kept = ctypes.create_string_buffer(code)
    fcntl.ioctl(fd, TUNATTACHFILTER, struct.pack("@HP", 4, ctypes.addressof(kept)))


def tap(name: str, mtu: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET))
    fcntl.ioctl(fd, TUNSETOFFLOAD, 1 | 2 | 4)  # checksums, TCP segments of both families
    only_marked(fd)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one:
        fcntl.ioctl(any_one, SIOCSIFMTU, struct.pack("16si20x", name.encode(), mtu))
        told = fcntl.ioctl(any_one, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        up = struct.unpack_from("16sH", told)[1] | IFF_UP
        fcntl.ioctl(any_one, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), up))
    return fd


def segment(frame: bytes, *, from_app: bool) -> tuple[bytes, int]:
    """struct dmm_addr_pair of a TCP segment, and its flags; b"" of what is none."""
    ip = frame[VNET + ETH :]
    if ip[0] >> 4 == 4 and ip[9] == 6:
        near, far = (b"\0" * 10 + b"\xff\xff" + ip[at : at + 4] for at in (12, 16))
        tcp, family = ip[(ip[0] & 15) * 4 :], socket.AF_INET
    elif ip[0] >> 4 == 6 and ip[6] == 6:
        near, far, tcp, family = ip[8:24], ip[24:40], ip[40:], socket.AF_INET6
    else:
        return b"", 0
    here, there = tcp[0:2], tcp[2:4]
    if not from_app:
        near, far, here, there = far, near, there, here
    return near + far + here + there + bytes([family, 6, 0, 0]), tcp[13]


class Process:
    def __init__(self, spec: dict[str, Any]) -> None:
        assert spec["contract"] == 3
        if ctypes.CDLL(None).setns(spec["netns_fd"], 0):
            raise OSError("setns")
        self.spec = spec
        self.pairs: dict[bytes, int] = {}
        self.packets = 0
        self.going = True
        self.ways: dict[int, tuple[bool, int, socket.socket, bytes]] = {}
        self.inner = -1
        for nic in spec["nics"]:
            inner = tap(f"{spec['device']}.{nic['slot']}.in", nic["mtu"])
            outer = tap(f"{spec['device']}.{nic['slot']}.out", nic["mtu"])
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            wire.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            wire.bind((nic["name"], 0))
            mac = bytes.fromhex(nic["mac"])
            self.ways[inner] = (True, inner, wire, mac)
            self.ways[outer] = (False, inner, wire, mac)
            self.inner = inner
        name = spec["name"] + (f"@{spec['process']}" if spec["process"] else "")
        path = Path(spec["run_dir"]) / f"stack-{name}.sock"
        path.unlink(missing_ok=True)
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind(str(path))
        path.chmod(0o600)
        self.control.listen()
        self.clients: dict[int, socket.socket] = {}

    def info(self) -> dict[str, Any]:
        none = {"zerocopy": {}, "sums": {}, "no_sockets": {}}
        return {"pid": os.getpid(), "xsk_mtu": 0, "own_user": False, "landlock": 0} | none

    def ask(self, op: int, pair: bytes = bytes(40)) -> None:
        """struct dmm_ask."""
        asked = bytes(12) + ASK + bytes(2) + struct.pack("=IIQI", op, 0, 0, 0) + pair + bytes(4)
        os.write(self.inner, bytes(VNET) + asked)

    def take(self, fd: int) -> None:
        from_app, inner, wire, mac = self.ways[fd]
        frame = os.read(fd, 66000)
        if frame[VNET + 12 : VNET + ETH] == ASK:
            self.pairs.pop(frame[VNET + 36 : VNET + 76], None)
            return
        self.packets += 1
        pair, flags = segment(frame, from_app=from_app)
        if flags & (SYN | ACK | RST) == SYN and pair not in self.pairs:
            self.pairs[pair] = 0
            self.ask(CLAIM, pair)
        if not from_app:
            os.write(inner, frame)
        else:
            if frame[VNET + 6] == 1:
                frame = frame[: VNET + 6] + mac + frame[VNET + 12 :]
            wire.send(frame)
        if pair in self.pairs:
            self.pairs[pair] |= 3 if flags & RST else (1 + (not from_app)) if flags & FIN else 0
            if self.pairs[pair] == 3:
                del self.pairs[pair]
                self.ask(DISOWN, pair)

    def answer(self, method: str) -> Any:
        if method == "ping":
            return self.info()
        if method == "stats":
            many = dict.fromkeys(("connections", "in_use"), len(self.pairs))
            return many | {
                "packets": self.packets,
                "max_connections": 1000,
                "memory_bytes": 0,
                "memory_limit_bytes": 1 << 20,
            }
        self.going = self.going and method != "stop"
        return [] if method == "connections" else None

    def hear(self, client: socket.socket) -> None:
        size = client.recv(4, socket.MSG_WAITALL)
        if not size:
            del self.clients[client.fileno()]
            client.close()
            return
        asked = msgpack.unpackb(client.recv(struct.unpack(">I", size)[0], socket.MSG_WAITALL))
        told = {"id": asked["id"], "ok": True, "result": self.answer(asked["method"])}
        data = msgpack.packb(told)
        client.sendall(struct.pack(">I", len(data)) + data)

    def accept(self) -> None:
        client, _ = self.control.accept()
        peer = client.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12)
        if struct.unpack("iII", peer)[1] == 0:
            self.clients[client.fileno()] = client

    def serve(self) -> None:
        beat = 0.0
        while self.going:
            if time.monotonic() - beat > 0.2:
                beat = time.monotonic()
                self.ask(STATE)
            ready, _, _ = select.select([*self.ways, self.control, *self.clients], [], [], 0.2)
            for one in ready:
                if one is self.control:
                    self.accept()
                elif one in self.ways:
                    self.take(one)
                else:
                    self.hear(self.clients[one])


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[-4]))
    told = b""
    while part := channel.recv(65536):
        told += part
    process = Process(json.loads(told))
    signal.signal(signal.SIGTERM, lambda *_: setattr(process, "going", False))
    channel.sendall(json.dumps({"id": 0, "ok": True, "result": process.info()}).encode())
    channel.close()
    process.serve()


main()

# SPDX-License-Identifier: Apache-2.0
"""A stack process of your own, in Python: a class that says what becomes of each packet of the
flows that it serves.

A policy names it: `command = ["/usr/bin/python3", "-P", "/etc/dmm-ebpf/my_stack.py"]`. The file
ends in `main(MyStack)`. What it may count on, and what is asked of it, is in
docs/develop/write-a-stack-process.md; this module does all of it but the packets. It is for
prototypes: Python sees every packet.
"""

from __future__ import annotations

import dmm_ebpf.lean  # noqa: F401 - before asyncio is imported

# isort: split

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.errors import DmmError
from dmm_ebpf.frames import Message
from dmm_ebpf.hal import tuning
from dmm_ebpf.prototype.frame import ETH_BYTES, FIN, RST, VNET_BYTES, Frame
from dmm_ebpf.tcpstates import NUMBERS
from dmm_ebpf.userstack import answers, controlserver, sandbox, serving
from dmm_ebpf.userstack._core import ffi, lib
from dmm_ebpf.userstack.halerrors import hal_error
from dmm_ebpf.userstack.spec import CONTRACT, NicSpec, StackSpec

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_QUEUE_PACKETS = 4096
_READ_BYTES = VNET_BYTES + ETH_BYTES + 65536
_BUDGET = 64  # packets of one device before another has its turn
_BEAT_S = 0.25
_MAC_BYTES = 6

log = logging.getLogger("dmm-ebpf.stack")


@dataclass
class Nic:
    """A NIC that the stack serves, with both ways out of the process."""

    name: str
    number: int
    mac: bytes
    inner_fd: int  # TAP device: the app's side
    outer_fd: int  # TAP device: what came from the wire
    packet: socket.socket  # to the wire

    def to_wire(self, frame: Frame) -> None:
        """Sends it as it is. What the NIC does not take is lost, as on the way."""
        data = frame.data
        at = VNET_BYTES + _MAC_BYTES
        if data[at] == abi.C.DMM_AWAY_SOURCE:
            data = data[:at] + self.mac + data[at + _MAC_BYTES :]
        with contextlib.suppress(OSError):
            self.packet.send(data)

    def to_app(self, frame: Frame) -> None:
        """Gives it to the app's kernel as if it had come from the wire. Of a flow that is not
        claimed it is lost.
        """
        with contextlib.suppress(OSError):
            os.write(self.inner_fd, frame.data)


@dataclass
class Flow:
    """One that is claimed. ended: by which sides."""

    pair: bytes
    nic: Nic
    ended: int = 0


class Stack(ABC):
    """Make a subclass, with from_app() and from_wire()."""

    def __init__(self, spec: StackSpec) -> None:
        """Opens the devices. Raises DmmError."""
        self.spec = spec
        self.flows: dict[bytes, Flow] = {}
        # Of your own; `dmm-ebpf stacks --json` shows what stats() tells
        self.counters: dict[str, int] = {}
        self.nics = [_open(spec, nic) for nic in spec.nics]
        self._done = asyncio.Event()

    # -- yours --

    @abstractmethod
    def from_app(self, frame: Frame, nic: Nic) -> None:
        """A packet that the app's kernel wants to send by nic, with the Ethernet header that
        it would have.
        """

    @abstractmethod
    def from_wire(self, frame: Frame, nic: Nic) -> None:
        """A packet of a peer's: of a claimed flow, or the first one to a listener of an app."""

    # -- what they may call --

    def claim(self, frame: Frame, nic: Nic, *, from_app: bool) -> None:
        """From now on packets of the frame's flow come here, from both sides, before anything
        else is sent of it.
        """
        pair = frame.pair(from_app=from_app)
        if pair and pair not in self.flows:
            self.flows[pair] = Flow(pair, nic)
            self._ask(abi.C.DMM_ASK_CLAIM, pair)

    def release(self, pair: bytes) -> None:
        """Its packets pass by us from now on."""
        if self.flows.pop(pair, None):
            self._ask(abi.C.DMM_ASK_DISOWN, pair)

    # -- the contract --

    def _ask(self, op: int, pair: bytes = b"") -> None:
        ask = abi.new("dmm_ask", op=op)
        kind = abi.C.DMM_ASK_TYPE.to_bytes(2, "big")
        abi.ffi.buffer(ask.eth)[ETH_BYTES - 2 : ETH_BYTES] = kind
        if pair:
            abi.ffi.memmove(abi.ffi.addressof(ask, "pair"), pair, len(pair))
        os.write(self.nics[0].inner_fd, bytes(VNET_BYTES) + abi.pack(ask))

    def _read(self, nic: Nic, fd: int, *, from_app: bool) -> None:
        for _ in range(_BUDGET):
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.error("device of %s: %s", nic.name, os.strerror(error.errno or 0))
                self._done.set()
                return
            if len(data) > VNET_BYTES + ETH_BYTES:
                self._take(Frame(data), nic, from_app=from_app)

    def _take(self, frame: Frame, nic: Nic, *, from_app: bool) -> None:
        if from_app and frame.ethertype == abi.C.DMM_ASK_TYPE:
            self._refused(abi.unpack("dmm_ask", frame.data[VNET_BYTES:]))
            return
        pair = frame.pair(from_app=from_app)
        if frame.opens:
            self.claim(frame, nic, from_app=from_app)
        try:
            (self.from_app if from_app else self.from_wire)(frame, nic)
        except Exception:
            log.exception("a packet is lost")
        self._follow(pair, frame.flags, 1 if from_app else 2)

    def _follow(self, pair: bytes, flags: int, side: int) -> None:
        flow = self.flows.get(pair)
        if flow is None:
            return
        flow.ended |= 3 if flags & RST else side if flags & FIN else 0
        if flow.ended == 3:
            self.release(pair)

    def _refused(self, ask: Any) -> None:
        pair = bytes(abi.ffi.buffer(ask.pair))
        if self.flows.pop(pair, None):
            log.warning("a flow is another's, or the map is full")

    def info(self) -> dict[str, Any]:
        """What the director is told when the process serves; answers.py has its form."""
        none = {str(nic.slot): "it has none" for nic in self.spec.nics if nic.xsk}
        return self._confined | {
            "pid": os.getpid(),
            "xsk_mtu": 0,
            "zerocopy": {},
            "sums": {},
            "no_sockets": none,
        }

    def stats(self) -> dict[str, int]:
        """Answer to "stats"."""
        return {
            **self.counters,
            "connections": len(self.flows),
            "in_use": len(self.flows),
            "max_connections": self.spec.max_connections,
            "memory_bytes": 0,
            "memory_limit_bytes": self.spec.payload_bytes,
        }

    def connections(self, first: int, most: int) -> list[list[Any]]:
        """Answer to "connections": answers.COLUMNS of each flow."""
        rows = []
        for flow in list(self.flows.values())[first : first + most]:
            pair = abi.unpack("dmm_addr_pair", flow.pair)
            known = {
                "laddr": abi.addr_text(bytes(abi.ffi.buffer(pair.laddr))),
                "lport": socket.ntohs(pair.lport_be),
                "raddr": abi.addr_text(bytes(abi.ffi.buffer(pair.raddr))),
                "rport": socket.ntohs(pair.rport_be),
                "outer_state": NUMBERS["ESTABLISHED"],
                "congestion": "",
                "transport": "",
                "agreed": "",
                "agreement": "none",
            }
            rows.append([known.get(name, 0) for name in answers.COLUMNS])
        return rows

    def _answer(self, number: int, method: str, params: Message) -> Message:
        return serving.answer(number, method, params, self._call)

    def _call(self, method: str, params: Mapping[str, Any]) -> Any:
        match method:
            case "ping":
                return self.info()
            case "stats":
                return self.stats()
            case "connections":
                return self.connections(**serving.part(params))
            case "configure":
                return None
            case "stop":
                self._done.set()
                return None
        raise serving.unknown(self.spec, method)

    async def _serve(self, channel: socket.socket) -> int:
        listener = controlserver.listen(self.spec.control_path)
        sandbox.limit_resources(self.spec.payload_bytes)
        confinement = sandbox.drop_privileges()
        self._confined = {"own_user": confinement.own_user, "landlock": confinement.landlock}
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._done.set)
        server = controlserver.ControlServer(
            listener,
            self._answer,
            lambda _method, _params, _fd: None,
        )
        sandbox.seal()
        for nic in self.nics:
            loop.add_reader(nic.inner_fd, partial(self._read, nic, nic.inner_fd, from_app=True))
            loop.add_reader(nic.outer_fd, partial(self._read, nic, nic.outer_fd, from_app=False))
        serving.say_ready(channel, self.info())
        while not self._done.is_set():
            self._ask(abi.C.DMM_ASK_STATE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_S):
                    await self._done.wait()
        server.close()
        for pair in list(self.flows):
            self.release(pair)
        return 0


def _open(spec: StackSpec, nic: NicSpec) -> Nic:
    if nic.bare:
        raise DmmError(f"serve {nic.name}", why="its packets have no link header")
    inner = _open_tap(spec.inner_device(nic), nic.mtu)
    outer = _open_tap(spec.outer_device(nic), nic.mtu)
    try:
        # Protocol 0: nothing is received by it.
        packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        packet.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        packet.bind((nic.name, 0))
    except OSError as error:
        raise DmmError(f"send by {nic.name}", why=os.strerror(error.errno or 0)) from error
    return Nic(nic.name, nic.slot, nic.mac, inner, outer, packet)


def _open_tap(name: str, mtu: int) -> int:
    error = ffi.new("struct dmm_hal_error *")
    fd = int(lib.dmm_tap_open(name.encode(), error))
    if fd < 0:
        raise hal_error(error)
    tuning.prepare_device(name)
    if lib.dmm_tap_up(name.encode(), mtu, _QUEUE_PACKETS, error) < 0:
        raise hal_error(error)
    return fd


def _check_contract(spec: StackSpec) -> None:
    if spec.contract != CONTRACT:
        why = f"it was told of contract {spec.contract}, and keeps to {CONTRACT}"
        raise DmmError(f"serve stack {spec.label}", why=why)


async def _run(kind: type[Stack], channel: socket.socket) -> int:
    try:
        spec = serving.read_spec(channel)
        _check_contract(spec)
        serving.enter_namespace(spec)
        if spec.xsks_fd >= 0:
            os.close(spec.xsks_fd)
        return await kind(spec)._serve(channel)
    except DmmError as error:
        with contextlib.suppress(OSError):
            serving.say_refused(channel, error)
        return 1


def main(kind: type[Stack]) -> None:
    """Serve as a process of that kind, as the command line says; does not return."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    if len(sys.argv) < 5:
        sys.exit(
            "this is a stack process: a policy names it as command of a stack, and the director starts it"
        )
    channel = socket.socket(fileno=int(sys.argv[-4]))
    code = asyncio.run(_run(kind, channel))
    logging.shutdown()
    os._exit(code)

# SPDX-License-Identifier: Apache-2.0
"""A user stack on a host of a test, without a Resource Director: supervisor, the tc programs that
lead to it, and the least XDP program.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hal_xdp
from hal_lab import Host

from dmm_ebpf import abi
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import stackdevice, tcfilter
from dmm_ebpf.loader import ahead, programs
from dmm_ebpf.rd.director import endflows
from dmm_ebpf.userstack.supervisor import NicSpec, StackSpec, StackSupervisor

C = abi.C
STACK, SEAT = 3, 1


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


class Stack:
    """One stack process and what leads to it. Its event loop runs in a thread that is in the host's
    namespace.
    """

    def __init__(self, host: Host, run_dir: Path, *, port: str = "af_xdp", **spec: Any) -> None:
        self.host = host
        self.maps, self.progs = ahead.take()
        self.xsks = hal_xdp.xskmap()
        self._prog = hal_xdp.redirect_tcp(self.xsks)
        found = [n for n in host.ns.run_in(hal_nic.list_nics) if n.kind == "veth"]
        for slot, n in enumerate(found):
            if port == "af_xdp":
                hal_xdp.attach(host, n.name, self._prog)
            self.maps.nics[n.ifindex] = abi.new("dmm_nic", slot=slot)
            ours = self.progs["dmm_tcin"], self.progs["dmm_tcout"]
            host.ns.run_in(tcfilter.attach_nic, n.ifindex, ours, "dmm:test")
        self.spec = StackSpec(
            instance=f"test{os.getpid()}",
            name="wan",
            stack_id=STACK,
            k=SEAT - 1,
            device=stackdevice.name_of(SEAT - 1),
            nics=[
                NicSpec(
                    n.ifindex, n.name, i, n.rx_queues, n.mac, n.mtu, xsk=port == "af_xdp", port=port
                )
                for i, n in enumerate(found)
            ],
            xsks_fd=self.xsks,
            run_dir=run_dir,
            netns_fd=host.ns.fd,
            **spec,
        )
        self.ups: list[Mapping[str, Any]] = []
        self.downs: list[str] = []
        self.changed = threading.Condition()
        self.supervisor = StackSupervisor(self.spec, on_up=self._up, on_down=self._down)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        import ctypes

        assert ctypes.CDLL(None).setns(self.host.ns.fd, 0x40000000) == 0
        self._loop.run_forever()

    def _up(self, info: Mapping[str, Any]) -> None:
        for n in self.spec.nics:
            inner = hal_nic.ifindex_of(self.spec.inner_device(n))
            assert inner is not None
            seat = abi.new("dmm_seat", stack=STACK, seat=SEAT, nic=n.ifindex)
            self.maps.seats[inner] = seat
            place = _u32((SEAT - 1) * C.DMM_MAX_NICS + n.slot)
            self.maps["inner_devs"].update(place, _u32(inner))
            outer = hal_nic.ifindex_of(self.spec.outer_device(n))
            self.maps["outer_devs"].update(place, _u32(outer or 0))
            tcfilter.attach(inner, self.progs["dmm_ingress"])
        self._state(1)
        with self.changed:
            self.ups.append(info)
            self.changed.notify_all()

    def _state(self, up: int) -> None:
        state = abi.new("dmm_stack_state", up=up, processes=1)
        state.seats[0] = SEAT
        self.maps.stack_state[STACK] = state

    def _down(self, reason: str) -> None:
        self._state(0)
        endflows.end(self.maps, endflows.owned_by(self.maps), {})
        with self.changed:
            self.downs.append(reason)
            self.changed.notify_all()

    def do(self, work: Coroutine[Any, Any, Any], timeout: float = 20) -> Any:
        """Runs a coroutine in the stack's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def query(self, method: str, **params: Any) -> Any:
        return self.do(self.supervisor.query(method, **params))

    def choose(self, sock: socket.socket) -> None:
        """As connect() decides for a socket of the host's."""
        way = abi.new("dmm_way", stack=STACK, seat=SEAT)
        self.maps.ways[sock.fileno()] = way

    def connect(self, address: tuple[Any, ...], timeout: float = 15) -> socket.socket:
        """A TCP connection through the stack."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = self.host.ns.socket(family, socket.SOCK_STREAM)
        self.choose(sock)
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        self.do(self.supervisor.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        for n in self.spec.nics:
            self.host.ns.run_in(lambda n=n: tcfilter.detach_nic(n.ifindex, "dmm:test", clsact=True))
        for fd in (self.xsks, self._prog):
            os.close(fd)
        programs.close_all(self.progs)
        programs.close_maps(self.maps)


@contextmanager
def stack_on(host: Host, **spec: Any) -> Iterator[Stack]:
    """A started stack that serves every veth of the host."""
    with tempfile.TemporaryDirectory(prefix="dmm-stack-") as directory:
        stack = Stack(host, Path(directory), **spec)
        try:
            stack.do(stack.supervisor.start())
            yield stack
        except BaseException:
            if stack.spec.log_path.exists():
                print(stack.spec.log_path.read_text())
            raise
        finally:
            stack.close()

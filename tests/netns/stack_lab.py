# SPDX-License-Identifier: Apache-2.0
"""A user stack on a host of a test, without a Resource Director: supervisor, routes and the least XDP
program.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hal_xdp
from hal_lab import Host

from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.routes import RouteMirror, StackNumbers
from dmm_ebpf.userstack.supervisor import NicSpec, StackSpec, StackSupervisor

MARK, MASK = 0x0DD00000, 0x0FF00000
SO_MARK = 36


class Stack:
    """One stack process and what leads to it. Its event loop runs in a thread that is in the host's
    namespace.
    """

    def __init__(self, host: Host, run_dir: Path, **spec: Any) -> None:
        self.host = host
        self.numbers = StackNumbers(0, MARK, MASK)
        self.xsks = hal_xdp.xskmap()
        self._prog = hal_xdp.redirect_tcp(self.xsks)
        found = [n for n in host.ns.run_in(hal_nic.list_nics) if n.kind == "veth"]
        for n in found:
            hal_xdp.attach(host, n.name, self._prog)
        self.spec = StackSpec(
            instance="test",
            name="wan",
            stack_id=3,
            k=0,
            mark=self.numbers.mark,
            mark_mask=MASK,
            tun=self.numbers.tun,
            nics=[NicSpec(n.ifindex, n.name, i, n.rx_queues, n.mac, n.mtu) for i, n in enumerate(found)],
            xsks_fd=self.xsks,
            run_dir=run_dir,
            netns_fd=host.ns.fd,
            **spec,
        )
        self.ups: list[Mapping[str, Any]] = []
        self.downs: list[str] = []
        self.changed = threading.Condition()
        self.mirror = host.ns.run_in(RouteMirror, self.numbers, [n.name for n in found])
        self.supervisor = StackSupervisor(self.spec, on_up=self._up, on_down=self._down)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        import ctypes

        assert ctypes.CDLL(None).setns(self.host.ns.fd, 0x40000000) == 0
        self._loop.run_forever()

    def _up(self, info: Mapping[str, Any]) -> None:
        self.mirror.sync()
        with self.changed:
            self.ups.append(info)
            self.changed.notify_all()

    def _down(self, reason: str) -> None:
        sockdiag.destroy(sockdiag.find_by_mark(MARK, MASK))
        with self.changed:
            self.downs.append(reason)
            self.changed.notify_all()

    def do(self, work: Coroutine[Any, Any, Any], timeout: float = 20) -> Any:
        """Runs a coroutine in the stack's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def query(self, method: str, **params: Any) -> Any:
        return self.do(self.supervisor.query(method, **params))

    def connect(self, address: tuple[Any, ...], timeout: float = 15) -> socket.socket:
        """A TCP connection through the stack."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = self.host.ns.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.numbers.mark)
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
        self.mirror.close()
        self.host.ns.run_in(self.numbers.remove)
        for fd in (self.xsks, self._prog):
            os.close(fd)


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

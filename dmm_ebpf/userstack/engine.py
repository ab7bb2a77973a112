# SPDX-License-Identifier: Apache-2.0
"""The C engine as Python sees it: devices opened with errors as sentences, figures, the loop in a thread."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import tuning
from dmm_ebpf.userstack._core import ffi, lib
from dmm_ebpf.userstack.halerrors import hal_error
from dmm_ebpf.userstack.spec import NicSpec, StackSpec

_TXQUEUELEN_MIN = 10000  # packets
_TAP_QUEUELEN = 4096  # frames, as many as an AF_XDP socket's receive side has
_INNER_GSO_MAX_BYTES = 65535
_BATCH = 256
_LATECOMERS = 64  # connections that may come before the hooks know that a stack is full
_NEVER = (1 << 64) - 1

_CORE_COUNTERS = {
    value: name.removeprefix("DMM_CORE_").lower()
    for value, name in ffi.typeof("enum dmm_core_counter").elements.items()
    if name != "DMM_CORE_MAX"
}
_SYN_COOKIES = {
    name.removeprefix("DMM_SYN_COOKIES_").lower(): value
    for value, name in ffi.typeof("enum dmm_syn_cookies").elements.items()
}
_INFO_NUMBERS = [
    name for name, _ in ffi.typeof("struct dmm_conn_info").fields if name not in ("pair", "congestion")
]
_MEMORY = [name for name, _ in ffi.typeof("struct dmm_core_memory").fields if name != "connections"]
_STATS = [name for name, _ in ffi.typeof("struct dmm_engine_stats").fields]

log = logging.getLogger("dmm-ebpf.stack")


class Engine:
    """One engine with its devices."""

    def __init__(self, spec: StackSpec) -> None:
        """Makes the devices of the inner legs, and AF_XDP sockets or the devices of the outer one, in the calling
        thread's namespace. Raises DmmError.
        """
        self.spec = spec
        self.nics: list[NicSpec] = []
        self.zerocopy: dict[str, bool] = {}
        self._error = ffi.new("struct dmm_hal_error *")
        self._thread: threading.Thread | None = None
        self._go = threading.Event()
        self._called_off = False
        self.result: int | None = None
        self._engine = ffi.NULL
        try:
            self._create()
            for nic in spec.nics:
                self._open_nic(nic)
            self._close_registers()
        except BaseException:
            self.close()
            raise

    def _close_registers(self) -> None:
        """What was registered stays; nobody else's place can be taken after this."""
        for fd in (self.spec.xsks_fd, self.spec.taps_fd):
            if fd >= 0:
                os.close(fd)

    def _take_up(self, name: str, mtu: int, packets: int) -> None:
        """packets: length of the device's queue, or less where the kernel takes no more."""
        length = lib.dmm_tap_up(name.encode(), mtu, packets, self._error)
        if length < 0:
            raise hal_error(self._error)
        if length < packets:
            log.warning("%s: this kernel takes a queue of %d packets, not of %d", name, length, packets)

    @property
    def _max_connections(self) -> int:
        """Places in the core: a few more than the stack is to have, for those on their way when it is full."""
        most = self.spec.max_connections
        return most + max(most // 8, _LATECOMERS)

    @property
    def _inner_packets(self) -> int:
        """Length of an inner device's queue. A program that ends may reset all its connections at once, and nobody
        sends a lost reset again: a TAP device drops what finds its queue full, so there is room for one of each.
        """
        return max(_TXQUEUELEN_MIN, self._max_connections)

    @property
    def inner_mtu(self) -> int:
        """The smallest MTU of the NICs, so that no segment is too long outside."""
        return min((nic.mtu for nic in self.spec.nics), default=1500)

    def _create(self) -> None:
        config = ffi.new("struct dmm_engine_config *")
        config.core.seed = _random64()
        config.core.memory_bytes = self.spec.memory_bytes
        config.core.max_connections = self._max_connections
        config.core.inner_mtu = self.inner_mtu
        config.core.inner_gso_max = _INNER_GSO_MAX_BYTES
        config.core.sndbuf_max_bytes = self.spec.sndbuf_bytes
        config.core.rcvbuf_max_bytes = self.spec.rcvbuf_bytes
        config.core.syn_cookies = _SYN_COOKIES[self.spec.syn_cookies]
        ffi.memmove(
            config.core.congestion, self.spec.congestion.encode()[:15], len(self.spec.congestion[:15])
        )
        config.max_connections = self.spec.max_connections
        config.busy_poll_us = self.spec.busy_poll_us
        self._engine = lib.dmm_engine_create(config)
        if self._engine == ffi.NULL:
            raise DmmError(f"start stack {self.spec.label}", why="out of memory")

    def _open_nic(self, nic: NicSpec) -> None:
        found = hal_nic.find(nic.ifindex, nic.name)
        one = ffi.new("struct dmm_engine_nic *")
        one.inner_fd = self._open_inner(nic)
        one.mtu, one.software = nic.mtu, found is not None and found.kind == "veth"
        ffi.memmove(one.mac, nic.mac, len(nic.mac))
        index = lib.dmm_engine_nic_add(self._engine, one)
        if index < 0:
            os.close(one.inner_fd)
            raise DmmError(f"serve {nic.name}", why="a stack serves 16 NICs at most")
        self.nics.append(nic)
        if self.spec.tap:
            self._open_tap(index, nic)
        else:
            self._open_queues(index, nic)

    def _open_inner(self, nic: NicSpec) -> int:
        name = self.spec.inner_device(nic)
        fd = int(lib.dmm_tap_open(name.encode(), lib.DMM_TAP_MARKED, self._error))
        if fd < 0:
            raise hal_error(self._error)
        tuning.prepare_device(name)
        self._take_up(name, nic.mtu, self._inner_packets)
        return fd

    def _open_tap(self, index: int, nic: NicSpec) -> None:
        name = self.spec.outer_device(nic)
        if self.spec.port != "tap" and nic.mtu > lib.DMM_XSK_MAX_MTU:
            self._error.code, self._error.call = errno.ERANGE, lib.DMM_HAL_MTU_CHECK
            self._error.what = b"receive frames"
            raise hal_error(self._error, nic.name)
        out = ffi.new("struct dmm_tapnic **")
        by_tc = self.spec.port == "tap"
        way = lib.DMM_TAPNIC_TC if by_tc else lib.DMM_TAPNIC_XDP
        if lib.dmm_tapnic_open(name.encode(), nic.ifindex, way, out, self._error) < 0:
            raise hal_error(self._error)
        tap = out[0]
        if lib.dmm_engine_tap_add(self._engine, index, tap) < 0:
            lib.dmm_tapnic_close(tap)
            raise DmmError(f"serve {nic.name}", why="a stack serves 128 receive queues at most")
        self.zerocopy[nic.name] = False
        tuning.prepare_device(name)
        self._take_up(name, nic.mtu, _TAP_QUEUELEN)
        slot = (self.spec.tap - 1) * abi.C.DMM_MAX_NICS + nic.slot
        # By tc it is the Resource Director that says where the device is.
        if (
            not by_tc
            and self.spec.taps_fd >= 0
            and lib.dmm_tapnic_register(tap, self.spec.taps_fd, slot, self._error) < 0
        ):
            raise hal_error(self._error)

    def _open_queues(self, index: int, nic: NicSpec) -> None:
        mtu = max(n.mtu for n in self.spec.nics)
        for queue in range(nic.queues):
            out = ffi.new("struct dmm_xsk **")
            if lib.dmm_xsk_open(nic.ifindex, queue, mtu, 0, out, self._error) < 0:
                raise hal_error(self._error, nic.name)
            xsk = out[0]
            self.zerocopy[nic.name] = bool(lib.dmm_xsk_is_zerocopy(xsk))
            slot = nic.slot * abi.C.DMM_MAX_QUEUES + queue
            if lib.dmm_engine_xsk_add(self._engine, index, xsk) < 0:
                lib.dmm_xsk_close(xsk)
                raise DmmError(f"serve {nic.name}", why="a stack serves 128 receive queues at most")
            if self.spec.xsks_fd >= 0 and lib.dmm_xsk_register(xsk, self.spec.xsks_fd, slot, self._error) < 0:
                raise hal_error(self._error, nic.name)

    # -- the loop --

    def prepare(self, ended: Callable[[int], None]) -> None:
        """Makes the loop's thread, which waits for start(); ended(result) is called in it when the loop returns."""

        def work() -> None:
            self._go.wait()
            if self._called_off:
                return
            self.result = lib.dmm_engine_run(self._engine)
            ended(self.result)

        self._thread = threading.Thread(target=work, name="dmm-engine", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Lets the loop run."""
        self._go.set()

    def stop(self, *, abort: bool) -> None:
        """Asks the loop to end; abort: with a reset to both ends of every connection."""
        lib.dmm_engine_stop(self._engine, abort)

    def join(self, timeout: float | None = None) -> None:
        """Waits for the loop's end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def close(self) -> None:
        """After the loop's end, or without start(): closes the sockets and the devices."""
        if self._thread is not None and not self._go.is_set():
            self._called_off = True
            self._go.set()
            self._thread.join()
        if self._engine != ffi.NULL:
            lib.dmm_engine_destroy(self._engine)
            self._engine = ffi.NULL

    # -- settings --

    def set_congestion(self, name: str) -> None:
        """The congestion control of connections that open from now on; UsageError for a name it does not know."""
        if not lib.dmm_engine_set_congestion(self._engine, name.encode()):
            raise UsageError(f"use congestion control {name!r}", why="the stack has none of that name")

    def set_syn_cookies(self, mode: str) -> None:
        """What becomes of a peer's SYN from now on: "auto", "always" or "off"; UsageError for another mode."""
        if mode not in _SYN_COOKIES:
            raise UsageError(f"use SYN cookies {mode!r}", why="there is no such mode")
        lib.dmm_engine_set_syn_cookies(self._engine, _SYN_COOKIES[mode])

    def set_mtu(self, name: str, mtu: int) -> None:
        """The MTU of the NIC of that name, bytes of IP packet, from now on; UsageError for a NIC not served."""
        for index, nic in enumerate(self.nics):
            if nic.name == name:
                lib.dmm_engine_nic_set_mtu(self._engine, index, mtu)
                return
        raise UsageError(f"set the MTU of {name}", why="the stack does not serve it")

    # -- figures --

    def stats(self) -> dict[str, int]:
        """struct dmm_engine_stats by name, the core's counters as core_NAME, struct dmm_core_memory as memory_NAME."""
        raw = ffi.new("struct dmm_engine_stats *")
        lib.dmm_engine_stats(self._engine, raw)
        values = {name: int(getattr(raw, name)) for name in _STATS}
        memory = ffi.new("struct dmm_core_memory *")
        lib.dmm_engine_memory(self._engine, memory)
        values |= {f"memory_{name}": int(getattr(memory, name)) for name in _MEMORY}
        for number, name in _CORE_COUNTERS.items():
            values[f"core_{name}"] = int(lib.dmm_engine_core_counter(self._engine, number))
        return values

    def connections(self, first: int = 0, most: int = _NEVER) -> Iterator[dict[str, Any]]:
        """Connections number first and up, at most so many: struct dmm_conn_info by name, with laddr, lport, raddr,
        rport as text and numbers. They are in no order, which changes as connections end.
        """
        batch = ffi.new("struct dmm_conn_info[]", _BATCH)
        end = first + most
        while first < end:
            wanted = min(_BATCH, end - first)
            count = lib.dmm_engine_connections(self._engine, first, wanted, batch)
            for i in range(count):
                yield _describe(batch[i])
            first += count
            if count < wanted:
                return


def _random64() -> int:
    """secrets.randbits(64), without importing what else secrets can do."""
    return int.from_bytes(os.urandom(8), "little")


def _describe(info: Any) -> dict[str, Any]:
    pair = info.pair
    row: dict[str, Any] = {
        "laddr": abi.addr_text(bytes(ffi.buffer(pair.laddr))),
        "lport": socket.ntohs(pair.lport_be),
        "raddr": abi.addr_text(bytes(ffi.buffer(pair.raddr))),
        "rport": socket.ntohs(pair.rport_be),
        "family": int(pair.family),
        "congestion": ffi.string(info.congestion).decode("ascii", "replace"),
    }
    row |= {name: int(getattr(info, name)) for name in _INFO_NUMBERS}
    return row

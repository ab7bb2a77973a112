# SPDX-License-Identifier: Apache-2.0
"""The C engine as Python sees it: devices opened with errors as sentences, figures, the loop
in a thread.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.errors import ConflictError, DmmError, UsageError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import tuning
from dmm_ebpf.kit.names import CONGESTION, TRANSPORT, Seam
from dmm_ebpf.userstack import faultplans
from dmm_ebpf.userstack._core import ffi, lib
from dmm_ebpf.userstack.halerrors import hal_error
from dmm_ebpf.userstack.plugins import Plugins
from dmm_ebpf.userstack.spec import NicSpec, StackSpec

_TXQUEUELEN_MIN = 10000  # packets
_TAP_QUEUELEN = 4096  # frames, as many as an AF_XDP socket's receive side has
_INNER_GSO_MAX_BYTES = 65535
_BATCH = 256
_LATECOMERS = 64  # connections that may come before the hooks know that a stack is full
_NEVER = (1 << 64) - 1
_WHY_CHARS = 200
_TOO_MANY = "a stack serves 128 receive queues at most"


def _names(enum: str) -> dict[int, str]:
    """The words of an enum of C's, in lower case and without what they begin with, by number."""
    found = ffi.typeof(f"enum {enum}").elements.items()
    return {value: name.removeprefix(f"{enum}_".upper()).lower() for value, name in found}


_CORE_COUNTERS = {
    value: name.removeprefix("DMM_CORE_").lower()
    for value, name in ffi.typeof("enum dmm_core_counter").elements.items()
    if name != "DMM_CORE_MAX"
}
_AGREEMENTS = _names("dmm_agreement")
_FEATURES = _names("dmm_feature")
_PORTS = {"af_xdp": lib.DMM_PORT_XSK, "tap": lib.DMM_PORT_TAP}
_ENGINE_MEMBERS = dict(ffi.typeof("struct dmm_engine_config").fields)
_CORE_MEMBERS = dict(ffi.typeof("struct dmm_core_config").fields)
_INFO_NUMBERS = [
    name
    for name, _ in ffi.typeof("struct dmm_conn_info").fields
    if name not in ("pair", "congestion", "transport", "agreed", "agreement")
]
_MEMORY = [name for name, _ in ffi.typeof("struct dmm_core_memory").fields if name != "connections"]
_STATS = [name for name, _ in ffi.typeof("struct dmm_engine_stats").fields]

log = logging.getLogger("dmm-ebpf.stack")


def set_options(config: Any, options: Mapping[str, int | str]) -> None:
    """Writes what StackSpec.options says into a struct dmm_engine_config. DmmError for
    what C lacks.
    """
    for name, value in options.items():
        part, members = (
            (config, _ENGINE_MEMBERS) if name in _ENGINE_MEMBERS else (config.core, _CORE_MEMBERS)
        )
        try:
            if isinstance(value, str):
                text = members[name].type.kind == "array"
                setattr(part, name, value.encode() if text else _enumerator(name, value))
            else:
                setattr(part, name, value)
        except (AttributeError, KeyError, TypeError, OverflowError, IndexError) as error:
            raise DmmError(
                f"start a stack with {name} {value!r}", why="it has no such option"
            ) from error


def _enumerator(name: str, word: str) -> int | None:
    """The value of DMM_NAME_WORD; None: there is none."""
    value = getattr(lib, f"DMM_{name}_{word}".upper(), None)
    return None if value is None else int(value)


class Engine:
    """One engine with its devices."""

    def __init__(self, spec: StackSpec) -> None:
        """Makes the devices of both legs, and AF_XDP sockets, in the calling thread's
        namespace. Raises DmmError.
        """
        self.spec = spec
        self.nics: list[NicSpec] = []
        self.zerocopy: dict[int, bool] = {}  # of each NIC with AF_XDP sockets, by slot
        self.sums: dict[int, bool] = {}  # likewise: whether checksums are left to it
        self.no_sockets: dict[int, str] = {}  # why a NIC has none that was to have some
        self._moved: dict[int, int] = {}  # by slot the ifindexes of NICs that are others by now
        self._error = ffi.new("struct dmm_hal_error *")
        self._thread: threading.Thread | None = None
        self._go = threading.Event()
        self._called_off = False
        self.result: int | None = None
        self._engine = ffi.NULL
        self.plugins = Plugins(spec.plugins)
        try:
            self._create()
            for nic in spec.nics:
                self._open_nic(nic)
            self._close_register()
        except BaseException:
            self.close()
            raise

    def _close_register(self) -> None:
        """What was registered stays; nobody else's place can be taken after this."""
        if self.spec.xsks_fd >= 0:
            os.close(self.spec.xsks_fd)

    def _take_up(self, name: str, mtu: int, packets: int) -> None:
        """packets: length of the device's queue, or less where the kernel takes no more."""
        length = lib.dmm_tap_up(name.encode(), mtu, packets, self._error)
        if length < 0:
            raise hal_error(self._error)
        if length < packets:
            log.warning(
                "%s: this kernel takes a queue of %d packets, not of %d", name, length, packets
            )

    @property
    def _max_connections(self) -> int:
        """Places in the core: a few more than the stack is to have, for those on their way when
        it is full.
        """
        most = self.spec.max_connections
        return most + max(most // 8, _LATECOMERS)

    @property
    def _inner_packets(self) -> int:
        """Length of an inner device's queue. A program that ends may reset all its connections at
        once, and nobody
        sends a lost reset again: a TAP device drops what finds its queue full, so there is room for
        one of each.
        """
        return max(_TXQUEUELEN_MIN, self._max_connections)

    @property
    def inner_mtu(self) -> int:
        """The smallest MTU of the NICs, so that no segment is too long outside."""
        return min((nic.mtu for nic in self.spec.nics), default=1500)

    @property
    def xsk_mtu(self) -> int:
        """Bytes of IP packet that the AF_XDP sockets have room for: all the same, since it is
        copied between them.
        """
        return max((nic.mtu for nic in self.spec.nics if nic.xsk), default=0)

    def _create(self) -> None:
        config = ffi.new("struct dmm_engine_config *")
        config.core.seed = _random64()
        config.core.memory_bytes = self.spec.memory_bytes
        config.core.max_connections = self._max_connections
        config.core.inner_mtu = self.inner_mtu
        config.core.inner_gso_max = _INNER_GSO_MAX_BYTES
        config.core.congestion = self._if_built_in(CONGESTION, self.spec.congestion)
        config.core.transport = self._if_built_in(TRANSPORT, self.spec.transport)
        config.max_connections = self.spec.max_connections
        set_options(config, self.spec.options)
        self._engine = lib.dmm_engine_create(config)
        if self._engine == ffi.NULL:
            raise DmmError(f"start stack {self.spec.label}", why="out of memory")
        for plugin in self.spec.plugins:
            if plugin.seam is CONGESTION:
                self.set_congestion(self.spec.congestion)
            else:
                self.set_transport(self.spec.transport)

    def _if_built_in(self, seam: Seam, name: str) -> bytes:
        return b"" if self.plugins.named(seam, name) is not None else name.encode()[:15]

    def _open_nic(self, nic: NicSpec) -> None:
        found = hal_nic.find(nic.ifindex, nic.name)
        one = ffi.new("struct dmm_engine_nic *")
        one.inner_fd = self._open_inner(nic)
        generic = nic.port == "af_xdp" and found is not None and found.xdp_mode == "generic"
        one.mtu, one.generic = nic.mtu, generic
        one.software = generic or (found is not None and found.kind == "veth")
        ffi.memmove(one.mac, nic.mac, len(nic.mac))
        index = lib.dmm_engine_nic_add(self._engine, one)
        if index < 0:
            os.close(one.inner_fd)
            raise DmmError(f"serve {nic.name}", why="a stack serves 16 NICs at most")
        self.nics.append(nic)
        self._open_outer(index, nic)
        if nic.xsk:
            frags = generic or self.xsk_mtu > lib.DMM_XSK_MAX_MTU
            self._have_queues(index, nic, lib.DMM_XSK_FRAGS if frags else lib.DMM_XSK_PLAIN)
        self.set_port(nic.slot, nic.port)

    def _open_inner(self, nic: NicSpec) -> int:
        name = self.spec.inner_device(nic)
        fd = int(lib.dmm_tap_open(name.encode(), self._error))
        if fd < 0:
            raise hal_error(self._error)
        tuning.prepare_device(name)
        self._take_up(name, nic.mtu, self._inner_packets)
        return fd

    def _open_outer(self, index: int, nic: NicSpec) -> None:
        """Where the device is, the Resource Director tells the program at the NIC's tc ingress."""
        name = self.spec.outer_device(nic)
        out = ffi.new("struct dmm_tapnic **")
        if lib.dmm_tapnic_open(name.encode(), nic.ifindex, nic.bare, out, self._error) < 0:
            raise hal_error(self._error)
        if lib.dmm_engine_port_add(self._engine, index, lib.DMM_PORT_TAP, out[0]) < 0:
            lib.dmm_tapnic_close(out[0])
            raise DmmError(f"serve {nic.name}", why=_TOO_MANY)
        tuning.prepare_device(name)
        self._take_up(name, nic.mtu, _TAP_QUEUELEN)

    def _have_queues(self, index: int, nic: NicSpec, packets: int) -> None:
        """AF_XDP sockets, or why there are none, where the NIC can do without.
        packets: enum dmm_xsk_packets.
        """
        try:
            self._add_queues(index, nic, self._open_queues(nic, packets))
        except DmmError as error:
            if nic.port == "af_xdp":
                raise
            self.no_sockets[nic.slot] = error.why[:_WHY_CHARS]
            log.warning("%s: no AF_XDP sockets: %s", nic.name, error)

    def _open_queues(self, nic: NicSpec, packets: int) -> list[Any]:
        """One for each queue of the NIC, or none."""
        opened: list[Any] = []
        for queue in range(nic.queues):
            out = ffi.new("struct dmm_xsk **")
            if lib.dmm_xsk_open(nic.ifindex, queue, self.xsk_mtu, 0, packets, out, self._error) < 0:
                error = hal_error(self._error, nic.name)
                for xsk in opened:
                    lib.dmm_xsk_close(xsk)
                raise error
            opened.append(out[0])
        return opened

    def _add_queues(self, index: int, nic: NicSpec, opened: list[Any]) -> None:
        self.zerocopy[nic.slot] = all(lib.dmm_xsk_is_zerocopy(xsk) for xsk in opened)
        leave = _driver_sums(nic.ifindex) if self.zerocopy[nic.slot] else self.spec.leave_sums
        self.sums[nic.slot] = leave and all(lib.dmm_xsk_leave_sums(xsk) for xsk in opened)
        for queue, xsk in enumerate(opened):
            if lib.dmm_engine_port_add(self._engine, index, lib.DMM_PORT_XSK, xsk) < 0:
                for left in opened[queue:]:
                    lib.dmm_xsk_close(left)
                raise DmmError(f"serve {nic.name}", why=_TOO_MANY)
            slot = nic.slot * abi.C.DMM_MAX_QUEUES + queue
            if (
                self.spec.xsks_fd >= 0
                and lib.dmm_xsk_register(xsk, self.spec.xsks_fd, slot, self._error) < 0
            ):
                raise hal_error(self._error, nic.name)

    # -- the loop --

    def prepare(self, ended: Callable[[int], None]) -> None:
        """Makes the loop's thread, which waits for start(); ended(result) is called in it when the
        loop returns. And those of plug-ins.
        """
        self.plugins.start()

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
        self.plugins.close()

    # -- settings --

    def set_congestion(self, name: str) -> None:
        """The congestion control of connections that open from now on; UsageError for a name it
        does not know.
        """
        plugin = self.plugins.named(CONGESTION, name)
        if plugin is not None:
            lib.dmm_engine_set_congestion_ops(self._engine, plugin.ops)
        elif not lib.dmm_engine_set_congestion(self._engine, name.encode()):
            raise UsageError(
                f"use congestion control {name!r}", why="the stack has none of that name"
            )
        self.plugins.current[CONGESTION.key] = name

    def set_transport(self, name: str) -> None:
        """The transport of the outer leg of connections that open from now on; tcp if it is a
        plug-in that is not called any more. UsageError for a name it does not know.
        """
        plugin = self.plugins.named(TRANSPORT, name)
        if plugin is None or plugin.guard.off:
            built_in = "tcp" if plugin else name
            if not lib.dmm_engine_set_transport(self._engine, built_in.encode()):
                raise UsageError(f"use transport {name!r}", why="the stack has none of that name")
        elif not lib.dmm_engine_set_transport_ops(self._engine, plugin.ops):
            raise ConflictError(
                f"use transport {name!r}",
                why="connections still have six others",
                hint="wait until they have ended, or give the stack that is to have it another name",
            )
        self.plugins.current[TRANSPORT.key] = name

    def set_syn_cookies(self, mode: str) -> None:
        """What becomes of a peer's SYN from now on: "auto", "always" or "off"; UsageError
        for another mode.
        """
        number = _enumerator("syn_cookies", mode)
        if number is None:
            raise UsageError(f"use SYN cookies {mode!r}", why="there is no such mode")
        lib.dmm_engine_set_syn_cookies(self._engine, number)

    def set_negotiate(self, mode: str) -> None:
        """What connections from now on agree on with peers: "forbid", "allow" or "demand";
        UsageError for another mode.
        """
        number = _enumerator("negotiate", mode)
        if number is None:
            raise UsageError(f"negotiate by {mode!r}", why="there is no such mode")
        lib.dmm_engine_set_negotiate(self._engine, number)

    def set_latency(
        self, latency: str, budget_ppm: int, residual_ppm: int, parity_ppm: int
    ) -> None:
        """Which connections that open from now on send copies and parity against loss: "auto",
        "low" or "normal", and what these may cost, as struct dmm_core_config has it; UsageError
        for another latency.
        """
        number = _enumerator("latency", latency)
        if number is None:
            raise UsageError(f"use latency {latency!r}", why="there is no such kind")
        lib.dmm_engine_set_latency(self._engine, number, budget_ppm, residual_ppm, parity_ppm)

    def set_mtu(self, slot: int, mtu: int) -> None:
        """The MTU of the NIC of that slot, bytes of IP packet, from now on; UsageError for a
        NIC not served.
        """
        lib.dmm_engine_nic_set_mtu(self._engine, self._index(slot, f"set an MTU of {mtu}"), mtu)

    def set_device(self, slot: int, ifindex: int, mac: bytes) -> None:
        """The NIC of that slot is the device with that ifindex from now on, of the same kind as
        before, and has that link-layer address. UsageError for a NIC not served.
        """
        index = self._index(slot, f"go on by device number {ifindex}")
        lib.dmm_engine_nic_set_device(self._engine, index, ifindex, mac)
        self._moved[slot] = ifindex

    def lost_sockets(self) -> dict[int, str]:
        """By slot, why AF_XDP sockets that were opened are of no use now."""
        found = {}
        for index, nic in enumerate(self.nics):
            if nic.slot not in self.zerocopy:
                continue
            if lib.dmm_engine_nic_lost_sockets(self._engine, index):
                found[nic.slot] = "they went with the device, which was deleted or left"
            elif self._moved.get(nic.slot, nic.ifindex) != nic.ifindex:
                found[nic.slot] = "they are on a device that belongs to another one now"
        return found

    def set_port(self, slot: int, port: str) -> None:
        """What the NIC of that slot is sent by from now on, "af_xdp" or "tap"; UsageError where
        it has no such port.
        """
        what = f"send by {port}"
        index = self._index(slot, what)
        if port not in _PORTS or not lib.dmm_engine_nic_set_port(self._engine, index, _PORTS[port]):
            raise UsageError(what, why=f"the stack has no such port on {self.nics[index].name}")

    def _index(self, slot: int, what: str) -> int:
        for index, nic in enumerate(self.nics):
            if nic.slot == slot:
                return index
        raise UsageError(what, why=f"the stack serves no NIC number {slot}")

    # -- a look at the frames --

    def interfaces(self) -> list[tuple[str, str]]:
        """Name and description of each interface of a capture, in the order of their numbers."""
        found = []
        for nic in self.nics:
            found.append((nic.name, f"outer leg of stack {self.spec.label}"))
            found.append((self.spec.inner_device(nic), f"inner leg of stack {self.spec.label}"))
        return found

    def capture(self, fd: int, legs: Iterable[str], snaplen_bytes: int) -> None:
        """Frames of these legs go to fd, a stream socket that does not block, until
        capture_end(); see capture.h.
        """
        bits = sum(1 << faultplans.LEGS[leg] for leg in legs)
        if lib.dmm_engine_capture(self._engine, fd, bits, snaplen_bytes) < 0:
            log.error("capture: there is no memory for it")

    def capture_drain(self, fd: int) -> int:
        """No more frames are taken for fd; how many bytes of those that were are still
        to be written.
        """
        return int(lib.dmm_engine_capture_drain(self._engine, fd))

    def capture_end(self, fd: int) -> None:
        """fd is not written to any more."""
        lib.dmm_engine_capture_end(self._engine, fd)

    # -- faults --

    def set_faults(self, params: Mapping[str, Any]) -> None:
        """See faultplans.put()."""
        faultplans.put(self._engine, params)

    def faults(self) -> list[dict[str, Any]]:
        """See faultplans.told()."""
        return list(faultplans.told(self._engine))

    # -- figures --

    def stats(self) -> dict[str, int | str]:
        """struct dmm_engine_stats by name, the core's counters as core_NAME, struct dmm_core_memory
        as memory_NAME; of plug-ins what Plugins.told() says.
        """
        raw = ffi.new("struct dmm_engine_stats *")
        lib.dmm_engine_stats(self._engine, raw)
        values: dict[str, int | str] = {name: int(getattr(raw, name)) for name in _STATS}
        memory = ffi.new("struct dmm_core_memory *")
        lib.dmm_engine_memory(self._engine, memory)
        values |= {f"memory_{name}": int(getattr(memory, name)) for name in _MEMORY}
        for number, name in _CORE_COUNTERS.items():
            values[f"core_{name}"] = int(lib.dmm_engine_core_counter(self._engine, number))
        return values | self.plugins.told()

    def connections(self, first: int = 0, most: int = _NEVER) -> Iterator[dict[str, Any]]:
        """Connections number first and up, at most so many: struct dmm_conn_info by name,
        with laddr, lport, raddr, rport as text and numbers. They are in no order, which
        changes as connections end.
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


def _driver_sums(ifindex: int) -> bool:
    """Whether a driver's zero-copy fills in checksums; False, too, where that cannot be told."""
    # Here, since few drivers have zero-copy, and every start would wait for it.
    from dmm_ebpf.hal import genl

    features = genl.xdp_features()
    own = features.get(ifindex) if isinstance(features, dict) else None
    return own is not None and own.sums is True


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
        "transport": ffi.string(info.transport).decode("ascii", "replace"),
        "agreed": ",".join(name for bit, name in sorted(_FEATURES.items()) if info.agreed & bit),
        "agreement": _AGREEMENTS.get(info.agreement, ""),
    }
    row |= {name: int(getattr(info, name)) for name in _INFO_NUMBERS}
    return row

# SPDX-License-Identifier: Apache-2.0
"""What only sysfs says: the NUMA node of a NIC, and RDMA devices with what they could carry.

A NIC's hardware is found under /sys/bus, which is the same for all network namespaces.
/sys/class/net and /sys/class/infiniband show the namespace of whoever mounted /sys; so when that is
another one than the caller's, a sysfs of the caller's is mounted where nobody else sees it, in a
mount namespace of one thread. Reading changes nothing. Functions take the directory where sysfs is,
so that they are pure over a tree of files.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dmm_ebpf.hal.answer import Unknown

T = TypeVar("T")
SYS = Path("/sys")

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x00020000, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)

# Transports that the verbs of a kind of device have. InfiniBand Architecture Specification 1.4, 9.7
# and its annexes A16 and A17 (RoCE); RFC 5040 and 5044 (iWARP, which has the connected one alone).
_ALL_VERBS = ("RC", "UC", "UD")


@dataclass(frozen=True)
class RdmaPort:
    """One port. protocol: InfiniBand, RoCE v1, RoCE v2, iWARP, usNIC, or what the device calls
    itself; transports: of RC (reliable, connected), UC (connected), UD (datagrams); netdevs:
    network devices that are on it.
    """

    device: str
    port: int
    state: str
    link_layer: str
    rate: str
    protocols: tuple[str, ...]
    transports: tuple[str, ...] | Unknown
    netdevs: tuple[str, ...]


def numa_node(sys: Path, bus: str, bus_name: str) -> int | Unknown | None:
    """Of the hardware with that name on that bus. None: there is no hardware, or the firmware
    names no node.
    """
    if not bus or not bus_name:
        return None
    try:
        place = (sys / "bus" / bus / "devices" / bus_name).resolve(strict=True)
        root = sys.resolve()
        # A virtio device hangs below the PCI device that has the node.
        while place not in (root, place.parent):
            if (place / "numa_node").exists():
                node = int(_read(place / "numa_node"))
                return node if node >= 0 else None
            place = place.parent
    except (OSError, ValueError, RuntimeError) as error:
        return Unknown(f"{sys}/bus/{bus}/devices/{bus_name}: {_reason(error)}")
    return None


def _reason(exc: Exception) -> str:
    return (
        os.strerror(exc.errno)
        if isinstance(exc, OSError) and exc.errno
        else f"it is no number ({exc})"
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _read_or(path: Path, default: str = "") -> str:
    """default where the file is not there, or cannot be read at this moment (a GID without
    a network device).
    """
    try:
        return _read(path)
    except OSError:
        return default


def _listed(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def rdma_ports(sys: Path) -> tuple[RdmaPort, ...]:
    """Every port of every RDMA device; none where the kernel has no RDMA."""
    return tuple(
        _port(device, int(port.name), port)
        for device in _listed(sys / "class" / "infiniband")
        for port in _listed(device / "ports")
        if port.name.isdecimal()
    )


def _port(device: Path, number: int, port: Path) -> RdmaPort:
    node, layer = _read_or(device / "node_type"), _read_or(port / "link_layer")
    kinds = [_read_or(path) for path in _listed(port / "gid_attrs" / "types")]
    protocols, transports = carried(
        node, layer, tuple(dict.fromkeys(kind for kind in kinds if kind))
    )
    return RdmaPort(
        device=device.name,
        port=number,
        state=_after_colon(_read_or(port / "state")) or "not told",
        link_layer=layer or "not told",
        rate=_read_or(port / "rate") or "not told",
        protocols=protocols,
        transports=transports,
        netdevs=_netdevs(device, port),
    )


def _after_colon(text: str) -> str:
    """ACTIVE of "4: ACTIVE"."""
    return text.partition(":")[2].strip() or text


def carried(
    node: str, layer: str, gid_types: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...] | Unknown]:
    """Protocols on the wire and transports, by node_type ("1: CA"), link layer and the types of
    the port's GIDs.
    """
    kind = _after_colon(node)
    if kind == "RNIC":
        return ("iWARP",), ("RC",)
    if kind == "usNIC UDP":
        return ("usNIC",), ("UD",)
    if kind == "CA" and layer == "InfiniBand":
        return ("InfiniBand",), _ALL_VERBS
    if kind == "CA" and layer == "Ethernet":
        roce = tuple(text.removeprefix("IB/") for text in gid_types if "RoCE" in text)
        return roce or ("RoCE",), _ALL_VERBS
    named = kind or "a device without node_type"
    return (named,), Unknown(
        f"its driver has transports of its own ({named}, link layer {layer or 'not told'})"
    )


def _netdevs(device: Path, port: Path) -> tuple[str, ...]:
    """By the port's GIDs; where those name none (IPoIB, iWARP), by the hardware that
    both are on.
    """
    found = [_read_or(path) for path in _listed(port / "gid_attrs" / "ndevs")]
    if not any(found):
        found = [_read_or(device / "parent")] + [
            path.name for path in _listed(device / "device" / "net")
        ]
    return tuple(dict.fromkeys(name for name in found if name))


def shows(sys: Path, indexes: Mapping[str, int]) -> bool:
    """Whether the sysfs there has just these network devices, by name and index."""
    found = {
        path.name: _read_or(path / "ifindex")
        for path in _listed(sys / "class" / "net")
        if path.is_dir()
    }
    return found == {name: str(index) for name, index in indexes.items()}


def of_this_namespace(read: Callable[[Path], T], indexes: Mapping[str, int]) -> T | Unknown:
    """What read says of a sysfs of the calling thread's network namespace. indexes: of its
    devices, by name.
    """
    if shows(SYS, indexes):
        return read(SYS)
    box: list[T | Unknown] = []

    def work() -> None:
        try:
            _mount_own()
            box.append(read(SYS))
        except OSError as error:
            what = (
                "CAP_SYS_ADMIN is needed"
                if error.errno == errno.EPERM
                else os.strerror(error.errno or 0)
            )
            box.append(
                Unknown(f"/sys shows another network namespace, and to mount this one's: {what}")
            )

    thread = threading.Thread(target=work, name="dmm-sysfs")
    thread.start()
    thread.join()
    return box[0] if box else Unknown("/sys could not be read")


def _mount_own() -> None:
    """A sysfs of this thread's network namespace at /sys, for this thread alone."""
    _call(_libc.unshare(_CLONE_NEWNS))
    _call(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    _call(_libc.mount(b"sysfs", b"/sys", b"sysfs", ctypes.c_ulong(0), None))


def _call(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

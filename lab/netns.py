# SPDX-License-Identifier: Apache-2.0
"""Network namespaces and interfaces, by the kernel's own calls and by ip(8) in batches.

A namespace is entered by a thread that lives for one call: the caller's own namespace never
changes, and neither do the mounts, so that cgroupfs and bpffs stay visible (`ip netns exec`
would hide both).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dmm_ebpf.errors import DmmError

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000

# linux/ethtool.h
SIOCETHTOOL = 0x8946
_ETHTOOL_OFF = {
    "tx checksum": 0x17,  # ETHTOOL_STXCSUM
    "tso": 0x1F,  # ETHTOOL_STSO
    "gso": 0x24,  # ETHTOOL_SGSO
    "gro": 0x2C,  # ETHTOOL_SGRO
    "flags (vlan offload, lro)": 0x26,  # ETHTOOL_SFLAGS
}

_libc = ctypes.CDLL(None, use_errno=True)


def ip_batch(lines: Iterable[str], netns: str | None = None) -> None:
    """Runs ip(8) once over all lines; the first that fails ends it with the kernel's words.

    An IPv6 address that is added is of use at once: without duplicate address detection, which
    even on lo ends somewhat later (addrconf_dad_start() leaves it to a worker).
    """
    text = "\n".join(map(_without_detection, lines)) + "\n"
    command = ["ip", *(["-n", netns] if netns else []), "-batch", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        where = f"namespace {netns}" if netns else "the network"
        raise DmmError(f"set up {where}", why=" ".join(done.stderr.split()) or "ip failed")


def _without_detection(line: str) -> str:
    words = line.split()
    adds = words[0].startswith("addr") and words[1:2] == ["add"] if words else False
    return f"{line} nodad" if adds and ":" in words[2] and "nodad" not in words else line


def call_in(netns: Path, function: Callable[..., T], *args: Any) -> T:
    """function(*args) in another network namespace; what it raises is raised here.

    Sockets that it opens, and processes that it starts, stay in that namespace.
    """
    result: list[T] = []
    raised: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET) < 0:
                    raise OSError(ctypes.get_errno(), f"setns {netns}")
            finally:
                os.close(fd)
            result.append(function(*args))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=enter_and_call, name=f"in {netns.name}")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return result[0]


def offloads_off(*interfaces: str) -> None:
    """Segmentation, merging, checksum and VLAN offloads off: every frame is then whole, and as long
    as the MTU says.

    AF_PACKET and AF_XDP readers would otherwise see frames of 64 KB whose checksum was left
    to a NIC.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for interface, (what, command) in itertools.product(interfaces, _ETHTOOL_OFF.items()):
            value = ctypes.create_string_buffer(struct.pack("=II", command, 0))
            request = struct.pack("@16sP16x", interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(sock, SIOCETHTOOL, request)
            except OSError as error:
                raise DmmError(
                    f"turn {what} off on {interface}", why=error.strerror or "the driver refused"
                ) from error


def tx_dropped(interface: str) -> int:
    """Frames that the interface was given and lost, by /proc/net/dev of the caller's namespace."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == interface:
            return int(rest.split()[11])
    raise DmmError(f"read the counters of {interface}", why="there is no such interface")


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process, which together with the pid names
    it for ever.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def pids() -> Iterator[int]:
    """Every process there is."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def pids_in(netns: Path) -> list[int]:
    """Processes whose network namespace is this one."""
    try:
        wanted = netns.stat()
    except OSError:
        return []
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            ns = Path(f"/proc/{pid}/ns/net").stat()
            if (ns.st_dev, ns.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(pid)
    return found

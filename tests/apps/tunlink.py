# SPDX-License-Identifier: Apache-2.0
"""A link between two hosts of a laboratory that is a program: a TUN device in each, without link
header, and a thread that carries packets from one to the other, as a VPN's daemon does. Or TAP
devices, which are Ethernet's, and leave a packet in pages as some NICs do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterator

from lab import Host
from lab.netns import offloads_off

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x4000
_IFF_NAPI, _IFF_NAPI_FRAGS = 0x0010, 0x0020
_TUN_F_CSUM_TSO = 0x1 | 0x2 | 0x4
_VNET_HDR_BYTES = 10
_LONGEST = 65600
_ETHERNET_BYTES = 14


def _tun(name: str, offloads: bool, in_pages: bool) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = _IFF_TAP | _IFF_NAPI | _IFF_NAPI_FRAGS if in_pages else _IFF_TUN
    flags = kind | _IFF_NO_PI | (_IFF_VNET_HDR if offloads else 0)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    if offloads:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_BYTES))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO)
    return fd


def _carry(fds: tuple[int, int], stop: int, head: int) -> None:
    while True:
        ready, _, _ = select.select([*fds, stop], [], [])
        if stop in ready:
            return
        for near, far in (fds, fds[::-1]):
            with contextlib.suppress(
                OSError
            ):  # nothing more, or the other device is down: lost, as on a link
                while near in ready:
                    data = os.read(near, _LONGEST)
                    os.writev(far, [data[:head], data[head:]])


@contextlib.contextmanager
def tun_link(
    hosts: tuple[Host, Host],
    name: str,
    *,
    network: int,
    offloads: bool,
    mtu: int = 1500,
    in_pages: bool = False,
) -> Iterator[None]:
    """Devices of that name in both, with the addresses 198.18.NETWORK.1 and .2,
    2001:db8:NETWORK::1 and ::2. offloads: packets are carried with a virtio_net header, uncut and
    with their checksums open. in_pages: of what comes only the Ethernet header is at hand, the rest
    lies in pages (IFF_NAPI_FRAGS), which without GRO nobody puts together.
    """
    fds = tuple(host.call(_tun, name, offloads, in_pages) for host in hosts)
    stop, stopper = os.pipe()
    head = _ETHERNET_BYTES if in_pages else 0
    thread = threading.Thread(target=_carry, args=(fds, stop, head), daemon=True)
    try:
        for number, host in enumerate(hosts, 1):
            if in_pages:
                host.call(offloads_off, name)
            host.ip(
                f"address add 198.18.{network}.{number}/24 dev {name}",
                f"address add 2001:db8:{network}::{number}/64 dev {name} nodad",
                f"link set {name} mtu {mtu} up",
            )
        thread.start()
        yield
    finally:
        os.close(stopper)
        if thread.ident is not None:
            thread.join()
        for fd in (*fds, stop):
            os.close(fd)


def address(network: int, number: int, family: str) -> str:
    """Of the host of that number, 1 or 2. family: "ip4" or "ip6"."""
    return f"198.18.{network}.{number}" if family == "ip4" else f"2001:db8:{network}::{number}"

# SPDX-License-Identifier: Apache-2.0
"""A link without link header between two hosts of a laboratory: a TUN device in each, and a thread
that carries packets from one to the other, as a VPN's daemon does.
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

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM_TSO = 0x1 | 0x2 | 0x4
_VNET_HDR_BYTES = 10
_LONGEST = 65600


def _tun(name: str, offloads: bool) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if offloads else 0)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    if offloads:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_BYTES))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO)
    return fd


def _carry(fds: tuple[int, int], stop: int) -> None:
    while True:
        ready, _, _ = select.select([*fds, stop], [], [])
        if stop in ready:
            return
        for near, far in (fds, fds[::-1]):
            with contextlib.suppress(
                OSError
            ):  # nothing more, or the other device is down: lost, as on a link
                while near in ready:
                    os.write(far, os.read(near, _LONGEST))


@contextlib.contextmanager
def tun_link(
    hosts: tuple[Host, Host], name: str, *, network: int, offloads: bool, mtu: int = 1500
) -> Iterator[None]:
    """Devices of that name in both, with the addresses 198.18.NETWORK.1 and .2,
    2001:db8:NETWORK::1 and ::2. offloads: packets are carried with a virtio_net header, uncut and
    with their checksums open.
    """
    fds = tuple(host.call(_tun, name, offloads) for host in hosts)
    stop, stopper = os.pipe()
    thread = threading.Thread(target=_carry, args=(fds, stop), daemon=True)
    try:
        for number, host in enumerate(hosts, 1):
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

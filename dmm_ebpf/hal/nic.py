# SPDX-License-Identifier: Apache-2.0
"""The network devices of a namespace, and which of them a user stack serves.

Facts come from rtnetlink and the ethtool ioctls: sysfs is not used, because what it shows depends on who
mounted it ('ip netns exec' mounts another one). Reading changes nothing. Functions work in the calling
thread's namespace.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute

from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal.netlink import aside

_ARPHRD_ETHER = 1
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x3
_ETHTOOL_GCHANNELS = 0x3C
_DRVINFO_BYTES = 196
_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1

TUN_PREFIX = "dmm-"


@dataclass(frozen=True)
class Nic:
    """One device. mtu is bytes of IP packet; queues are those in use; xdp_prog_id 0: none."""

    ifindex: int
    name: str
    mac: bytes
    mtu: int
    kind: str
    driver: str
    rx_queues: int
    tx_queues: int
    up: bool
    ethernet: bool
    loopback: bool
    master: int
    xdp_prog_id: int
    xdp_mode: str
    qdisc: str

    @property
    def has_xdp(self) -> bool:
        """Some XDP program is attached, ours or anybody's."""
        return self.xdp_mode != "none"


_XDP_MODES = {
    "xdp": "native",
    "xdpgeneric": "generic",
    "xdpoffload": "offload",
    None: "none",
}  # pyroute2's words


def _ethtool(sock: socket.socket, name: str, request: bytes) -> bytes | None:
    """The answer to an ethtool request, or None where the driver has none."""
    buffer = array.array("B", request)
    address, _ = buffer.buffer_info()
    ifreq = struct.pack("16sP16x", name.encode()[:15], address)[:40]
    try:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, ifreq)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL, errno.EPERM):
            return None
        raise
    return buffer.tobytes()


def _channels(sock: socket.socket, name: str) -> tuple[int, int] | None:
    """Receive and transmit queues in use (struct ethtool_channels)."""
    answer = _ethtool(sock, name, struct.pack("=I32x", _ETHTOOL_GCHANNELS))
    if answer is None:
        return None
    rx, tx, _other, combined = struct.unpack_from("=4I", answer, 20)
    return rx + combined, tx + combined


def _driver(sock: socket.socket, name: str) -> str:
    answer = _ethtool(sock, name, struct.pack(f"=I{_DRVINFO_BYTES - 4}x", _ETHTOOL_GDRVINFO))
    if answer is None:
        return ""
    return answer[4:36].split(b"\0", 1)[0].decode("ascii", "replace")


def _nic(link: Any, sock: socket.socket) -> Nic:
    name = str(link.get_attr("IFLA_IFNAME"))
    info = link.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    mac = link.get_attr("IFLA_ADDRESS") or ""
    xdp = link.get_attr("IFLA_XDP")
    mode = xdp.get_attr("IFLA_XDP_ATTACHED") if xdp else None
    prog = int((xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else 0) or 0)
    channels = _channels(sock, name) or (
        int(link.get_attr("IFLA_NUM_RX_QUEUES") or 1),
        int(link.get_attr("IFLA_NUM_TX_QUEUES") or 1),
    )
    return Nic(
        ifindex=int(link["index"]),
        name=name,
        mac=bytes.fromhex(mac.replace(":", "")),
        mtu=int(link.get_attr("IFLA_MTU") or 0),
        kind=str(kind),
        driver=_driver(sock, name),
        rx_queues=max(1, channels[0]),
        tx_queues=max(1, channels[1]),
        up=bool(link["flags"] & _IFF_UP),
        ethernet=link["ifi_type"] == _ARPHRD_ETHER,
        loopback=bool(link["flags"] & _IFF_LOOPBACK),
        master=int(link.get_attr("IFLA_MASTER") or 0),
        xdp_prog_id=prog,
        xdp_mode=_XDP_MODES.get(mode, "multi"),
        qdisc=str(link.get_attr("IFLA_QDISC") or ""),
    )


def _list() -> list[Nic]:
    with IPRoute() as ipr, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return [_nic(link, sock) for link in ipr.get_links()]


def list_nics() -> list[Nic]:
    """Every device of the namespace, in the kernel's order."""
    return aside(_list)


def route_devices(route: Any) -> list[int]:
    """Every device a route message can send to: one, or one for each next hop of a multipath route."""
    multipath = route.get_attr("RTA_MULTIPATH")
    if multipath:
        return [int(hop["oif"]) for hop in multipath]
    oif = route.get_attr("RTA_OIF")
    return [int(oif)] if oif else []


def _default_devices() -> list[int]:
    found: list[int] = []
    with IPRoute() as ipr:
        for family in (socket.AF_INET, socket.AF_INET6):
            routes = [
                route
                for route in ipr.get_routes(family=family, table=_RT_TABLE_MAIN)
                if route["dst_len"] == 0 and route["type"] == _RTN_UNICAST
            ]
            for route in sorted(routes, key=lambda r: int(r.get_attr("RTA_PRIORITY") or 0)):
                found += [index for index in route_devices(route) if index not in found]
    return found


def default_route_nics() -> list[int]:
    """ifindexes of the main table's default routes, IPv4 first, best metric first."""
    return aside(_default_devices)


def _global_devices() -> set[int]:
    with IPRoute() as ipr:
        return {
            int(addr["index"])
            for addr in ipr.get_addr()
            if addr["scope"] == 0 and not ipaddress.ip_address(addr.get_attr("IFA_ADDRESS")).is_loopback
        }


def serving_nics(devices: Sequence[str] | None = None) -> list[Nic]:
    """The devices that user stacks send and receive on.

    devices names them; without, the devices of the default routes; without any of those, every Ethernet
    device that is up, has a global address and is not one of ours. Raises UsageError for a name that is not
    there or not Ethernet.
    """
    nics = list_nics()
    if devices:
        return [_named(nics, name) for name in dict.fromkeys(devices)]
    usable = [n for n in nics if n.ethernet and not n.loopback and not n.name.startswith(TUN_PREFIX)]
    by_index = {n.ifindex: n for n in usable}
    chosen = [by_index[i] for i in default_route_nics() if i in by_index]
    if chosen:
        return chosen
    with_address = aside(_global_devices)
    return [n for n in usable if n.up and n.ifindex in with_address]


def _named(nics: Iterable[Nic], name: str) -> Nic:
    for nic in nics:
        if nic.name == name:
            if not nic.ethernet or nic.loopback:
                raise UsageError(f"use device {name}", why="it is not an Ethernet device")
            return nic
    raise UsageError(f"use device {name}", why="there is no such device", hint="see 'ip link'")


def ifindex_of(name: str) -> int | None:
    """The device's index, or None when there is no such device (now)."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None

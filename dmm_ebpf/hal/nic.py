# SPDX-License-Identifier: Apache-2.0
"""The network devices of a namespace, and which of them a user stack serves.

Facts come from rtnetlink and the ethtool ioctls: sysfs is not used, because what it shows depends
on who mounted it ('ip netns exec' mounts another one). Reading changes nothing. Functions work in
the calling thread's namespace.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal import rtnl
from dmm_ebpf.hal.netlink import RouteSocket

_ARPHRD_ETHER = 1
# PPP, raw IP, ipip, ip6tnl, sit, gre, ip6gre, and VOID and NONE: WireGuard, TUN, xfrm
# (linux/if_arp.h). These the kernel takes for devices without link header, when a BPF program
# redirects a packet (dev_is_mac_header_xmit()).
BARE_TYPES = frozenset({512, 519, 768, 769, 776, 778, 823, 0xFFFE, 0xFFFF})
_IFF_LOOPBACK = 0x8
_SIOCSIFFLAGS = 0x8914
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x3
_ETHTOOL_GCHANNELS = 0x3C
_DRVINFO_BYTES = 196
_RT_TABLE_MAIN = 254

OWN_PREFIX = "dmm-"
# Kinds of masters that take what their ports receive before anybody else sees it, and have
# the addresses themselves.
TAKE_ALL = frozenset({"bridge", "bond", "team", "openvswitch"})
_NOT_LEFT_BY = frozenset({"vrf", "ifb"})


@dataclass(frozen=True)
class Nic:
    """One device. mtu is bytes of IP packet; queues are those in use; xdp_prog_id 0: none; bus and
    bus_name: of the hardware below it (pci, 0000:00:03.0), empty where there is none. bare: packets
    go over it without link header. external and altnames: as in rtnl.Link.
    """

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
    bare: bool
    loopback: bool
    master: int
    xdp_prog_id: int
    xdp_mode: str
    qdisc: str
    bus: str
    bus_name: str
    external: bool
    altnames: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that the device is called."""
        return (self.name, *self.altnames)

    @property
    def carries_ip(self) -> bool:
        """Whether a user stack could serve it: IP goes over it, to and from other hosts."""
        return (self.ethernet or self.bare) and not self.loopback

    @property
    def has_xdp(self) -> bool:
        """Some XDP program is attached, ours or anybody's."""
        return self.xdp_mode != "none"


_XDP_MODES = ("none", "native", "generic", "offload", "multi")  # XDP_ATTACHED_* of linux/if_link.h


def ethtool(sock: socket.socket, name: str, request: bytes) -> bytes | None:
    """The answer to an ethtool request, or None where the driver has none."""
    buffer = array.array("B", request)
    address, _ = buffer.buffer_info()
    ifreq = struct.pack("16sP16x", os.fsencode(name)[:15], address)[:40]
    try:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, ifreq)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL, errno.EPERM):
            return None
        raise
    return buffer.tobytes()


def _channels(sock: socket.socket, name: str) -> tuple[int, int] | None:
    """Receive and transmit queues in use (struct ethtool_channels)."""
    answer = ethtool(sock, name, struct.pack("=I32x", _ETHTOOL_GCHANNELS))
    if answer is None:
        return None
    rx, tx, _other, combined = struct.unpack_from("=4I", answer, 20)
    return rx + combined, tx + combined


def _driver(sock: socket.socket, name: str) -> str:
    answer = ethtool(sock, name, struct.pack(f"=I{_DRVINFO_BYTES - 4}x", _ETHTOOL_GDRVINFO))
    if answer is None:
        return ""
    return answer[4:36].split(b"\0", 1)[0].decode("ascii", "replace")


def _nic(link: rtnl.Link, sock: socket.socket) -> Nic:
    rx_queues, tx_queues = _channels(sock, link.name) or (link.rx_queues, link.tx_queues)
    return Nic(
        ifindex=link.index,
        name=link.name,
        mac=link.mac,
        mtu=link.mtu,
        kind=link.kind,
        driver=_driver(sock, link.name),
        rx_queues=max(1, rx_queues),
        tx_queues=max(1, tx_queues),
        up=bool(link.flags & rtnl.IFF_UP),
        ethernet=link.type == _ARPHRD_ETHER,
        bare=is_bare(link),
        loopback=bool(link.flags & _IFF_LOOPBACK),
        master=link.master,
        xdp_prog_id=link.xdp_prog_id,
        xdp_mode=_XDP_MODES[min(link.xdp_attached, len(_XDP_MODES) - 1)],
        qdisc=link.qdisc,
        bus=link.bus,
        bus_name=link.bus_name,
        external=link.external,
        altnames=link.altnames,
    )


def list_nics() -> list[Nic]:
    """Every device of the namespace, in the kernel's order."""
    with RouteSocket() as routes, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return [_nic(link, sock) for link in rtnl.links(routes)]


def find(ifindex: int, name: str) -> Nic | None:
    """The device of that index, whatever it is called now; else the one of that name; None when
    there is neither.
    """
    with RouteSocket() as routes, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        link = rtnl.link(routes, ifindex)
        if link is None:
            link = rtnl.named(routes, name)
        return _nic(link, sock) if link is not None else None


def taker_of(nic: Nic) -> str:
    """Name of the device that takes what this one receives, and has the addresses; empty:
    there is none.
    """
    if not nic.master:
        return ""
    with RouteSocket() as routes:
        master = rtnl.link(routes, nic.master)
    return master.name if master is not None and master.kind in TAKE_ALL else ""


def top_of(nic: Nic) -> Nic:
    """The device that takes what this one receives, if there is one, and what takes what that
    receives: the one that has the addresses.
    """
    with RouteSocket() as routes, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while nic.master:
            master = rtnl.link(routes, nic.master)
            if master is None or master.kind not in TAKE_ALL:
                break
            nic = _nic(master, sock)
    return nic


def leaving() -> list[rtnl.Link]:
    """The devices that are up and by which packets of this host's own addresses may leave, those
    with a global address
    first: a route may lead to one that has none. Left out are a VRF, whose packets pass another
    device first, and an ifb, to which no route leads, while tc may lead there what comes in.
    """
    with_address = _global_devices()
    with RouteSocket() as routes:
        links = rtnl.links(routes)
    kinds = {link.index: link.kind for link in links}
    found = [
        link
        for link in links
        if link.flags & rtnl.IFF_UP
        and not link.flags & _IFF_LOOPBACK
        and (is_bare(link) or link.type == _ARPHRD_ETHER)
        and not link.name.startswith(OWN_PREFIX)
        and link.kind not in _NOT_LEFT_BY
        and kinds.get(link.master) not in TAKE_ALL
    ]
    return sorted(found, key=lambda link: link.index not in with_address)


def is_bare(link: rtnl.Link) -> bool:
    """Whether packets go over it without link header."""
    return link.type in BARE_TYPES


def default_route_nics() -> list[int]:
    """ifindexes of the main table's default routes, IPv4 first, best metric first."""
    found: list[int] = []
    with RouteSocket() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            routes = [
                route
                for route in rtnl.routes(sock, family)
                if route.table == _RT_TABLE_MAIN
                and route.dst_len == 0
                and route.type == rtnl.RTN_UNICAST
            ]
            for route in sorted(routes, key=lambda r: r.metric):
                found += [index for index in route.devices if index not in found]
    return found


def _global_devices() -> set[int]:
    with RouteSocket() as sock:
        return {
            address.index
            for address in rtnl.addresses(sock)
            if address.scope == 0 and not ipaddress.ip_address(address.address).is_loopback
        }


def serving_nics(devices: Sequence[str] | None = None, instead: Collection[str] = ()) -> list[Nic]:
    """The devices that user stacks send and receive on.

    instead: names of those that may be served in place of one that belongs to them. devices names
    them; without, the devices of the default routes; without any of those, every
    device that is up, has a global address and is not one of ours. Raises UsageError for a name
    that is not there, or of a device that no stack can serve.
    """
    nics = list_nics()
    if devices:
        named = (_named(nics, name, instead) for name in devices)
        return list({nic.ifindex: nic for nic in named}.values())
    usable = [n for n in nics if n.carries_ip and not n.name.startswith(OWN_PREFIX)]
    by_index = {n.ifindex: n for n in usable}
    chosen = [by_index[i] for i in default_route_nics() if i in by_index]
    if chosen:
        return chosen
    with_address = _global_devices()
    return [n for n in usable if n.up and n.ifindex in with_address]


def _named(nics: Iterable[Nic], name: str, instead: Collection[str]) -> Nic:
    for nic in nics:
        if name in nic.names:
            if not nic.carries_ip:
                why = (
                    "what goes over it stays on this host"
                    if nic.loopback
                    else "it carries no IP packets"
                )
                raise UsageError(f"use device {name}", why=why)
            taker = taker_of(nic)
            if taker and top_of(nic).name not in instead:
                why = f"it belongs to {taker}, which has the addresses"
                raise UsageError(f"use device {name}", why=why, hint=f"name {taker}")
            return nic
    raise UsageError(f"use device {name}", why="there is no such device", hint="see 'ip link'")


def is_up(name: str) -> bool | None:
    """Whether the device is set up; None when there is no such device (now)."""
    link = _named_link(name)
    return None if link is None else bool(link.flags & rtnl.IFF_UP)


def set_up(name: str) -> None:
    """Sets the device up, if it is there. Raises OSError."""
    with RouteSocket() as routes:
        link = rtnl.named(routes, name)
        if link is not None:
            rtnl.set_up(routes, link.index)


def _named_link(name: str) -> rtnl.Link | None:
    with RouteSocket() as routes:
        return rtnl.named(routes, name)


def names_of(name: str) -> tuple[str, ...]:
    """All that the device of that name is called, its altnames too; empty: there is none."""
    with RouteSocket() as routes:
        found = (link.names for link in rtnl.links(routes) if name in link.names)
        return next(found, ())


def name_of(ifindex: int) -> str | None:
    """What the device is called now; None when there is no such device (now)."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return None


def ifindex_of(name: str) -> int | None:
    """The index of the device of that name, no longer one than ioctls take; None when there is no
    such device (now).
    """
    link = _named_link(name)
    return None if link is None else link.index

# SPDX-License-Identifier: Apache-2.0
"""What is read by rtnetlink(7): links, addresses and routes, as records.

Only what somebody here asks for is decoded, in the layouts of linux/rtnetlink.h, if_link.h and
if_addr.h. Functions work in the network namespace of the socket that they are given.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dmm_ebpf.hal.netlink import RouteSocket, attribute, attribute_u32, attributes

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE = 16, 17, 18, 22, 26
RTM_NEWROUTE = 24

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, prefixlen, flags, scope, index
_RTMSG = struct.Struct(
    "=8BI"
)  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop: len, flags, hops, ifindex

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_QDISC, _IFLA_MASTER = 1, 3, 4, 6, 10
_IFLA_LINKINFO, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES, _IFLA_XDP = 18, 31, 32, 43
_IFLA_STATS64, _IFLA_CARRIER = 23, 33
_TX_DROPPED = struct.Struct("=56xQ")  # of struct rtnl_link_stats64
_IFLA_LINK_NETNSID = 37
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 56, 57  # Linux 5.14
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
# IFLA_VXLAN_COLLECT_METADATA and the like, by kind of device: what ip-link(8) calls external
_COLLECT_METADATA = {
    "vxlan": 25,
    "geneve": 6,
    **dict.fromkeys(("gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan"), 18),
    **dict.fromkeys(("ipip", "sit", "ip6tnl"), 19),
}
_IFLA_XDP_ATTACHED, _IFLA_XDP_PROG_ID = 2, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_MULTIPATH, _RTA_TABLE, _RTA_MARK, _RTA_UID = 9, 15, 16, 25

RTN_UNICAST = 1
IFF_UP = 0x1
_IFNAMSIZ = 16


@dataclass(frozen=True)
class Link:
    """One device. type: ARPHRD_*; flags: IFF_*; kind: of virtual devices, else
    empty; xdp_attached: XDP_ATTACHED_*;
    bus and bus_name: of the hardware below it (pci, 0000:00:03.0), empty where there is none;
    altnames: what it is called besides (ip-link(8), altname).
    peer_away: what it is linked to is in another network namespace. external: each packet's route,
    or a tc program, tells it where the packet goes.
    """

    index: int
    name: str
    type: int
    flags: int
    mac: bytes
    mtu: int
    master: int
    kind: str
    qdisc: str
    rx_queues: int
    tx_queues: int
    xdp_attached: int
    xdp_prog_id: int
    bus: str
    bus_name: str
    peer_away: bool = False
    external: bool = False
    carrier: bool = False
    altnames: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that the device is called."""
        return (self.name, *self.altnames)


@dataclass(frozen=True)
class Address:
    """One address of a device. scope: RT_SCOPE_*; flags: IFA_F_*."""

    index: int
    family: int
    address: str
    prefixlen: int
    scope: int
    flags: int


@dataclass(frozen=True)
class Route:
    """One route. devices: one, or one for each next hop; gateway and prefsrc: empty where
    there is none.
    """

    family: int
    dst: str
    dst_len: int
    tos: int
    table: int
    proto: int
    scope: int
    type: int
    flags: int = 0
    metric: int = 0
    devices: tuple[int, ...] = ()
    gateway: str = ""
    prefsrc: str = ""


def links(sock: RouteSocket) -> list[Link]:
    """Every device, in the kernel's order."""
    return [_link(body) for body in sock.dump(_RTM_GETLINK, bytes(_IFINFO.size))]


def tx_dropped(sock: RouteSocket) -> dict[str, int]:
    """Of every device, by name, how many packets that were to be sent it has
    dropped (ip-link(8), -s).
    """
    found = {}
    for body in sock.dump(_RTM_GETLINK, bytes(_IFINFO.size)):
        values = dict(attributes(body, _IFINFO.size))
        stats = values.get(_IFLA_STATS64, b"")
        if len(stats) >= _TX_DROPPED.size:
            (found[_text(values, _IFLA_IFNAME)],) = _TX_DROPPED.unpack_from(stats)
    return found


def link(sock: RouteSocket, index: int) -> Link | None:
    """One device; None when it is not there."""
    return _asked(sock, _IFINFO.pack(0, 0, index, 0, 0))


def named(sock: RouteSocket, name: str) -> Link | None:
    """The device of that name, or of that altname where it is no longer than a name; None when
    there is none. An ioctl that names a device which is not there has the kernel run modprobe(8),
    twice (dev_load() of net/core/dev_ioctl.c); this has not.
    """
    encoded = os.fsencode(name)
    if not 0 < len(encoded) < _IFNAMSIZ or b"\0" in encoded:
        return None
    return _asked(sock, bytes(_IFINFO.size) + attribute(_IFLA_IFNAME, encoded + b"\0"))


def _asked(sock: RouteSocket, request: bytes) -> Link | None:
    try:
        return _link(sock.get(_RTM_GETLINK, request))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def set_up(sock: RouteSocket, index: int) -> None:
    """Sets a device up. Raises OSError."""
    sock.change(_RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, IFF_UP, IFF_UP))


def remove(sock: RouteSocket, index: int) -> None:
    """Removes a device. Raises OSError."""
    sock.change(_RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def addresses(sock: RouteSocket) -> list[Address]:
    """Every address, IPv4 and IPv6."""
    found = (_address(body) for body in sock.dump(_RTM_GETADDR, bytes(_IFADDR.size)))
    return [one for one in found if one is not None]


def routes(sock: RouteSocket, family: int) -> list[Route]:
    """Every route of all tables."""
    return [route_of(body) for body in sock.dump(_RTM_GETROUTE, _RTMSG.pack(family, *(0,) * 8))]


def route_to(sock: RouteSocket, address: str, *, mark: int = 0, uid: int | None = None) -> Route:
    """The route that the kernel takes to an address, as `ip route get`. OSError: it has none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    asked = _RTMSG.pack(family, 8 * len(packed), *(0,) * 7) + attribute(_RTA_DST, packed)
    asked += attribute_u32(_RTA_MARK, mark)
    if uid is not None:
        asked += attribute_u32(_RTA_UID, uid)
    return route_of(sock.get(_RTM_GETROUTE, asked))


def _u32(values: Mapping[int, bytes], kind: int, default: int = 0) -> int:
    value = values.get(kind, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else default


def _text(values: Mapping[int, bytes], kind: int) -> str:
    return values.get(kind, b"").split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _ip(values: Mapping[int, bytes], kind: int, family: int) -> str:
    value = values.get(kind, b"")
    return socket.inet_ntop(family, value) if value else ""


def _link(body: bytes) -> Link:
    _, kind, index, flags, _ = _IFINFO.unpack_from(body)
    values = dict(attributes(body, _IFINFO.size))
    xdp = dict(attributes(values.get(_IFLA_XDP, b"")))
    info = dict(attributes(values.get(_IFLA_LINKINFO, b"")))
    return Link(
        index=index,
        name=_text(values, _IFLA_IFNAME),
        type=kind,
        flags=flags,
        mac=values.get(_IFLA_ADDRESS, b""),
        mtu=_u32(values, _IFLA_MTU),
        master=_u32(values, _IFLA_MASTER),
        kind=_text(info, _IFLA_INFO_KIND),
        qdisc=_text(values, _IFLA_QDISC),
        rx_queues=_u32(values, _IFLA_NUM_RX_QUEUES, 1),
        tx_queues=_u32(values, _IFLA_NUM_TX_QUEUES, 1),
        xdp_attached=xdp.get(_IFLA_XDP_ATTACHED, b"\0")[0],
        xdp_prog_id=_u32(xdp, _IFLA_XDP_PROG_ID),
        bus=_text(values, _IFLA_PARENT_DEV_BUS_NAME),
        bus_name=_text(values, _IFLA_PARENT_DEV_NAME),
        peer_away=_IFLA_LINK_NETNSID in values,
        external=_is_external(info),
        carrier=values.get(_IFLA_CARRIER) == b"\1",
        altnames=_altnames(values.get(_IFLA_PROP_LIST, b"")),
    )


def _altnames(properties: bytes) -> tuple[str, ...]:
    found = (dict([one]) for one in attributes(properties) if one[0] == _IFLA_ALT_IFNAME)
    return tuple(_text(one, _IFLA_ALT_IFNAME) for one in found)


def _is_external(info: dict[int, bytes]) -> bool:
    """By IFLA_LINKINFO; some kinds have a flag, some a byte."""
    told = _COLLECT_METADATA.get(_text(info, _IFLA_INFO_KIND))
    value = dict(attributes(info.get(_IFLA_INFO_DATA, b""))).get(told, b"\0") if told else b"\0"
    return value[:1] != b"\0"


def _address(body: bytes) -> Address | None:
    """None for families other than IP."""
    family, prefixlen, flags, scope, index = _IFADDR.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    values = dict(attributes(body, _IFADDR.size))
    # On a link to one peer IFA_ADDRESS is the peer's.
    own = _ip(values, _IFA_LOCAL, family) or _ip(values, _IFA_ADDRESS, family)
    return Address(index, family, own, prefixlen, scope, _u32(values, _IFA_FLAGS, flags))


def route_of(body: bytes) -> Route:
    """The route that a message tells of (struct rtmsg, and its attributes)."""
    family, dst_len, _, tos, table, proto, scope, kind, flags = _RTMSG.unpack_from(body)
    values = dict(attributes(body, _RTMSG.size))
    any_address = "0.0.0.0" if family == socket.AF_INET else "::"
    oif = _u32(values, _RTA_OIF)
    return Route(
        family=family,
        dst=_ip(values, _RTA_DST, family) or any_address,
        dst_len=dst_len,
        tos=tos,
        table=_u32(values, _RTA_TABLE, table),
        proto=proto,
        scope=scope,
        type=kind,
        flags=flags,
        metric=_u32(values, _RTA_PRIORITY),
        devices=_next_hops(values.get(_RTA_MULTIPATH, b"")) or ((oif,) if oif else ()),
        gateway=_ip(values, _RTA_GATEWAY, family),
        prefsrc=_ip(values, _RTA_PREFSRC, family),
    )


def _next_hops(data: bytes) -> tuple[int, ...]:
    found = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, _, ifindex = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        found.append(ifindex)
        offset += (length + 3) & ~3
    return tuple(found)

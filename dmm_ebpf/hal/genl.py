# SPDX-License-Identifier: Apache-2.0
"""What generic netlink's families "ethtool" and "netdev" say of devices: speed, channels,
offloads, XDP features.

pyroute2 carries and splits those of ethtool; it takes long to import, so only `dmm-ebpf hal` does.
What the attributes mean is decided by pure functions, over a message as nested dictionaries.
Reading needs no privilege and changes nothing. Functions work in the network namespace that the
calling thread is in.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.answer import Unknown, YesNo
from dmm_ebpf.hal.netlink import NetlinkSocket, attribute, attributes

T = TypeVar("T")
Attributes = Mapping[str, Any]

# linux/ethtool_netlink.h: commands of user space, and the attributes of their answers, by number.
_LINKMODES_GET, _FEATURES_GET, _CHANNELS_GET = 4, 11, 17
_CHANNELS = "RX_MAX TX_MAX OTHER_MAX COMBINED_MAX RX_COUNT TX_COUNT OTHER_COUNT COMBINED_COUNT"
_SPEED_UNKNOWN = 0xFFFFFFFF
_NETLINK_GENERIC = 16
_GENL = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_GENL_ID_CTRL, _CTRL_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = (
    16,
    3,
    1,
    2,
)  # linux/genetlink.h
# linux/netdev.h
_DEV_GET = 1
_NETDEV = {1: "IFINDEX", 3: "XDP_FEATURES", 4: "ZC_MAX_SEGS", 5: "RX_METADATA", 6: "XSK_FEATURES"}
(
    _XDP_BASIC,
    _XDP_REDIRECT,
    _XDP_NDO_XMIT,
    _XDP_ZEROCOPY,
    _XDP_HW_OFFLOAD,
    _XDP_RX_SG,
    _XDP_NDO_XMIT_SG,
) = (1 << bit for bit in range(7))
_RX_METADATA = ("timestamp", "hash", "VLAN tag")
_CHECKSUM = "checksum"
_TX_METADATA = ("timestamp", _CHECKSUM, "launch time")
_METADATA_SINCE = "this kernel's netdev family does not say"


@dataclass(frozen=True)
class Channels:
    """Queues in use, and as many as there may be."""

    rx: int
    tx: int
    rx_max: int
    tx_max: int


@dataclass(frozen=True)
class Offload:
    """One feature of linux/netdev_features.h, by ethtool's name. changeable: by ethtool -K."""

    name: str
    on: bool
    changeable: bool


@dataclass(frozen=True)
class XdpFeatures:
    """What a driver says that it can, of NETDEV_XDP_ACT_* and its kin in linux/netdev.h.

    native: runs XDP programs by itself and their redirects; transmit: takes what is redirected to
    it; frags: takes programs for packets of several buffers; zero_copy_segments: buffers of a
    packet that AF_XDP zero-copy takes, or 0.
    """

    native: YesNo
    transmit: YesNo
    frags: YesNo
    frags_transmit: YesNo
    hardware: YesNo
    zero_copy: YesNo
    zero_copy_segments: int | Unknown
    rx_metadata: tuple[str, ...] | Unknown
    tx_metadata: tuple[str, ...] | Unknown

    @property
    def sums(self) -> YesNo:
        """Whether zero-copy has checksums filled in (NETDEV_XSK_FLAGS_TX_CHECKSUM)."""
        return (
            self.tx_metadata
            if isinstance(self.tx_metadata, Unknown)
            else _CHECKSUM in self.tx_metadata
        )


def no_xdp_answer(why: str) -> XdpFeatures:
    """Of a device that nobody could be asked about."""
    unknown = Unknown(why)
    return XdpFeatures(*(unknown,) * 9)


def tree(attributes: Any) -> dict[str, Any]:
    """pyroute2's list of (name, value) as a dictionary, nested ones too; of a name that is there
    twice the last, and without what is no pair or has no name here.
    """
    found: dict[str, Any] = {}
    for name, value in _pairs(attributes):
        found[name] = tree(value) if _nested(value) else value
    return found


def _nested(value: Any) -> bool:
    return hasattr(value, "keys") and "attrs" in value


def _pairs(attributes: Any) -> Iterator[tuple[str, Any]]:
    listed = attributes["attrs"] if _nested(attributes) else attributes
    for entry in listed if isinstance(listed, list | tuple) else ():
        try:
            name, value = entry[0], entry[1]
        except (TypeError, LookupError):
            continue
        if name != "UNKNOWN":
            yield str(name), value


def _number(values: Attributes, name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def speed_of(values: Attributes) -> int | None:
    """Mbit/s; None where the device names none, as with no carrier."""
    speed = _number(values, "SPEED")
    return None if speed in (None, 0, _SPEED_UNKNOWN) else speed


def channels_of(values: Attributes) -> Channels:
    """A combined channel has a queue of either direction."""
    counts = {name: _number(values, name) or 0 for name in _CHANNELS.split()}
    return Channels(
        rx=counts["RX_COUNT"] + counts["COMBINED_COUNT"],
        tx=counts["TX_COUNT"] + counts["COMBINED_COUNT"],
        rx_max=counts["RX_MAX"] + counts["COMBINED_MAX"],
        tx_max=counts["TX_MAX"] + counts["COMBINED_MAX"],
    )


def offloads_of(message: Any) -> tuple[Offload, ...]:
    """Every feature that is on or may be switched on, by name."""
    bitsets = dict(_pairs(message))
    on = {name for name, _ in _bits(bitsets.get("ACTIVE"))}
    # In the set of what may be changed a bit is listed for each feature and has a value
    # where it may.
    changeable = {name for name, value in _bits(bitsets.get("HW")) if value}
    fixed = {name for name, _ in _bits(bitsets.get("NOCHANGE"))}
    return tuple(
        Offload(name, name in on, name in changeable and name not in fixed)
        for name in sorted(on | changeable)
        if name
    )


def _bits(bitset: Any) -> Iterator[tuple[str, bool]]:
    """Name of each bit of a bitset that lists them, and whether it has a value of its own."""
    for name, value in _pairs(bitset):
        if name != "ETHTOOL_A_BITSET_BITS":
            continue
        for _, bit in _pairs(value):
            values = dict(_pairs(bit))
            named = values.get("ETHTOOL_A_BITSET_BIT_NAME")
            if isinstance(named, str):
                yield named, "ETHTOOL_A_BITSET_BIT_VALUE" in values


def xdp_of(values: Attributes) -> XdpFeatures:
    """From an answer of dev-get."""
    bits = _number(values, "XDP_FEATURES")
    if bits is None:
        return no_xdp_answer("the kernel's netdev family does not say what XDP its driver has")
    zero_copy = bool(bits & _XDP_ZEROCOPY)
    # A kernel that knows no segments (before 6.6) has zero-copy for whole frames alone.
    segments = (_number(values, "ZC_MAX_SEGS") or 1) if zero_copy else 0
    return XdpFeatures(
        native=bits & (_XDP_BASIC | _XDP_REDIRECT) == _XDP_BASIC | _XDP_REDIRECT,
        transmit=bool(bits & _XDP_NDO_XMIT),
        frags=bool(bits & _XDP_RX_SG),
        frags_transmit=bool(bits & _XDP_NDO_XMIT_SG),
        hardware=bool(bits & _XDP_HW_OFFLOAD),
        zero_copy=zero_copy,
        zero_copy_segments=segments,
        rx_metadata=_words(_number(values, "RX_METADATA"), _RX_METADATA),
        tx_metadata=_words(_number(values, "XSK_FEATURES"), _TX_METADATA),
    )


def _words(bits: int | None, names: tuple[str, ...]) -> tuple[str, ...] | Unknown:
    if bits is None:
        return Unknown(_METADATA_SINCE)
    known = [name for bit, name in enumerate(names) if bits & 1 << bit]
    rest = bits >> len(names)
    return (*known, *([f"bits {rest << len(names):#x}"] if rest else ()))


def xdp_features() -> dict[int, XdpFeatures] | Unknown:
    """By ifindex; or why the kernel cannot say it. Without pyroute2, since the Resource
    Director asks too.
    """
    try:
        with NetlinkSocket(_NETLINK_GENERIC) as sock:
            answers = sock.dump(_family_number(sock, "netdev"), _GENL.pack(_DEV_GET, 1))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Unknown("this kernel has no netlink family netdev (Linux 6.3 brought it)")
        return Unknown(f"the netlink family netdev: {os.strerror(error.errno or 0)}")
    found = {}
    for answer in answers:
        values = _netdev_values(answer)
        index = _number(values, "IFINDEX")
        if index is not None:
            found[index] = xdp_of(values)
    return found


def _family_number(sock: NetlinkSocket, name: str) -> int:
    """By which messages of a generic family are sent; OSError ENOENT: the kernel has none
    of that name.
    """
    wanted = attribute(_CTRL_FAMILY_NAME, name.encode() + b"\0")
    answer = sock.get(_GENL_ID_CTRL, _GENL.pack(_CTRL_GETFAMILY, 1) + wanted)
    number = dict(attributes(answer, _GENL.size)).get(_CTRL_FAMILY_ID, b"")
    return int.from_bytes(number, sys.byteorder)


def _netdev_values(answer: bytes) -> dict[str, int]:
    """Of an answer of dev-get: the attributes that are numbers, by name."""
    return {
        _NETDEV[kind]: int.from_bytes(value, sys.byteorder)
        for kind, value in attributes(answer, _GENL.size)
        if kind in _NETDEV
    }


@dataclass(frozen=True)
class EthtoolAnswers:
    """Of one device. None: it has no such thing."""

    speed: int | Unknown | None
    channels: Channels | Unknown | None
    offloads: tuple[Offload, ...] | Unknown | None


def ethtool_answers(indexes: list[int]) -> dict[int, EthtoolAnswers]:
    """By ifindex, of each of those devices."""
    try:
        sock = _family("ethtool", _linkmodes_message())
    except OSError as error:
        unknown = Unknown(f"the netlink family ethtool: {os.strerror(error.errno or 0)}")
        return {index: EthtoolAnswers(unknown, unknown, unknown) for index in indexes}
    with closing(sock):
        return {
            index: EthtoolAnswers(
                speed=_asked(
                    sock,
                    _linkmodes_message(),
                    _LINKMODES_GET,
                    index,
                    lambda msg: speed_of(tree(msg)),
                ),
                channels=_asked(
                    sock,
                    _channels_message(),
                    _CHANNELS_GET,
                    index,
                    lambda msg: channels_of(tree(msg)),
                ),
                offloads=_asked(sock, _features_message(), _FEATURES_GET, index, offloads_of),
            )
            for index in indexes
        }


def _asked(
    sock: Any, kind: Any, command: int, index: int, read: Callable[[Any], T | None]
) -> T | Unknown | None:
    """The answer about one device; None where its driver has no such thing."""
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST

    header = ("HEADER", {"attrs": [("ETHTOOL_A_HEADER_DEV_INDEX", index)]})
    try:
        answers = list(_exchange(sock, kind, command, NLM_F_REQUEST | NLM_F_ACK, [header]))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return None
        return Unknown(os.strerror(error.errno or 0))
    return read(answers[0]) if answers else None


def _family(name: str, kind: Any) -> Any:
    """A socket that speaks a family. ENOENT: the kernel has none of that name."""
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.generic import GenericNetlinkSocket

    sock = GenericNetlinkSocket()
    try:
        sock.bind(name, kind)
    except NetlinkError as error:
        sock.close()
        raise OSError(error.code, os.strerror(error.code)) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _exchange(
    sock: Any, kind: Any, command: int, flags: int, attributes: list[Any]
) -> Iterator[Any]:
    """What a request is answered; OSError with the kernel's errno."""
    from pyroute2.netlink.exceptions import NetlinkError

    sock.marshal.msg_map[sock.prid] = kind
    message = kind()
    message["cmd"], message["version"] = command, 1
    message["attrs"] += attributes
    try:
        yield from sock.nlm_request(message, msg_type=sock.prid, msg_flags=flags)
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def _message(*names: tuple[str, str]) -> Any:
    """A message of pyroute2's whose attributes are, from 0 on, these."""
    try:
        from pyroute2.netlink import genlmsg
        from pyroute2.netlink.generic.ethtool import ethtoolbitset, ethtoolheader
    except ImportError as error:
        raise DmmError(
            "ask the kernel about network devices",
            why=f"Python has no module {error.name}",
            hint="install dmm-ebpf anew, or pyroute2",
        ) from error
    fields = {"nla_map": names, "ethtoolheader": ethtoolheader, "ethtoolbitset": ethtoolbitset}
    return type("message", (genlmsg,), fields)


_HEADER = (("UNSPEC", "none"), ("HEADER", "ethtoolheader"))


def _linkmodes_message() -> Any:
    modes = (
        ("AUTONEG", "uint8"),
        ("OURS", "hex"),
        ("PEER", "hex"),
        ("SPEED", "uint32"),
        ("DUPLEX", "uint8"),
    )
    return _message(*_HEADER, *modes)


def _channels_message() -> Any:
    return _message(*_HEADER, *((name, "uint32") for name in _CHANNELS.split()))


def _features_message() -> Any:
    return _message(
        *_HEADER, *((name, "ethtoolbitset") for name in ("HW", "WANTED", "ACTIVE", "NOCHANGE"))
    )

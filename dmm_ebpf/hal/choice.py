# SPDX-License-Identifier: Apache-2.0
"""Which port a user stack's outer leg is to have on a device, and why: facts in, a port and the
reasons out. Pure.

AF_XDP goes around everything between a driver and the host's stack, and copies frames where the
driver has no zero-copy. So it is the port where zero-copy makes it worth while and nothing stands
there that would be gone around; else tap is, whose packets meet the host's qdiscs, filters and
hooks like anybody's, on any device. What could not be
told counts as in the way: tap is right everywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dmm_ebpf.hal.answer import Unknown, YesNo
from dmm_ebpf.hal.nic import TAKE_ALL

# What of a page is left for a packet: the headroom of XDP (XDP_PACKET_HEADROOM), the tailroom that
# the kernel keeps in it (struct skb_shared_info, 320 bytes where a cache line has 64) and the
# Ethernet header take the rest. veth and virtio_net compare with that; some drivers take less.
_HEADROOM_BYTES = 256
_TAILROOM_BYTES = 320
_ETHERNET_BYTES = 14


# Kinds of devices through which packets only pass
_PASSED = {
    "ifb": "what is sent by it comes back to the device that it was led here from",
    "vrf": "what leaves by it leaves by one of its ports, too: name that",
}
_EXTERNAL = "it is external: each packet's route tells it the tunnel, which a stack does not know"


class Port(enum.StrEnum):
    """What carries the outer leg."""

    AF_XDP = "af_xdp"
    TAP = "tap"
    NONE = "none"


@dataclass(frozen=True)
class Facts:
    """What is asked of a device. driver, kind: empty where it has none; mtu: bytes of IP
    packet; page: bytes.

    external: each packet's route tells it where the packet goes. own: a device of a user stack.
    carries_ip: IP packets go over it; bare: without link header. foreign_xdp: an XDP program that
    is not ours; qdisc: the root qdisc that somebody set, empty for the kernel's default; filters,
    hooks: the tc filters and nft netdev hooks of others, in a few words.
    """

    name: str
    driver: str
    kind: str
    loopback: bool
    own: bool
    external: bool
    carries_ip: bool
    bare: bool
    master: str
    master_kind: str
    mtu: int
    page: int
    native_xdp: YesNo
    zero_copy: YesNo
    frags: YesNo
    foreign_xdp: str | Unknown
    qdisc: str | Unknown
    filters: tuple[str, ...] | Unknown
    hooks: tuple[str, ...] | Unknown


@dataclass(frozen=True)
class Choice:
    """The port, and what speaks for it: never empty."""

    port: Port
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All of them, as one text."""
        return "; ".join(self.reasons)


def choose(facts: Facts) -> Choice:
    """The port for this device."""
    unfit = _unfit(facts)
    if unfit:
        return Choice(Port.NONE, (unfit,))
    against = [*_lacks(facts), *_in_the_way(facts)]
    if against:
        return Choice(Port.TAP, tuple(against))
    return Choice(Port.AF_XDP, (f"{_what(facts)} has zero-copy, and nothing is in the way",))


def largest_mtu(page: int) -> int:
    """Bytes of the largest IP packet that one page of that many bytes holds under XDP."""
    return page - _HEADROOM_BYTES - _TAILROOM_BYTES - _ETHERNET_BYTES


def _unfit(facts: Facts) -> str:
    """Why no user stack can serve there."""
    if facts.own:
        return "it is a device of a user stack"
    if facts.loopback:
        return "what goes over it stays on this host"
    if not facts.carries_ip:
        return "it carries no IP packets"
    if facts.kind in _PASSED or facts.external:
        return _PASSED.get(facts.kind, _EXTERNAL)
    if facts.master_kind in TAKE_ALL:
        return f"it belongs to {facts.master_kind} {facts.master}, which has the addresses: name {facts.master}"
    return ""


def _lacks(facts: Facts) -> list[str]:
    """What AF_XDP needs and the device has not: only the first, the rest follows from it."""
    what = _what(facts)
    if facts.bare:
        return ["its packets have no Ethernet header"]
    if facts.native_xdp is False:
        return [f"{what} has no native XDP"]
    if isinstance(facts.native_xdp, Unknown):
        return [_untold("whether it has native XDP", facts.native_xdp)]
    if facts.zero_copy is False:
        return [f"{what} has no AF_XDP zero-copy"]
    if isinstance(facts.zero_copy, Unknown):
        return [_untold("whether it has AF_XDP zero-copy", facts.zero_copy)]
    return []


def _what(facts: Facts) -> str:
    return f"driver {facts.driver}" if facts.driver else facts.kind or "its driver"


def _xdp_in_the_way(facts: Facts) -> list[str]:
    if isinstance(facts.foreign_xdp, Unknown):
        return [_untold("whose XDP program is on it", facts.foreign_xdp)]
    return [f"the XDP program {facts.foreign_xdp} is on it"] if facts.foreign_xdp else []


def _in_the_way(facts: Facts) -> list[str]:
    """What AF_XDP would meet or go around."""
    found = _xdp_in_the_way(facts)
    if facts.mtu > largest_mtu(facts.page):
        if isinstance(facts.frags, Unknown):
            found.append(
                _untold(
                    f"whether XDP takes packets in fragments, as an MTU of {facts.mtu} needs",
                    facts.frags,
                )
            )
        elif not facts.frags:
            found.append(
                f"at an MTU of {facts.mtu} a packet does not fit a page, and XDP takes no fragments"
            )
    if isinstance(facts.qdisc, Unknown):
        found.append(_untold("whether somebody set its qdisc", facts.qdisc))
    elif facts.qdisc:
        found.append(f"qdisc {facts.qdisc} would be gone around")
    for what, those in (("tc filter", facts.filters), ("nft hook", facts.hooks)):
        if isinstance(those, Unknown):
            found.append(_untold(f"whether it has a {what}", those))
        elif those:
            found.append(f"{what} {', '.join(those)} would be gone around")
    return found


def _untold(what: str, unknown: Unknown) -> str:
    return f"could not tell {what}: {unknown.why}"

# SPDX-License-Identifier: Apache-2.0
"""What becomes of the flows of a stack process that is gone: its sockets are reset, its entries
in xdp_flows go.

Its sockets are those whose 5-tuple it owns, and those whose flow record says that it serves them,
which is how a flow behind a translation is known.
A container's is in a network namespace of its own, and looked for there.
What the host only forwards has no socket: where the process has an heir, which is given the packets
of that 5-tuple from its start, that one knows no such connection and resets both ends by what they
send; until then, and for a while, the entries stay as orphans.
One that still waits for the answer to its SYN is let be: the next SYN goes on to the wire
(bpf/tcout.h), or to the process that took the dead one's place.
All of it takes long with many flows; call it in a thread of the instance's namespace.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Mapping
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.sockdiag import SocketId
from dmm_ebpf.loader import Maps, flow_records
from dmm_ebpf.loader.spec import ADDR_PAIR
from dmm_ebpf.rd.director import away
from dmm_ebpf.rd.director.rundir import StackState

_MAPPED = abi.addr16("0.0.0.0")[:12]


def owned_by(maps: Maps, record: StackState | None = None) -> set[Any]:
    """The keys in xdp_flows of every flow that the process owns; None: any process."""
    if "xdp_flows" not in maps:
        return set()
    if record is None:
        return set(maps.xdp_flows)
    return maps.xdp_flows.where(stack=record.stack_id, seat=record.seat)


def served_by(maps: Maps, record: StackState | None = None) -> dict[int, int]:
    """Cookies of the sockets whose flow records say that the process has taken them, with that of
    their network namespace; None: any process.
    """
    return {
        flow.cookie: flow.netns_cookie
        for flow in flow_records(maps)
        if flow.decision.taken
        and (
            record is None
            or (flow.decision.stack, flow.decision.process) == (record.stack_id, record.process)
        )
    }


def end(
    maps: Maps, owned: Collection[Any], served: Mapping[int, int], *, heir: bool = False
) -> int:
    """Reset the sockets, then delete the entries; how many entries there were. heir: another
    process is to take the place of the one that is gone; what the host forwards is left to it.
    """
    if owned or served:
        sockdiag.destroy(
            [one for one in sockdiag.connections() if one.cookie in served or _pair(one) in owned]
        )
        away.destroy(served, maps.control[0].netns_cookie)
    forwarded = set(maps.forwarded) if owned and "forwarded" in maps else set()
    for key in owned:
        if key not in forwarded:
            maps.xdp_flows.delete(key)
        elif heir:
            _orphan(maps, key)
        else:
            _give_up(maps, key)
    return len(owned)


def end_orphans(maps: Maps, record: StackState) -> int:
    """Delete the entries that no connection of the process's heir has become; how many."""
    orphans = maps.xdp_flows.where(stack=record.stack_id, seat=record.seat, orphan=1)
    for key in orphans:
        _give_up(maps, key)
    return len(orphans)


def _orphan(maps: Maps, key: Any) -> None:
    entry = maps.xdp_flows.get(key)
    if entry is not None:
        entry.orphan = 1
        maps.xdp_flows[key] = entry


def _give_up(maps: Maps, key: Any) -> None:
    """What still comes of a flow of others must not get to its peer."""
    forwarded = maps.forwarded.get(key) if "forwarded" in maps else None
    if forwarded is not None:
        forwarded.state = C.DMM_FORWARDED_GONE
        maps.forwarded[key] = forwarded
    maps.xdp_flows.delete(key)


def _pair(one: SocketId) -> Any:
    """The socket as a key of xdp_flows, whose family is that of its packets."""
    lport, rport, laddr, raddr = one.pair
    family = one.family
    if family == socket.AF_INET:
        laddr, raddr = _MAPPED + laddr[:4], _MAPPED + raddr[:4]
    elif raddr[:12] == _MAPPED:
        family = socket.AF_INET
    ports = (int.from_bytes(port, sys.byteorder) for port in (lport, rport))
    return ADDR_PAIR.type(laddr, raddr, *ports, family, socket.IPPROTO_TCP)

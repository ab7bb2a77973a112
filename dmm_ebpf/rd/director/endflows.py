# SPDX-License-Identifier: Apache-2.0
"""What becomes of the flows of a stack process that is gone: its sockets are reset, its entries in xdp_flows go.

Its sockets are those whose 5-tuple it owns, and those whose flow record says that it serves them, which is how a flow
behind a translation is known.
A container's is in a network namespace of its own, and looked for there.
What the host only forwards has no socket: where the process has an heir, which is given the packets of that 5-tuple
from its start, that one knows no such connection and resets both ends by what they send; until then, and for a while,
the entries stay as orphans.
One that still waits for the answer to its SYN is let be: the next SYN goes on to the wire (bpf/tcout.h), or to the
process that took the dead one's place.
All of it takes long with many flows; call it in a thread of the instance's namespace.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping

from dmm_ebpf import abi
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.sockdiag import SocketId
from dmm_ebpf.loader import Map, flow_records
from dmm_ebpf.rd.director import away
from dmm_ebpf.rd.director.rundir import StackState

_MAPPED = abi.addr16("0.0.0.0")[:12]
_OWNER = struct.Struct("=II")  # struct dmm_xdp_flow: stack, seat
_PORTS_AT = abi.offset("dmm_addr_pair", "lport_be")
_PAIR_BYTES = abi.sizeof("dmm_addr_pair")
_SERVED = struct.Struct("=I")
_COOKIE_AT = abi.offset("dmm_flow", "cookie")
_NETNS_AT = abi.offset("dmm_flow", "netns_cookie")
_ORPHAN_AT = abi.offset("dmm_xdp_flow", "orphan")
_STATE_AT = abi.offset("dmm_forwarded", "state")
_DECISION_AT = abi.offset("dmm_flow", "decision")
_STACK_AT = _DECISION_AT + abi.offset("dmm_decision", "stack")
_PROCESS_AT = _DECISION_AT + abi.offset("dmm_decision", "process")
_TAKEN_AT = _DECISION_AT + abi.offset("dmm_decision", "taken")


def owned_by(maps: Mapping[str, Map], record: StackState | None = None) -> set[bytes]:
    """The struct dmm_addr_pair of every flow that the process owns; None: any process."""
    if "xdp_flows" not in maps:
        return set()
    return {
        key
        for key, value in maps["xdp_flows"].items()
        if record is None or _OWNER.unpack_from(value) == (record.stack_id, record.seat)
    }


def served_by(maps: Mapping[str, Map], record: StackState | None = None) -> dict[int, int]:
    """Cookies of the sockets whose flow records say that the process has taken them, with that of their network
    namespace; None: any process.
    """
    return {
        int(struct.unpack_from("=Q", flow, _COOKIE_AT)[0]): int(struct.unpack_from("=Q", flow, _NETNS_AT)[0])
        for flow in flow_records(maps)
        if _word(flow, _TAKEN_AT)
        and (
            record is None
            or (_word(flow, _STACK_AT), _word(flow, _PROCESS_AT)) == (record.stack_id, record.process)
        )
    }


def _word(flow: bytes, at: int) -> int:
    return int(_SERVED.unpack_from(flow, at)[0])


def end(
    maps: Mapping[str, Map], owned: Collection[bytes], served: Mapping[int, int], *, heir: bool = False
) -> int:
    """Reset the sockets, then delete the entries; how many entries there were. heir: another process is to take the
    place of the one that is gone; what the host forwards is left to it.
    """
    if owned or served:
        sockdiag.destroy(
            [one for one in sockdiag.connections() if one.cookie in served or _pair(one) in owned]
        )
        home = abi.unpack("dmm_control", maps["control"].lookup(bytes(4)) or b"").netns_cookie
        away.destroy(served, home)
    for key in owned:
        if (forwarded := _forwarded(maps, key)) is None:
            maps["xdp_flows"].delete(key)
        elif heir:
            _set_word(maps["xdp_flows"], key, _ORPHAN_AT, 1)
        else:
            _give_up(maps, key, forwarded)
    return len(owned)


def end_orphans(maps: Mapping[str, Map], record: StackState) -> int:
    """Delete the entries that no connection of the process's heir has become; how many."""
    orphans = [
        key
        for key in owned_by(maps, record)
        if (value := maps["xdp_flows"].lookup(key)) and _is_orphan(value)
    ]
    for key in orphans:
        _give_up(maps, key, _forwarded(maps, key))
    return len(orphans)


def _is_orphan(value: bytes) -> bool:
    return bool(_word(value, _ORPHAN_AT))


def _forwarded(maps: Mapping[str, Map], key: bytes) -> bytes | None:
    """The struct dmm_forwarded of a flow of others."""
    return maps["forwarded"].lookup(key) if "forwarded" in maps else None


def _give_up(maps: Mapping[str, Map], key: bytes, forwarded: bytes | None) -> None:
    """What still comes of the flow must not get to its peer."""
    if forwarded is not None:
        _set_word(maps["forwarded"], key, _STATE_AT, abi.C.DMM_FORWARDED_GONE)
    maps["xdp_flows"].delete(key)


def _set_word(table: Map, key: bytes, at: int, value: int) -> None:
    entry = table.lookup(key)
    if entry is not None:
        table.update(key, entry[:at] + _SERVED.pack(value) + entry[at + _SERVED.size :])


def _pair(one: SocketId) -> bytes:
    """The socket's struct dmm_addr_pair, whose family is that of its packets."""
    lport, rport, laddr, raddr = one.pair
    family = one.family
    if family == socket.AF_INET:
        laddr, raddr = _MAPPED + laddr[:4], _MAPPED + raddr[:4]
    elif raddr[:12] == _MAPPED:
        family = socket.AF_INET
    pair = laddr + raddr + lport + rport + bytes((family, socket.IPPROTO_TCP))
    return pair.ljust(_PAIR_BYTES, b"\0")


if _PORTS_AT != 32 or abi.offset("dmm_xdp_flow", "seat") != _OWNER.size - 4:
    raise AssertionError("struct dmm_addr_pair and struct dmm_xdp_flow are not as they are read here")

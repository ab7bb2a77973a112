# SPDX-License-Identifier: Apache-2.0
"""Flow and listener records as the CLI shows them: BPF map records put together with live
figures and names.

Pure: takes structs of the maps, what inet_diag and the stack processes said, and gives records.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dmm_ebpf import abi, records
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.hal.sockdiag import TcpSocket
from dmm_ebpf.rd.director.ending import reason
from dmm_ebpf.records.record import ABSENT, Maybe
from dmm_ebpf.tcpstates import TCP_STATES

UNTOLD = "?"
# 0 is ours: the record does not say, inet_diag does.
STATES = {0: UNTOLD} | {state.number: state.name for state in TCP_STATES}
DIRECTIONS: dict[int, records.flow.Direction] = {
    C.DMM_DIR_CONNECT: "connect",
    C.DMM_DIR_LISTEN: "listen",
    C.DMM_DIR_FORWARD: "forward",
}
NESTED: records.flow.Why = "nested"
# 0: a record in which nobody has named it.
PROTOCOLS = {0: "tcp", socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
EVENTS: dict[int, records.flow.FlowEventType] = {
    C.DMM_EVENT_CONNECT: "connect",
    C.DMM_EVENT_ESTABLISHED: "established",
    C.DMM_EVENT_CLOSE: "close",
    C.DMM_EVENT_LISTEN: "listen",
    C.DMM_EVENT_UNLISTEN: "unlisten",
}
COUNTERS = {
    C.DMM_CNT_CONNECT: "connect",
    C.DMM_CNT_CONNECT_FALLBACK: "connect_fallback",
    C.DMM_CNT_CONNECT_FULL: "connect_full",
    C.DMM_CNT_CONNECT_REJECT: "connect_reject",
    C.DMM_CNT_DATAGRAM_REJECT: "datagram_reject",
    C.DMM_CNT_SOCKOPT_FAILED: "sockopt_failed",
    C.DMM_CNT_FLOWS_FULL: "flows_full",
    C.DMM_CNT_EVENTS_LOST: "events_lost",
    C.DMM_CNT_LISTENERS_FULL: "listeners_full",
    C.DMM_CNT_XDP_FLOW: "xdp_flow",
    C.DMM_CNT_XDP_LISTENER: "xdp_listener",
    C.DMM_CNT_XDP_FULL: "xdp_full",
    C.DMM_CNT_XDP_COOKIE: "xdp_cookie",
    C.DMM_CNT_XDP_ICMP: "xdp_icmp",
    C.DMM_CNT_XDP_NO_SOCKET: "xdp_no_socket",
    C.DMM_CNT_SYN_LET_GO: "syn_let_go",
    C.DMM_CNT_INNER_DROPPED: "inner_dropped",
    C.DMM_CNT_FORWARD_IN: "forward_in",
    C.DMM_CNT_FORWARD_OUT: "forward_out",
    C.DMM_CNT_FORWARD_LET_GO: "forward_let_go",
    C.DMM_CNT_SYN_OPTION: "syn_option",
    C.DMM_CNT_FRAGMENT_IN: "fragment_in",
    C.DMM_CNT_FRAGMENT_OUT: "fragment_out",
    C.DMM_CNT_FRAGMENT_COPIED: "fragment_copied",
    C.DMM_CNT_DATAGRAM_OUT: "datagram_out",
    C.DMM_CNT_DATAGRAM_IN: "datagram_in",
    C.DMM_CNT_DATAGRAM_LET_GO: "datagram_let_go",
}
WHY: dict[int, records.flow.Why] = {
    C.DMM_WHY_DOWN: "down",
    C.DMM_WHY_FULL: "full",
    C.DMM_WHY_DEVICE: "device",
    C.DMM_WHY_SOCKET: "socket",
    C.DMM_WHY_PEER: "peer",
    C.DMM_WHY_OPTION: "option",
    C.DMM_WHY_ATTACH: "attach",
    C.DMM_WHY_FILTER: "filter",
    C.DMM_WHY_TUNNEL: "tunnel",
    C.DMM_WHY_DATAGRAM: "datagram",
}


CHOICES: dict[int, records.flow.Choice] = {
    C.DMM_CHOICE_TAKEN: "taken",
    C.DMM_CHOICE_REFUSED: "refused",
    C.DMM_CHOICE_VOID: "void",
}


class Names(Protocol):
    """What numbers in the maps are called, by the generation they were decided under."""

    def stack(self, stack_id: int) -> str: ...

    def table(self, table: int) -> str | None: ...

    def rule(self, generation: int, rule: int) -> str | None: ...

    def route(self, generation: int, route: int) -> str | None: ...

    def cgroup(self, cgroup_id: int) -> str | None: ...


Pair = tuple[str, int, str, int]  # local address and port, remote address and port
Place = tuple[int, int]  # a process, by its stack's number and its own among the stack's
Leg = Mapping[str, Any]  # what a process says of a connection: answers.COLUMNS


@dataclass(frozen=True)
class Known:
    """What one listing knows besides the records. legs: what the stack processes say of their outer
    legs, by who says it and by the flow as the NIC has it: nobody is believed of another's flow.
    For a user stack's flow the round trip, the retransmissions and the window are those of the
    path, not of the hop to the stack process. carriers: of flows that other instances carry, which,
    by cookie. netns_cookie: of the instance's namespace.
    """

    instance: str
    names: Names
    now_ns: int
    legs: Mapping[tuple[Place, Pair], Leg] = field(default_factory=dict)
    carriers: Mapping[int, str] = field(default_factory=dict)
    netns_cookie: int = 0


def of_socket(
    flow: Struct,
    live: TcpSocket | None,
    known: Known,
    *,
    kind: records.flow.FlowKind = "socket",
    at_nic: Pair | None = None,
) -> records.flow.Flow | None:
    """A `struct dmm_flow` with the newest state and figures; None for one to be left out.

    live: its socket; exact now, where the map's record is as old as the last change of state. A
    record that says no state, and has no socket, is left out: its connect() has failed, or it has
    just ended. at_nic: the flow as the NIC has it, where that is known to be another.
    """
    if live is None and not flow.state:
        return None
    return _of_socket(flow, live, known, kind, at_nic)


def _of_socket(
    flow: Struct,
    live: TcpSocket | None,
    known: Known,
    kind: records.flow.FlowKind,
    at_nic: Pair | None,
) -> records.flow.Flow:
    decision, names = flow.decision, known.names
    sent, received = flow.bytes_sent, flow.bytes_received
    told = _choice(decision, names)
    if live is None:
        ends, state = pair_text(flow.pair), flow.state
        srtt_us, retransmits = flow.srtt_us, flow.retransmits
    else:
        ends, state = (live.laddr, live.lport, live.raddr, live.rport), live.state
        sent, received = max(sent, live.bytes_acked), max(received, live.bytes_received)
        srtt_us, retransmits = live.rtt_us, live.total_retrans
        if live.mptcp is not None:
            told["mptcp"] = live.mptcp
    proto = PROTOCOLS[flow.pair.proto]
    place = decision.stack, decision.process
    outer = known.legs.get((place, at_nic or ends)) if proto == "tcp" else None
    if outer is not None:
        srtt_us, retransmits = outer["srtt_us"], outer["retransmits"]
    carrier = known.carriers.get(flow.cookie, ABSENT)
    return records.flow.Flow(
        known.instance,
        kind,
        proto,
        *ends,
        DIRECTIONS.get(decision.direction),
        ABSENT,
        names.stack(decision.stack),
        names.stack(decision.wanted),
        NESTED if carrier else WHY.get(decision.why, ""),
        names.table(decision.table),
        names.rule(decision.generation, decision.rule),
        names.route(decision.generation, decision.route),
        decision.generation,
        _state(state),
        decision.pid,
        abi.text(decision.comm),
        decision.uid,
        names.cgroup(decision.cgroup_id),
        sent,
        received,
        srtt_us,
        retransmits,
        flow.cookie,
        _age_s(flow.opened_ns, known.now_ns),
        carrier,
        *_leg(outer),
        **told,
    )


def of_datagrams(flow: Struct, known: Known) -> records.flow.Flow:
    """A `struct dmm_flow` of a UDP socket's exchange with a peer."""
    own = flow.netns_cookie == known.netns_cookie
    return _of_socket(flow, None, known, "socket" if own else "container", None)


def _choice(decision: Any, names: Names) -> dict[str, Any]:
    """chosen and choice, where the program has asked for a stack."""
    state = CHOICES.get(decision.choice)
    return {"chosen": names.stack(decision.chosen), "choice": state} if state else {}


def of_others(one: Any, device: str | None, pair: Pair, known: Known) -> records.flow.Flow:
    """A `struct dmm_forwarded` without a socket: src is who opened it, before any translation.
    device: by which it came in. pair: as the NIC has it.
    """
    names = known.names
    stack = names.stack(one.stack)
    outer = known.legs.get(((one.stack, one.process), pair))
    return records.flow.Flow(
        known.instance,
        "forwarded",
        "tcp",
        *pair_text(one.pair),
        "forward",
        device,
        stack,
        stack,
        "",
        names.table(one.table),
        names.rule(one.generation, one.rule),
        names.route(one.generation, one.route),
        one.generation,
        UNTOLD if outer is None else _state(outer["outer_state"]),
        pid=0,
        comm="",
        uid=0,
        cgroup=None,
        bytes_sent=0,
        bytes_received=0,
        srtt_us=0 if outer is None else outer["srtt_us"],
        retransmits=0 if outer is None else outer["retransmits"],
        cookie=0,
        age_s=_age_s(one.opened_ns, known.now_ns),
        carrier=ABSENT,
        **dict(zip(LEG, _leg(outer), strict=True)),
    )


LEG = (
    *("copies", "copies_needed", "parity", "peer_repaired", "repaired"),
    *("cwnd_bytes", "pacing_Bps"),
    *("outer_state", "congestion", "transport", "agreed", "agreement"),
)
_NO_LEG = (ABSENT,) * len(LEG)


def _leg(outer: Leg | None) -> tuple[Any, ...]:
    """Those of LEG."""
    if outer is None:
        return _NO_LEG
    known = {**outer, "outer_state": _state(outer["outer_state"])}
    return tuple([known[name] for name in LEG])


def _state(number: int) -> str:
    return STATES.get(number) or str(number)


def _age_s(opened_ns: int, now_ns: int) -> float:
    return round(max(0, now_ns - opened_ns) / 1e9, 3)


async def legs_of(
    told: AsyncIterator[tuple[Place, dict[str, Any]]],
) -> dict[tuple[Place, Pair], Leg]:
    """Known.legs by what StackManager.connections() tells."""
    found: dict[tuple[Place, Pair], Leg] = {}
    async for place, one in told:
        found[place, (one["laddr"], one["lport"], one["raddr"], one["rport"])] = one
    return found


def pair_text(pair: Any) -> tuple[str, int, str, int]:
    """A `struct dmm_addr_pair`, or a key that is one, as local address and port, remote
    address and port.
    """
    return _addr(pair.laddr), _port(pair.lport_be), _addr(pair.raddr), _port(pair.rport_be)


def is_decided(event: Struct) -> bool:
    """Whether it is known by then who carries the flow that a ring buffer record is about."""
    return event.type in {C.DMM_EVENT_ESTABLISHED, C.DMM_EVENT_CLOSE}


def of_event(
    event: Struct, instance: str, names: Names, carriers: Mapping[int, str]
) -> records.flow.FlowEvent:
    """A ring buffer record. carriers: see Known; of what is not decided yet none is told."""
    now_ns = time.monotonic_ns()
    known = Known(instance, names, now_ns, carriers=carriers if is_decided(event) else {})
    flow = _of_socket(event.flow, None, known, "socket", None)
    wall = time.time() - (now_ns - event.time_ns) / 1e9
    ended: Maybe[str] = ABSENT
    if event.type == C.DMM_EVENT_CLOSE:
        ended = reason(event.before, event.error, process_gone=bool(event.process_gone))
    return records.flow.FlowEvent(EVENTS[event.type], round(wall, 6), flow, ended)


def of_listener(
    key: Any, one: Struct, instance: str, generation: int, names: Names
) -> records.flow.Listener:
    """An entry of `listeners`."""
    half = generation & 1
    return records.flow.Listener(
        instance=instance,
        proto=PROTOCOLS[key.proto],
        addr=_addr(key.addr),
        port=_port(key.port_be),
        rule=names.rule(generation, one.rules[half]),
        table=names.table(one.tables[half]),
        pid=one.pid,
        comm=abi.text(one.comm),
        uid=one.uid,
        cgroup=names.cgroup(one.cgroup_id),
        sockets=one.count,
        chosen=names.stack(one.chosen[half] - 1) if one.chosen[half] else ABSENT,
    )


def by_stack(
    records: Iterable[Struct],
    forwarded: Iterable[Struct],
    open_cookies: Callable[[set[int]], set[int]],
) -> Counter[int]:
    """How many flows each stack has, by its id, of those that a listing has: of_socket()
    leaves the others out.

    forwarded: struct dmm_forwarded. open_cookies: which of some cookies are those of sockets
    that there are.
    """
    flows = list(records)
    there = open_cookies({flow.cookie for flow in flows if not flow.state}) if flows else set()
    counts = Counter(
        int(flow.decision.stack) for flow in flows if flow.state or flow.cookie in there
    )
    counts.update(int(one.stack) for one in forwarded if not one.cookie)
    return counts


def counters_dict(read: Callable[[int], list[int]]) -> dict[str, int]:
    """The per-CPU counters, summed. read gives the values of one on every CPU."""
    return {name: sum(read(index)) for index, name in COUNTERS.items()}


def _port(port_be: int) -> int:
    return socket.ntohs(port_be)


def _addr(array: Any) -> str:
    return abi.addr_text(bytes(array))

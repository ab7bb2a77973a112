# SPDX-License-Identifier: Apache-2.0
"""Flow and listener records as the CLI shows them: BPF map records put together with live
figures and names.

Pure: takes bytes of the maps, what inet_diag and the stack processes said, and gives plain
dictionaries. Addresses are text, times are seconds, everything else has its unit in its name.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.rd.director.ending import reason
from dmm_ebpf.tcpstates import TCP_STATES

UNTOLD = "?"
# 0 is ours: the record does not say, inet_diag does.
STATES = {0: UNTOLD} | {state.number: state.name for state in TCP_STATES}
DIRECTIONS = {
    C.DMM_DIR_CONNECT: "connect",
    C.DMM_DIR_LISTEN: "listen",
    C.DMM_DIR_FORWARD: "forward",
}
SOCKET, CONTAINER, FORWARDED = "socket", "container", "forwarded"
EVENTS = {
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
}
WHY = {
    C.DMM_WHY_DOWN: "down",
    C.DMM_WHY_FULL: "full",
    C.DMM_WHY_DEVICE: "device",
    C.DMM_WHY_SOCKET: "socket",
    C.DMM_WHY_PEER: "peer",
    C.DMM_WHY_OPTION: "option",
    C.DMM_WHY_ATTACH: "attach",
}


class Names(Protocol):
    """What numbers in the maps are called, by the generation they were decided under."""

    def stack(self, stack_id: int) -> str: ...

    def table(self, table: int) -> str | None: ...

    def rule(self, generation: int, rule: int) -> str | None: ...

    def route(self, generation: int, route: int) -> str | None: ...

    def cgroup(self, cgroup_id: int) -> str | None: ...


def flow_dict(flow: Any, instance: str, names: Names, now_ns: int) -> dict[str, Any]:
    """A `struct dmm_flow` as the JSON of `dmm-ebpf flows`."""
    decision, pair = flow.decision, flow.pair
    return {
        "instance": instance,
        "kind": SOCKET,
        "proto": "tcp",
        **dict(zip(("src", "sport", "dst", "dport"), pair_text(pair), strict=True)),
        "direction": DIRECTIONS.get(decision.direction),
        "stack": names.stack(decision.stack),
        "wanted": names.stack(decision.wanted),
        "why": WHY.get(decision.why, ""),
        "table": names.table(decision.table),
        "rule": names.rule(decision.generation, decision.rule),
        "route": names.route(decision.generation, decision.route),
        "generation": decision.generation,
        "state": STATES.get(flow.state, str(flow.state)),
        "pid": decision.pid,
        "comm": abi.text(decision.comm),
        "uid": decision.uid,
        "cgroup": names.cgroup(decision.cgroup_id),
        "bytes_sent": flow.bytes_sent,
        "bytes_received": flow.bytes_received,
        "srtt_us": flow.srtt_us,
        "retransmits": flow.retransmits,
        "cookie": flow.cookie,
        "age_s": round(max(0, now_ns - flow.opened_ns) / 1e9, 3),
    }


def forwarded_dict(
    one: Any, instance: str, names: Names, device: str | None, now_ns: int
) -> dict[str, Any]:
    """A `struct dmm_forwarded` without a socket, as flow_dict() has others: src is who opened it,
    before any translation. device: by which it came in.
    """
    stack = names.stack(one.stack)
    return {
        "instance": instance,
        "kind": FORWARDED,
        "proto": "tcp",
        **dict(zip(("src", "sport", "dst", "dport"), pair_text(one.pair), strict=True)),
        "direction": DIRECTIONS[C.DMM_DIR_FORWARD],
        "in_interface": device,
        "stack": stack,
        "wanted": stack,
        "why": "",
        "table": names.table(one.table),
        "rule": names.rule(one.generation, one.rule),
        "route": names.route(one.generation, one.route),
        "generation": one.generation,
        "state": UNTOLD,
        "pid": 0,
        "comm": "",
        "uid": 0,
        "cgroup": None,
        "bytes_sent": 0,
        "bytes_received": 0,
        "srtt_us": 0,
        "retransmits": 0,
        "cookie": 0,
        "age_s": round(max(0, now_ns - one.opened_ns) / 1e9, 3),
    }


def pair_text(pair: Any) -> tuple[str, int, str, int]:
    """A `struct dmm_addr_pair`, or a key that is one, as local address and port, remote
    address and port.
    """
    return _addr(pair.laddr), _port(pair.lport_be), _addr(pair.raddr), _port(pair.rport_be)


def event_dict(event: Struct, instance: str, names: Names) -> dict[str, Any]:
    """A ring buffer record as the JSON of `dmm-ebpf flows --follow`."""
    now_ns = time.monotonic_ns()
    flow = flow_dict(event.flow, instance, names, now_ns)
    wall = time.time() - (now_ns - event.time_ns) / 1e9
    told = {"type": EVENTS.get(event.type, str(event.type)), "time": round(wall, 6), **flow}
    if event.type == C.DMM_EVENT_CLOSE:
        told["reason"] = reason(event.before, event.error, process_gone=bool(event.process_gone))
    return told


def listener_dict(
    key: Any, one: Struct, instance: str, generation: int, names: Names
) -> dict[str, Any]:
    """An entry of `listeners` as the JSON of `dmm-ebpf listeners`."""
    half = generation & 1
    return {
        "instance": instance,
        "addr": _addr(key.addr),
        "port": _port(key.port_be),
        "rule": names.rule(generation, one.rules[half]),
        "table": names.table(one.tables[half]),
        "pid": one.pid,
        "comm": abi.text(one.comm),
        "uid": one.uid,
        "cgroup": names.cgroup(one.cgroup_id),
        "sockets": one.count,
    }


Live = Mapping[str, Any]
Pair = tuple[str, int, str, int]


def merge_live(
    flows: Iterable[dict[str, Any]], by_cookie: Mapping[int, Live], by_pair: Mapping[Pair, Live]
) -> list[dict[str, Any]]:
    """Flows with the newest state and figures: merge() of each with what is known of it, by
    cookie and by pair.
    """
    merged = (merge(flow, by_cookie.get(flow["cookie"]), by_pair) for flow in flows)
    return [flow for flow in merged if flow is not None]


def merge(
    flow: dict[str, Any],
    live: Live | None,
    by_pair: Mapping[Pair, Live],
    at_nic: Pair | None = None,
) -> dict[str, Any] | None:
    """flow with the newest state and figures; None for one to be left out.

    live: its socket as hal.sockdiag.TcpSocket has it; exact now, where the map's record is as old
    as the last change of state. A record that says no state, and has no socket, is left out: its
    connect() has failed, or it has just ended.
    by_pair: what a stack process says of its outer leg, by (src, sport, dst, dport); for a user
    stack's flow the round trip, the retransmissions and the window are those of the path, not of
    the hop to the stack process.
    at_nic: the flow as the NIC has it, where that is known to be another.
    """
    if live is None and flow["state"] == UNTOLD and flow.get("kind") != FORWARDED:
        return None
    if live is not None:
        flow["state"] = STATES.get(live["state"], str(live["state"]))
        for ours, theirs in (
            ("src", "laddr"),
            ("sport", "lport"),
            ("dst", "raddr"),
            ("dport", "rport"),
        ):
            flow[ours] = live[theirs]
        flow["bytes_sent"] = max(flow["bytes_sent"], live["bytes_acked"])
        flow["bytes_received"] = max(flow["bytes_received"], live["bytes_received"])
        flow["srtt_us"] = live["rtt_us"]
        flow["retransmits"] = live["total_retrans"]
    outer = by_pair.get(at_nic or (flow["src"], flow["sport"], flow["dst"], flow["dport"]))
    if outer is not None:
        if flow.get("kind") == FORWARDED:
            flow["state"] = STATES.get(outer["outer_state"], str(outer["outer_state"]))
        flow["srtt_us"] = outer["srtt_us"]
        flow["retransmits"] = outer["retransmits"]
        flow["cwnd_bytes"] = outer["cwnd_bytes"]
        flow["pacing_Bps"] = outer["pacing_Bps"]
        flow["outer_state"] = STATES.get(outer["outer_state"], str(outer["outer_state"]))
        flow["congestion"] = outer["congestion"]
    return flow


def by_stack(
    records: Iterable[Struct],
    forwarded: Iterable[Struct],
    open_cookies: Callable[[set[int]], set[int]],
) -> Counter[int]:
    """How many flows each stack has, by its id, of those that a listing has: merge() leaves
    the others out.

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

# SPDX-License-Identifier: Apache-2.0
"""Flow and listener records as the CLI shows them: BPF map records put together with live figures and names.

Pure: takes bytes of the maps, what inet_diag and the stack processes said, and gives plain dictionaries. Addresses
are text, times are seconds, everything else has its unit in its name.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dmm_ebpf import abi

C = abi.C

_COOKIE_AT = abi.offset("dmm_flow", "cookie")
UNTOLD = "?"
# include/net/tcp_states.h; 0 is ours: the record does not say, inet_diag does.
TCP_STATES = {
    0: UNTOLD,
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
}
DIRECTIONS = {C.DMM_DIR_CONNECT: "connect", C.DMM_DIR_LISTEN: "listen"}
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
}
WHY = {
    C.DMM_WHY_DOWN: "down",
    C.DMM_WHY_FULL: "full",
    C.DMM_WHY_DEVICE: "device",
    C.DMM_WHY_SOCKET: "socket",
    C.DMM_WHY_PEER: "peer",
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
        "state": TCP_STATES.get(flow.state, str(flow.state)),
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


def pair_text(pair: Any) -> tuple[str, int, str, int]:
    """A `struct dmm_addr_pair` as local address and port, remote address and port."""
    return _addr(pair.laddr), _port(pair.lport_be), _addr(pair.raddr), _port(pair.rport_be)


def event_dict(record: bytes, instance: str, names: Names) -> dict[str, Any]:
    """A ring buffer record as the JSON of `dmm-ebpf flows --follow`."""
    event = abi.unpack("dmm_event", record)
    now_ns = time.monotonic_ns()
    flow = flow_dict(event.flow, instance, names, now_ns)
    wall = time.time() - (now_ns - event.time_ns) / 1e9
    return {"type": EVENTS.get(event.type, str(event.type)), "time": round(wall, 6), **flow}


def listener_dict(key: bytes, value: bytes, instance: str, generation: int, names: Names) -> dict[str, Any]:
    """A record of `listeners` as the JSON of `dmm-ebpf listeners`."""
    k = abi.unpack("dmm_listener_key", key)
    v = abi.unpack("dmm_listener", value)
    half = generation & 1
    return {
        "instance": instance,
        "addr": _addr(k.addr),
        "port": _port(k.port_be),
        "rule": names.rule(generation, v.rules[half]),
        "table": names.table(v.tables[half]),
        "pid": v.pid,
        "comm": abi.text(v.comm),
        "uid": v.uid,
        "cgroup": names.cgroup(v.cgroup_id),
        "sockets": v.count,
    }


Live = Mapping[str, Any]
Pair = tuple[str, int, str, int]


def merge_live(
    flows: Iterable[dict[str, Any]], by_cookie: Mapping[int, Live], by_pair: Mapping[Pair, Live]
) -> list[dict[str, Any]]:
    """Flows with the newest state and figures: merge() of each with what is known of it, by cookie and by pair."""
    merged = (merge(flow, by_cookie.get(flow["cookie"]), by_pair) for flow in flows)
    return [flow for flow in merged if flow is not None]


def merge(flow: dict[str, Any], live: Live | None, by_pair: Mapping[Pair, Live]) -> dict[str, Any] | None:
    """flow with the newest state and figures; None for one to be left out.

    live: its socket as hal.sockdiag.TcpSocket has it; exact now, where the map's record is as old as the last change of
    state. A record that says no state, and has no socket, is left out: its connect() has failed, or it has just ended.
    by_pair: what a stack process says of its outer leg, by (src, sport, dst, dport); for a user stack's flow the
    round trip, the retransmissions and the window are those of the path, not of the hop to the stack process.
    """
    if live is None and flow["state"] == UNTOLD:
        return None
    if live is not None:
        flow["state"] = TCP_STATES.get(live["state"], str(live["state"]))
        for ours, theirs in (("src", "laddr"), ("sport", "lport"), ("dst", "raddr"), ("dport", "rport")):
            flow[ours] = live[theirs]
        flow["bytes_sent"] = max(flow["bytes_sent"], live["bytes_acked"])
        flow["bytes_received"] = max(flow["bytes_received"], live["bytes_received"])
        flow["srtt_us"] = live["rtt_us"]
        flow["retransmits"] = live["total_retrans"]
    outer = by_pair.get((flow["src"], flow["sport"], flow["dst"], flow["dport"]))
    if outer is not None:
        flow["srtt_us"] = outer["srtt_us"]
        flow["retransmits"] = outer["retransmits"]
        flow["cwnd_bytes"] = outer["cwnd_bytes"]
        flow["pacing_Bps"] = outer["pacing_Bps"]
        flow["outer_state"] = TCP_STATES.get(outer["outer_state"], str(outer["outer_state"]))
        flow["congestion"] = outer["congestion"]
    return flow


def cookie_of(record: bytes) -> int:
    """The socket cookie of a `struct dmm_flow`."""
    return int.from_bytes(record[_COOKIE_AT : _COOKIE_AT + 8], sys.byteorder)


def counters_dict(read: Callable[[bytes], list[bytes]]) -> dict[str, int]:
    """The per-CPU counters, summed. read gives the values of one key on every CPU."""
    totals = {}
    for index, name in COUNTERS.items():
        values = read(index.to_bytes(4, sys.byteorder))
        totals[name] = sum(int.from_bytes(v[:8], sys.byteorder) for v in values)
    return totals


def _port(port_be: int) -> int:
    return socket.ntohs(port_be)


def _addr(array: Any) -> str:
    return abi.addr_text(bytes(abi.ffi.buffer(array)))

# SPDX-License-Identifier: Apache-2.0
"""Flow records as the CLI shows them."""

import time

from dmm_ebpf import abi
from dmm_ebpf.hal.sockdiag import TcpSocket
from dmm_ebpf.rd.director import flows

C = abi.C


class Names:
    def stack(self, stack_id):
        return {0: "kernel", 3: "wan"}[stack_id]

    def table(self, table):
        return {1: "shop"}.get(table)

    def rule(self, generation, rule):
        return f"g{generation}r{rule}" if rule else None

    def route(self, generation, route):
        return None if route == C.DMM_ROUTE_NONE else f"g{generation}:{route}"

    def cgroup(self, cgroup_id):
        return "/shop" if cgroup_id == 9 else None


def record(**decision):
    flow = abi.new("dmm_flow", cookie=77, state=1, bytes_sent=10, bytes_received=20, srtt_us=50)
    flow.opened_ns = time.monotonic_ns() - 2_000_000_000
    pair = flow.pair
    abi.ffi.buffer(pair.laddr)[:] = abi.addr16("10.0.0.1")
    abi.ffi.buffer(pair.raddr)[:] = abi.addr16("2001:db8::1")
    pair.lport_be, pair.rport_be = 0x3930, 0xBB01
    for key, value in {
        "stack": 3,
        "wanted": 3,
        "table": 1,
        "rule": 2,
        "generation": 5,
        **decision,
    }.items():
        setattr(flow.decision, key, value)
    flow.decision.comm = b"curl"
    flow.decision.cgroup_id = 9
    flow.decision.direction = C.DMM_DIR_CONNECT
    return flow


def test_a_flow_has_every_field_that_is_promised():
    row = flows.flow_dict(record(route=4), "default", Names(), time.monotonic_ns())
    expected = {
        "instance": "default",
        "proto": "tcp",
        "src": "10.0.0.1",
        "sport": 12345,
        "dst": "2001:db8::1",
        "dport": 443,
        "direction": "connect",
        "stack": "wan",
        "wanted": "wan",
        "why": "",
        "table": "shop",
        "rule": "g5r2",
        "route": "g5:4",
        "state": "ESTABLISHED",
        "comm": "curl",
        "cgroup": "/shop",
        "bytes_sent": 10,
        "bytes_received": 20,
        "srtt_us": 50,
    }
    assert expected.items() <= row.items()
    assert 1.9 < row["age_s"] < 60


def test_why_the_kernel_serves_what_its_route_gives_to_a_stack():
    def why(number):
        return flows.flow_dict(record(stack=0, why=number), "x", Names(), time.monotonic_ns())[
            "why"
        ]

    reasons = {
        "down": C.DMM_WHY_DOWN,
        "full": C.DMM_WHY_FULL,
        "device": C.DMM_WHY_DEVICE,
        "socket": C.DMM_WHY_SOCKET,
        "peer": C.DMM_WHY_PEER,
    }
    assert {name: why(number) for name, number in reasons.items()} == {
        name: name for name in reasons
    }
    assert why(0) == ""


def test_what_nothing_decided_is_null():
    row = flows.flow_dict(
        record(route=C.DMM_ROUTE_NONE, rule=0, table=0, stack=0, wanted=0),
        "x",
        Names(),
        time.monotonic_ns(),
    )
    assert (row["stack"], row["rule"], row["table"], row["route"]) == ("kernel", None, None, None)


def socket_of(**figures):
    ends = {"laddr": "10.0.0.1", "lport": 12345, "raddr": "2001:db8::1", "rport": 443}
    return vars(TcpSocket(family=2, state=1, **ends, cookie=77, uid=0, inode=1, **figures))


def test_a_record_that_does_not_say_its_state_is_told_by_its_socket_or_is_none():
    flow = record(route=0)
    abi.ffi.buffer(flow.pair.laddr)[:] = bytes(16)
    flow.pair.lport_be = flow.state = 0
    rows = [flows.flow_dict(flow, "x", Names(), time.monotonic_ns()) for _ in range(2)]
    (merged,) = flows.merge_live(rows[:1], {77: socket_of()}, {})
    assert (merged["src"], merged["sport"], merged["state"]) == ("10.0.0.1", 12345, "ESTABLISHED")
    assert flows.merge_live(rows[1:], {}, {}) == []


def test_live_figures_replace_old_ones_and_the_outer_leg_rules_the_round_trip():
    row = flows.flow_dict(record(route=0), "x", Names(), time.monotonic_ns())
    live = {77: socket_of(bytes_acked=100, bytes_received=5, rtt_us=60, total_retrans=1)}
    outer = {
        ("10.0.0.1", 12345, "2001:db8::1", 443): {
            "srtt_us": 100_000,
            "retransmits": 9,
            "cwnd_bytes": 1,
            "pacing_Bps": 2,
            "outer_state": 1,
            "congestion": "wan",
        }
    }
    (merged,) = flows.merge_live([row], live, outer)
    assert (merged["bytes_sent"], merged["bytes_received"]) == (100, 20)
    assert (merged["srtt_us"], merged["retransmits"], merged["outer_state"]) == (
        100_000,
        9,
        "ESTABLISHED",
    )


def test_counters_are_summed_over_the_cpus():
    totals = flows.counters_dict(lambda key: [1, 2])
    assert set(totals.values()) == {3}
    assert len(totals) == C.DMM_CNT_MAX

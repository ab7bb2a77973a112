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


def known(**more):
    return flows.Known("default", Names(), time.monotonic_ns(), **more)


def listed(flow, live=None, **more):
    return flows.of_socket(flow, live, known(**more))


def test_a_flow_has_every_field_that_is_promised():
    row = listed(record(route=4)).to_map()
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
    reasons = {
        "down": C.DMM_WHY_DOWN,
        "full": C.DMM_WHY_FULL,
        "device": C.DMM_WHY_DEVICE,
        "socket": C.DMM_WHY_SOCKET,
        "peer": C.DMM_WHY_PEER,
        "": 0,
    }
    for name, number in reasons.items():
        assert listed(record(stack=0, why=number)).why == name


def test_what_nothing_decided_is_null():
    row = listed(record(route=C.DMM_ROUTE_NONE, rule=0, table=0, stack=0, wanted=0))
    assert (row.stack, row.rule, row.table, row.route) == ("kernel", None, None, None)


def socket_of(**figures):
    ends = {"laddr": "10.0.0.1", "lport": 12345, "raddr": "2001:db8::1", "rport": 443}
    return TcpSocket(family=2, state=1, **ends, cookie=77, uid=0, inode=1, **figures)


def test_a_record_that_does_not_say_its_state_is_told_by_its_socket_or_is_none():
    flow = record(route=0)
    abi.ffi.buffer(flow.pair.laddr)[:] = bytes(16)
    flow.pair.lport_be = flow.state = 0
    row = listed(flow, socket_of())
    assert (row.src, row.sport, row.state) == ("10.0.0.1", 12345, "ESTABLISHED")
    assert listed(flow) is None


LEG = {
    "srtt_us": 100_000,
    "retransmits": 9,
    "cwnd_bytes": 1,
    "pacing_Bps": 2,
    "outer_state": 1,
    "congestion": "wan",
    "transport": "gbn",
    "copies": 4,
    "copies_needed": 2,
    "parity": 9,
    "peer_repaired": 3,
    "repaired": 1,
    "agreed": "copies",
    "agreement": "agreed",
}


def test_live_figures_replace_old_ones_and_the_outer_leg_rules_the_round_trip():
    live = socket_of(bytes_acked=100, bytes_received=5, rtt_us=60, total_retrans=1)
    pair = ("10.0.0.1", 12345, "2001:db8::1", 443)
    row = listed(record(route=0, process=1), live, legs={((3, 1), pair): LEG})
    assert (row.bytes_sent, row.bytes_received) == (100, 20)
    assert (row.srtt_us, row.retransmits, row.outer_state) == (100_000, 9, "ESTABLISHED")
    assert (row.agreed, row.agreement, row.transport) == ("copies", "agreed", "gbn")
    assert (row.copies, row.copies_needed) == (4, 2)
    assert (row.parity, row.peer_repaired, row.repaired) == (9, 3, 1)


def test_what_a_process_says_of_the_flow_of_another_is_not_believed():
    live = socket_of(rtt_us=60, total_retrans=1)
    pair = ("10.0.0.1", 12345, "2001:db8::1", 443)
    for liar in ((4, 1), (3, 0)):
        row = listed(record(route=0, process=1), live, legs={(liar, pair): LEG})
        assert (row.srtt_us, row.retransmits) == (60, 1)
        assert "outer_state" not in row.to_map()


# What users' programs read, in its order
SOCKET = [
    "instance",
    "kind",
    "proto",
    "src",
    "sport",
    "dst",
    "dport",
    "direction",
    "stack",
    "wanted",
    "why",
    "table",
    "rule",
    "route",
    "generation",
    "state",
    "pid",
    "comm",
    "uid",
    "cgroup",
    "bytes_sent",
    "bytes_received",
    "srtt_us",
    "retransmits",
    "cookie",
    "age_s",
]
OUTER = [
    *("copies", "copies_needed", "parity", "peer_repaired", "repaired"),
    *("cwnd_bytes", "pacing_Bps"),
    *("outer_state", "congestion", "transport", "agreed", "agreement"),
]


def test_a_flow_that_another_instance_carries():
    row = listed(record(route=0), carriers={77: "upper"})
    assert (row.why, row.carrier) == ("nested", "upper")
    assert list(row.to_map()) == [*SOCKET, "carrier"]


def test_keys_of_a_flow_that_is_forwarded():
    one = abi.new("dmm_forwarded", stack=3, table=1, generation=5)
    pair = ("192.0.2.9", 1, "198.51.100.1", 2)
    for legs, more in (({}, []), ({((3, 0), pair): LEG}, OUTER)):
        row = flows.of_others(one, "eth1", pair, known(legs=legs)).to_map()
        at = SOCKET.index("direction") + 1
        assert list(row) == [*SOCKET[:at], "in_interface", *SOCKET[at:], *more]
        assert (row["kind"], row["in_interface"], row["stack"]) == ("forwarded", "eth1", "wan")
        assert row["state"] == ("ESTABLISHED" if legs else "?")
    assert flows.of_others(one, None, pair, known()).to_map()["in_interface"] is None


def test_keys_of_an_event():
    event = abi.new("dmm_event", type=C.DMM_EVENT_CLOSE)
    told = flows.of_event(event, "default", Names(), {77: "upper"}).to_map()
    assert list(told) == ["type", "time", *SOCKET, "reason"]
    event.type = C.DMM_EVENT_CONNECT
    assert "reason" not in flows.of_event(event, "default", Names(), {77: "upper"}).to_map()


def test_counters_are_summed_over_the_cpus():
    totals = flows.counters_dict(lambda key: [1, 2])
    assert set(totals.values()) == {3}
    assert len(totals) == C.DMM_CNT_MAX

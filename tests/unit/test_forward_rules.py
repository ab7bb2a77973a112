# SPDX-License-Identifier: Apache-2.0
"""Rules for what the host only forwards: what is accepted, what they decide, and for which
devices they hold.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.hal.rtnl import Link
from dmm_ebpf.rd.director.inside import Device, bits_of, wanted
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import Compiled, compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.ids import IdSpace

REST = """
[stacks.u]
kind = "user"
[stacks.k]
kind = "kernel"
[[tables.t.routes]]
to = "203.0.113.0/24"
ports = "443"
stack = "u"
[[tables.t.routes]]
to = "203.0.113.0/24"
stack = "k"
"""


def parse(*rules: str, rest: str = REST) -> policy.Policy:
    text = "".join(f'[[rules]]\ntable = "t"\n{rule}\n' for rule in rules) + rest
    return policy.parse(text, source="policy.toml", base=Path("/"))


def compiled(*rules: str) -> Compiled:
    return compile_policy(parse(*rules), IdSpace(), {}.__getitem__)


def refusal(*rules: str, rest: str = REST) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(*rules, rest=rest)
    return str(caught.value)


FORWARD = 'direction = "forward"\n'


@pytest.mark.parametrize(
    "key", ['cgroup = "/a"', "uid = 0", 'comm = "x"', "mark = 1", 'netns = "x"']
)
def test_what_only_a_socket_has_is_refused(key: str) -> None:
    said = refusal(FORWARD + key)
    assert key.partition(" ")[0] in said
    assert "there is no socket" in said and "in_interface" in said


@pytest.mark.parametrize("key", ['from = "10.0.0.0/8"', 'in_interface = "lan0"'])
@pytest.mark.parametrize("direction", ["", 'direction = "connect"\n', 'direction = "listen"\n'])
def test_what_only_a_forwarded_flow_has_is_refused(key: str, direction: str) -> None:
    assert 'add direction = "forward"' in refusal(direction + key)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("from = []", "the list is empty"),
        ('from = "10.0.0.1/8"', "host bits"),
        ("from = [1]", "is not a prefix"),
        ("in_interface = []", "the list is empty"),
        ('in_interface = "a b"', "is not a network device's name"),
        (
            f'in_interface = ["{128 * "x"}"]',
            "is not a network device's name",
        ),
    ],
)
def test_values_that_are_none(key: str, said: str) -> None:
    assert said in refusal(FORWARD + key)


def test_sixty_four_sources_and_no_more() -> None:
    sources = [f'"10.{n}.0.0/16"' for n in range(63)]
    full = f"{FORWARD}from = [{', '.join(sources)}]"
    assert len(compiled(full, FORWARD).forwards) == 64
    said = refusal(full, FORWARD, FORWARD)
    assert "more than 64 sources" in said and "policy.toml:" in said


def test_a_stack_that_always_answers_by_cookie_is_refused() -> None:
    rest = REST.replace('kind = "user"', 'kind = "user"\nsyn_cookies = "always"')
    assert 'syn_cookies = "auto"' in refusal(FORWARD, rest=rest)
    parse('direction = "listen"', rest=rest)


def test_entries_of_rules() -> None:
    got = compiled(
        'direction = "connect"',
        FORWARD + 'from = ["10.0.0.0/8", "2001:db8::/32"]\nin_interface = ["lan*", "x"]',
        FORWARD,
    )
    entries = list(got.forwards)
    assert [(e.rule, e.family, e.prefixlen, e.named) for e in entries] == [
        (2, 2, 104, 1),
        (2, 10, 32, 1),
        (3, 0, 0, 0),
    ]
    assert [abi.addr_text(bytes(abi.ffi.buffer(e.source))) for e in entries[:2]] == [
        "10.0.0.0",
        "2001:db8::",
    ]
    assert got.by_device == (("lan*", "x"), ("lan*", "x"), None)
    assert got.head.n_forwards == 3
    assert [rule.directions for rule in got.rules] == [
        C.DMM_DIR_CONNECT,
        C.DMM_DIR_FORWARD,
        C.DMM_DIR_FORWARD,
    ]


@pytest.mark.parametrize(
    ("source", "device", "port", "stack", "rule"),
    [
        ("10.1.2.3", "lan0", 443, "u", 2),
        ("10.1.2.3", "lan0", 80, "kernel", 2),  # its options are for sockets
        ("11.1.2.3", "lan0", 443, "kernel", 0),
        ("10.1.2.3", "wan0", 443, "kernel", 0),
        (None, "lan0", 443, "kernel", 0),
        ("10.1.2.3", None, 443, "kernel", 0),
    ],
)
def test_what_route_get_says(
    source: str | None, device: str | None, port: int, stack: str, rule: int
) -> None:
    rules = parse('direction = "connect"', FORWARD + 'from = "10.0.0.0/8"\nin_interface = "lan*"')
    got = route_get(
        rules,
        Query("203.0.113.9", port, source=source, in_interface=device, direction=C.DMM_DIR_FORWARD),
    )
    assert (got.stack, got.rule) == (stack, rule)


def link(index: int, name: str, kind: str = "", master: int = 0, **more: object) -> Link:
    values = {"type": 1, "flags": 1, "peer_away": kind == "veth"} | more
    return Link(
        index=index, name=name, mac=b"", mtu=1500, master=master, kind=kind, qdisc="", rx_queues=1, tx_queues=1,
        xdp_attached=0, xdp_prog_id=0, bus="", bus_name="", **values,  # type: ignore[arg-type]
    )  # fmt: skip


LINKS = [
    link(1, "lo", flags=9, type=772),
    link(2, "eth0"),
    link(3, "docker0", "bridge"),
    link(4, "vethab", "veth", master=3),
    link(5, "calixy", "veth"),
    link(6, "pair0", "veth", peer_away=False),
    link(7, "dmm-0.0.in", "tun"),
    link(8, "wg0", "wireguard", type=0xFFFE),
    link(9, "lan0"),
    link(10, "can0", type=280),
]


def test_devices_of_containers() -> None:
    got = wanted(LINKS, {2}, (), containers=True)
    assert got == {4: Device("vethab", 0, False, True), 5: Device("calixy", 0, False, True)}


def test_devices_of_rules() -> None:
    got = wanted(LINKS, {2}, (("eth0", "cali*"), None, ("vethab",)), containers=False)
    assert {device.name: device.bits for device in got.values()} == {
        "eth0": 0b011,
        "docker0": 0b010,
        "vethab": 0b100,  # its bridge is meant by a rule that names none
        "calixy": 0b011,
        "pair0": 0b010,
        "wg0": 0b010,
        "lan0": 0b010,
    }
    assert [device.name for device in got.values() if not device.ours] == ["eth0"]
    assert [device.name for device in got.values() if device.bare] == ["wg0"]


def test_bits_in_the_order_of_the_rules() -> None:
    patterns = [("a?",), ("b*", "aa"), None]
    assert [bits_of([name], False, patterns) for name in ("aa", "b", "c")] == [0b111, 0b110, 0b100]


def test_a_rule_may_name_a_device_by_its_altname() -> None:
    called = [link(2, "ens3", altnames=("enp0s3", "to-the-lan")), link(3, "ens4")]
    got = wanted(called, (), (("enp0s*",), ("to-the-lan",), ("ens4",)), containers=False)
    assert {device.name: device.bits for device in got.values()} == {"ens3": 0b011, "ens4": 0b100}


def test_a_mapped_prefix_is_the_plain_one() -> None:
    first = compiled(FORWARD + 'from = "192.0.2.0/24"').forwards
    assert ipaddress.ip_network("192.0.2.0/24").prefixlen + 96 == first[0].prefixlen


def test_what_was_not_said_of_a_forwarded_flow_is_told() -> None:
    rule = FORWARD + 'from = "10.0.0.0/8"\nin_interface = "lan0"\n'

    def unasked(**said: str) -> list[tuple[str, ...]]:
        query = Query("203.0.113.7", 443, direction=C.DMM_DIR_FORWARD, **said)
        return [needs for _, needs in route_get(parse(rule), query).unasked]

    assert unasked() == [("source", "in_interface")]
    assert unasked(in_interface="lan0") == [("source",)]
    assert unasked(source="10.1.2.3") == [("in_interface",)]
    assert unasked(in_interface="eth0") == unasked(source="192.0.2.1") == []
    six = Query("2001:db8::7", 443, direction=C.DMM_DIR_FORWARD)
    assert route_get(parse(rule), six).unasked == ()

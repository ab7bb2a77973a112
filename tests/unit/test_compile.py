# SPDX-License-Identifier: Apache-2.0
"""What single policies compile to, byte for byte, and what only the host can refuse."""

from __future__ import annotations

import errno
import itertools
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_lpm import entries, nodes

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError, UsageError
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import Compiled, compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.portsets import MISS, Layer, paint, trie_entries
from dmm_ebpf.rd.policy.usual import Usual

CGROUPS = {"/a/b": (4711, 2)}
STACKS = """
[stacks.k]
kind = "kernel"
congestion = "bbr"
dscp = "af21"
mark = "0x10/0xf0"
pacing_rate = 1000
priority = 3
[stacks.u]
kind = "user"
fallback = "k"
"""


def compiled(text: str, **options: object) -> Compiled:
    parsed = policy.parse(text, source="policy.toml", base=Path("/"))
    ids = options.pop("ids", None) or IdSpace()
    return compile_policy(parsed, ids, CGROUPS.__getitem__, **options)


def route(to: str, stack: str, extra: str = "") -> str:
    return f'[[tables.t.routes]]\nto = "{to}"\nstack = "{stack}"\n{extra}'


def test_rules_that_lead_to_mptcp_say_so_and_those_that_only_except_do_not() -> None:
    text = '[stacks.multi]\nkind = "kernel"\nmptcp = true\n' + route("10.0.0.0/8", "multi")
    text += '[[tables.o.routes]]\nto = "default"\nstack = "kernel"\n'
    text += '[[rules]]\nuid = 1\ntable = "o"\n[[rules]]\nnot = { uid = 2 }\ntable = "t"\n'
    text += '[[rules]]\ndirection = "forward"\ntable = "t"\n'
    out = compiled(text)
    of = [(rule.number, rule.skip, bool(rule.flags & C.DMM_RULE_MPTCP)) for rule in out.rules]
    assert of[:3] == [(1, 0, False), (2, 1, False), (2, 0, True)]
    assert not any(multi for number, _, multi in of if number == 3)
    assert out.makes_mptcp and not compiled(text.replace("true", "false")).makes_mptcp


def test_stacks() -> None:
    ids = IdSpace()
    out = compiled(STACKS + route("default", "u") + route("10.0.0.0/8", "reject"), ids=ids)
    kernel = out.stacks[ids.stack("k")]
    assert kernel.kind == C.DMM_STACK_KERNEL
    assert kernel.flags == (
        C.DMM_SET_CONGESTION
        | C.DMM_SET_DSCP
        | C.DMM_SET_MARK
        | C.DMM_SET_PACING
        | C.DMM_SET_PRIORITY
    )
    assert (kernel.mark, kernel.mark_mask, kernel.priority, kernel.max_pacing_rate_Bps) == (
        0x10,
        0xF0,
        3,
        1000,
    )
    assert (kernel.dscp, abi.text(kernel.congestion)) == (18, "bbr")
    user = out.stacks[ids.stack("u")]
    assert (user.kind, user.mark, user.mark_mask) == (C.DMM_STACK_USER, 0, 0)
    assert user.flags == C.DMM_SET_CONGESTION
    assert (user.fallback, abi.text(user.congestion)) == (ids.stack("k"), "reno")
    refusing = out.stacks[ids.stack("reject")]
    assert (refusing.kind, refusing.refusal) == (C.DMM_STACK_REJECT, errno.EPERM)
    assert out.head.datagrams
    plain = out.stacks[0]
    assert (plain.kind, plain.flags) == (C.DMM_STACK_KERNEL, 0)


@pytest.mark.parametrize("kind", ["kernel", "user"])
def test_when_a_silent_peer_is_dead(kind: str) -> None:
    ids = IdSpace()
    keys = f'[stacks.s]\nkind = "{kind}"\nuser_timeout_ms = 5000\nkeepalive_time_s = 10\nkeepalive_probes = 3\n'
    out = compiled(keys + route("default", "s"), ids=ids, usual=Usual("bbr", 600, 60, 5))
    stack = out.stacks[ids.stack("s")]
    wanted, usual = stack.patience, stack.usual_patience
    assert stack.flags & (C.DMM_SET_USER_TIMEOUT | C.DMM_SET_KEEPALIVE) == (
        C.DMM_SET_USER_TIMEOUT | C.DMM_SET_KEEPALIVE
    )
    got = (wanted.keepalive_time_s, wanted.keepalive_intvl_s, wanted.keepalive_probes)
    assert (wanted.user_timeout_ms, *got) == (5000, 10, 0, 3)
    of_all = (usual.keepalive_time_s, usual.keepalive_intvl_s, usual.keepalive_probes)
    assert (usual.user_timeout_ms, *of_all) == (0, 600, 60, 5)


def test_a_user_stack_that_nothing_names_is_a_name_alone() -> None:
    ids = IdSpace()

    def kind(text: str) -> int:
        found = compiled(text, ids=ids).stacks[ids.stack("u")]
        assert abi.text(found.name) == "u"
        return int(found.kind)

    assert kind(STACKS) == 0
    assert kind(STACKS + route("default", "u")) == C.DMM_STACK_USER
    assert kind(STACKS + '[[rules]]\nchoose = ["u"]\n') == C.DMM_STACK_USER


def test_what_programs_may_choose_is_a_bit_for_each_stack() -> None:
    ids = IdSpace()
    (rule,) = compiled(STACKS + '[[rules]]\nchoose = ["u", "kernel"]\ndscp = "ef"\n', ids=ids).rules
    assert rule.choose == 1 << ids.stack("u") | 1 << ids.stack("kernel")
    assert (rule.table, rule.flags, rule.dscp) == (0, C.DMM_RULE_DSCP, 46)


def test_rules() -> None:
    ids = IdSpace()
    out = compiled(
        """
[[rules]]
table = "t"
cgroup = "//a/b/"
uid = "10-20"
comm = "fifteen-letters"
mark = "0x1/0x3"
netns = "blue"
direction = "listen"
[[rules]]
name = "rest"
table = "t"
[tables.t]
""",
        ids=ids,
        netns_lookup={"blue": 77}.__getitem__,
    )
    first, second = out.rules
    assert first.flags == (
        C.DMM_RULE_CGROUP | C.DMM_RULE_UID | C.DMM_RULE_COMM | C.DMM_RULE_MARK | C.DMM_RULE_NETNS
    )
    assert (first.directions, first.table) == (C.DMM_DIR_LISTEN, ids.table("t"))
    assert (first.cgroup_id, first.cgroup_level, first.netns_cookie) == (4711, 2, 77)
    assert (first.uid_first, first.uid_last, first.mark, first.mark_mask) == (10, 20, 1, 3)
    assert abi.text(first.comm) == "fifteen-letters"
    assert (second.flags, second.directions) == (0, C.DMM_DIR_CONNECT | C.DMM_DIR_LISTEN)
    assert out.cgroups == {"/a/b": 4711}
    assert (
        out.rule_text(0)
        == "1: cgroup /a/b uid 10-20 comm fifteen-letters mark 0x1/0x3 netns blue listen"
    )
    assert out.rule_text(1) == "rest"
    head = out.head
    assert (head.n_rules, head.n_routes) == (2, 0)


def test_inline_routes() -> None:
    ids = IdSpace()
    out = compiled(STACKS + route("10.1.0.0/16", "u") + route("2001:db8::/32", "k"), ids=ids)
    found_in, table = nodes(out), ids.table("t")
    inside, outside = found_in.lookup(table, 4, 0x0A01FFFF), found_in.lookup(table, 4, 0x0A020000)
    assert (inside.route, inside.stack & 0xFF) == (0, ids.stack("u"))
    assert outside is None
    base = 0x20010DB8 << 96
    inside, outside = found_in.lookup(table, 6, base + 1), found_in.lookup(table, 6, base - 1)
    assert (inside.route, inside.stack & 0xFF) == (1, ids.stack("k"))
    assert outside is None
    assert out.ports.count == 0
    assert [out.route_text(n) for n in (0, 1, 2, C.DMM_ROUTE_NONE)] == [
        "10.1.0.0/16",
        "2001:db8::/32",
        "",
        "",
    ]


def test_ports_of_a_shorter_prefix_are_pushed_down() -> None:
    ids = IdSpace()
    out = compiled(
        STACKS
        + route("10.0.0.0/8", "k", 'proto = "tcp"\nports = 80\n')
        + route("10.1.0.0/16", "u", 'proto = "tcp"\nports = 443\n'),
        ids=ids,
    )
    found_in, table = nodes(out), ids.table("t")
    wide, narrow = found_in.lookup(table, 4, 0x0A000000), found_in.lookup(table, 4, 0x0A010000)
    sets = [value.stack & ~C.DMM_NODE_PORTS for value in (wide, narrow)]
    assert (wide.route, narrow.route) == (0, 1)
    assert sorted(sets) == [1, 2]
    assert all(value.stack & C.DMM_NODE_PORTS for value in (wide, narrow))
    found = set()
    for packed, data in entries(out.ports, "dmm_port_key", "dmm_port_value"):
        key, value = abi.unpack("dmm_port_key", packed), abi.unpack("dmm_port_value", data)
        assert (key.prefixlen, key.proto, key.pad) == (64, socket.IPPROTO_TCP, 0)
        at = sets.index(socket.ntohl(key.portset)), socket.ntohs(key.port_be)
        found.add((*at, value.route, value.stack & 0xFF, bool(value.stack & C.DMM_PORT_OWN)))
    k, u = ids.stack("k"), ids.stack("u")
    assert found == {(0, 80, 0, k, True), (1, 80, 0, k, False), (1, 443, 0, u, True)}


def test_equal_port_sets_are_stored_once() -> None:
    tcp = 'proto = "tcp"\nports = 443\n'
    text = STACKS + route("default", "k")
    text += "".join(route(f"10.{n}.0.0/16", "u", tcp) for n in range(100))
    assert compiled(text).ports.count == 3  # tcp: any, and 443; udp: any
    other = compiled(text + route("10.0.0.0/8", "k", tcp) + route("10.200.0.0/16", "k", tcp))
    assert other.ports.count == 3 * 3  # another length, and another stack


def test_route_covered_by_tcp_and_udp_of_one_prefix() -> None:
    out = compiled(
        STACKS
        + route("10.0.0.0/8", "k", 'proto = "tcp"\n')
        + route("10.0.0.0/8", "u", 'proto = "udp"\n')
    )
    assert (len(nodes(out).said()), out.ports.count) == (1, 2)


def test_duplicate_takes_the_first() -> None:
    out = compiled(STACKS + route("10.0.0.0/8", "k") + route("10.0.0.0/8", "k"))
    ((number, _),) = nodes(out).said()
    assert number == 0


def test_compiling_twice_gives_the_same_bytes() -> None:
    text = (
        STACKS
        + route("default", "u", "ports = '1-1000, 5000'\n")
        + route("10.0.0.0/8", "k", 'proto = "udp"\n')
    )
    one, two = compiled(text), compiled(text)
    for kind in ("routes", "ports"):
        ours, others = getattr(one, kind), getattr(two, kind)
        assert (ours.keys, ours.values) == (others.keys, others.values)
    assert one.stacks.keys() == two.stacks.keys()
    structs = (
        [one.head, *one.rules, *one.stacks.values()],
        [two.head, *two.rules, *two.stacks.values()],
    )
    assert list(map(abi.pack, structs[0])) == list(map(abi.pack, structs[1]))


RULE = '[[rules]]\ntable = "t"\n{}\n[tables.t]\n'


def _absent(path: str) -> tuple[int, int]:
    raise FileNotFoundError(2, "No such file or directory", path)


def _refusal(text: str, **options: object) -> str:
    parsed = policy.parse(text, source="policy.toml", base=Path("/"))
    lookup = options.pop("cgroup_lookup", _absent)
    with pytest.raises(PolicyError) as caught:
        compile_policy(parsed, IdSpace(), lookup, **options)
    return str(caught.value)


def test_cgroup_that_does_not_exist() -> None:
    sentence = _refusal(RULE.format('cgroup = "/a"'))
    assert (
        "policy.toml:3: rule 1, cgroup: the cgroup /a cannot be used (it does not exist)"
        in sentence
    )
    assert "create it first" in sentence

    def lookup(path: str) -> tuple[int, int]:
        raise UsageError(f"use the cgroup {path}", why="there is no such cgroup")

    assert "(there is no such cgroup)" in _refusal(
        RULE.format('cgroup = "/a"'), cgroup_lookup=lookup
    )


def test_network_namespace_that_does_not_exist() -> None:
    def lookup(name: str) -> int:
        raise FileNotFoundError(2, "No such file or directory", name)

    assert "ip netns add blue" in _refusal(RULE.format('netns = "blue"'), netns_lookup=lookup)
    assert "policy.toml:3: rule 1, netns" in _refusal(RULE.format('netns = "blue"'))


def test_congestion_control_that_is_not_loaded() -> None:
    sentence = _refusal(
        '[stacks.a]\nkind = "kernel"\ncongestion = "bbr"\n', congestion_controls=["reno", "cubic"]
    )
    assert (
        'policy.toml:3: stack a, congestion: the congestion control "bbr" is not loaded' in sentence
    )
    assert "modprobe tcp_bbr, or use one of cubic, reno" in sentence


def test_any_mark_may_be_a_kernel_stacks() -> None:
    ids = IdSpace()
    out = compiled('[stacks.a]\nkind = "kernel"\nmark = "0x0dd00000"\n', ids=ids)
    assert out.stacks[ids.stack("a")].mark == 0x0DD00000


ports_strategy = st.one_of(
    st.integers(0, 65535), st.sampled_from([0, 1, 2, 3, 4, 7, 8, 255, 256, 65534, 65535])
)


@st.composite
def layer_lists(draw: st.DrawFn) -> list[Layer]:
    out = []
    for number in range(draw(st.integers(0, 6))):
        first, last = sorted((draw(ports_strategy), draw(ports_strategy)))
        out.append(
            Layer((draw(st.integers(-2, 1)), draw(st.integers(0, 1)), number), first, last, number)
        )
    return out


@given(layer_lists(), st.lists(ports_strategy, max_size=40))
def test_painting_and_trie_entries_say_what_the_layers_say(
    layers: list[Layer], asked: list[int]
) -> None:
    segments = paint(layers)
    trie = trie_entries(segments)
    assert len({(first, bits) for first, bits, _ in trie}) == len(trie)
    edges = {
        p for layer in layers for p in (layer.first - 1, layer.first, layer.last, layer.last + 1)
    }
    for port in {*asked, *(p for p in edges if 0 <= p <= 65535)}:
        over = [layer for layer in layers if layer.first <= port <= layer.last]
        expected = min(over).route if over else MISS
        painted = [route_ for first, last, route_ in segments if first <= port <= last]
        assert (painted or [MISS]) == [expected]
        containing = [
            (bits, r) for first, bits, r in trie if port >> (16 - bits) == first >> (16 - bits)
        ]
        assert (max(containing)[1] if containing else MISS) == expected
    assert all(a[1] < b[0] for a, b in itertools.pairwise(segments))


def test_a_reject_stack_has_its_errno_and_datagrams_are_looked_at_only_for_one_that_is_routed() -> (
    None
):
    stack = '[stacks.no]\nkind = "reject"\nerrno = "ECONNREFUSED"\n'
    ids = IdSpace()
    out = compiled(stack + route("default", "no"), ids=ids)
    refusing = out.stacks[ids.stack("no")]
    assert (refusing.kind, refusing.refusal) == (C.DMM_STACK_REJECT, errno.ECONNREFUSED)
    assert out.head.datagrams == C.DMM_DATAGRAMS_REJECT
    assert not compiled(stack + route("default", "kernel")).head.datagrams


@pytest.mark.parametrize(
    ("option", "proto", "flags", "looked_at"),
    [
        ("", "", 0, 0),
        ("", 'proto = "udp"\n', 0, 0),
        ("udp = true\n", "", C.DMM_CARRIES_UDP, C.DMM_DATAGRAMS_USER),
        ("udp = true\n", 'proto = "tcp"\n', C.DMM_CARRIES_UDP, 0),
    ],
)
def test_datagrams_are_a_user_stack_s_that_says_so(option, proto, flags, looked_at) -> None:
    ids = IdSpace()
    out = compiled(f'[stacks.w]\nkind = "user"\n{option}' + route("default", "w", proto), ids=ids)
    assert out.stacks[ids.stack("w")].flags & C.DMM_CARRIES_UDP == flags
    assert out.head.datagrams == looked_at


@pytest.mark.parametrize(
    ("rule", "served"),
    [
        ('table = "t"\n', True),
        ('table = "t"\ndirection = "listen"\n', True),
        ('table = "t"\ndirection = "connect"\n', False),
        ('table = "u"\n', False),
    ],
)
def test_datagrams_that_peers_begin_are_looked_at_where_a_rule_says_so(rule, served) -> None:
    text = '[stacks.w]\nkind = "user"\nudp = true\n' + route("default", "w")
    text += '[[tables.u.routes]]\nto = "default"\nstack = "w"\nproto = "tcp"\n'
    out = compiled(f"{text}[[rules]]\n{rule}")
    assert out.head.datagrams == C.DMM_DATAGRAMS_USER | C.DMM_DATAGRAMS_SERVED * served

# SPDX-License-Identifier: Apache-2.0
"""sync.apply() on the kernel's own maps: what the tries answer, what a failure leaves, what
becomes of listeners.
"""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from routenodes import Nodes

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import cgroup, maps, programs
from dmm_ebpf.loader.spec import LISTENER_KEY, Maps
from dmm_ebpf.rd.director import sync
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import Compiled, compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.values import parse_address
from lab import Cgroup

SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h
STACKS = """
[stacks.k]
kind = "kernel"
mark = "0x5/0xff"
[stacks.u]
kind = "user"
"""


class KeptTries:
    """loader.maps, keeping a descriptor of each trie that was put in, by kind and half."""

    def __init__(self, too_small: str = "") -> None:
        self.placed: dict[tuple[str, int], maps.Map] = {}
        self.too_small = too_small

    def create_routes_map(self, kind: maps.RoutesKind, max_entries: int) -> maps.Map:
        return maps.create_routes_map(kind, 1 if kind == self.too_small else max_entries)

    def set_inner(self, outer: maps.Map, index: int, inner: maps.Map | None) -> None:
        maps.set_inner(outer, index, inner)
        if inner is not None:
            if (old := self.placed.pop((outer.name, index), None)) is not None:
                old.close()
            self.placed[(outer.name, index)] = maps.Map(os.dup(inner.fd))

    def close(self) -> None:
        for placed in self.placed.values():
            placed.close()


@pytest.fixture
def opened() -> Iterator[Maps]:
    made = programs.create_maps()
    yield made
    programs.close_maps(made)


def _no_listener(key: bytes, half: int, table: int, rule: int, chosen: int) -> None:
    raise AssertionError("there is no listener")


def _compiled(text: str, ids: IdSpace, base: Path = Path("/")) -> tuple[policy.Policy, Compiled]:
    parsed = policy.parse(text, source="policy.toml", base=base)

    def lookup(path: str) -> tuple[int, int]:
        found = cgroup.resolve(path)
        return cgroup.cgroup_id(found), cgroup.level(found)

    return parsed, compile_policy(parsed, ids, lookup)


def _random_policy(rng: random.Random, n: int) -> str:
    """Routes that nest and whose ports meet; the stack follows from the prefix and port,
    so none contradict.
    """
    lines = [STACKS, '[[rules]]\ntable = "t"\n[tables.t]\n']
    for _ in range(n):
        if rng.random() < 0.6:
            net = ipaddress.ip_network(
                (0x0A000000 | rng.getrandbits(16) << 4, rng.choice((8, 12, 20, 24, 30))), False
            )
        else:
            address = (
                int(ipaddress.ip_address("2001:db8::"))
                | rng.getrandbits(12) << 68
                | rng.getrandbits(4)
            )
            net = ipaddress.ip_network((address, rng.choice((32, 48, 56, 64, 126, 128))), False)
        lines.append(
            f'[[tables.t.routes]]\nto = "{net}"\nstack = "{rng.choice("ku") if net.prefixlen % 2 else "k"}"\n'
        )
        if net.prefixlen % 2 == 0 and rng.random() < 0.6:
            lines.append(f'proto = "{rng.choice(("tcp", "udp"))}"\n')
            lines.append(
                f'ports = "{rng.choice(("443", "80, 443", "1-1023", "8000-8100", "65535"))}"\n'
            )
    return "".join(lines)


def _lookup(
    tries: KeptTries, half: int, table: int, query: evaluate.Query
) -> tuple[int, int] | None:
    """(stack, route) as bpf/decide.h finds it, from what the kernel's maps have."""
    nodes = Nodes(dict(tries.placed[("routes", half)].items()))
    value = nodes.lookup(table, *parse_address(query.addr))
    if value is None:
        return None
    if not value.stack & C.DMM_NODE_PORTS:
        return value.stack & 0xFF, value.route
    portset = socket.htonl(value.stack & ~C.DMM_NODE_PORTS)
    key = struct.pack("=IIBB", 64, portset, query.proto, 0) + struct.pack("!H", query.port)
    data = tries.placed[("ports", half)].lookup(key)
    port = abi.unpack("dmm_port_value", data) if data else None
    if not port or port.route == C.DMM_ROUTE_NONE:
        return None
    own = value.route if port.stack & C.DMM_PORT_OWN else 0
    return port.stack & 0xFF, port.route + own


def _queries(rng: random.Random, n: int) -> Iterator[evaluate.Query]:
    for _ in range(n):
        if rng.random() < 0.6:
            addr = str(ipaddress.ip_address(0x0A000000 | rng.getrandbits(20)))
        else:
            base = int(ipaddress.ip_address("2001:db8::"))
            addr = str(ipaddress.ip_address(base | rng.getrandbits(12) << 68 | rng.getrandbits(4)))
        port = rng.choice((0, 1, 80, 443, 1023, 1024, 8000, 8050, 8100, 8101, 65534, 65535))
        yield evaluate.Query(addr=addr, port=port, proto=rng.choice((6, 17)))


def test_kernel_tries_answer_as_the_evaluator(opened: Maps) -> None:
    rng = random.Random(7)
    ids = IdSpace()
    tries = KeptTries()
    for expected in (1, 2, 3):
        text = _random_policy(rng, 150)
        try:
            parsed, compiled = _compiled(text, ids)
        except DmmError as error:  # the same odd prefix drawn twice with two stacks
            assert "sends" in str(error)
            continue
        before = sync.current_generation(opened)
        generation = sync.apply(opened, compiled, inner=tries, listener_set=_no_listener)
        assert (
            generation
            == sync.next_generation(before)
            == sync.current_generation(opened)
            <= expected
        )
        found_some = 0
        for query in _queries(rng, 400):
            verdict = evaluate.route_get(parsed, query)
            found = _lookup(tries, generation & 1, ids.table("t"), query)
            if found is None:
                assert verdict.route is None
                continue
            assert ids.stack_name(found[0]) == verdict.wanted
            assert compiled.route_text(found[1]) == verdict.route
            found_some += 1
        assert found_some > 100
    tries.close()


def test_whole_half_is_written_and_the_old_tries_are_freed(opened: Maps) -> None:
    ids = IdSpace()
    route = '[[tables.t.routes]]\nto = "default"\nstack = "u"\n'
    rule = '[[rules]]\ntable = "t"\nuid = 7\n'
    _, first = _compiled(STACKS + rule + route, ids)
    _, second = _compiled(rule + rule.replace("7", "8") + route.replace('"u"', '"kernel"'), ids)
    assert sync.apply(opened, first, listener_set=_no_listener, netns_cookie=99) == 1
    assert sync.apply(opened, second, listener_set=_no_listener) == 2
    control = opened.control[0]
    assert (control.generation, control.netns_cookie) == (2, 99)
    assert control.abi_version == C.DMM_ABI_VERSION

    assert [opened.heads[half].n_rules for half in (0, 1)] == [2, 1]
    for half, number in ((0, 0), (0, 1), (1, 0)):
        assert opened.rules[half * C.DMM_MAX_CHECKS + number].uid_first == 7 + number
    for half, kinds in (
        (1, {"k": C.DMM_STACK_KERNEL, "u": C.DMM_STACK_USER}),
        (0, {"k": 0, "u": 0}),
    ):
        for name, kind in kinds.items():
            assert opened.stacks[half * C.DMM_MAX_STACKS + ids.stack(name)].kind == kind
    for kind in sync.INNER_KINDS:
        halves = {struct.unpack("=I", key)[0] for key, _ in opened[kind].items()}
        assert halves == {0}, "the tries of generation 1 are still held"


@pytest.mark.parametrize("kind", sync.INNER_KINDS)
def test_what_the_kernel_refuses_changes_nothing(opened: Maps, kind: maps.RoutesKind) -> None:
    route = '[[tables.t.routes]]\nto = "default"\nstack = "u"\n'
    more = '[[tables.t.routes]]\nto = "10.0.0.0/8"\nstack = "u"\nports = 443\n'
    text = STACKS + "[tables.t]\n" + route + more + more.replace("10.0.0.0/8", "fe80::/16")
    _, compiled = _compiled(text, IdSpace())
    assert min(compiled.routes.count, compiled.ports.count) > 1
    assert sync.apply(opened, compiled, listener_set=_no_listener) == 1
    names = ("control", "heads", "rules", "stacks")
    before = {name: dict(opened[name].items()) for name in names}
    live = {inner: opened[inner].lookup(struct.pack("=I", 1)) for inner in sync.INNER_KINDS}
    with pytest.raises(DmmError, match="full"):
        sync.apply(opened, compiled, inner=KeptTries(kind), listener_set=_no_listener)
    assert {name: dict(opened[name].items()) for name in names} == before
    assert {inner: opened[inner].lookup(struct.pack("=I", 1)) for inner in sync.INNER_KINDS} == live
    assert sync.apply(opened, compiled, listener_set=_no_listener) == 2


def test_failure_after_the_tries_leaves_the_live_half(opened: Maps) -> None:
    """A listener that cannot be written comes last before the change; the tries of the other
    half are freed.
    """
    _, compiled = _compiled('[[rules]]\ntable = "t"\n[tables.t]\n', IdSpace())
    assert sync.apply(opened, compiled, listener_set=_no_listener) == 1
    opened.listeners[LISTENER_KEY.type()] = abi.new("dmm_listener")

    def refuse(key: object, half: int, table: int, rule: int, chosen: int) -> None:
        raise DmmError("write a listener's table", why="as the test wants")

    with pytest.raises(DmmError, match="as the test wants"):
        sync.apply(opened, compiled, listener_set=refuse)
    assert sync.current_generation(opened) == 1
    for kind in sync.INNER_KINDS:
        assert {struct.unpack("=I", key)[0] for key, _ in opened[kind].items()} == {1}


def test_same_half_is_refused(opened: Maps) -> None:
    _, compiled = _compiled("", IdSpace())
    sync.apply(opened, compiled, listener_set=_no_listener)
    with pytest.raises(ValueError, match="cannot follow"):
        sync.apply(opened, compiled, listener_set=_no_listener, generation=3)


def test_events_and_policy_change_control_without_undoing_each_other(opened: Maps) -> None:
    _, compiled = _compiled("", IdSpace())
    switched = 0
    applied = threading.Event()

    def switch() -> None:
        nonlocal switched
        while not applied.is_set():
            switched += 1
            sync.set_events(opened, wanted=bool(switched % 2))

    with ThreadPoolExecutor(1) as pool:
        switching = pool.submit(switch)
        try:
            for generation in range(1, 41):
                assert (
                    sync.apply(opened, compiled, listener_set=_no_listener, netns_cookie=9)
                    == generation
                )
                assert sync.current_generation(opened) == generation
        finally:
            applied.set()
        switching.result()
    control = opened.control[0]
    assert (control.generation, control.netns_cookie, control.flags) == (40, 9, switched % 2)


def test_generation_never_becomes_zero() -> None:
    assert sync.next_generation(0) == 1
    assert sync.next_generation(0xFFFFFFFF) == 2


def test_a_hundred_thousand_routes(opened: Maps, tmp_path: Path) -> None:
    rng = random.Random(3)
    prefixes = sorted({(rng.getrandbits(24) << 8, 24) for _ in range(100_000)})
    lines = [
        f"{ipaddress.ip_address(address)}/{length},tcp,443,u\n" for address, length in prefixes
    ]
    (tmp_path / "prefixes.csv").write_text("to,proto,ports,stack\n" + "".join(lines))
    text = STACKS + '[[rules]]\ntable = "t"\n[tables.t]\nroutes_from = "prefixes.csv"\n'
    text += '[[tables.t.routes]]\nto = "default"\nstack = "k"\n'
    ids = IdSpace()
    parsed, compiled = _compiled(text, ids, tmp_path)
    assert compiled.n_routes == len(prefixes) + 2
    tries = KeptTries()
    generation = sync.apply(opened, compiled, inner=tries, listener_set=_no_listener)
    for address, _ in rng.sample(prefixes, 20):
        for port in (443, 80):
            query = evaluate.Query(
                addr=str(ipaddress.ip_address(address + rng.getrandbits(8))), port=port
            )
            verdict = evaluate.route_get(parsed, query)
            assert verdict.stack == ("u" if port == 443 else "k")
            found = _lookup(tries, generation & 1, ids.table("t"), query)
            assert found is not None
            assert (ids.stack_name(found[0]), compiled.route_text(found[1])) == (
                verdict.stack,
                verdict.route,
            )
    tries.close()


def _netns_cookie() -> int:
    with socket.socket() as probe:
        return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


@pytest.fixture
def attached(
    make_cgroup: Callable[[], Cgroup], instance: Callable[[], str]
) -> Iterator[tuple[loader.Attached, Cgroup]]:
    """The real programs on a fresh cgroup."""
    name = instance()
    group = make_cgroup()
    made = loader.attach(name, group.path, netns_cookie=_netns_cookie())
    try:
        yield made, group
    finally:
        made.close()
        loader.detach(name)


def test_listeners_follow_the_policy(attached: tuple[loader.Attached, Cgroup]) -> None:
    """A listener's table is worked out anew for the next policy, in the next half only, and
    its count stays.
    """
    made, group = attached
    child = group.child("below").path
    key = LISTENER_KEY.type(abi.addr16("127.0.0.1"), socket.htons(8080), socket.IPPROTO_TCP)
    value = abi.new(
        "dmm_listener",
        count=3,
        uid=1000,
        comm=b"nginx",
        netns_cookie=5,
        cgroup_id=cgroup.cgroup_id(child),
    )
    made.maps.listeners[key] = value
    ids = IdSpace()
    text = (
        '[[rules]]\ntable = "other"\nuid = 7\n[[rules]]\ntable = "other"\ndirection = "connect"\n'
        f'[[rules]]\ntable = "mine"\ncgroup = "{group.relative}"\n[tables.mine]\n[tables.other]\n'
    )
    _, compiled = _compiled(text, ids)
    assert sync.apply(made.maps, compiled, listener_set=made.set_listener_table) == 1
    found = made.maps.listeners[key]
    assert (found.count, list(found.tables), list(found.rules)) == (
        3,
        [0, ids.table("mine")],
        [0, 3],
    )
    _, compiled = _compiled('[[rules]]\ntable = "other"\ncomm = "nginx"\n[tables.other]\n', ids)
    assert sync.apply(made.maps, compiled, listener_set=made.set_listener_table) == 2
    found = made.maps.listeners[key]
    assert list(found.tables) == [ids.table("other"), ids.table("mine")]
    assert (found.count, list(found.rules)) == (3, [1, 3])


def test_a_listener_has_its_program_s_choice_while_a_rule_lets_it(
    attached: tuple[loader.Attached, Cgroup],
) -> None:
    made, _ = attached
    key = LISTENER_KEY.type(abi.addr16("127.0.0.1"), socket.htons(8081), socket.IPPROTO_TCP)
    ids = IdSpace()
    text = (
        '[stacks.lan]\nkind = "kernel"\n[[rules]]\nuid = 7\nchoose = ["lan"]\n[[rules]]\ndscp = 46\n'
        'table = "mine"\n[tables.mine]\n'
    )
    _, allowed = _compiled(text, ids)
    _, asked = _compiled(text.replace("uid = 7", "uid = 8"), ids)
    wish = ids.stack("lan") + 1
    made.maps.listeners[key] = abi.new("dmm_listener", count=1, uid=7, wish=wish, dscp=46)

    def after(compiled: Compiled) -> tuple[int, int, int]:
        half = sync.apply(made.maps, compiled, listener_set=made.set_listener_table) & 1
        found = made.maps.listeners[key]
        return found.tables[half], found.rules[half], found.chosen[half]

    assert after(allowed) == (0, 1, wish)
    assert after(asked) == (ids.table("mine"), 2, 0)
    assert after(allowed) == (0, 1, wish)
    flags = made.maps.control[0].flags
    assert flags & C.DMM_CONTROL_CHOICE and flags & C.DMM_CONTROL_DSCP
    after(_compiled("", ids)[1])
    flags = made.maps.control[0].flags
    assert flags & C.DMM_CONTROL_CHOICE and not flags & C.DMM_CONTROL_DSCP


_CONNECT = """
import socket, sys
with socket.socket() as s:
    s.settimeout(5)
    try:
        s.connect(("127.0.0.1", int(sys.argv[1])))
    except OSError as error:
        print(-error.errno)
    else:
        print(s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
"""


def test_hooks_obey_the_new_policy_at_once(attached: tuple[loader.Attached, Cgroup]) -> None:
    """Real programs in the kernel: the next connect() after apply() is decided by
    the new policy.
    """
    made, group = attached
    ids = IdSpace()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def mark() -> int:
            command = group.argv([sys.executable, "-c", _CONNECT, str(port)])
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            return int(done.stdout)

        rule = f'[[rules]]\ncgroup = "{group.relative}"\ntable = "t"\n'
        assert mark() == 0
        for stack, ports, expected in (
            ("k", f"{port}", 5),
            ("k", f"{port - 1}", 0),
            ("reject", f"1-{port}", -1),
            ("k", f"{port}-65535", 5),
        ):
            route = f'[[tables.t.routes]]\nto = "127.0.0.0/8"\nproto = "tcp"\nports = "{ports}"\nstack = "{stack}"\n'
            _, compiled = _compiled(STACKS + rule + route, ids)
            sync.apply(made.maps, compiled, listener_set=made.set_listener_table)
            assert mark() == expected

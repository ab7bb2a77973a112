# SPDX-License-Identifier: Apache-2.0
"""The way through the trees of routes[] as the programs go it: what a policy's routes are compiled
to decides each connection as the evaluator does.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_lab import Bench, bench

from dmm_ebpf.rd.director import sync
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace

__all__ = ["bench"]

TEXT = """
[stacks.one]
kind = "kernel"
[stacks.two]
kind = "kernel"
[[rules]]
table = "few"
[[rules]]
table = "many"
[tables.few]
routes_from = "few.csv"
[tables.many]
routes_from = "many.csv"
"""
# Where the sockets' peers are: in the quarters of IPv6 that have unicast addresses, and in IPv4
AROUND = ("20.0.0.0/6", "2a00::/12", "fd00::/16", "2001:db8:0:7::/64")
TAILS = ("tcp,443", "tcp,80", "tcp,", ",", ",400-500")
# A device that takes what goes anywhere: its other end is down
SWALLOW = (
    "link add void0 type veth peer name void0p",
    "link set void0 up",
    "address add 192.0.2.1/24 dev void0",
    "address add 2001:db8:ffff::1/64 dev void0 nodad",
    "route replace default dev void0",
    "-6 route replace default dev void0",
)
OPEN = """
def opened(peers):
    made = []
    for address, port in peers:
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        one.setblocking(False)
        one.connect_ex((address, port))
        made.append(one)
    held.append(made)
    return [struct.unpack("=Q", one.getsockopt(1, 57, 8))[0] for one in made]
held = []
"""


def _networks(rng: random.Random, count: int, *, default: bool) -> Iterator[str]:
    """Some of which lie in one another."""
    found = dict.fromkeys([rng.choice(("0.0.0.0/0", "::/0"))] if default else [])
    for _ in range(count):
        around = ipaddress.ip_network(rng.choice(AROUND))
        first = int(around.network_address) | rng.getrandbits(9) << rng.choice((0, 7, 16, 20))
        length = rng.randint(around.prefixlen, around.max_prefixlen)
        found[str(ipaddress.ip_network((first, length), strict=False))] = None
    yield from found


def _write(folder: Path, rng: random.Random, few: int, many: int) -> list[str]:
    networks = []
    for name, count in (("few", few), ("many", many)):
        chosen = list(_networks(rng, count, default=name == "many"))
        lines = [f"{one},{rng.choice(TAILS)},{rng.choice(('one', 'two'))}\n" for one in chosen]
        (folder / f"{name}.csv").write_text("to,proto,ports,stack\n" + "".join(lines))
        networks += chosen
    return networks


def _peers(rng: random.Random, networks: list[str]) -> Iterator[tuple[str, int]]:
    """The ends of prefixes, what is beside them, and some others, as far as one may connect."""
    bounds = [ipaddress.ip_network(one) for one in AROUND]
    for text in rng.sample(networks, 150):
        net = ipaddress.ip_network(text)
        first, last = int(net.network_address), int(net.broadcast_address)
        for number in (first - 1, first, rng.randint(first, last), last, last + 1):
            try:
                address = type(net.network_address)(number)
            except ipaddress.AddressValueError:
                continue
            if any(address in one for one in bounds if one.version == address.version):
                yield str(address), rng.choice((443, 80, 450, 9))


@pytest.mark.parametrize("seed", range(4))
def test_connections_go_by_the_longest_prefix(bench: Bench, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for argv in SWALLOW:
        bench.a.run(["ip", *argv.split()])
    bench.agent(OPEN)
    ids, seen = IdSpace(), set()
    for many in (600, 8):  # and then a policy of another size, in the other half
        networks = _write(tmp_path, rng, 200, many)
        policy = policies.parse(TEXT, source="p.toml", base=tmp_path)
        compiled = compile_policy(policy, ids, lambda _: (0, 0))
        generation = sync.apply(bench.attached.maps, compiled, listener_set=lambda *_: None)
        peers = list(_peers(rng, networks))
        cookies = bench.agent(f"opened({peers!r})")
        flows = {flow.cookie: flow.decision for flow in bench.flows()}
        for (address, port), cookie in zip(peers, cookies, strict=True):
            made = flows[cookie]
            verdict = evaluate.route_get(policy, evaluate.Query(address, port, 6))
            found = compiled.route_text(made.route) or None
            assert (found, ids.stack_name(made.wanted)) == (verdict.route, verdict.wanted), address
            assert (made.generation, made.rule) == (generation, verdict.rule)
            seen.add((":" in address, verdict.table))
        bench.agent("[one.close() for one in held.pop()] and None")
    assert {family for family, _ in seen} == {True, False}
    assert {table for _, table in seen} >= {"few", "many"}

# SPDX-License-Identifier: Apache-2.0
"""hal.nftsets: what it reads, and what it makes of what the kernel tells, is what nft(8) lists."""

from __future__ import annotations

import errno
import ipaddress
import json
import random
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from hal_lab import Host, hosts, wait_until

from dmm_ebpf.hal import nftsets
from lab.nft import CATCH_ALL, DELETE, DESTROY, NEW, address
from lab.nft import change as nft_change

NAME = ("inet", "f", "s")
ROUNDS = 40


def nft(host: Host, script: str) -> None:
    argv = ["ip", "netns", "exec", host.name, "nft", "-f", "-"]
    done = subprocess.run(argv, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def listed(host: Host) -> set[str]:
    """Prefixes, by nft's own word."""
    said = json.loads(host.sh("nft", "-j", "-n", "list", "set", *NAME))["nftables"]
    (found,) = (one["set"] for one in said if "set" in one)
    everything = "0.0.0.0/0" if found["type"] == "ipv4_addr" else "::/0"
    return {
        str(network)
        for one in found.get("elem", ())
        for network in _networks(one, ipaddress.ip_network(everything))
    }


def _networks(one, everything) -> Iterable[object]:
    one = one["elem"]["val"] if isinstance(one, dict) and "elem" in one else one
    if isinstance(one, str):
        return [everything if one == "*" else ipaddress.ip_network(one)]
    if "prefix" in one:
        return [ipaddress.ip_network(f"{one['prefix']['addr']}/{one['prefix']['len']}")]
    return ipaddress.summarize_address_range(*map(ipaddress.ip_address, one["range"]))


def texts(blocks: Iterable[nftsets.Block]) -> set[str]:
    kinds = {4: ipaddress.IPv4Network, 6: ipaddress.IPv6Network}
    return {str(kinds[family]((addr, length))) for family, addr, length in blocks}


@contextmanager
def host_with(kind: str) -> Iterator[tuple[Host, nftsets.Changes]]:
    """Whose set changes are listened for."""
    with hosts(1) as (host,):
        nft(host, f"add table inet f\nadd set inet f s {{ {kind} }}\n")
        with host.ns.run_in(nftsets.Changes) as changes:
            yield host, changes


def heard(changes: nftsets.Changes) -> list[nftsets.Heard]:
    """The kernel tells before nft's send(2) returns; all that it has told."""
    return changes.heard([NAME])


def _spans(rng: random.Random, bits: int) -> str:
    """Some that touch, hold and follow each other, also at both ends of what there is."""
    last = (1 << bits) - 1
    first = rng.choice((0, last - 40, 1 << bits - 4)) + rng.randrange(40)
    first = min(first, last)
    end = min(last, first + rng.choice((0, 0, 1, 3, 7, 20)))
    kind = ipaddress.IPv4Address if bits == 32 else ipaddress.IPv6Address
    return f"{kind(first)}-{kind(end)}" if end > first else str(kind(first))


@pytest.mark.parametrize(
    ("kind", "bits", "single"),
    [
        ("type ipv4_addr;", 32, True),
        ("type ipv4_addr; flags interval;", 32, False),
        ("type ipv4_addr; flags interval; auto-merge;", 32, False),
        ("type ipv6_addr; flags interval;", 128, False),
        ("type ipv6_addr; flags interval, timeout; counter;", 128, False),
    ],
)
def test_what_is_followed_is_what_nft_lists(kind: str, bits: int, single: bool) -> None:
    """Whatever is put, taken away and flushed, in transactions of one change or more."""
    rng = random.Random(kind)
    with host_with(kind) as (host, changes):
        found = host.ns.run_in(nftsets.read, NAME)
        known = set(texts(found.blocks))
        assert known == listed(host)
        there: list[str] = []
        for _ in range(ROUNDS):
            there, script = _edited(host, rng, bits, single, there)
            edit = nftsets.follow(found, heard(changes))
            assert edit is not None
            put, drop = texts(edit.put), texts(edit.drop)
            assert not put & known, "what is told as new was there"
            assert drop <= known, "what is told as gone was not there"
            known = (known - drop) | put
            assert known == texts(found.blocks) == listed(host), script
        assert texts(host.ns.run_in(nftsets.read, NAME).blocks) == known


def _edited(
    host: Host, rng: random.Random, bits: int, single: bool, there: list[str]
) -> tuple[list[str], str]:
    """What was put there and not taken away, and the transaction that made it so: another one is
    tried where nft refuses one, for intervals must not overlap.
    """
    while True:
        now, lines = list(there), []
        for _ in range(rng.choice((1, 1, 2, 5))):
            what = rng.random()
            if what < 0.05:
                lines.append("flush set inet f s")
                now = []
            elif what < 0.4 and now:
                gone = now.pop(rng.randrange(len(now)))
                lines.append(f"delete element inet f s {{ {gone} }}")
            else:
                one = _spans(rng, bits)
                one = one.partition("-")[0] if single else one
                lines.append(f"add element inet f s {{ {one} }}")
                now = [*now, one]
        script = "\n".join(lines) + "\n"
        argv = ["ip", "netns", "exec", host.name, "nft", "-f", "-"]
        done = subprocess.run(argv, input=script, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return now, script


def test_a_transaction_that_was_read_is_not_taken_again() -> None:
    with host_with("type ipv4_addr;") as (host, changes):
        nft(host, "add element inet f s { 192.0.2.1 }\n")
        nft(host, "delete element inet f s { 192.0.2.1 }\n")
        nft(host, "add element inet f s { 192.0.2.2 }\n")
        found = host.ns.run_in(nftsets.read, NAME)
        told = heard(changes)
        assert len(told) == 3
        assert nftsets.follow(found, told[:1]) == ([], [])
        assert nftsets.follow(found, told[1:]) == ([], [])
        assert texts(found.blocks) == {"192.0.2.2/32"}


@pytest.mark.parametrize(
    "script",
    ["delete set inet f s", "delete table inet f", "flush ruleset", "delete set inet f s\nadd set "
     "inet f s { type ipv6_addr; }"],
)  # fmt: skip
def test_another_set_is_no_edit(script: str) -> None:
    with host_with("type ipv4_addr;") as (host, changes):
        found = host.ns.run_in(nftsets.read, NAME)
        nft(host, script)
        assert nftsets.follow(found, heard(changes)) is None


def test_what_other_sets_have_is_not_heard() -> None:
    with host_with("type ipv4_addr;") as (host, changes):
        nft(
            host,
            "add table ip f\nadd set ip f s { type ipv4_addr; }\nadd element ip f s { 10.0.0.1 }",
        )
        nft(host, "add set inet f t { type ipv4_addr; }\nadd element inet f t { 10.0.0.1 }")
        nft(host, "add chain inet f c\nadd rule inet f c counter\ndelete table ip f")
        assert heard(changes) == []


def test_more_than_there_is_room_for_is_lost_and_later_ones_are_heard() -> None:
    with host_with("type ipv4_addr;") as (host, changes):
        many = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(20_000))
        nft(host, f"add element inet f s {{ {many} }}")
        with pytest.raises(nftsets.LostError):
            heard(changes)
        found = host.ns.run_in(nftsets.read, NAME)
        assert len(found.blocks) == 20_000
        nft(host, "add element inet f s { 192.0.2.1 }")
        edit = nftsets.follow(found, heard(changes))
        assert edit is not None
        assert (texts(edit.put), edit.drop) == ({"192.0.2.1/32"}, [])


def test_the_element_for_all_others() -> None:
    """It and an interval of everything are one prefix, until both are gone. nft 1.0.6 crashes when
    it is to put one beside intervals.
    """
    with host_with("type ipv4_addr; flags interval;") as (host, changes):
        found = host.ns.run_in(nftsets.read, NAME)
        counts = []
        for message, one in (NEW, CATCH_ALL), (NEW, address("0.0.0.0")), (DELETE, CATCH_ALL), (
            DELETE, address("0.0.0.0")):  # fmt: skip
            assert host.ns.run_in(nft_change, message, "f", "s", one) == 0
            edit = nftsets.follow(found, heard(changes))
            assert edit is not None
            counts.append((len(edit.put), len(edit.drop), texts(found.blocks)))
            assert texts(host.ns.run_in(nftsets.read, NAME).blocks) == texts(found.blocks)
        everything = {"0.0.0.0/0"}
        assert counts == [(1, 0, everything), (0, 0, everything), (0, 0, everything), (0, 1, set())]


def test_an_element_that_is_destroyed_is_gone() -> None:
    """As nft can since 1.0.7, whether it is there or not."""
    with host_with("type ipv4_addr;") as (host, changes):
        nft(host, "add element inet f s { 192.0.2.1 }")
        found = host.ns.run_in(nftsets.read, NAME)
        code = host.ns.run_in(nft_change, DESTROY, "f", "s", address("192.0.2.1"))
        if code == errno.EINVAL:
            pytest.skip("this kernel has no NFT_MSG_DESTROYSETELEM")
        assert code == 0
        edit = nftsets.follow(found, heard(changes))
        assert edit is not None
        assert texts(edit.drop) == {"192.0.2.1/32"}


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("type inet_service;", "inet_service"),
        ("type ipv4_addr . inet_service;", "ipv4_addr . inet_service"),
        ("type ether_addr;", "ether_addr"),
        ("type ifname;", "ifname"),
        ("type mark . ipv6_addr . inet_proto;", "mark . ipv6_addr . inet_proto"),
        ("type ct_state;", "ct_state"),
        ("type icmpv6_type;", "icmpv6_type"),
        ("type icmp_type;", "icmp_type"),
        ("type ether_type;", "ether_type"),
        ("type inet_proto;", "inet_proto"),
        ("type iface_index;", "iface_index"),
        ("type uid;", "uid"),
        ("type gid;", "gid"),
        ("type dscp;", "dscp"),
        ("type arp_op;", "number 11 of nft's"),
    ],
)
def test_keys_that_are_no_addresses_are_refused(kind: str, shown: str) -> None:
    with hosts(1) as (host,):
        nft(host, f"add table inet f\nadd set inet f s {{ {kind} }}\n")
        with pytest.raises(nftsets.NoAddressesError) as refused:
            host.ns.run_in(nftsets.read, NAME)
        assert refused.value.why == f"its keys are of the type {shown}"


def test_an_element_goes_by_time_and_nothing_tells() -> None:
    """Why sets with time-outs are read each second."""
    with host_with("type ipv4_addr; flags timeout; gc-interval 1s;") as (host, changes):
        nft(host, "add element inet f s { 192.0.2.1 timeout 1s }")
        assert len(heard(changes)) == 1
        gone = lambda: not host.ns.run_in(nftsets.read, NAME).blocks  # noqa: E731
        wait_until(gone, what="the element's end")
        assert heard(changes) == []
        assert host.ns.run_in(nftsets.read, NAME).restless

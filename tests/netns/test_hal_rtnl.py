# SPDX-License-Identifier: Apache-2.0
"""hal.rtnl: what it reads is what ip(8) shows."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hal_lab import Host, hosts, link

from dmm_ebpf.hal import rtnl
from dmm_ebpf.hal.netlink import RouteSocket

T = TypeVar("T")
V4, V6 = socket.AF_INET, socket.AF_INET6


def ask(host: Host, function: Callable[..., T], *args: Any) -> T:
    def work() -> T:
        with RouteSocket() as sock:
            return function(sock, *args)

    return host.ns.run_in(work)


def ip(host: Host, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.sh("ip", "-j", "-d", *words) or "[]")
    return [entry for entry in found if entry]


def test_links_are_as_ip_shows_them() -> None:
    with hosts(2) as (a, b):
        link(a, b, queues=2)
        a.sh("ip link set eth0 mtu 1400")
        a.sh("ip link add br0 type bridge")
        a.sh("ip link set eth0 master br0")
        shown = {entry["ifname"]: entry for entry in ip(a, "link")}
        found = {one.name: one for one in ask(a, rtnl.links)}
        assert found.keys() == shown.keys()
        for name, entry in shown.items():
            one = found[name]
            assert (one.index, one.mtu, one.mac.hex(":"), one.qdisc, one.kind) == (
                entry["ifindex"],
                entry["mtu"],
                entry["address"],
                entry["qdisc"],
                entry.get("linkinfo", {}).get("info_kind", ""),
            )
            assert (one.rx_queues, one.tx_queues) == (
                entry["num_rx_queues"],
                entry["num_tx_queues"],
            )
            assert bool(one.flags & 1) is ("UP" in entry["flags"])
        assert found["eth0"].master == found["br0"].index and found["br0"].master == 0
        assert (found["lo"].type, found["eth0"].type) == (772, 1)


def test_addresses_are_as_ip_shows_them() -> None:
    with hosts(2) as (a, b):
        link(a, b)
        a.sh("ip addr add 10.7.0.1 peer 10.7.0.2/32 dev eth0")
        a.sh("ip addr add 10.9.1.9/24 dev eth0")  # secondary
        shown = {
            (entry["ifindex"], address["local"], address["prefixlen"])
            for entry in ip(a, "addr")
            for address in entry["addr_info"]
        }
        found = ask(a, rtnl.addresses)
        assert {(one.index, one.address, one.prefixlen) for one in found} == shown
        flags = {one.address: one.flags for one in found}
        assert flags["10.9.1.9"] & 0x01 and not flags["10.9.1.1"] & 0x01


ROUTES = (
    "add default via 10.9.1.2 metric 700",
    "add 192.0.2.0/24 via 10.9.1.2 src 10.9.1.1",
    "add 198.51.100.0/24 table 4711 via 10.9.1.2",
    "add 203.0.113.0/24 nexthop via 10.9.1.2 dev eth0 nexthop via 10.9.2.2 dev eth1",
    "add throw 192.0.2.128/25",
    "add 192.0.2.0/24 tos 0x10 via 10.9.1.2",
)
ROUTES6 = ("add default via fd09:1::2", "add 2001:db8::/32 via fd09:1::2 metric 99 src fd09:1::1")


def _shown(entry: dict[str, Any], family: int) -> tuple[Any, ...]:
    dst, _, length = entry["dst"].partition("/")
    if dst == "default":
        dst, length = ("0.0.0.0", "0") if family == V4 else ("::", "0")
    hops = [hop["dev"] for hop in entry.get("nexthops", [entry]) if "dev" in hop]
    full = 32 if family == V4 else 128
    tos = int(str(entry.get("tos", 0)), 16)
    return (
        dst,
        int(length or full),
        tos,
        entry.get("metric", 0),
        entry.get("gateway", ""),
        entry.get("prefsrc", ""),
        hops,
    )


@pytest.mark.parametrize(("family", "option"), [(V4, "-4"), (V6, "-6")])
def test_routes_are_as_ip_shows_them(family: int, option: str) -> None:
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(a, c, names=("eth1", "eth0"), net=2)
        for route in ROUTES if family == V4 else ROUTES6:
            a.sh(f"ip {option} route {route}")
        names = {one.index: one.name for one in ask(a, rtnl.links)}
        found = [
            (
                one.dst,
                one.dst_len,
                one.tos,
                one.metric,
                one.gateway,
                one.prefsrc,
                [names[i] for i in one.devices],
            )
            for one in ask(a, rtnl.routes, family)
        ]
        shown = [
            _shown(entry, family) for entry in ip(a, "-N", option, "route", "show", "table", "all")
        ]

        def order(row: tuple[Any, ...]) -> str:
            return str(row)

        assert sorted(found, key=order) == sorted(shown, key=order)
        tables = {(one.dst, one.table) for one in ask(a, rtnl.routes, family)}
        assert family == V6 or {("198.51.100.0", 4711), ("192.0.2.0", 254)} <= tables


def test_a_long_list_is_read_whole() -> None:
    with hosts(2) as (a, b):
        link(a, b)
        commands = "".join(
            f"route add 192.0.{n // 256}.{n % 256}/32 via 10.9.1.2\n" for n in range(3000)
        )
        a.sh("sh", "-c", f"printf '{commands}' | ip -batch -")
        found = {one.dst for one in ask(a, rtnl.routes, V4)}
        assert {f"192.0.{n // 256}.{n % 256}" for n in range(3000)} <= found

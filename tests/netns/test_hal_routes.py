# SPDX-License-Identifier: Apache-2.0
"""hal.routes: rule and mirror table, judged by what 'ip route get' says."""

from __future__ import annotations

import asyncio
import json
import select
from collections.abc import Awaitable, Callable

import pytest
from hal_lab import Host, hosts, link

from dmm_ebpf.errors import ConflictError
from dmm_ebpf.hal import routes, tuning

MARK, MASK = 0x0DD00000, 0x0FF00000


def get(host: Host, dst: str, mark: int = MARK, *more: str) -> tuple[str, str]:
    family = "-6" if ":" in dst else "-4"
    out = host.sh("ip", "-j", family, "route", "get", dst, "mark", hex(mark), *more)
    answer = json.loads(out)[0]
    return answer["dev"], answer.get("prefsrc", "")


def numbers(k: int = 0) -> routes.StackNumbers:
    return routes.StackNumbers(k, MARK, MASK)


class Mirror:
    """A RouteMirror worked from a thread that is in the host's namespace."""

    def __init__(self, host: Host, *devices: str, k: int = 0) -> None:
        self.host = host
        self.mirror = host.ns.run_in(routes.RouteMirror, numbers(k), devices)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        self.mirror.close()

    def sync(self) -> routes.SyncResult:
        return self.host.ns.run_in(self.mirror.sync)


def add_tun(host: Host, k: int = 0) -> None:
    host.sh(f"ip tuntap add dev dmm-{k} mode tun")
    host.sh(f"ip link set dmm-{k} addrgenmode none up")
    host.ns.run_in(tuning.prepare_tun, f"dmm-{k}")


def test_mirror_sends_served_routes_to_the_device_and_throws_the_rest():
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(a, c, names=("eth1", "eth0"), net=2)
        a.sh("ip addr add 10.9.1.77/24 dev eth0")  # secondary: never the choice of a route without src
        a.sh("ip route add default via 10.9.1.2")
        a.sh("ip route add default via 10.9.2.2 metric 700")
        a.sh("ip route add 192.0.2.0/24 via 10.9.2.2")
        a.sh("ip route add 198.51.100.0/24 via 10.9.1.2 src 10.9.1.77")
        a.sh("ip route add blackhole 203.0.113.0/24")
        a.sh("ip -6 route add default via fd09:1::2")
        a.sh("ip -6 route add 2001:db8:2::/48 via fd09:2::2")
        add_tun(a)
        with Mirror(a, "eth0") as mirror:
            assert mirror.sync().unicast >= 5
            assert get(a, "8.8.8.8") == ("dmm-0", "10.9.1.1")
            assert get(a, "10.9.1.9") == ("dmm-0", "10.9.1.1")
            assert get(a, "198.51.100.9") == ("dmm-0", "10.9.1.77")
            assert get(a, "192.0.2.9") == ("eth1", "10.9.2.1")
            assert get(a, "10.9.2.9") == ("eth1", "10.9.2.1")
            assert get(a, "2606:4700::1") == ("dmm-0", "fd09:1::1")
            assert get(a, "fd09:1::9") == ("dmm-0", "fd09:1::1")
            assert get(a, "2001:db8:2::9") == ("eth1", "fd09:2::1")
            assert get(a, "fe80::1", MARK, "oif", "eth0")[0] == "eth0"
            assert get(a, "8.8.8.8", MARK | 0x1234) == ("dmm-0", "10.9.1.1")
            assert get(a, "8.8.8.8", 0) == ("eth0", "10.9.1.1")
            assert get(a, "8.8.8.8", MARK + (1 << 20)) == ("eth0", "10.9.1.1")
            with pytest.raises(AssertionError, match="Invalid argument"):
                get(a, "203.0.113.9")
            again = mirror.sync()
            assert (again.added, again.removed) == (0, 0)


def test_ipv6_source_is_the_kernels_choice_among_several():
    with hosts(2) as (a, b):
        link(a, b)
        a.sh("ip addr add 2001:db8:1::5/64 dev eth0 nodad")
        a.sh("ip -6 route add default via fd09:1::2")
        add_tun(a)
        expected = [get(a, dst, 0)[1] for dst in ("2600::1", "fd09:1::9", "2001:db8:1::9")]
        with Mirror(a, "eth0") as mirror:
            mirror.sync()
            assert [get(a, d)[1] for d in ("2600::1", "fd09:1::9", "2001:db8:1::9")] == expected
            assert get(a, "2600::1") == ("dmm-0", "2001:db8:1::5")


def test_the_kernel_drops_the_routes_with_the_device_and_sync_brings_them_back():
    with hosts(2) as (a, b):
        link(a, b)
        a.sh("ip route add default via 10.9.1.2")
        add_tun(a)
        with Mirror(a, "eth0") as mirror:
            mirror.sync()
            assert get(a, "8.8.8.8")[0] == "dmm-0"
            a.sh("ip link del dmm-0")
            assert get(a, "8.8.8.8")[0] == "eth0"
            assert get(a, "fd09:1::9")[0] == "eth0"
            assert mirror.sync().unicast == 0
            add_tun(a)
            assert mirror.sync().unicast > 0
            assert get(a, "8.8.8.8")[0] == "dmm-0"


def everything(host: Host) -> str:
    return "".join(
        host.sh(f"ip {v} {what}") for v in ("-4", "-6") for what in ("rule", "route show table all")
    )


def test_remove_needs_numbers_only_is_idempotent_and_spares_others():
    with hosts(2) as (a, b):
        link(a, b)
        before = everything(a)
        a.sh("ip rule add pref 3537 from 10.1.1.1 lookup 100")
        add_tun(a)
        with Mirror(a, "eth0") as mirror, Mirror(a, "eth0", k=1) as second:
            mirror.sync()
            with pytest.raises(ConflictError):
                second.sync()
        assert a.ns.run_in(routes.StackNumbers.in_use) == {0, 1}
        assert len(a.ns.run_in(numbers(0).remove)) == 4
        assert a.ns.run_in(numbers(0).remove) == a.ns.run_in(numbers(1).remove) == []
        assert "3537" in a.sh("ip rule")
        a.sh("ip rule del pref 3537")
        assert everything(a) == before


def test_what_was_removed_after_close_does_not_come_back():
    """A change just before the end has asked for a synchronisation that its thread may do only later."""
    with hosts(2) as (a, b):
        link(a, b)
        before = everything(a)
        add_tun(a)
        with Mirror(a, "eth0") as mirror:
            mirror.sync()
        a.ns.run_in(numbers().remove)
        assert mirror.sync() == routes.SyncResult()
        assert everything(a) == before


def test_multipath_is_mirrored_only_when_all_of_it_is_served():
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(a, c, names=("eth1", "eth0"), net=2)
        a.sh("ip route add 192.0.2.0/24 nexthop via 10.9.1.2 nexthop via 10.9.2.2")
        add_tun(a)
        add_tun(a, 1)
        with Mirror(a, "eth0") as one, Mirror(a, "eth0", "eth1", k=1) as both:
            one.sync()
            both.sync()
        assert get(a, "192.0.2.9")[0] in ("eth0", "eth1")
        assert get(a, "192.0.2.9", MARK + (1 << 20))[0] == "dmm-1"


async def in_namespace(steps: Callable[[routes.RouteMirror], Awaitable[None]], *devices: str) -> None:
    """As a Resource Director works: in a process of its own that is in the namespace, from its event loop."""
    mirror = routes.RouteMirror(numbers(), devices)
    asyncio.get_running_loop().add_reader(mirror.fileno(), mirror.handle_events)
    try:
        mirror.sync()
        await steps(mirror)
        assert mirror.last_error is None
    finally:
        asyncio.get_running_loop().remove_reader(mirror.fileno())
        mirror.close()


def run_in_namespace(
    host: Host, steps: Callable[[routes.RouteMirror], Awaitable[None]], *devices: str
) -> None:
    host.ns.run_in(asyncio.run, in_namespace(steps, *devices))


async def becomes(host: Host, dst: str, dev: str) -> None:
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(get, host, dst))[0] != dev:
            pass  # each look gives the loop its turn


def test_changes_are_followed_by_events():
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(a, c, names=("eth1", "eth0"), net=2)
        add_tun(a)

        async def steps(_mirror: routes.RouteMirror) -> None:
            for command, dst, dev in (
                ("ip route add default via 10.9.1.2", "8.8.8.8", "dmm-0"),
                ("ip -6 route add default via fd09:1::2", "2606:4700::1", "dmm-0"),
                ("ip route add 9.9.9.0/24 via 10.9.2.2", "9.9.9.9", "eth1"),
                ("ip route del 9.9.9.0/24", "9.9.9.9", "dmm-0"),
                ("ip link del dmm-0", "8.8.8.8", "eth0"),
            ):
                await asyncio.to_thread(a.sh, command)
                await becomes(a, dst, dev)
            await asyncio.to_thread(add_tun, a)
            await becomes(a, "8.8.8.8", "dmm-0")

        run_in_namespace(a, steps, "eth0")


def test_own_changes_do_not_wake_the_watcher():
    with hosts(2) as (a, b):
        link(a, b)
        add_tun(a)
        with Mirror(a, "eth0") as m:
            m.sync()
            assert not m.mirror._drain()
            a.sh("ip route add default via 10.9.1.2")
            assert select.select([m.mirror], [], [], 5)[0]
            assert m.mirror._drain()
            assert m.sync().added == 1
            assert not m.mirror._drain()


def test_what_somebody_else_takes_away_comes_back():
    with hosts(2) as (a, b):
        link(a, b)
        a.sh("ip route add default via 10.9.1.2")
        a.sh("ip -6 route add default via fd09:1::2")
        add_tun(a)
        with Mirror(a, "eth0") as mirror:
            mirror.sync()
            expected = [("dmm-0", "10.9.1.1"), ("dmm-0", "fd09:1::1")]

            def leads() -> list[tuple[str, str]]:
                return [get(a, "192.0.2.7"), get(a, "2001:db8::7")]

            assert leads() == expected
            for version in ("-4", "-6"):
                for what in (f"rule del pref {numbers().pref}", f"route flush table {numbers().table}"):
                    a.sh(f"ip {version} {what}")
                    assert leads() != expected, what
                    assert select.select([mirror.mirror.fileno()], [], [], 5)[0], what
                    a.ns.run_in(mirror.mirror.handle_events)
                    assert leads() == expected, what
            assert not mirror.mirror._drain()

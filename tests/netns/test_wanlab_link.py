# SPDX-License-Identifier: Apache-2.0
"""The emulated link carries real traffic: rate, delay, loss, and transfers that arrive whole."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import (
    Host,
    Lab,
    WanLink,
    busybox_fetch,
    curl_fetch,
    iperf3,
    iperf3_server,
    nginx,
    wait_for,
)

Payload = Callable[[int], tuple[Path, str]]


def pair(lab: Lab, **params) -> tuple[Host, Host, WanLink]:
    """Two hosts and a link without neighbour discovery in the way of what is measured."""
    a, b = lab.host("client"), lab.host("server")
    return a, b, lab.wan(a, b, neighbours="static", **params)


def ping_times_ms(host: Host, address: str, count: int = 10) -> list[float]:
    done = host.run(["ping", "-n", "-c", str(count), "-i", "0.02", "-W", "2", address])
    return [float(value) for value in re.findall(r"time=([\d.]+)", done.stdout)]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_round_trip_is_twice_the_delay(lab: Lab, family: str) -> None:
    a, b, link = pair(lab, delay="25ms")
    times = ping_times_ms(a, getattr(b, family))
    assert len(times) == 10
    assert min(times) >= 50
    assert statistics.median(times) < 54
    assert link.stats().own_drops == 0


def test_each_direction_has_its_own_delay(lab: Lab) -> None:
    a, b, _ = pair(lab, ab={"delay": "5ms"}, ba={"delay": "30ms"})
    assert 35 <= statistics.median(ping_times_ms(a, b.ip4)) < 39
    assert 35 <= statistics.median(ping_times_ms(b, a.ip4)) < 39


def test_rate_limits_tcp(lab: Lab, tmp_path: Path) -> None:
    a, b, link = pair(lab, rate="20mbit", delay="5ms")
    iperf3_server(b, tmp_path)
    result = iperf3(a, b.ip4, "-n", "8M")
    goodput_bps = result["end"]["sum_received"]["bits_per_second"]
    limit_bps = 20e6 * 1448 / 1538
    assert 0.9 * limit_bps < goodput_bps < 1.01 * limit_bps
    assert link.stats().own_drops == 0


@pytest.mark.parametrize("ipv6", [False, True])
def test_file_arrives_whole_over_a_bad_link(
    lab: Lab, tmp_path: Path, payload: Payload, ipv6: bool
) -> None:
    a, b, link = pair(
        lab,
        rate="100mbit",
        delay="5ms",
        loss="1%",
        reorder="1%",
        reorder_delay="2ms",
        duplicate="1%",
        seed=3,
    )
    path, sha256 = payload(4_000_000)
    server = nginx(b, path.parent, tmp_path / "nginx")
    for fetch in (curl_fetch, busybox_fetch):
        fetched = fetch(a, server.url(path.name, ipv6=ipv6))
        assert (fetched.exit_code, fetched.sha256) == (0, sha256), fetched.stderr
    stats = link.stats()
    assert stats.ba.losses > 0
    assert stats.ba.reordered > 0
    assert stats.ba.duplicated > 0
    assert stats.own_drops == 0


def test_plain_wire_joins_hosts(lab: Lab, tmp_path: Path, payload: Payload) -> None:
    a, b = lab.host("client"), lab.host("server")
    lab.wire(a, b)
    path, sha256 = payload(4_000_000)
    server = nginx(b, path.parent, tmp_path / "nginx")
    for ipv6 in (False, True):
        assert curl_fetch(a, server.url(path.name, ipv6=ipv6)).sha256 == sha256


def test_link_survives_an_interface_that_goes_down_and_up(lab: Lab) -> None:
    a, b, link = pair(lab, delay="1ms")
    assert len(ping_times_ms(a, b.ip4, 2)) == 2
    b.ip("link set eth0 down")
    lost = a.run(["ping", "-n", "-c", "2", "-i", "0.02", "-W", "1", b.ip4], check=False)
    assert "0 received" in lost.stdout
    # The emulator waits a second for the interface, then gives its frames up and says so.
    wait_for(
        lambda: (
            a.run(["ping", "-c", "1", "-W", "1", b.ip4], check=False) and link.stats().ab.tx_drops
        ),
        10,
    )
    b.ip("link set eth0 up", f"neigh replace {a.ip4} lladdr {a.nic.mac} nud permanent dev eth0")
    wait_for(lambda: a.run(["ping", "-c", "1", "-W", "1", b.ip4], check=False).returncode == 0, 10)
    link.reset()
    assert len(ping_times_ms(a, b.ip4, 5)) == 5
    assert link.stats().own_drops == 0

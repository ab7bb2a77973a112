# SPDX-License-Identifier: Apache-2.0
"""lab.innerleg: what it does to packets between an app's kernel and its user stack really
happens to them.
"""

from __future__ import annotations

import pytest
from sitefixtures import by

from dmm_ebpf.hal import stackdevice
from lab import curl_fetch, nginx
from lab.build import program_path
from lab.innerleg import InnerLeg
from lab.programs import start_server

ECHO_PORT = 7400
DELAY_US = 20_000
CURL_TIMED_OUT = 28


@pytest.fixture(params=["af_xdp", "tap"])
def attached(request, wired):
    policy = by(request.param)
    return wired.attach_client(policy)


def device_of(routed) -> str:
    (process,) = routed.stack("wan")["processes"]
    return stackdevice.inner(process["device"], 0)


def median_us(site) -> float:
    """Of the exchanges of a byte on one connection in a second."""
    words = [program_path("pingpong"), "rr", site.server.ip4, str(ECHO_PORT), "1", "1"]
    done = site.client_cgroup.run(words, host=site.client)
    return int(done.stdout.split()[2]) / 1e3


def test_what_is_late_comes_as_late_as_was_asked_both_ways(wired, attached):
    serve = [program_path("pingpong"), "serve", wired.server.ip4, str(ECHO_PORT)]
    start_server(wired.server, serve, ECHO_PORT, wired.directory / "pingpong.log")
    with InnerLeg(
        wired.client, device_of(attached), lost=0, late=1, doubled=0, delay_us=DELAY_US
    ) as leg:
        assert median_us(wired) >= 2 * DELAY_US
        for way in leg.stats().values():
            assert way.late > 20
            assert way.lost == way.doubled == 0
    assert leg.put_back["lost"] == 0
    assert min(leg.put_back["to_stack"], leg.put_back["to_kernel"]) > 20
    assert median_us(wired) < DELAY_US


def test_what_is_doubled_comes_twice_and_long_packets_stay_whole(wired, attached, payload):
    path, sha256 = payload(3_000_000)
    server = nginx(wired.server, path.parent, wired.directory / "nginx", port=80)
    with InnerLeg(wired.client, device_of(attached), lost=0, late=0, doubled=1) as leg:
        got = curl_fetch(
            wired.client, server.url(path.name), cgroup=wired.client_cgroup, timeout=30
        )
        assert got.sha256 == sha256, got.stderr
        for way in leg.stats().values():
            assert way.doubled > 20
            assert way.lost == way.late == 0
    assert leg.put_back["lost"] == 0
    assert min(leg.put_back["to_stack"], leg.put_back["to_kernel"]) > 20


def test_what_is_lost_does_not_come(wired, attached, payload):
    path, sha256 = payload(1_000)
    server = nginx(wired.server, path.parent, wired.directory / "nginx", port=80)
    with InnerLeg(wired.client, device_of(attached), lost=1, late=0, doubled=0) as leg:
        wait = ("--connect-timeout", "2")
        got = curl_fetch(
            wired.client, server.url(path.name), cgroup=wired.client_cgroup, options=wait
        )
        assert got.exit_code == CURL_TIMED_OUT, got.stderr
        assert leg.stats()["to_stack"].lost > 0
    got = curl_fetch(wired.client, server.url(path.name), cgroup=wired.client_cgroup, timeout=30)
    assert got.sha256 == sha256, got.stderr

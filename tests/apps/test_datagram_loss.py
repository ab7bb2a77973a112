# SPDX-License-Identifier: Apache-2.0
"""Programs that speak UDP over a path that loses one of eight each way, by user stacks at both
hosts: iperf3 and QUIC. What is thin has copies; what is bulk has none to speak of, and is whole.
"""

from __future__ import annotations

import pytest
from sitefixtures import Site
from test_datagram_copies import counters, policy
from test_datagram_programs import iperf3_datagrams, iperf3_serves, quic_server, quic_streams

LOSS_PCT = 12


@pytest.fixture(name="lossy")
def lossy_fixture(site) -> Site:
    """With 20 ms of round trip."""
    site.wan(rate="100mbit", delay="10ms", loss=f"{LOSS_PCT}%", seed=6)
    return site


@pytest.mark.parametrize("reverse", [False, True])
def test_iperf3_loses_little_of_what_is_thin(lossy, reverse) -> None:
    """100 datagrams a second, as of a call; the first four seconds, in which loss is learned, do
    not count.
    """
    both = [attach(policy("tap")) for attach in (lossy.attach_client, lossy.attach_server)]
    iperf3_serves(lossy)
    words = ["--length", "200", "--omit", "4", *(["--reverse"] if reverse else [])]
    total = iperf3_datagrams(lossy, "160K", 10, *words)
    sender, receiver = (counters(routed) for routed in both[:: -1 if reverse else 1])
    assert total["packets"] > 900
    assert total["lost_percent"] < LOSS_PCT / 3, (sender, receiver)
    assert sender["datagram_copies"] > 2 * total["packets"]
    assert receiver["datagrams_repaired"] > LOSS_PCT / 200 * total["packets"]


def test_iperf3_loses_of_bulk_what_the_path_loses(lossy) -> None:
    both = [attach(policy("tap")) for attach in (lossy.attach_client, lossy.attach_server)]
    iperf3_serves(lossy)
    total = iperf3_datagrams(lossy, "20M", 5)
    assert total["packets"] > 5000
    assert LOSS_PCT / 2 < total["lost_percent"] < LOSS_PCT * 1.5
    assert counters(both[0])["datagram_copies"] < total["packets"] / 20


@pytest.mark.alone("200 ms are the clock's")
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_quic_requests_are_answered_in_time(site, io) -> None:
    """One after another, of 400 bytes, over 100 ms of round trip. Without copies a quarter of them
    waits for a timeout, of two round trips and more.
    """
    pytest.importorskip("aioquic")
    site.wan(rate="100mbit", delay="50ms", loss=f"{LOSS_PCT}%", seed=7)
    both = [attach(policy(io)) for attach in (site.attach_client, site.attach_server)]
    script = quic_server(site, site.server.ip4)
    took = quic_streams(site, script, site.server.ip4, 400, 150)
    assert None not in took
    late = took[50:]  # by which the loss is known
    assert sum(s < 0.2 for s in late) >= 0.9 * len(late), (took, [counters(r) for r in both])
    for routed in both:
        assert counters(routed)["datagrams_repaired"] > 10
        assert counters(routed)["datagram_copies"] > 150


def test_quic_transfers_are_whole(lossy) -> None:
    """Bulk, there and back: more copies are held back, for want of budget, than are sent."""
    pytest.importorskip("aioquic")
    both = [attach(policy("tap")) for attach in (lossy.attach_client, lossy.attach_server)]
    script = quic_server(lossy, lossy.server.ip4)
    took = quic_streams(lossy, script, lossy.server.ip4, 500_000, 2)
    assert None not in took
    told = [counters(routed) for routed in both]
    for one in told:
        print("  ", took, {name: one[name] for name in one if name.startswith("datagram")})
        assert one["datagram_copies_held"] > 0

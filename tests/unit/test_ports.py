# SPDX-License-Identifier: Apache-2.0
"""rd.ports: when a NIC goes to another port, by the clock."""

from __future__ import annotations

from dmm_ebpf.hal.choice import Choice, Port
from dmm_ebpf.rd.director.ports import BACK_S, NicPort

FIT = Choice(Port.AF_XDP, ("zero-copy",))
UNFIT = Choice(Port.TAP, ("qdisc tbf",))


def test_the_first_port_is_taken_at_once() -> None:
    assert NicPort().wish(FIT, 0) == "af_xdp"
    assert NicPort().wish(UNFIT, 0) == "tap"
    assert NicPort().wish(Choice(Port.NONE, ("it belongs to br0",)), 0) == "tap"


def test_away_from_af_xdp_at_once_and_back_when_nothing_was_in_the_way_for_long() -> None:
    one = NicPort(port="af_xdp")
    assert (one.wish(UNFIT, 10), one.reason) == ("tap", "qdisc tbf")
    one.port = "tap"
    assert one.wish(FIT, 11) == "tap" and "if it stays so" in one.reason
    assert one.wish(FIT, 11 + BACK_S - 0.01) == "tap"
    assert one.wish(UNFIT, 12 + BACK_S) == "tap"
    assert one.wish(FIT, 13 + BACK_S) == "tap", "the time before counted"
    assert one.wish(FIT, 13 + 2 * BACK_S) == "af_xdp"
    assert one.reason == "zero-copy"

# SPDX-License-Identifier: Apache-2.0
"""nft by its library: the rule sets, and the devices, are those of the host that is meant."""

from __future__ import annotations

import pytest

from compat.nft import Nft
from dmm_ebpf.errors import DmmError

CHAIN = "add table inet t; add chain inet t c { type filter hook output priority 0; };"


def test_rules_and_devices_are_the_hosts_own(lab):
    a, b = lab.host("a"), lab.host("b")
    a.ip("link add only0 type bridge")
    Nft(a).run(f'{CHAIN} add rule inet t c oif "only0" counter')
    (rule,) = (one["rule"] for one in Nft(a).listed("ruleset") if "rule" in one)
    assert rule["expr"][0]["match"]["right"] == "only0"
    with pytest.raises(DmmError, match="Interface does not exist"):
        Nft(b).run(f'{CHAIN} add rule inet t c oif "only0" counter')
    assert not [one for one in Nft(b).listed("ruleset") if "table" in one]
    Nft(a).run("flush ruleset")
    assert not [one for one in Nft(a).listed("ruleset") if "table" in one]

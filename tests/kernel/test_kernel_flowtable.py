# SPDX-License-Identifier: Apache-2.0
"""A gateway with an nftables flowtable, by which packets of an open connection go past FORWARD,
carries what it forwards by a user stack all the same.

A kernel without flowtables skips it on the host; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL)
they must be there.
"""

from __future__ import annotations

import os
import re

import pytest
from talking import PORT, Talker, echo

from lab.routed import Routed

SIZE = 200_000  # 140 segments each way at least
FEW = 40  # of both directions, until the flow is in the table and after a FIN
FLOWTABLE = """
table inet f {
    flowtable fast { hook ingress priority 0; devices = { eth0, eth1 }; }
    chain forward {
        type filter hook forward priority 0;
        tcp dport 7300 counter comment "seen"
        ct state established flow add @fast
    }
    chain nat {
        type nat hook postrouting priority srcnat;
        oifname "eth0" masquerade
    }
}
"""
POLICY = f"""
[stacks.wan]
kind = "user"
io = "tap"
devices = ["eth0"]

[[rules]]
name = "lan"
direction = "forward"
in_interface = "eth1"
table = "t"

[[tables.t.routes]]
to = "default"
proto = "tcp"
ports = "{PORT}"
stack = "wan"
"""


@pytest.fixture
def gateway(lab):
    """With a flowtable: eth0 is outside, eth1 inside. Itself, the host inside, the one outside."""
    gate, inside, outside = (lab.host(name) for name in ("gate", "inside", "outside"))
    for host in (outside, inside):
        lab.wire(gate, host)
    gate.sysctl("net.ipv4.ip_forward", 1)
    gate.sysctl("net.ipv6.conf.all.forwarding", 1)
    done = gate.run(["nft", "-f", "-"], input=FLOWTABLE, check=False)
    if done.returncode:
        assert "DMM_GUEST_KERNEL" not in os.environ, done.stderr
        pytest.skip(f"this kernel has no flowtables: {done.stderr.splitlines()[0]}")
    return gate, inside, outside


def test_a_flow_in_the_table_stays_the_stacks(gateway, make_cgroup, tmp_path):
    gate, inside, outside = gateway
    tmp_path.chmod(0o755)
    others = make_cgroup()
    echo(outside, others)
    with Routed(gate, make_cgroup(), POLICY, tmp_path) as routed:
        for family in ("ip4", "ip6"):
            talker = Talker(inside, others, getattr(outside, family))
            assert talker.peer == getattr(gate, family), "it is not translated"
            assert talker.says(f"send {SIZE}") == "True"
        assert routed.stack("wan")["counters"]["active_open"] == 2
        assert {flow["stack"] for flow in routed.flows(kind="forwarded")} == {"wan"}
        assert routed.ask("status")[0]["counters"]["inner_dropped"] == 0
    listed = gate.run(["nft", "list", "chain", "inet", "f", "forward"]).stdout
    (packets,) = re.findall(r'packets (\d+) bytes \d+ comment "seen"', listed)
    assert 2 <= int(packets) < FEW, "the flowtable has not taken them over"

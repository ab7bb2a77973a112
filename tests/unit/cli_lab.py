# SPDX-License-Identifier: Apache-2.0
"""For tests of the command line: what a Resource Director answers, and how a command
ended. Fixtures: conftest.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.records import device

FLOW = {
    "instance": "default",
    "kind": "socket",
    "proto": "tcp",
    "src": "192.0.2.1",
    "sport": 40000,
    "dst": "203.0.113.7",
    "dport": 443,
    "direction": "connect",
    "stack": "wan",
    "wanted": "wan",
    "why": "",
    "table": "shop",
    "rule": "1: cgroup /shop.slice",
    "route": "203.0.113.0/24 tcp 443",
    "generation": 3,
    "state": "ESTABLISHED",
    "pid": 4242,
    "comm": "curl",
    "uid": 0,
    "cgroup": "/shop.slice",
    "bytes_sent": 1234567,
    "bytes_received": 999,
    "srtt_us": 105000,
    "retransmits": 3,
    "cookie": 77,
    "age_s": 62.5,
}
FLOW6 = FLOW | {
    "dst": "2001:db8::7",
    "dport": 80,
    "stack": "kernel",
    "comm": "nginx",
    "pid": 7,
    "cookie": 78,
}
STACK = {
    "instance": "default",
    "name": "wan",
    "id": 1,
    "kind": "user",
    "state": "up",
    "reason": "",
    "pid": 99,
    "transport": "tcp",
    "congestion": "bbr",
    "io": "af_xdp",
    "device": "dmm-0",
    "nics": ["eth0"],
    "fallback": "kernel",
    "flows": 1,
    "restarts": 0,
    "options": {},
}
STATUS = {
    "instance": "default",
    "pid": 31337,
    "netns": None,
    "cgroup": "/sys/fs/cgroup/shop.slice",
    "policy": "/etc/dmm/policy.toml",
    "policy_refused": None,
    "generation": 3,
    "uptime_s": 200.0,
    "flows": 2,
    "listeners": 1,
    "rules": 1,
    "routes": 2,
    "counters": {"connect": 5, "events_lost": 0},
    "nics": [],
    "problem": None,
    "missing": [],
    "pending": [],
    "earlier": None,
    "stacks": [STACK],
}
LISTENER = {
    "instance": "default",
    "proto": "tcp",
    "addr": "::",
    "port": 80,
    "rule": "1",
    "table": "shop",
    "pid": 7,
    "comm": "nginx",
    "uid": 0,
    "cgroup": "/shop.slice",
    "sockets": 2,
}
RDMA = device.RdmaPort(
    "mlx5_0", 1, "ACTIVE", "Ethernet", "100 Gb/sec", ["RoCE v2"], ["RC", "UD"], ["eth0"]
)
DEVICE = device.DeviceRow(
    name="eth0",
    altnames=["enp1s0f0np0"],
    ifindex=3,
    kind="hardware",
    driver="mlx5_core",
    bus="pci/0000:01:00.0",
    up=True,
    mtu=1500,
    speed_mbps=100_000,
    numa_node=None,
    queues=device.Queues(8, 8, 16, 16),
    rss=device.Rss(128, 8, "toeplitz", 40),
    offloads=[
        device.Offload("tx-tcp-segmentation", True, True),
        device.Offload("rx-gro", False, True),
    ],
    xdp=device.Xdp(True, True, True, False, False, device.XdpAttached("native", 9)),
    af_xdp=device.AfXdp("zero-copy", True, 17, True, False),
    metadata=device.Metadata(["timestamp", "hash"], []),
    rdma=[RDMA],
    in_the_way=device.InTheWay("their_xdp (id 9)", "htb", ["ingress u32"], []),
    fit_for=device.FitFor("tap", ["XDP program their_xdp is there"], True),
)
ANSWERS: dict[str, Any] = {
    "status": STATUS,
    "stacks": [STACK],
    "flows": [FLOW, FLOW6],
    "listeners": [LISTENER],
    "route_get": {
        "stack": "wan",
        "wanted": "wan",
        "table": "shop",
        "rule": "1",
        "rule_number": 1,
        "route": "203.0.113.0/24",
        "why": None,
        "unasked": [],
    },
    "policy_show": {
        "instance": "default",
        "path": "/etc/p.toml",
        "text": "[stacks.wan]\n",
        "generation": 3,
    },
    "policy_apply": {
        "instance": "default",
        "generation": 4,
        "rules": 1,
        "routes": 2,
        "stacks": 1,
        "pending": [],
    },
    "follow": [],
}


@dataclass
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]


def one_sentence(said: Said, code: int, text: str) -> None:
    """Nothing on standard output, one line on standard error that starts as all do,
    the exit code.
    """
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("dmm-ebpf: cannot ")
    assert text in said.err
    assert said.code == code

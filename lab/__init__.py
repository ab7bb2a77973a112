# SPDX-License-Identifier: Apache-2.0
"""A laboratory of network namespaces: hosts, plain wires, and wide-area links by our own emulator.

    with Lab("transfer") as lab:
        client, server = lab.host("client"), lab.host("server")
        link = lab.wan(client, server, rate="100mbit", delay="50ms", loss="1%", seed=7)
        client.run(["ping", "-c1", server.ip4])
        assert link.stats().own_drops == 0

Everything that a Lab makes carries its name and goes with it, also the processes started in its
hosts. What a crash leaves behind is removed by `tools/wanlab clean`.
"""

from lab.cgroups import Cgroup, cgroup2_mount
from lab.hosts import Host, Lab, Nic
from lab.links import DirectionStats, LinkStats, WanLink, Wire
from lab.programs import (
    Fetched,
    Server,
    busybox_fetch,
    busybox_httpd,
    curl_fetch,
    iperf3,
    iperf3_server,
    nginx,
    random_file,
    redis_server,
)
from lab.waiting import wait_for

__all__ = [
    "Cgroup",
    "DirectionStats",
    "Fetched",
    "Host",
    "Lab",
    "LinkStats",
    "Nic",
    "Server",
    "WanLink",
    "Wire",
    "busybox_fetch",
    "busybox_httpd",
    "cgroup2_mount",
    "curl_fetch",
    "iperf3",
    "iperf3_server",
    "nginx",
    "random_file",
    "redis_server",
    "wait_for",
]

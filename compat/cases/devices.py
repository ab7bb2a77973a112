# SPDX-License-Identifier: Apache-2.0
"""Devices of every kind between the host and its peer, and who is let near one."""

from __future__ import annotations

from compat.case import OWN, Case
from compat.cases.queueing import compiled
from compat.cell import Cell
from compat.site import KINDS
from compat.watch import counters, devices

GROUP = "devices"

# What systemd makes of RestrictNetworkInterfaces=: programs of the unit's cgroup that let one
# device's packets pass.
RESTRICT = """
#include <linux/bpf.h>
#define SEC(name) __attribute__((section(name), used))
SEC("cgroup_skb/egress") int out(struct __sk_buff *skb) { return skb->ifindex == %(index)d; }
SEC("cgroup_skb/ingress") int in(struct __sk_buff *skb) { return skb->ifindex == %(index)d; }
char _license[] SEC("license") = "GPL";
"""


def _restrict(cell: Cell) -> None:
    import socket

    index = cell.host.call(socket.if_nametoindex, cell.site.device)
    built = compiled(cell, RESTRICT % {"index": index}, f"compat-restrict-{index}.o")
    pins = f"/sys/fs/bpf/{cell.site.lab.name.replace('.', '-')}-{cell.port}"
    cell.run("bpftool", "prog", "loadall", str(built), pins, undo=("rm", "-r", pins))
    for name, way in (("out", "egress"), ("in", "ingress")):
        words = (str(cell.site.cgroup.path), way, "pinned", f"{pins}/{name}")
        cell.run(
            "bpftool",
            "cgroup",
            "attach",
            *words,
            "multi",
            undo=("bpftool", "cgroup", "detach", *words),
        )


CASES = (
    Case("RestrictNetworkInterfaces= (its programs)", GROUP, OWN, prepare=_restrict, quick=True),
    *(
        Case(f"over {kind}", GROUP, OWN, sites=(kind,), during=(devices, counters), quick=kind in ("bridge", "vxlan"),
             nft=('to {to} oifname "{dev}" counter', 'from {from} iifname "{dev}" counter'))
        for kind in KINDS
    ),
)  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The clsact qdisc and the direct-action BPF program at the ingress of a TUN device.

The program marks what a stack sends to the kernel. Only devices of ours are touched (they are made and die
with their stack process, and qdisc and filter with them), so nothing of anybody else's can be replaced
here.
"""

from __future__ import annotations

import errno

from pyroute2 import IPRoute, NetlinkError

from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal.netlink import aside, explained
from dmm_ebpf.hal.nic import TUN_PREFIX

_PARENT_INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_HANDLE = 0x1
_PRIO = 1
_ETH_P_ALL = 0x0003


def attach(ifindex: int, prog_fd: int, name: str = "dmm_tun") -> None:
    """Puts the program at the device's ingress, in place of a former one of ours. Raises DmmError."""

    def work() -> None:
        with IPRoute() as ipr:
            links = ipr.get_links(ifindex)
            if not str(links[0].get_attr("IFLA_IFNAME")).startswith(TUN_PREFIX):
                raise UsageError(
                    f"attach a tc program to device {ifindex}", why="it is not a device of a user stack"
                )
            try:
                ipr.tc("add", "clsact", ifindex)
            except NetlinkError as exc:
                if exc.code != errno.EEXIST:
                    raise
            ipr.tc(
                "replace-filter",
                "bpf",
                ifindex,
                _HANDLE,
                fd=prog_fd,
                name=name,
                parent=_PARENT_INGRESS,
                prio=_PRIO,
                protocol=_ETH_P_ALL,
                classid=1,
                direct_action=True,
            )

    with explained(f"attach a tc program to device {ifindex}"):
        aside(work)


def attached(ifindex: int) -> list[str]:
    """Names of the BPF programs at the device's ingress."""

    def work() -> list[str]:
        with IPRoute() as ipr:
            found = []
            for item in ipr.get_filters(index=ifindex, parent=_PARENT_INGRESS):
                options = item.get_attr("TCA_OPTIONS")
                name = options.get_attr("TCA_BPF_NAME") if options else None
                if name:
                    found.append(str(name))
            return found

    with explained(f"list the tc programs of device {ifindex}"):
        return aside(work)

# SPDX-License-Identifier: Apache-2.0
"""Packet filters: nft, and iptables of both kinds, in OUTPUT, INPUT and FORWARD."""

from __future__ import annotations

from compat.case import CONNECT, DIRECTIONS, FORWARD, LISTEN, OWN, PUBLISHED, Case
from compat.cell import Cell
from compat.watch import counters, hits, quotas, sets

NFT = "nft filter"
USER_ID = 1234


def _cgroup(cell: Cell) -> None:
    """nft asks for the cgroup's path below /sys/fs/cgroup, wherever v2 is mounted there."""
    path = str(cell.site.cgroup.path.relative_to("/sys/fs/cgroup"))
    cell.words |= {
        "cgpath": path,
        "level": str(len(cell.site.cgroup.relative.strip("/").split("/"))),
    }


NFT_CASES = (
    Case(
        "accept, counted", NFT, DIRECTIONS, nft=("to {to} counter accept", "from {from} counter accept"),
        during=(counters,), quick=True,
    ),
    Case("drop towards the peer", NFT, DIRECTIONS, nft=("to {to} counter drop",), during=(hits,), quick=True),
    Case("drop from the peer", NFT, DIRECTIONS, nft=("from {from} counter drop",), during=(hits,)),
    Case(
        "reject with a TCP reset", NFT, (CONNECT, FORWARD), nft=("to {to} counter reject with tcp reset",),
        during=(hits,), quick=True,
    ),
    Case(
        "reject with host-unreachable", NFT, (CONNECT, FORWARD),
        nft=("to {to} counter reject with icmpx host-unreachable",), during=(hits,), quick=True,
    ),
    Case(
        "reject with admin-prohibited", NFT, (CONNECT, FORWARD),
        nft=("to {to} counter reject with icmpx admin-prohibited",), during=(hits,),
    ),
    Case(
        "reject from the peer with a TCP reset", NFT, (LISTEN, PUBLISHED),
        nft=("from {from} counter reject with tcp reset",), during=(hits,),
    ),
    Case(
        "reject from the peer with port-unreachable", NFT, (LISTEN, PUBLISHED),
        nft=("from {from} counter reject with icmpx port-unreachable",), during=(hits,),
    ),
    Case(
        "default drop, the flow let through by state", NFT, OWN,
        nft=(
            "from ct state established,related counter accept", "from {from} ct state new counter accept",
            "from meta l4proto tcp counter drop",
        ),
        during=(hits,),
    ),
    Case("quota", NFT, OWN, nft=("to {to} quota over 300 kbytes drop",), during=(quotas,), app={"patience": 2}),
    Case(
        "limit", NFT, OWN, nft=("to {to} limit rate over 1 mbytes/second drop",), size=3_000_000,
        mbit=12,
    ),
    Case(
        "a named set of addresses and ports", NFT, OWN,
        nft=(
            "table add set inet t open { type {proto}_addr . inet_service; }",
            "table add element inet t open { {peer} . {port}, {client} . {port} }",
            "to {ip} daddr . tcp dport @open counter", "to {ip} saddr . tcp sport @open counter",
        ),
        during=(counters,),
    ),
    Case(
        "a set that packets fill", NFT, OWN,
        nft=(
            "table add set inet t seen { type {proto}_addr; flags dynamic; timeout 1m; }",
            "to {to} add @seen { {ip} daddr }",
        ),
        during=(sets,),
    ),
    Case(
        "meta skuid", NFT, OWN, nft=(f"to {{to}} meta skuid {USER_ID} counter", "to {to} counter"),
        app={"uid": USER_ID}, during=(counters,), quick=True,
    ),
    Case(
        "meta skuid, another user rejected", NFT, (CONNECT,),
        nft=(f"to {{to}} meta skuid != {USER_ID} counter reject",), during=(hits,),
    ),
    Case(
        "socket cgroupv2", NFT, OWN, prepare=_cgroup, during=(counters,), quick=True,
        nft=('to {to} socket cgroupv2 level {level} "{cgpath}" counter', "to {to} counter"),
    ),
    Case(
        "socket cgroupv2 from the peer", NFT, OWN, prepare=_cgroup, during=(counters,),
        nft=('from {from} socket cgroupv2 level {level} "{cgpath}" counter', "from {from} counter"),
    ),
    Case(
        "by the device's name", NFT, DIRECTIONS,
        nft=('to {to} oifname "{dev}" counter', 'from {from} iifname "{dev}" counter'), during=(counters,), quick=True,
    ),
    Case(
        "only by the device's name, else rejected", NFT, OWN,
        nft=(
            'to oifname { "{dev}", "lo" } accept', "to meta l4proto tcp counter reject",
            'from iifname { "{dev}", "lo" } accept', "from meta l4proto tcp counter drop",
        ),
        during=(hits,),
    ),
    Case(
        "by the device's index", NFT, OWN,
        nft=('to {to} oif "{dev}" counter', 'from {from} iif "{dev}" counter'), during=(counters,),
    ),
    Case("no such address", NFT, (CONNECT,), target="absent", sysctls=(("net.ipv4.tcp_syn_retries", "3"),),
         app={"patience": 9}),
    Case("a port nobody serves", NFT, (CONNECT,), nft=("to {to} counter",), app={"port": 9}),
    Case(
        "the peer's filter rejects", NFT, (CONNECT,),
        prepare=lambda cell: cell.nft(
            "add table inet p; add chain inet p i { type filter hook input priority 0; };"
            "add rule inet p i tcp dport {port} reject with icmpx host-unreachable", cell.site.peer,
        ),
    ),
)  # fmt: skip


def _iptables(tool: str) -> tuple[Case, ...]:
    group = "iptables (legacy)" if tool.endswith("legacy") else "iptables (nft)"
    return (*_filtering(tool, group), *_tracking(tool, group), *_translating(tool, group))


def _filtering(tool: str, group: str) -> tuple[Case, ...]:
    """What is let through or not."""
    return (
        Case(
            "accept, counted", group, DIRECTIONS, tool=tool, during=(counters,), quick=tool.endswith("legacy"),
            iptables=("filter to {-to} -j ACCEPT", "filter from {-from} -j ACCEPT"),
        ),
        Case("drop towards the peer", group, DIRECTIONS, tool=tool, during=(hits,),
             iptables=("filter to {-to} -j DROP",)),
        Case(
            "reject with a TCP reset", group, (CONNECT, FORWARD), tool=tool, during=(hits,),
            iptables=("filter to {-to} -j REJECT --reject-with tcp-reset",),
        ),
        Case(
            "reject, prohibited", group, (CONNECT, FORWARD), tool=tool, during=(hits,),
            iptables=("filter to {-to} -j REJECT --reject-with {prohibited}",),
        ),
        Case(
            "reject from the peer", group, (LISTEN, PUBLISHED), tool=tool, during=(hits,),
            iptables=("filter from {-from} -j REJECT",),
        ),
        Case(
            "owner", group, OWN, tool=tool, app={"uid": USER_ID}, during=(counters,),
            iptables=(f"filter to {{-to}} -m owner --uid-owner {USER_ID}", "filter to {-to}"),
        ),
        Case(
            "cgroup by path", group, OWN, tool=tool, during=(counters,),
            iptables=("filter to {-to} -m cgroup --path {cgroup}", "filter to {-to}"),
        ),
        Case(
            "by the device's name", group, DIRECTIONS, tool=tool, during=(counters,), quick=tool.endswith("legacy"),
            iptables=("filter to {-to} -o {dev}", "filter from {-from} -i {dev}"),
        ),
        Case(
            "quota", group, OWN, tool=tool, app={"patience": 2},
            iptables=("filter to {-to} -m quota --quota 300000 -j ACCEPT", "filter to {-to} -j DROP"),
        ),
        Case(
            "connlimit", group, OWN, tool=tool, connections=2,
            iptables=("filter to {-to} -m connlimit --connlimit-above 1 --connlimit-daddr -j DROP",),
        ),
    )  # fmt: skip


def _tracking(tool: str, group: str) -> tuple[Case, ...]:
    """What a packet is known by, or bears from then on."""
    return (
        Case(
            "conntrack states", group, OWN, tool=tool, during=(hits,),
            iptables=(
                "filter to {-to} -m conntrack --ctstate NEW", "filter to {-to} -m conntrack --ctstate ESTABLISHED",
                "filter to {-to} -m conntrack --ctstate INVALID -j DROP",
            ),
        ),
        Case(
            "marks, set and matched", group, OWN, tool=tool, during=(counters,),
            iptables=("mangle to {-to} -j MARK --set-mark 5", "filter to {-to} -m mark --mark 5", "filter to {-to}"),
        ),
        Case(
            "socket, in PREROUTING", group, OWN, tool=tool, during=(hits,),
            iptables=("mangle PREROUTING {-from} -m socket", "mangle PREROUTING {-from}"),
        ),
        Case(
            "TCPMSS", group, OWN, tool=tool, during=(hits,),
            iptables=("mangle to {-to} --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000",),
        ),
    )  # fmt: skip


def _translating(tool: str, group: str) -> tuple[Case, ...]:
    """Other addresses and ports."""
    return (
        Case(
            "SNAT", group, (CONNECT,), tool=tool, iptables=("nat POSTROUTING {-to} -j SNAT --to-source {extra}",),
        ),
        Case(
            "masquerade by the device's name", group, (CONNECT, FORWARD), tool=tool, during=(hits,),
            iptables=("nat POSTROUTING {-to} -o {dev} -j MASQUERADE",),
        ),
        Case(
            "DNAT in OUTPUT", group, (CONNECT,), tool=tool, target="virtual",
            iptables=("nat OUTPUT {-to} -j DNAT --to-destination {peer@}:{port}",),
        ),
        Case(
            "REDIRECT in PREROUTING", group, (LISTEN,), tool=tool, redirected=True, during=(hits,),
            iptables=("nat PREROUTING {-from} -j REDIRECT --to-ports {port2}",),
        ),
    )  # fmt: skip


CASES = NFT_CASES + _iptables("iptables-legacy") + _iptables("iptables-nft")

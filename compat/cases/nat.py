# SPDX-License-Identifier: Apache-2.0
"""Translation of addresses and ports, and what stands in for a peer: REDIRECT, TPROXY, synproxy."""

from __future__ import annotations

from compat.case import CONNECT, FORWARD, LISTEN, OWN, PUBLISHED, Case
from compat.cell import Cell
from compat.watch import conntrack, counters, hits

GROUP = "NAT"


def _tproxy(cell: Cell) -> None:
    """The usual road of a transparent proxy: packets marked by tproxy are routed to
    this host itself.
    """
    cell.ip("rule add fwmark 0x100/0x100 lookup 100", "rule del fwmark 0x100/0x100 lookup 100")
    cell.ip("route add local {all} dev lo table 100", "route flush table 100")
    cell.ip(
        "route add {virtual}/{len} via {client}", "route del {virtual}/{len}", host=cell.site.peer
    )


CASES = (
    Case("SNAT to another address of the host", GROUP, (CONNECT,), during=(conntrack,), quick=True,
         nft=("nat-post {to} snat {ip} to {extra}",)),
    Case("SNAT by the device's name", GROUP, (CONNECT,), during=(hits,), quick=True,
         nft=('nat-post {to} oifname "{dev}" counter snat {ip} to {extra}',)),
    Case("SNAT to other ports", GROUP, (CONNECT,), nft=("nat-post {to} snat {ip} to {client@}:61500-61999",)),
    Case("masquerade by the device's name", GROUP, (CONNECT, FORWARD), during=(hits,), quick=True,
         nft=('nat-post {to} oifname "{dev}" counter masquerade',)),
    Case("DNAT in OUTPUT", GROUP, (CONNECT,), target="virtual", during=(conntrack,), quick=True,
         nft=("nat-out {ip} daddr {virtual} tcp dport {port} dnat {ip} to {peer@}:{port}",)),
    Case("DNAT in OUTPUT to another port", GROUP, (CONNECT,), target="virtual", redirected=True,
         nft=("nat-out {ip} daddr {virtual} tcp dport {port} dnat {ip} to {peer@}:{port2}",)),
    Case("DNAT in OUTPUT to a container", GROUP, (CONNECT,), target="virtual", server="inside",
         nft=("nat-out {ip} daddr {virtual} tcp dport {port} dnat {ip} to {box@}:{port}",)),
    Case("REDIRECT in OUTPUT", GROUP, (CONNECT,), target="peer", redirected=True, server="bystander", quick=True,
         nft=("nat-out {ip} daddr {peer} tcp dport {port} redirect to :{port2}",)),
    Case("REDIRECT in PREROUTING", GROUP, (LISTEN,), redirected=True, quick=True,
         nft=("nat-pre {ip} saddr {peer} tcp dport {port} counter redirect to :{port2}",), during=(hits, conntrack)),
    Case("REDIRECT in PREROUTING by the device's name", GROUP, (LISTEN,), redirected=True,
         nft=('nat-pre iifname "{dev}" tcp dport {port} counter redirect to :{port2}',), during=(hits,)),
    Case("REDIRECT in PREROUTING to a bystander", GROUP, (LISTEN,), redirected=True, server="bystander",
         nft=("nat-pre {ip} saddr {peer} tcp dport {port} counter redirect to :{port2}",), during=(hits,)),
    Case("DNAT in PREROUTING to this host", GROUP, (LISTEN,), target="extra", redirected=True, during=(hits,),
         nft=("nat-pre {ip} daddr {extra} tcp dport {port} counter dnat {ip} to {client@}:{port2}",)),
    Case("SNAT in INPUT", GROUP, (LISTEN,), nft=("nat-in {from} snat {ip} to {virtual}",), during=(conntrack,)),
    Case("a published port", GROUP, (PUBLISHED,), during=(conntrack,), quick=True),
    Case("a published port, its clients masqueraded", GROUP, (PUBLISHED,), during=(hits,),
         nft=("nat-post {ip} daddr {box} tcp dport {port} counter masquerade",)),
    Case("TPROXY to a bystander", GROUP, (LISTEN,), target="virtual", server="bystander", redirected=True,
         app={"transparent": True}, prepare=_tproxy, during=(hits,), quick=True,
         nft=("pre {ip} daddr {virtual} tcp dport {port} tproxy {ip} to :{port2} meta mark set 0x100 counter accept",
              "pre {ip} saddr {peer} tcp sport != {port} socket transparent 1 meta mark set 0x100 accept")),
    Case("TPROXY to a routed program", GROUP, (LISTEN,), target="virtual", redirected=True,
         app={"transparent": True}, prepare=_tproxy, during=(hits,),
         nft=("pre {ip} daddr {virtual} tcp dport {port} tproxy {ip} to :{port2} meta mark set 0x100 counter accept",
              "pre {ip} saddr {peer} tcp sport != {port} socket transparent 1 meta mark set 0x100 accept")),
    Case("synproxy", GROUP, (LISTEN,), during=(hits,),
         sysctls=(("net.netfilter.nf_conntrack_tcp_loose", "0"), ("net.ipv4.tcp_timestamps", "1")),
         nft=("raw-pre {from} tcp flags syn notrack",
              "from {from} ct state invalid,untracked counter synproxy mss 1460 wscale 7 timestamp sack-perm",
              "from {from} ct state invalid drop")),
    Case("a NAT table that does not match", GROUP, OWN, during=(counters,),
         nft=("nat-post oifname nowhere masquerade", "nat-pre tcp dport 1 redirect to :2", "to {to} counter")),
)  # fmt: skip

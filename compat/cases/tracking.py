# SPDX-License-Identifier: Apache-2.0
"""Connection tracking: states, marks, counts, and the entries themselves."""

from __future__ import annotations

from compat.case import CONNECT, DIRECTIONS, FORWARD, OWN, Case
from compat.watch import conntrack, counters, hits, packets

GROUP = "conntrack"

CASES = (
    Case("entries during and after", GROUP, DIRECTIONS, nft=("to {to} ct state new,established",), during=(conntrack,),
         after=(conntrack,), quick=True),
    Case("states", GROUP, DIRECTIONS, during=(packets,), quick=True,
         nft=("pre {from} ct state new counter", "post {to} ct state new counter",
              "from {from} ct state invalid counter", "to {to} ct state invalid counter")),
    Case("invalid dropped", GROUP, DIRECTIONS, during=(hits,),
         nft=("from {from} ct state invalid counter drop", "to {to} ct state invalid counter drop")),
    Case("bytes of both directions", GROUP, OWN, sysctls=(("net.netfilter.nf_conntrack_acct", "1"),),
         during=(hits,),
         nft=("to {to} ct original bytes > 500000 ct reply bytes > 500000 counter", "to {to} counter")),
    Case("ct mark, set and restored", GROUP, OWN, during=(counters, conntrack),
         nft=("to {to} ct mark set 7", "pre {from} meta mark set ct mark", "from {from} meta mark 7 counter",
              "from {from} counter")),
    Case("ct count", GROUP, (CONNECT, FORWARD), connections=2, during=(hits,),
         nft=("to {to} ct state new ct count over 1 counter reject with tcp reset",)),
    Case("notrack", GROUP, OWN,
         nft=("raw-out {to} notrack", "raw-pre {from} notrack", "to {to} ct state untracked counter"),
         during=(conntrack, counters)),
    Case("strict: nf_conntrack_tcp_loose=0", GROUP, OWN, sysctls=(("net.netfilter.nf_conntrack_tcp_loose", "0"),),
         nft=("from {from} ct state invalid counter drop", "to {to} ct state invalid counter drop"), during=(hits,)),
)  # fmt: skip

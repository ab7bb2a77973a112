# SPDX-License-Identifier: Apache-2.0
"""Marks: of the socket, of packets, whole and under a mask."""

from __future__ import annotations

from compat.case import CONNECT, LISTEN, OWN, Case
from compat.watch import counters, hits, marks

GROUP = "marks"
SET_5 = {"options": [["SOL_SOCKET", "SO_MARK", 5]]}

CASES = (
    Case("a program's mark, matched whole", GROUP, OWN, app=SET_5, during=(counters,), quick=True,
         nft=("to {to} meta mark 5 counter", "to {to} counter")),
    Case("a program's mark, matched under a mask", GROUP, OWN, app=SET_5, during=(counters,),
         nft=("to {to} meta mark & 0xff == 5 counter", "to {to} counter")),
    Case("no mark, matched whole", GROUP, OWN, during=(counters,),
         nft=("to {to} meta mark 0 counter", "to {to} counter")),
    Case("a program's mark, read back", GROUP, OWN, app=SET_5, during=(marks,), quick=True),
    Case("no mark, read back", GROUP, OWN, during=(marks,)),
    Case("a mark set on an open connection", GROUP, (CONNECT,), during=(marks,), quick=True,
         app={"options_after": [["SOL_SOCKET", "SO_MARK", 9]]}),
    Case("a mark cleared on an open connection", GROUP, (CONNECT,), during=(marks,),
         app={"options": [["SOL_SOCKET", "SO_MARK", 5]], "options_after": [["SOL_SOCKET", "SO_MARK", 0]]}),
    Case("a packet's mark, set in OUTPUT and matched later", GROUP, OWN, during=(counters,),
         nft=("reroute {to} meta mark set 6", "post {to} meta mark 6 counter", "post {to} counter")),
    Case("a packet's mark, set from the peer", GROUP, OWN, during=(counters, marks), quick=True,
         nft=("pre {from} meta mark set 5", "from {from} meta mark 5 counter", "from {from} counter")),
    Case("the same, taken by accepted sockets (tcp_fwmark_accept)", GROUP, (LISTEN,), during=(marks,),
         nft=("pre {from} meta mark set 5",), sysctls=(("net.ipv4.tcp_fwmark_accept", "1"),)),
    Case("a bystander's service, its packets marked", GROUP, (LISTEN,), server="bystander", during=(marks,),
         nft=("pre {from} meta mark set 5",)),
    Case("no DSCP", GROUP, OWN, during=(hits,), families=("ip4",),
         nft=("to {to} ip dscp != 0 counter",)),
    Case("DSCP of the program", GROUP, OWN, during=(counters,), families=("ip4",),
         app={"options": [["IPPROTO_IP", "IP_TOS", 0x48]]}, nft=("to {to} ip dscp af21 counter",)),
    Case("priority of the program", GROUP, OWN, during=(counters,),
         app={"options": [["SOL_SOCKET", "SO_PRIORITY", 3]]}, nft=("to {to} meta priority 0:3 counter",)),
)  # fmt: skip

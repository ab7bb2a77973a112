# SPDX-License-Identifier: Apache-2.0
"""What a case of the table is: one small declaration of how a host is set up and what is looked at.

A cell is a case, a family, a direction and a carrier. The words of rules may hold what
differs between cells:

    {to} {from}           match the flow's packets towards the peer, and from it (nft's words)
    {ip} {port} {dev}     ip or ip6; the service's port; the device that leads to the peer
    {client} {peer} … addresses by the names of site.py, in the cell's family; {client@}
    before a port

A rule's first word names the chain (see CHAINS): `to` and `from` are those that see the
application's packets first and last, OUTPUT and INPUT, or FORWARD when the host only forwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compat.cell import Cell

CONNECT, LISTEN, FORWARD, PUBLISHED = "connect", "listen", "forward", "published"
DIRECTIONS = (CONNECT, LISTEN, FORWARD, PUBLISHED)
OWN = (CONNECT, LISTEN)  # the sockets are this host's
IP4, IP6 = "ip4", "ip6"
FAMILIES = (IP4, IP6)
REFERENCE, KERNEL, AF_XDP, TAP = "reference", "kernel", "af_xdp", "tap"
CARRIERS = (KERNEL, AF_XDP, TAP)
USER = (AF_XDP, TAP)
PLAIN = "plain"

PAYLOAD = 1_000_000  # bytes each way
CHAINS = {
    "raw-pre": "type filter hook prerouting priority raw",
    "raw-out": "type filter hook output priority raw",
    "pre": "type filter hook prerouting priority mangle",
    "in": "type filter hook input priority filter",
    "fwd": "type filter hook forward priority filter",
    "out": "type filter hook output priority filter",
    "reroute": "type route hook output priority mangle",
    "post": "type filter hook postrouting priority mangle",
    "nat-pre": "type nat hook prerouting priority dstnat",
    "nat-in": "type nat hook input priority 100",
    "nat-out": "type nat hook output priority -100",
    "nat-post": "type nat hook postrouting priority srcnat",
}

Watch = Callable[["Cell", dict[str, Any]], Any]
Step = Callable[["Cell"], None]


@dataclass(frozen=True)
class Case:
    """One row of the table, before it is multiplied by families, directions and carriers.

    nft, iptables: rules, "CHAIN words"; iptables in the syntax of both its kinds. sysctls: by name.
    ip: pairs of an ip(8) line and the line that undoes it. app: more for the application's socket
    (agent.py). target: the name of the address that is connected to; server: who serves, when it is
    not the direction's own (cell.py); redirected: it listens on {port2}. tool: which iptables.
    prepare: what no field says; it undoes itself by the cell's stack.
    program: instead of the application of agent.py; what it returns are the facts.
    during, after: what is looked at while the connection stands, and when it has ended. mbit: a
    rate that has to hold, in Mbit/s, from this host; below zero, to it.
    """

    name: str
    group: str
    directions: tuple[str, ...] = (CONNECT, LISTEN)
    families: tuple[str, ...] = FAMILIES
    sites: tuple[str, ...] = (PLAIN,)
    nft: tuple[str, ...] = ()
    iptables: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    ip: tuple[tuple[str, str], ...] = ()
    app: dict[str, Any] = field(default_factory=dict)
    target: str = ""
    server: str = ""
    redirected: bool = False
    tool: str = ""
    prepare: Step | None = None
    program: Callable[[Cell], dict[str, Any]] | None = None
    during: tuple[Watch, ...] = ()
    after: tuple[Watch, ...] = ()
    size: int = PAYLOAD
    mbit: float = 0
    connections: int = 1
    quick: bool = False

    @property
    def key(self) -> str:
        """Its name among all cases."""
        return f"{self.group}: {self.name}"

# SPDX-License-Identifier: Apache-2.0
"""Rules and routes that make TCP's segments shorter, as users write them."""

from __future__ import annotations

from lab import Host

CLAMP = """
table inet clamp {{
    chain c {{
        type filter hook {hook} priority mangle;
        tcp flags & ({flags}) == {flags} tcp option maxseg size set {size}
    }}
}}
"""


def clamp(host: Host, hook: str, flags: str = "syn", size: int | str = 1200) -> None:
    """A firewall's rule that writes another MSS; size: in bytes, or "rt mtu"."""
    host.run(["nft", "-f", "-"], input=CLAMP.format(hook=hook, flags=flags, size=size))


def unclamp(host: Host) -> None:
    """clamp()'s rule is gone."""
    host.run(["nft", "delete", "table", "inet", "clamp"])


def iptables_clamp(host: Host, kind: str, chain: str, *how: str) -> None:
    """The same by iptables, by either of its kinds (legacy, nft); how: as its TCPMSS is told."""
    _iptables(host, kind, "-A", chain, *how)


def iptables_unclamp(host: Host, kind: str, chain: str, *how: str) -> None:
    """That rule is gone."""
    _iptables(host, kind, "-D", chain, *how)


def _iptables(host: Host, kind: str, act: str, chain: str, *how: str) -> None:
    for tool in (f"iptables-{kind}", f"ip6tables-{kind}"):
        rule = [act, chain, "-p", "tcp", "--tcp-flags", "SYN,RST", "SYN", "-j", "TCPMSS", *how]
        host.run([tool, "-t", "mangle", *rule])


def narrow_route(host: Host, device: str, attribute: str = "advmss", size: int = 1200) -> None:
    """The kernel's own routes of both families to a host's first network say so; attribute: as
    ip(8) has it.
    """
    _routes(host, device, attribute, str(size))


def plain_route(host: Host, device: str) -> None:
    """They say nothing of sizes any more."""
    _routes(host, device)


def _routes(host: Host, device: str, *said: str) -> None:
    for version, destination, metric in (
        ("-4", "198.18.0.0/24", "0"),
        ("-6", "2001:db8::/64", "256"),
    ):
        route = ["ip", version, "route", "replace", destination, "dev", device, "metric", metric]
        host.run([*route, *said])

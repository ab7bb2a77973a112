# SPDX-License-Identifier: Apache-2.0
"""Two routed hosts that agree on what they can do beyond TCP, and firewalls between them that take
the option away or drop what has it: then plain TCP, said so at both ends, and every byte arrives.
"""

from __future__ import annotations

from typing import Any

import pytest
from sitefixtures import TAP, XDP, Site
from talking import PORT, Talker, echo

from lab import Host

SIZE = 2_000_000


def negotiating(policy: str, how: str) -> str:
    """policy with that key in its user stack."""
    return policy.replace('kind = "user"\n', f'kind = "user"\nnegotiate = "{how}"\n')


def at_egress(host: Host, nic: str, rule: str) -> None:
    """An nft rule for what the host sends, behind the stack."""
    chain = f"add table netdev box; add chain netdev box out {{ type filter hook egress device {nic} priority 0; }}; "
    host.run(["nft", f"{chain} add rule netdev box out {rule}"])


def both(client: Any, server: Any) -> tuple[list[str], list[str]]:
    """What the rows of the flow say at either end: agreement and what was agreed on."""
    (here,) = client.flows(dport=PORT, state="ESTABLISHED")
    (there,) = server.flows(sport=PORT, state="ESTABLISHED")
    assert (here["stack"], there["stack"]) == ("wan", "wan"), (here["why"], there["why"])
    return [here["agreement"], there["agreement"]], [here["agreed"], there["agreed"]]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("port", ["tap", "af_xdp"])
def test_two_hosts_agree(wired: Site, port: str, family: str) -> None:
    policy = negotiating(TAP if port == "tap" else XDP, "allow")
    client, server = wired.attach_client(policy), wired.attach_server(policy)
    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, getattr(wired.link.b, family))
    assert talker.says(f"send {SIZE}") == "True"
    assert both(client, server) == (["agreed", "agreed"], ["copies,fec", "copies,fec"])
    assert "copies" in client.cli("flows", "--instance", client.instance).stdout
    assert client.ask_stack("wan")["core_agreed"] == 1


STRIP, DROP = "reset tcp option 253", "tcp option 253 exists drop"
# Of a SYN-ACK: what is behind the ExID becomes an offer, as of a host that echoes what it does not
# know, or an answer with another check value
ECHO, WRONG = (
    f"tcp flags & (syn | ack) == (syn | ack) tcp option @253,48,16 set {said:#x}"
    for said in (0x515A, 0x9100)
)


@pytest.mark.parametrize(
    ("side", "rule", "said"),
    [
        ("client", STRIP, ["plain", "plain"]),
        ("server", STRIP, ["plain", "unconfirmed"]),
        ("client", DROP, ["unanswered", "plain"]),
        ("server", DROP, ["plain", "unanswered"]),
        ("server", ECHO, ["echoed", "unconfirmed"]),
        ("server", WRONG, ["wrong", "unconfirmed"]),
    ],
)
def test_a_firewall_makes_it_plain_tcp(wired: Site, side: str, rule: str, said: list[str]) -> None:
    """The second connection behind a firewall that drops SYNs does not wait."""
    policy = negotiating(TAP, "allow")
    client, server = wired.attach_client(policy), wired.attach_server(policy)
    host, nic = (
        (wired.client, wired.link.a.name) if side == "client" else (wired.server, wired.link.b.name)
    )
    at_egress(host, nic, rule)
    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
    assert talker.says(f"send {SIZE}") == "True"
    found, agreed = both(client, server)
    assert agreed == ["", ""]
    if side == "server" and rule == DROP:  # either end gives up first
        assert found[0] in ("plain", "unanswered")
        assert found[1] in ("unanswered", "plain")
    else:
        assert found == said
    if (side, rule) == ("client", DROP):
        again = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
        assert again.says(f"send {SIZE}") == "True"
        rows = client.flows(dport=PORT, pid=again.process.pid)
        assert [row["agreement"] for row in rows] == ["spared"]


def test_a_peer_without_a_stack_is_plain_tcp_or_refused(wired: Site) -> None:
    client = wired.attach_client(negotiating(TAP, "allow"))
    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
    assert talker.says(f"send {SIZE}") == "True"
    assert [flow["agreement"] for flow in client.flows(dport=PORT)] == ["plain"]
    client.apply(negotiating(TAP, "demand"))
    refused = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
    assert refused.peer == "ECONNREFUSED"
    assert talker.says(f"send {SIZE}") == "True"
    assert client.ask_stack("wan")["core_agree_refused"] == 1


def test_a_server_that_demands_refuses_others(wired: Site) -> None:
    server = wired.attach_server(negotiating(TAP, "demand"))
    echo(wired.server, wired.server_cgroup)
    refused = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
    assert refused.peer == "ECONNREFUSED"
    wired.attach_client(negotiating(TAP, "allow"))
    talker = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
    assert talker.says(f"send {SIZE}") == "True"
    assert [flow["agreed"] for flow in server.flows(sport=PORT)] == ["copies,fec"]


def test_a_stack_that_is_forbidden_to_agree_still_serves_who_asks(wired: Site) -> None:
    """The option alone makes no flow the kernel's."""
    client = wired.attach_client(negotiating(TAP, "allow"))
    server = wired.attach_server(TAP)
    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)
    assert talker.says(f"send {SIZE}") == "True"
    assert both(client, server) == (["plain", "none"], ["", ""])

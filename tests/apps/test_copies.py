# SPDX-License-Identifier: Apache-2.0
"""Packets that somebody on the host copies to another device, or back to the same one, beside a
user stack: a copy is not taken for the flow that leaves by another device, and gets where it was
sent. What tc redirects is a copy, too.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator

import pytest
from sitefixtures import by as with_io
from talking import PORT, Talker, echo

from lab import Host

ETH_P_ALL = 0x0003
MONITOR = {"ip4": "203.0.113.77", "ip6": "2001:db8:cb::77"}  # to whom netfilter sends its copies
MAC = "02:00:00:00:00:77"


def tc_mirror(host: Host, nic: str, to: str, family: str, enters: str = "egress") -> None:
    """Before all other filters, of both directions."""
    host.run(["tc", "qdisc", "add", "dev", nic, "clsact"])
    every = ["pref", "1", "protocol", "all", "u32", "match", "u32", "0", "0"]
    for hook in ("egress", "ingress"):
        mirror = ["action", "mirred", enters, "mirror", "dev", to]
        host.run(["tc", "filter", "add", "dev", nic, hook, *every, *mirror])


def tc_mirror_in(host: Host, nic: str, to: str, family: str) -> None:
    """What passes comes in by the other device, as an intrusion detector has it."""
    tc_mirror(host, nic, to, family, enters="ingress")


def netdev_dup(host: Host, nic: str, to: str, family: str) -> None:
    """nftables at the egress, before tc."""
    chain = f"add table netdev t; add chain netdev t c {{ type filter hook egress device {nic} priority 0; }}; "
    host.run(["nft", chain + f"add rule netdev t c dup to {to}"])


def output_dup(host: Host, nic: str, to: str, family: str) -> None:
    """nftables where the host sends, as iptables' TEE."""
    host.ip(f"route add {MONITOR[family]} dev {to}")
    host.ip(f"neighbour replace {MONITOR[family]} lladdr {MAC} dev {to} nud permanent")
    name = "ip" if family == "ip4" else "ip6"
    chain = f"add table {name} t; add chain {name} t c {{ type filter hook output priority 0; }}; "
    host.run(
        [
            "nft",
            chain + f"add rule {name} t c tcp dport {PORT} dup to {MONITOR[family]} device {to}",
        ]
    )


COPIES = {"tc": tc_mirror, "tc-in": tc_mirror_in, "netdev": netdev_dup, "output": output_dup}
Copier = Callable[[Host, str, str, str], None]


@pytest.fixture
def served(wired):
    """A client with a device mon0 without address, up, whose other end is heard."""
    echo(wired.server, wired.server_cgroup)
    wired.client.ip(
        "link add mon0 type veth peer name mon1", "link set mon0 up", "link set mon1 up"
    )
    return wired


@contextlib.contextmanager
def opened(site, family: str) -> Iterator[Callable[[int], bool]]:
    """A flow of the client's; what is yielded says whether so many bytes come back as they went."""
    talker = Talker(site.client, site.client_cgroup, getattr(site.link.b, family))
    yield lambda number: talker.says(f"send {number}") == "True"


@contextlib.contextmanager
def heard(host: Host) -> Iterator[Callable[[], int]]:
    """How many frames have come by mon1 since it was asked last."""
    with host.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
    ) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        wire.bind(("mon1", ETH_P_ALL))
        wire.setblocking(False)

        def count() -> int:
            found = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    wire.recv(65536)
                    found += 1
            return found

        yield count


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("copies", COPIES)
def test_copies_to_another_device(served, copies, io, family):
    """Where our programs stand, too, since a route may lead there."""
    routed = served.attach_client(with_io(io, served.link.a.name))
    with opened(served, family) as carries, heard(served.client) as count:
        assert carries(100_000)
        COPIES[copies](served.client, served.link.a.name, "mon0", family)
        count()
        assert carries(3_000_000)
        if copies != "tc-in":
            assert count() >= 10
    (row,) = routed.flows(dport=PORT)
    assert (row["stack"], row["why"]) == ("wan", "")
    assert routed.ask("status")[0]["counters"]["inner_dropped"] == 0


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_copies_to_a_neighbour_by_the_same_device(served, family):
    """The flow does not follow them to that neighbour."""
    routed = served.attach_client(with_io("tap", served.link.a.name))
    with opened(served, family) as carries:
        assert carries(100_000)
        output_dup(served.client, served.link.a.name, served.link.a.name, family)
        assert carries(3_000_000)
    (row,) = routed.flows(dport=PORT)
    assert (row["stack"], row["why"]) == ("wan", "")


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("hook", ["egress", "ingress"])
def test_a_shaper_on_an_ifb(served, hook, io, family):
    """As hosts have it that shape what comes in, or several devices together; before the flow
    opens, and after.
    """
    client, nic = served.client, served.link.a.name
    client.ip("link add ifb0 type ifb", "link set ifb0 up")
    shape = "qdisc replace dev ifb0 root tbf rate 200mbit burst 256kb latency 200ms"
    client.run(["tc", *shape.split()])
    client.run(["tc", "qdisc", "add", "dev", nic, "clsact"])
    redirect = "pref 10 protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0"
    routed = served.attach_client(with_io(io, nic))
    with opened(served, family) as open_before:
        assert open_before(100_000)
        client.run(["tc", "filter", "add", "dev", nic, hook, *redirect.split()])
        assert open_before(3_000_000)
        with opened(served, family) as open_after:
            assert open_after(3_000_000)
    assert [(f["stack"], f["why"]) for f in routed.flows(dport=PORT)] == [("wan", "")] * 2
    if (hook, io) != ("egress", "af_xdp"):  # which goes past tc
        (queue,) = json.loads(client.run(["tc", "-j", "-s", "qdisc", "show", "dev", "ifb0"]).stdout)
        assert queue["bytes"] > 6_000_000

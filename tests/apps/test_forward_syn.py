# SPDX-License-Identifier: Apache-2.0
"""SYNs that a gateway forwards: one that asks for what no stack carries goes on as it came, and
what a firewall writes into another holds, whoever of its tools writes it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

import pytest
from clamping import clamp, iptables_clamp, narrow_route
from gatewayfixtures import FROM_LAN, FROM_WAN, POLICY, Gateway, counters, heard
from pieces import checksum
from talking import PORT, Talker

from lab import Host
from lab.netns import offloads_off
from lab.waiting import wait_for, wait_readable

SIZE = 1_000_000
WITHIN_S = 10.0
SPORT = 50123
SEQ = 0x12345678
MSS = b"\x02\x04\x05\xb4"
ETHERTYPES = {"ip4": 0x0800, "ip6": 0x86DD}

FOREIGN = {
    "unknown kind": b"\xd3\x04ab",
    "unknown experiment": b"\xfe\x08\x12\x34\x56\x78\1\2",
    "MP_JOIN": b"\x1e\x0c\x10\1" + b"token--nonce"[:8],
    "MP_CAPABLE": b"\x1e\x04\x01\x81",
    "MD5": b"\x13\x12" + b"0123456789abcdef" + b"\1\1",
    "behind others": b"\x04\x02\x08\x0a\0\0\0\1\0\0\0\0\x03\x03\x07\x01\xd3\x02\x01\x01",
}


def send_syn(
    host: Host, family: str, address: str, source: str, number: int, options: bytes
) -> None:
    """The SYN of a flow with that number, with these options behind its MSS."""
    options = MSS + options
    length = 20 + len(options)
    tcp = (
        struct.pack(
            "!HHIIBBHHH", SPORT + number, PORT, SEQ + number, 0, length // 4 << 4, 2, 65535, 0, 0
        )
        + options
    )
    kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
    ends = socket.inet_pton(kind, source) + socket.inet_pton(kind, address)
    total = checksum(ends + struct.pack("!II", length, socket.IPPROTO_TCP) + tcp)
    tcp = tcp[:16] + total.to_bytes(2, "big") + tcp[18:]
    with host.call(socket.socket, kind, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(tcp, (address, 0))


def first_syn(sniffed: socket.socket, number: int) -> tuple[int, bytes]:
    """Sequence number and options of the first SYN that comes to the echo server's port."""
    while wait_readable(sniffed.fileno(), WITHIN_S):
        packet = sniffed.recv(65536)
        tcp = packet[40:] if packet[0] >> 4 == 6 else packet[20:]
        if struct.unpack_from("!HH", tcp) == (SPORT + number, PORT) and tcp[13] & 0x12 == 2:
            return int.from_bytes(tcp[4:8], "big"), tcp[20 : (tcp[12] >> 4) * 4]
    raise AssertionError("no SYN has come")


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("family", ETHERTYPES)
@pytest.mark.parametrize("rule", [FROM_LAN, FROM_WAN], ids=["lan", "wan"])
def test_a_syn_with_foreign_options_goes_on_as_it_came(
    gateway: Gateway, rule: str, family: str, io: str
) -> None:
    opener, server = gateway.inside, gateway.server
    if rule == FROM_WAN:
        opener, server = server, opener
    routed = gateway.attach(POLICY.format(io=io, rule=rule))
    for number, options in enumerate((b"", *FOREIGN.values())):
        with contextlib.closing(heard(server, ETHERTYPES[family])) as sniffed:
            send_syn(
                opener, family, getattr(server, family), getattr(opener, family), number, options
            )
            seq, came = first_syn(sniffed, number)
        assert ((seq, came) == (SEQ + number, MSS + options)) == bool(options), (options, came)
        wait_for(
            lambda number=number: counters(routed)["syn_option"] >= number,
            WITHIN_S,
            "the SYN to be counted",
        )


CLAMPS: dict[str, Callable[[Host], None]] = {
    "nft": lambda gate: clamp(gate, "forward"),
    "iptables-legacy": lambda gate: iptables_clamp(gate, "legacy", "FORWARD", "--set-mss", "1200"),
    "iptables-nft": lambda gate: iptables_clamp(gate, "nft", "FORWARD", "--set-mss", "1200"),
}


@pytest.mark.parametrize("how", CLAMPS)
@pytest.mark.parametrize("rule", [FROM_LAN, FROM_WAN], ids=["lan", "wan"])
def test_a_clamp_in_forward_holds_either_way(gateway: Gateway, rule: str, how: str) -> None:
    """Also what it writes into the answer, which the stack has sent and does not see again."""
    CLAMPS[how](gateway.gate)
    for family, (said, longest) in _clamped(gateway, rule).items():
        assert 1200 in said and longest <= 1200, family


@pytest.mark.parametrize("kind", ["nft", "iptables-legacy", "iptables-nft"])
def test_a_clamp_to_the_routes_mtu_holds(gateway: Gateway, kind: str) -> None:
    narrow_route(gateway.gate, gateway.gate.nics[0].name, "mtu", 1300)
    if kind == "nft":
        clamp(gateway.gate, "forward", size="rt mtu")
    else:
        iptables_clamp(gateway.gate, kind.rpartition("-")[2], "FORWARD", "--clamp-mss-to-pmtu")
    for family, (said, longest) in _clamped(gateway, FROM_LAN).items():
        most = 1300 - 20 - (20 if family == "ip4" else 40)
        assert said and min(said) == most and longest <= most, family


def segments_of(sniffed: socket.socket) -> tuple[set[int], int]:
    """What SYN and SYN-ACK have said of their senders' segments, first of all, and the
    longest segment's bytes.
    """
    said, longest = set(), 0
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = sniffed.recv(65536)
            tcp = packet[40:] if packet[0] >> 4 == 6 else packet[20:]
            if PORT not in (int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[2:4], "big")):
                continue
            longest = max(longest, len(tcp) - 20)
            if tcp[13] & 2:
                said.add(int.from_bytes(tcp[22:24], "big"))
    return said, longest


def _clamped(gateway: Gateway, rule: str) -> dict[str, tuple[set[int], int]]:
    """segments_of() a flow of each family, one after the other."""
    opener, server = (
        (gateway.inside, gateway.server) if rule == FROM_LAN else (gateway.server, gateway.inside)
    )
    gateway.echo(server)
    for host in (gateway.gate, gateway.server):  # so that each segment is seen as it is on a wire
        host.call(offloads_off, "eth0")
    routed = gateway.attach(POLICY.format(io="tap", rule=rule))
    found = {}
    for number, (family, ethertype) in enumerate(ETHERTYPES.items(), 1):
        with contextlib.closing(heard(gateway.server, ethertype)) as outside:
            talker = Talker(opener, gateway.others, getattr(server, family))
            assert talker.says(f"send {SIZE}") == "True", family
            found[family] = segments_of(outside)
        stacks = [flow["stack"] for flow in routed.flows(kind="forwarded")]
        assert stacks == ["wan"] * number, family
    return found

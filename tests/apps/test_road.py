# SPDX-License-Identifier: Apache-2.0
"""The road through the device: the kernel routes, filters and translates the packets of an app
whose flow a user stack carries, as it does everybody's; a stack that cannot take a SYN leaves the
flow to the kernel, and `flows` says why.
"""

from __future__ import annotations

import json
import os
import signal

import pytest
from sitefixtures import AUTO
from sitefixtures import by as policy
from talking import PORT, Talker, echo

from dmm_ebpf.errors import DmmError
from lab import wait_for
from lab.waiting import stop

WITHIN_S = 15.0
IOS = ("tap", "af_xdp")


def talk(site, address: str, port: int = PORT, *, wait: bool = True) -> Talker:
    """A program in the client's cgroup with a connection to the echo server."""
    return Talker(site.client, site.client_cgroup, address, port, wait=wait)


@pytest.fixture(name="echo")
def echo_fixture(wired):
    """The echo server on the server's host."""
    echo(wired.server, wired.server_cgroup)
    return wired


def nft(host, rules: str) -> None:
    host.run(["nft", "-f", "-"], input=rules)


def counted(host, chain: str) -> list[int]:
    """Packets of each counter of a chain of table t."""
    shown = json.loads(host.run(["nft", "-j", "list", "chain", "inet", "t", chain]).stdout)[
        "nftables"
    ]
    rules = [item["rule"]["expr"] for item in shown if "rule" in item]
    return [e["counter"]["packets"] for expr in rules for e in expr if "counter" in e]


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_rules_that_name_the_device_see_the_flow(echo, io, family):
    nic = echo.client.nic.name
    nft(
        echo.client,
        f"""
        table inet t {{
            chain out {{
                type filter hook output priority 0;
                oifname "{nic}" tcp dport {PORT} ct state new counter
                oifname "{nic}" tcp dport {PORT} ct state established counter
                oifname "{nic}" tcp dport 7301 reject with icmpx admin-prohibited
            }}
            chain post {{ type filter hook postrouting priority 0; oifname "{nic}" tcp dport {PORT} counter; }}
            chain in {{
                type filter hook input priority 0;
                iifname "{nic}" tcp sport {PORT} ct state established counter
                iifname "{nic}" tcp sport {PORT} ct state invalid counter
            }}
            chain pre {{
                type filter hook prerouting priority 0;
                iifname "{nic}" fib saddr . iif oif missing counter drop
            }}
        }}
        """,
    )
    echo.client.sysctl(f"net.ipv4.conf.{nic}.rp_filter", 1)
    routed = echo.attach_client(policy(io))
    talker = talk(echo, getattr(echo.server, family))
    assert talker.peer == getattr(echo.client, family)
    assert talker.says("hello") == "hello"
    assert (talker.flow(routed)["stack"], talker.flow(routed)["why"]) == ("wan", "")
    new, established = counted(echo.client, "out")
    assert new == 1
    assert established >= 2
    assert counted(echo.client, "post")[0] >= 3
    came, invalid = counted(echo.client, "in")
    assert came >= 3
    assert invalid == 0
    assert counted(echo.client, "pre") == [0]
    refused = talk(echo, getattr(echo.server, family), 7301)
    assert refused.peer == ("EHOSTUNREACH" if family == "ip4" else "EACCES")


@pytest.mark.parametrize("io", IOS)
def test_a_source_that_is_translated_by_the_device(echo, io):
    client, address = echo.client, "198.51.100.7"
    client.ip(f"addr add {address}/32 dev {client.nic.name}")
    echo.server.ip(f"route add {address} via {client.ip4}")
    nft(
        client,
        f"""
        table inet t {{
            chain nat {{
                type nat hook postrouting priority srcnat;
                oifname "{client.nic.name}" tcp dport {PORT} counter snat ip to {address}
            }}
        }}
        """,
    )
    routed = echo.attach_client(policy(io))
    talker = talk(echo, echo.server.ip4)
    assert talker.peer == address
    assert talker.says("hello") == "hello"
    assert talker.flow(routed)["stack"] == "wan"
    assert counted(client, "nat") == [1]
    stack = routed.stack("wan")
    assert stack["counters"]["active_open"] == 1
    os.kill(stack["pid"], signal.SIGKILL)
    # Its connection is gone with the process, and the app learns it though nobody sends.
    assert talker.says("are you there") in {"ECONNABORTED", "ECONNRESET", "EPIPE"}


@pytest.mark.parametrize("io", IOS)
def test_a_route_of_the_sockets_mark_and_a_table_of_its_own(echo, io):
    """What the kernel would do with the socket's packets, it does."""
    client = echo.client
    client.ip(
        f"route add {echo.server.ip4} via {echo.server.ip4} dev {client.nic.name} onlink table 77",
        "rule add ipproto tcp dport 7300 lookup 77 pref 70",
        "rule add ipproto tcp dport 7301 prohibit pref 71",
    )
    routed = echo.attach_client(policy(io))
    talker = talk(echo, echo.server.ip4)
    assert talker.says("hello") == "hello"
    assert talker.flow(routed)["stack"] == "wan"
    assert talk(echo, echo.server.ip4, 7301).peer == "EACCES"


def test_a_flow_that_stays_on_the_host_is_the_kernels(wired):
    echo(wired.client, wired.client_cgroup)
    routed = wired.attach_client(policy("tap"))
    talker = talk(wired, wired.client.ip4)
    assert talker.says("hello") == "hello"
    flow = talker.flow(routed)
    assert (flow["stack"], flow["wanted"], flow["why"]) == ("kernel", "wan", "device")


@pytest.mark.parametrize("io", IOS)
def test_a_syn_that_waits_goes_on_when_its_process_hangs_or_is_gone(echo, io):
    """The connect hook has given the socket to a process that does not take the SYN any more."""
    routed = echo.attach_client(policy(io))
    pid = routed.stack("wan")["pid"]
    stop(pid)
    waiting = talk(echo, echo.server.ip4, wait=False)
    wait_for(lambda: routed.flows(pid=waiting.process.pid), WITHIN_S, "connect()")
    os.kill(pid, signal.SIGKILL)
    assert waiting.answer() == echo.client.ip4
    assert waiting.says("hello") == "hello"
    flow = waiting.flow(routed)
    assert (flow["stack"], flow["wanted"], flow["why"]) in {
        ("kernel", "wan", "down"),
        ("kernel", "wan", "full"),
    }
    wait_for(lambda: routed.stack("wan")["pid"] not in {pid, None}, WITHIN_S, "another process")
    after = talk(echo, echo.server.ip4)
    assert after.says("hello") == "hello"
    assert after.flow(routed)["stack"] == "wan"


@pytest.mark.parametrize("io", IOS)
def test_the_next_hop_and_the_mtu_are_followed(echo, io):
    client, server = echo.client, echo.server
    routed = echo.attach_client(policy(io))
    talker = talk(echo, server.ip4)
    assert talker.says("hello") == "hello"
    pid = routed.stack("wan")["pid"]
    # Another link-layer address of the peer, as when a gateway fails over.
    server.ip(f"link set {server.nic.name} address 02:00:00:00:77:01")
    client.ip(
        f"neigh replace {server.ip4} lladdr 02:00:00:00:77:01 dev {client.nic.name} nud reachable"
    )
    assert talker.says("other address") == "other address"
    client.ip(f"link set {client.nic.name} mtu 1300")
    server.ip(f"link set {server.nic.name} mtu 1300")
    word = "x" * 60_000
    assert talker.says(word) == word
    assert routed.stack("wan")["pid"] == pid
    assert talker.flow(routed)["stack"] == "wan"


def test_other_devices_for_a_stack_that_runs_are_refused(wired):
    routed = wired.attach_client(policy("tap"))
    nic = wired.client.nic.name
    wired.client.ip("link add other0 type bridge", "link set other0 up")
    generation = routed.ask("status")[0]["generation"]
    for devices, why in (('"nope"', "there is no such device"), ('"other0"', f"it runs on {nic}")):
        with pytest.raises(DmmError, match=why):
            routed.apply(
                policy("tap").replace('io = "tap"\n', f'io = "tap"\ndevices = [{devices}]\n')
            )
    assert routed.ask("status")[0]["generation"] == generation
    routed.apply(policy("tap").replace('io = "tap"\n', f'io = "tap"\ndevices = ["{nic}"]\n'))
    # Who watches the file may have been faster than the command.
    assert routed.ask("status")[0]["generation"] > generation
    assert routed.stack("wan")["restarts"] == 0


@pytest.mark.parametrize("io", IOS)
def test_a_bridge_is_served_in_place_of_the_device_under_it_until_that_is_free(echo, io):
    """The bridge has the addresses then."""
    client, nic = echo.client, echo.client.nic.name
    routed = echo.attach_client(policy(io))
    client.ip("link add top0 type bridge", "link set top0 up", f"link set {nic} master top0")
    client.ip(f"addr flush dev {nic}", f"addr add {client.ip4}/24 dev top0")
    wait_for(lambda: routed.stack("wan")["nics"] == ["top0"], WITHIN_S, "the bridge to be served")
    talker = talk(echo, echo.server.ip4)
    assert (talker.peer, talker.says("hello")) == (client.ip4, "hello")
    assert talker.flow(routed)["stack"] == "wan"
    other = f'[stacks.other]\nkind = "user"\ndevices = ["{nic}"]\n'
    routed.apply(other + policy(io).replace('stack = "wan"', 'stack = "other"'))
    assert routed.stack("other")["nics"] == ["top0"]
    routed.apply(policy(io))
    client.ip(f"link set {nic} nomaster", "link del top0", f"addr add {client.ip4}/24 dev {nic}")
    wait_for(lambda: routed.stack("wan")["nics"] == [nic], WITHIN_S, "the device to be served")
    talker = talk(echo, echo.server.ip4)
    assert talker.says("hello") == "hello"
    assert talker.flow(routed)["stack"] == "wan"


def test_auto_leaves_what_the_host_does_with_the_device_in_its_place(wired):
    shaper = f"qdisc add dev {wired.client.nic.name} root tbf rate 100mbit burst 64kb latency 100ms"
    wired.client.run(["tc", *shaper.split()])
    (port,) = wired.attach_client(AUTO).stack("wan")["ports"]
    assert port["port"] == "tap"
    assert port["why"] == "driver veth has no AF_XDP zero-copy; qdisc tbf would be gone around"

# SPDX-License-Identifier: Apache-2.0
"""Routes to sets of nft's: what nft does to them is followed, by a whole instance."""

from __future__ import annotations

import json
import subprocess

import pytest

from dmm_ebpf.hal import nftsets
from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.rd.policy.elements import MOST_BESIDE
from dmm_ebpf.records.status import NamedSet
from lab import wait_for
from lab.commandline import CLI

WITHIN_S = 60.0
SET = "inet filter lossy"
POLICY = """
[stacks.s]
kind = "kernel"
dscp = "af21"
[[rules]]
cgroup = "{cgroup}"
table = "t"
[[tables.t.routes]]
to = "nft:inet filter lossy"
proto = "tcp"
ports = "80, 443"
stack = "s"
[[tables.t.routes]]
to = "192.0.2.128/25"
stack = "kernel"
"""


def _nft(host, *words):
    return host.run(["nft", " ".join(words)])


def _make(host, kind="ipv4_addr", more="", name="lossy"):
    _nft(host, "add table inet filter")
    _nft(host, f"add set inet filter {name} {{ type {kind}; {more} }}")


def _asked(routed, address, port=443):
    with Client(routed.instance) as client:
        return client.route_get(addr=address, port=port)


def _status(routed):
    with Client(routed.instance) as client:
        return client.status()


def _until(routed, address, stack, what):
    wait_for(lambda: _asked(routed, address).stack == stack, WITHIN_S, what)


def _state(routed):
    (one,) = _status(routed).sets
    return one.state


def test_a_set_is_followed_from_before_it_is_there(site):
    """Made, filled, deleted, made again with other keys, and as it should be."""
    routed = site.attach_client(POLICY)
    host = site.client
    assert _status(routed).sets == [NamedSet(f"nft:{SET}", "missing", 0)]
    shown = routed.cli("status", "--instance", routed.instance).stdout
    assert "pending   nft:inet filter lossy does not exist, and is waited for" in shown
    assert _asked(routed, "203.0.113.9").stack == "kernel"

    _make(host, more="flags interval;")
    _nft(host, f"add element {SET} {{ 203.0.113.0/24, 192.0.2.1-192.0.2.200 }}")
    _until(routed, "203.0.113.9", "s", "elements to be routes")
    answer = _asked(routed, "192.0.2.127")
    assert (answer.route, answer.element) == (
        "nft:inet filter lossy tcp 80,443",
        "192.0.2.64/26",
    )
    told = routed.cli("route", "get", "192.0.2.127:443", "--instance", routed.instance).stdout
    assert "route nft:inet filter lossy tcp 80,443\n    which has 192.0.2.64/26 now" in told
    assert _asked(routed, "192.0.2.127", 22).stack == "kernel"
    explained = routed.ask("policy", "explain", "192.0.2.127:443")
    assert explained["rules"][0]["routes"][0]["where"].endswith("element 192.0.2.64/26")
    assert _state(routed) == "followed"

    _nft(host, f"delete element {SET} {{ 203.0.113.0/24 }}")
    _until(routed, "203.0.113.9", "kernel", "an element that was deleted")
    assert _asked(routed, "192.0.2.127").stack == "s"

    _nft(host, f"flush set {SET}")
    _until(routed, "192.0.2.127", "kernel", "a set that was flushed")
    _nft(host, f"add element {SET} {{ 203.0.113.9 }}")
    _until(routed, "203.0.113.9", "s", "an element after that")

    _nft(host, "delete table inet filter")
    _until(routed, "203.0.113.9", "kernel", "a table that was deleted")
    wait_for(lambda: _state(routed) == "missing", WITHIN_S, "the set to be missing")
    _make(host, "inet_service")
    wait_for(lambda: _state(routed) == "refused", WITHIN_S, "the set to be refused")
    assert "inet_service" in _status(routed).sets[0].why
    _nft(host, "flush ruleset")
    _make(host, "ipv6_addr")
    _nft(host, f"add element {SET} {{ 2001:db8::1, ::ffff:203.0.113.9 }}")
    _until(routed, "2001:db8::1", "s", "a set of IPv6")
    assert _asked(routed, "203.0.113.9").stack == "s"


def test_elements_whose_time_is_over_and_that_rules_add(site):
    """Nothing tells of the end of one, nor of those."""
    site.wire()
    host = site.client
    _make(host, more="flags timeout, dynamic;")
    _nft(host, "add chain inet filter out { type filter hook output priority 0; }")
    _nft(host, "add rule inet filter out tcp dport 9 add @lossy { ip daddr timeout 1h }")
    routed = site.attach_client(POLICY)
    _nft(host, f"add element {SET} {{ 203.0.113.9 timeout 5s }}")
    _until(routed, "203.0.113.9", "s", "an element with a time")
    _until(routed, "203.0.113.9", "kernel", "an element's time to be over")
    peer = site.server.ip4
    assert _asked(routed, peer).stack == "kernel"
    host.run(
        ["/usr/bin/python3", "-c", f"import socket; socket.socket().connect_ex(('{peer}', 9))"]
    )
    _until(routed, peer, "s", "an element that a rule added")


def test_many_changes_come_to_the_last_of_them(site):
    """Whatever is read and put in force while a set changes, what it has in the end counts; and a
    flow that goes on is called by the same route.
    """
    host = site.client
    _make(host)
    routed = site.attach_client(POLICY)
    for number in range(1, 60):
        _nft(host, f"add element {SET} {{ 203.0.113.{number} }}")
        if number % 20 == 0:
            assert routed.apply(POLICY + f"# {number}\n").returncode == 0
    _nft(host, f"delete element {SET} {{ 203.0.113.1 }}")
    _until(routed, "203.0.113.59", "s", "the last element")
    _until(routed, "203.0.113.1", "kernel", "the one that was deleted")
    assert _status(routed).sets == [NamedSet(f"nft:{SET}", "followed", 58)]
    assert _asked(routed, "203.0.113.40").stack == "s"


def test_an_element_leaves_the_policy_as_it_is(site):
    """Beside live routes, over a take-over, and with what rules name by the same set."""
    host = site.client
    _make(host)
    routed = site.attach_client(POLICY)
    before = _status(routed).generation
    _nft(host, f"add element {SET} {{ 203.0.113.9 }}")
    _until(routed, "203.0.113.9", "s", "an element")
    assert (_status(routed).generation - before) % 2 == 0, "the half of the policy is another"
    words = ("203.0.113.9", "proto", "tcp", "port", "80,443", "--instance", routed.instance)
    refused = routed.cli("route", "del", *words, check=False)
    assert refused.returncode == 2
    assert "it is what nft:inet filter lossy has now" in refused.stderr
    live = ("203.0.113.9", "proto", "tcp", "port", "443", "stack", "kernel")
    routed.cli("route", "add", *live, "--instance", routed.instance)
    assert _asked(routed, "203.0.113.9").live is True, "a live route counts before an element"
    _nft(host, f"add element {SET} {{ 203.0.113.10 }}")
    _until(routed, "203.0.113.10", "s", "an element beside a live route")
    assert _asked(routed, "203.0.113.9").stack == "kernel"
    routed.kill_director()
    routed.restart()
    assert [_asked(routed, f"203.0.113.{n}").stack for n in (9, 10)] == ["kernel", "s"]
    _nft(host, f"delete element {SET} {{ 203.0.113.10 }}")
    _until(routed, "203.0.113.10", "kernel", "a change after the take-over")


def test_more_elements_than_have_room_are_compiled(site):
    host = site.client
    _make(host, more="flags interval;")
    routed = site.attach_client(POLICY)
    many = ", ".join(f"10.{n >> 7}.{(n & 127) << 1}.0/24" for n in range(MOST_BESIDE))
    host.run(["nft", "-f", "-"], input=f"add element {SET} {{ {many} }}\n")
    _until(routed, "10.3.0.1", "s", "all that have room")
    _nft(host, f"add element {SET} {{ 203.0.113.9 }}")
    _until(routed, "203.0.113.9", "s", "one more")
    assert _asked(routed, "10.3.0.1").stack == "s"
    _nft(host, f"delete element {SET} {{ 10.3.0.0/24 }}")
    _until(routed, "10.3.0.1", "kernel", "one that is gone")
    assert _asked(routed, "203.0.113.9").stack == "s"


def test_what_is_no_set_of_addresses_is_refused(site):
    host = site.client
    _make(host, "ipv4_addr . inet_service")
    _nft(host, "add map inet filter m { type ipv4_addr : verdict; }")
    routed = site.attach_client("# nothing\n")
    before = _status(routed).generation
    done = routed.apply(POLICY, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "table t, route 1, to: nft:inet filter lossy cannot be used: its keys are of the type "
        "ipv4_addr . inet_service; expected ipv4_addr or ipv6_addr"
    )
    done = routed.apply(POLICY.replace("filter lossy", "filter m"), check=False)
    assert done.returncode == 2
    assert "cannot be used: it is a map; name a set of addresses" in done.stderr
    assert _status(routed).generation == before
    _nft(host, "flush ruleset")
    done = routed.apply(POLICY)
    assert "nft:inet filter lossy does not exist, and is waited for" in done.stderr


def test_a_director_that_was_killed_finds_its_sets_again(site):
    host = site.client
    _make(host)
    _nft(host, f"add element {SET} {{ 203.0.113.9 }}")
    routed = site.attach_client(POLICY)
    routed.kill_director()
    _nft(host, f"add element {SET} {{ 203.0.113.10 }}")
    routed.restart()
    assert _asked(routed, "203.0.113.10").stack == "s"
    _nft(host, f"delete element {SET} {{ 203.0.113.9 }}")
    _until(routed, "203.0.113.9", "kernel", "a change after the take-over")


def test_dry_run_and_check_tell_of_sets(site):
    routed = site.attach_client("# nothing\n")
    words = ("policy", "apply", "--dry-run", "--instance", routed.instance, str(routed.policy_file))
    routed.write_policy(POLICY)
    told = routed.cli(*words).stderr
    assert "nft:inet filter lossy does not exist, and is waited for" in told
    done = site.client.run([*CLI, "policy", "check", "--host", str(routed.policy_file), "--json"])
    assert any(
        "nft:inet filter lossy" in one["text"] for one in json.loads(done.stdout)["warnings"]
    )


@pytest.mark.parametrize(
    ("kind", "elements", "blocks"),
    [
        ("type ipv4_addr; flags interval;", "10.0.0.0/8, 192.0.2.1-192.0.2.3", 3),
        ("type ipv4_addr; flags interval; auto-merge;", "192.0.2.0/25, 192.0.2.128/25", 1),
        ("type ipv4_addr; flags interval;", "0.0.0.0/0", 1),
        ("type ipv6_addr; flags interval;", "2001:db8::/32, fe80::1-fe80::4", 4),
        ("typeof ip saddr; counter;", '192.0.2.1 comment "one", 192.0.2.2', 2),
        ("type ipv4_addr; flags interval, timeout;", "192.0.2.0/24 timeout 1h, 10.0.0.1", 2),
        ("type ipv4_addr; flags constant; size 9;", "192.0.2.1", 1),
    ],
)
def test_what_nft_says_of_a_set_is_read(lab, kind, elements, blocks):
    host = lab.host("client")
    _nft(host, "add table ip6 f")
    _nft(host, f"add set ip6 f s {{ {kind} elements = {{ {elements} }} }}")
    found = host.call(nftsets.read, ("ip6", "f", "s"))
    assert len(found.blocks) == blocks
    assert found.restless == ("timeout" in kind)
    assert host.call(nftsets.read, ("ip6", "f", "other")) is None
    assert host.call(nftsets.read, ("ip", "none", "none")) is None


def test_a_name_may_be_a_word_of_nfts(lab):
    """As JSON it can be made, and so it is read."""
    host = lab.host("client")
    named = {"family": "ip", "table": "counter", "name": "set"}
    made = [
        {"add": {"table": {"family": "ip", "name": "counter"}}},
        {"add": {"set": {**named, "type": "ipv4_addr", "elem": ["192.0.2.1"]}}},
    ]
    host.run(["nft", "-j", json.dumps({"nftables": made})])
    assert len(host.call(nftsets.read, ("ip", "counter", "set")).blocks) == 1


def test_sources_of_forwarded_flows_are_followed(site):
    site.wire()
    routed = site.attach_client(
        '[stacks.wan]\nkind = "user"\nio = "tap"\n[[rules]]\ndirection = "forward"\n'
        'from = "nft:inet filter lossy"\ntable = "t"\n'
        '[[tables.t.routes]]\nto = "default"\nstack = "wan"\n'
    )
    _make(site.client, more="flags interval;")

    def rule():
        asked = {"addr": "203.0.113.1", "port": 443, "source": "10.1.2.3", "direction": "forward"}
        with Client(routed.instance) as client:
            return client.route_get(**asked).rule

    assert rule() is None
    _nft(site.client, f"add element {SET} {{ 10.0.0.0/8 }}")
    wait_for(lambda: rule() == "1: from nft:inet filter lossy forward", WITHIN_S, "a source")
    _nft(site.client, f"flush set {SET}")
    wait_for(lambda: rule() is None, WITHIN_S, "no source")


HOLD = """
import socket, sys
held = []
for address in sys.argv[1:]:
    held.append(socket.create_connection((address, 80)))
    print(held[-1].getsockname()[1], flush=True)
    sys.stdin.readline()
"""


def test_flows_keep_their_stack_and_the_name_of_their_route(site):
    """Whatever the set has by then: decided by the kernel, from elements."""
    site.wire()
    host, peer = site.client, site.server.ip4
    _make(host)
    _nft(host, f"add element {SET} {{ {peer} }}")
    routed = site.attach_client(POLICY)
    server = site.server.popen(["/usr/bin/python3", "-m", "http.server", "80"])
    program = site.client_cgroup.argv(["/usr/bin/python3", "-c", HOLD, peer, peer])
    wait_for(lambda: _serves(site), WITHIN_S, "the server")
    client = host.popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = int(client.stdout.readline())
    _nft(host, f"flush set {SET}")
    _until(routed, peer, "kernel", "the set to be empty")
    client.stdin.write("\n")
    client.stdin.flush()
    second = int(client.stdout.readline())
    flows = {flow["sport"]: flow for flow in routed.ask("flows")}
    assert (flows[first]["stack"], flows[first]["route"]) == (
        "s",
        "nft:inet filter lossy tcp 80,443",
    )
    assert (flows[second]["stack"], flows[second]["route"]) == ("kernel", None)
    client.kill()
    server.kill()


def _serves(site):
    probe = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], 80)))"
    asked = ["/usr/bin/python3", "-c", probe, site.server.ip4]
    return site.client.run(asked, check=False).returncode == 0

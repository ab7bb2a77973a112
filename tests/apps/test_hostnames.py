# SPDX-License-Identifier: Apache-2.0
"""Routes to hostnames: what a real server of DNS says of them is followed, by a whole instance."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest
from test_datagram_programs import dnsmasq
from test_nft_sets import WITHIN_S, _asked, _status, _until

from dmm_ebpf.rd.director.rundir import RunDir
from lab import wait_for
from lab.commandline import CLI

NAME = "db.shop.example"
POLICY = f"""
[stacks.s]
kind = "kernel"
dscp = "af21"
[[rules]]
cgroup = "{{cgroup}}"
table = "t"
[[tables.t.routes]]
to = "dns:{NAME}"
proto = "tcp"
ports = "443"
stack = "s"
"""
GONE_S = 60.0  # five TTLs of the shortest, and the pause in which nobody is asked
UNKNOWN_S = 60.0  # a time-out, and the pause behind it


class Zone:
    """dnsmasq on the server, which answers from a file, and the client's resolv.conf."""

    def __init__(self, site, tmp_path: Path, configuration: Path) -> None:
        self._site, self._hosts = site, tmp_path / "zone"
        configuration.write_text(f"nameserver {site.server.ip4}\noptions timeout:1\n")
        self.says()
        self.start()

    def start(self) -> None:
        words = ("--no-resolv", "--local=/shop.example/", "--local-ttl=2")
        site = self._site
        self._process = dnsmasq(
            site.server, site.server_cgroup, *words, f"--addn-hosts={self._hosts}"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def says(self, *addresses: str) -> None:
        self._hosts.write_text("".join(f"{one} {NAME}\n" for one in addresses))

    def change(self, *addresses: str) -> None:
        self.says(*addresses)
        self._process.send_signal(signal.SIGHUP)


@pytest.fixture
def zone(site, tmp_path):
    site.wire()
    of_namespace = Path("/etc/netns") / site.client.netns
    there = of_namespace.parent.exists()
    of_namespace.mkdir(parents=True)
    try:
        yield Zone(site, tmp_path, of_namespace / "resolv.conf")
    finally:
        (of_namespace / "resolv.conf").unlink(missing_ok=True)
        of_namespace.rmdir()
        if not there:
            with contextlib.suppress(OSError):  # another test's
                of_namespace.parent.rmdir()


def _row(routed):
    (one,) = _status(routed).sets
    return one


def test_a_name_is_followed_while_its_server_changes_dies_and_comes_back(site, zone):
    routed = site.attach_client(POLICY)
    assert (_row(routed).state, _row(routed).elements) == ("missing", [])
    shown = routed.cli("status", "--instance", routed.instance).stdout
    assert f"pending   dns:{NAME} has no address, and is waited for: DNS has no" in shown
    assert _asked(routed, "203.0.113.9").stack == "kernel"

    zone.change("203.0.113.9", "2001:db8::9", "127.0.0.1")
    _until(routed, "203.0.113.9", "s", "an address")
    _until(routed, "2001:db8::9", "s", "one of IPv6")
    assert _row(routed).state == "followed"
    answer = _asked(routed, "203.0.113.9")
    assert (answer.route, answer.element) == (f"dns:{NAME} tcp 443", "203.0.113.9/32")
    told = routed.cli("route", "get", "203.0.113.9:443", "--instance", routed.instance).stdout
    assert f"route dns:{NAME} tcp 443\n    which has 203.0.113.9/32 now" in told
    assert _asked(routed, "203.0.113.9", 80).stack == "kernel"
    explained = routed.ask("policy", "explain", "203.0.113.9:443")
    assert explained["rules"][0]["routes"][0]["where"].endswith("element 203.0.113.9/32")

    zone.change("203.0.113.10", "2001:db8::9")
    _until(routed, "203.0.113.10", "s", "an address that came later")
    assert _asked(routed, "203.0.113.9").stack == "s"  # it may only have rotated
    kept = {"203.0.113.9/32", "203.0.113.10/32", "2001:db8::9/128"}
    assert set(_row(routed).elements) == kept

    zone.stop()
    wait_for(lambda: _row(routed).state == "unread", WITHIN_S, "the server to be missed")
    assert site.server.ip4 in _row(routed).why
    assert _asked(routed, "203.0.113.10").stack == "s"
    (answered_at,) = RunDir(routed.instance).load().unanswered.values()
    routed.kill_director()
    routed.restart()
    assert list(RunDir(routed.instance).load().unanswered.values()) == [answered_at]
    assert (_row(routed).state, set(_row(routed).elements)) == ("unread", kept)
    assert _asked(routed, "203.0.113.10").stack == "s"
    assert "SET" in routed.cli("status", "--instance", routed.instance).stdout
    zone.says("203.0.113.11")
    zone.start()
    _until(routed, "203.0.113.11", "s", "the server that came back")
    wait_for(
        lambda: _asked(routed, "203.0.113.9").stack == "kernel", GONE_S, "an address to be gone"
    )
    assert _row(routed).state == "followed"

    zone.change()
    _until(routed, "203.0.113.11", "kernel", "a name that is gone")
    assert _row(routed).state == "missing"


def test_a_server_that_does_not_answer_keeps_nobody_waiting(site, zone):
    """The policy is accepted, its other routes serve, and what is asked meanwhile is answered."""
    zone.stop()
    site.server.run(["nft", "add table inet f"])
    site.server.run(["nft", "add chain inet f in { type filter hook input priority 0; }"])
    site.server.run(["nft", "add rule inet f in udp dport 53 drop"])
    routed = site.attach_client(POLICY + '[[tables.t.routes]]\nto = "192.0.2.0/24"\nstack = "s"\n')
    assert _asked(routed, "192.0.2.1").stack == "s"
    wait_for(lambda: "no answer from" in _row(routed).why, WITHIN_S, "the time-out to be told")
    done = routed.apply(POLICY)
    assert done.returncode == 0
    assert f"dns:{NAME} has no address, and is waited for" in done.stderr
    zone.says("203.0.113.9")
    zone.start()
    site.server.run(["nft", "delete table inet f"])
    wait_for(lambda: _asked(routed, "203.0.113.9").stack == "s", UNKNOWN_S, "an address")


def test_dry_run_and_check_ask_where_the_instance_is(site, zone):
    zone.change("203.0.113.9")
    routed = site.attach_client("# nothing\n")
    routed.write_policy(POLICY)
    words = ("policy", "apply", "--dry-run", "--instance", routed.instance, str(routed.policy_file))
    tried = json.loads(routed.cli(*words, "--json").stdout)
    assert tried["sets"][0]["elements"] == ["203.0.113.9/32"]
    zone.change()
    done = site.client.run([*CLI, "policy", "check", "--host", str(routed.policy_file), "--json"])
    assert any(
        f"dns:{NAME} has no addresses" in one["text"] for one in json.loads(done.stdout)["warnings"]
    )

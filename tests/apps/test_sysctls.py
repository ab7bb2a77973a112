# SPDX-License-Identifier: Apache-2.0
"""Sysctls that somebody changes while flows are open, on either host: those flows go on, and new
ones are carried.
"""

from __future__ import annotations

from sitefixtures import TAP, Site
from talking import Talker, echo

from lab import wait_for
from lab.routed import Routed

WITHIN_S = 20.0
CHANGES = (
    ("net.ipv4.tcp_timestamps", "0"),
    ("net.ipv4.tcp_sack", "0"),
    ("net.ipv4.tcp_window_scaling", "0"),
    ("net.ipv4.tcp_ecn", "1"),
    ("net.ipv4.tcp_syncookies", "2"),
    ("net.ipv4.ip_early_demux", "0"),
    ("net.ipv4.ip_local_port_range", "50000 50040"),
    ("net.ipv4.tcp_keepalive_time", "1"),
    ("net.ipv4.tcp_keepalive_intvl", "1"),
    ("net.ipv4.tcp_keepalive_probes", "1"),
    ("net.ipv4.tcp_mtu_probing", "2"),
    ("net.ipv4.tcp_base_mss", "200"),
    ("net.ipv4.tcp_rmem", "4096 4096 8192"),
    ("net.ipv4.tcp_wmem", "4096 4096 8192"),
    ("net.ipv4.ip_default_ttl", "33"),
    ("net.ipv4.tcp_fwmark_accept", "1"),
    ("net.ipv4.fwmark_reflect", "1"),
    ("net.ipv4.conf.all.rp_filter", "1"),
    ("net.ipv4.conf.all.accept_local", "1"),
    ("net.ipv4.conf.all.arp_ignore", "2"),
    ("net.ipv4.conf.all.log_martians", "1"),
    ("net.ipv4.conf.all.src_valid_mark", "1"),
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.fwmark_reflect", "1"),
)


class _Flows:
    """Two that are open, by each family, and what is said of new ones."""

    def __init__(self, site: Site, routed: Routed) -> None:
        self.site, self.routed = site, routed
        self.open = [self._new(address) for address in self._addresses()]

    def _addresses(self) -> tuple[str, str]:
        return self.site.server.ip4, self.site.server.ip6

    def _new(self, address: str) -> Talker:
        return Talker(self.site.client, self.site.client_cgroup, address)

    def look(self, why: str) -> None:
        """Raises AssertionError where one does not go on, or is not carried."""
        for talker in self.open:
            assert talker.says("send 50000") == "True", why
        young = [self._new(address) for address in self._addresses()]
        for talker in young:
            assert talker.says("send 50000") == "True", why
        carried = {flow["pid"]: flow["stack"] for flow in self.routed.ask("flows")}
        assert {carried.get(talker.process.pid) for talker in (*self.open, *young)} == {"wan"}, why
        for talker in young:
            assert talker.process.stdin is not None
            talker.process.stdin.close()
            assert talker.process.wait(WITHIN_S) == 0, why


def test_open_flows_go_on_and_new_ones_are_carried(wired: Site) -> None:
    """Each change besides those before it, on both hosts; then all are undone."""
    routed = wired.attach_client(TAP)
    echo(wired.server, wired.server_cgroup)
    flows = _Flows(wired, routed)
    hosts = (wired.client, wired.server)
    before = {
        (host, name): host.run(["sysctl", "-n", name]).stdout.strip().replace("\t", " ")
        for host in hosts
        for name, _ in CHANGES
    }
    for name, value in CHANGES:
        for host in hosts:
            assert before[host, name] != value, f"{name} = {value} is no change"
            host.sysctl(name, value)
        flows.look(f"{name} = {value}")
    for (host, name), value in before.items():
        host.sysctl(name, value)
    flows.look("all undone")
    wait_for(lambda: routed.ask("status")[0]["missing"] == [], WITHIN_S, "nothing to be missing")

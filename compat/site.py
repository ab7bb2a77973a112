# SPDX-License-Identifier: Apache-2.0
"""The hosts of the table: the client with dmm-ebpf, its peer, and a container behind a bridge
of the client's.

    peer ═══ eth0, eth1 ═══ client ═══ br0 ═══ box

The client has its default route by eth0. The peer also has the address `service`, that of no
device, which either wire leads to. A *kind* of site puts another device, `top0`, over the wire and
the same cases go through that.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat.case import IP4, IP6, KERNEL, PLAIN, REFERENCE
from compat.nft import Nft
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client
from lab import Cgroup, Host, Lab
from lab.routed import Routed
from lab.waiting import patient, wait_readable

AGENT = Path(__file__).with_name("agent.py")
ANSWER_TIMEOUT_S = 40.0
USER_POLICY = """
[stacks.ours]
kind = "user"
congestion = "cubic"
io = "{io}"
devices = [{devices}]
[[rules]]
cgroup = "{{cgroup}}"
table = "all"
[[rules]]
direction = "forward"
in_interface = "br0"
table = "all"
[[rules]]
direction = "forward"
in_interface = [{devices}]
table = "published"
[[tables.all.routes]]
to = "default"
stack = "ours"
[[tables.published.routes]]
to = "default"
proto = "tcp"
ports = "{published}"
stack = "ours"
"""
PUBLISHED_PORTS = (42_000, 60_999)  # what comes from outside to be forwarded is told by its port
KERNEL_POLICY = """
[stacks.ours]
kind = "kernel"
[[rules]]
cgroup = "{cgroup}"
table = "all"
[[tables.all.routes]]
to = "default"
stack = "ours"
"""
# A short life for SYNs nobody answers: ETIMEDOUT after three seconds; strict settings are
# a case's own.
SYSCTLS = {
    "net.ipv4.tcp_syn_retries": 1,
    "net.ipv4.tcp_syn_linear_timeouts": 0,
    "net.ipv4.tcp_synack_retries": 1,
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
}


class Untried(Exception):  # noqa: N818  (it is no error)
    """What a case needs is not here; says what."""


class Agent:
    """A process of agent.py on a host."""

    def __init__(self, host: Host, cgroup: Cgroup | None = None) -> None:
        argv = ["/usr/bin/python3", str(AGENT)]
        options: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
        }
        self.process = (
            cgroup.spawn(argv, host=host, **options)
            if cgroup is not None
            else host.popen(argv, **options)
        )
        self._answer()

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Tells it to do something; its answer."""
        self.tell(do, **told)
        return self._answer()

    def tell(self, do: str, **told: Any) -> None:
        """Tells it to do something, whose answer is read by wait()."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        if not wait_readable(self.process.stdout.fileno(), patient(ANSWER_TIMEOUT_S)):
            raise DmmError(
                "hear from an application", why=f"it was silent for {ANSWER_TIMEOUT_S:g} s"
            )
        line = self.process.stdout.readline()
        if not line:
            raise DmmError("hear from an application", why="it ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    wait = _answer


def _top_vlan(site: Site) -> None:
    for host in (site.client, site.peer):
        host.ip("link add top0 link eth0 type vlan id 7")


def _top_bridge(site: Site) -> None:
    for host in (site.client, site.peer):
        host.ip("link add top0 type bridge", "addr flush dev eth0", "link set eth0 master top0")


def _top_macvlan(site: Site) -> None:
    for host in (site.client, site.peer):
        host.ip("link add top0 link eth0 type macvlan mode bridge")


def _top_ipvlan(site: Site) -> None:
    site.client.ip("link add top0 link eth0 type ipvlan mode l2")
    site.peer.ip("link add top0 link eth0 type macvlan mode bridge")


def _top_vxlan(site: Site) -> None:
    for host, other in ((site.client, site.peer), (site.peer, site.client)):
        host.ip(f"link add top0 type vxlan id 9 dev eth0 remote {other.ip4} dstport 4789")


def _top_bond(site: Site) -> None:
    for host in (site.client, site.peer):
        host.ip(
            "link add top0 type bond mode active-backup miimon 100",
            *(
                line
                for dev in ("eth0", "eth1")
                for line in (f"link set {dev} down", f"addr flush dev {dev}")
            ),
            "link set eth0 master top0",
            "link set eth1 master top0",
        )


def _top_wireguard(site: Site) -> None:
    for host in (site.client, site.peer):
        host.ip("link add top0 type wireguard")
    keys = {}
    for host in (site.client, site.peer):
        private = _run(host, "wg", "genkey").strip()
        keys[host.name] = _run(host, "wg", "pubkey", text=private + "\n").strip()
        _run(
            host,
            "wg",
            "set",
            "top0",
            "listen-port",
            "51820",
            "private-key",
            "/dev/stdin",
            text=private,
        )
    for host, other in ((site.client, site.peer), (site.peer, site.client)):
        _run(host, "wg", "set", "top0", "peer", keys[other.name], "endpoint", f"{other.ip4}:51820",
             "allowed-ips", "0.0.0.0/0,::/0")  # fmt: skip


KINDS: dict[str, Callable[[Site], None]] = {
    "bridge": _top_bridge,
    "macvlan": _top_macvlan,
    "vxlan": _top_vxlan,
    "ipvlan": _top_ipvlan,
    "802.1Q": _top_vlan,
    "bond": _top_bond,
    "WireGuard": _top_wireguard,
}


def _run(host: Host, *argv: str, text: str | None = None) -> str:
    try:
        done = host.run(argv, check=False, input=text)
    except FileNotFoundError as error:
        raise Untried(f"there is no {argv[0]}") from error
    if done.returncode:
        raise Untried(f"{' '.join(argv)}: {' '.join(done.stderr.split())}")
    return str(done.stdout)


class Site(Closing):
    """One set of hosts, with one carrier: nothing attached (the reference), or dmm-ebpf
    with one policy.
    """

    def __init__(self, kind: str, carrier: str, directory: Path) -> None:
        self.kind = kind
        self.carrier = carrier
        self.directory = directory
        self.stack = contextlib.ExitStack()
        self.routed: Routed | None = None
        self.rd: Client | None = None
        self._nft: dict[str, Nft] = {}
        self._ports = iter(range(10_000, 32_000))
        self._published = iter(range(PUBLISHED_PORTS[0], PUBLISHED_PORTS[1]))
        try:
            self._build()
        except DmmError as error:
            self.stack.close()
            if kind == PLAIN:
                raise
            what = str(error).partition(": ")[2].partition(" Command failed")[0]
            raise Untried(f"{kind}: {what or error}") from error
        except BaseException:
            self.stack.close()
            raise

    def _build(self) -> None:
        self.lab = self.stack.enter_context(Lab("compat"))
        self.scratch = self.directory / self.lab.name  # what cells make, other sites do not see
        self.scratch.mkdir()
        self.client, self.peer, self.box = (
            self.lab.host(name) for name in ("client", "peer", "box")
        )
        self.lab.wire(self.client, self.peer, offloads=True)
        self.lab.wire(self.client, self.peer, offloads=True)
        self.lab.wire(self.client, self.box, offloads=True)
        for host in (self.client, self.peer, self.box):
            for name, value in SYSCTLS.items():
                with contextlib.suppress(DmmError):  # older kernels have not all
                    host.sysctl(name, value)
        self._address()
        self.device = "eth0"
        if self.kind != PLAIN:
            self._put_on_top()
        self.cgroup = self.stack.enter_context(Cgroup())
        self.app = Agent(self.client, self.cgroup)
        self.bystander = Agent(self.client)
        self.far = Agent(self.peer)
        self.inside = Agent(self.box, self.cgroup.child("box"))
        if self.carrier != REFERENCE:
            self._attach()

    def _address(self) -> None:
        self.addresses: dict[str, dict[str, str]] = {
            IP4: {
                "box": "172.20.0.2",
                "bridge": "172.20.0.1",
                "service": "203.0.113.1",
                "virtual": "203.0.113.99",
            },
            IP6: {"box": "fd00:20::2", "bridge": "fd00:20::1", "service": "2001:db8:ff::1"},
        }
        self.addresses[IP6]["virtual"] = "2001:db8:ff::99"
        for number, suffix in ((0, ""), (1, "2")):
            for name, host in (("client", self.client), ("peer", self.peer)):
                self.addresses[IP4][name + suffix] = host.nics[number].ip4
                self.addresses[IP6][name + suffix] = host.nics[number].ip6
        ip4, ip6 = self.addresses[IP4], self.addresses[IP6]
        ip4["extra"], ip6["extra"] = "198.18.0.11", "2001:db8:0::11"
        ip4["fresh"], ip6["fresh"] = "198.18.0.21", "2001:db8:0::21"
        ip4["absent"], ip6["absent"] = "198.18.0.77", "2001:db8:0::77"
        inner = self.client.nics[2].name
        self.client.ip(
            f"addr add {ip4['extra']}/24 dev eth0",
            # else it would be the source
            f"addr add {ip6['extra']}/64 dev eth0 nodad preferred_lft 0",
            "link add br0 type bridge",
            f"addr flush dev {inner}",
            f"link set {inner} master br0",
            "link set br0 up",
            f"addr add {ip4['bridge']}/24 dev br0",
            f"addr add {ip6['bridge']}/64 dev br0 nodad",
        )
        self.box.ip(
            "addr flush dev eth0",
            f"addr add {ip4['box']}/24 dev eth0",
            f"addr add {ip6['box']}/64 dev eth0 nodad",
            f"route replace default via {ip4['bridge']}",
            f"route replace ::/0 via {ip6['bridge']} dev eth0",
        )
        self.peer.ip(
            f"addr add {ip4['service']}/32 dev lo", f"addr add {ip6['service']}/128 dev lo nodad"
        )

    def _put_on_top(self) -> None:
        KINDS[self.kind](self)
        self.device = "top0"
        for host, name, number in ((self.client, "client", 1), (self.peer, "peer", 2)):
            self.addresses[IP4][name], self.addresses[IP6][name] = (
                f"192.0.2.{number}",
                f"2001:db8:99::{number}",
            )
            host.ip(
                f"addr add 192.0.2.{number}/24 dev top0",
                "link set top0 up",
                f"addr add 2001:db8:99::{number}/64 dev top0 nodad",
            )

    def _attach(self) -> None:
        policy = KERNEL_POLICY
        if self.carrier != KERNEL:
            devices = '"eth0", "eth1"' if self.kind == PLAIN else f'"{self.device}"'
            published = "{}-{}".format(*PUBLISHED_PORTS)
            policy = USER_POLICY.format(io=self.carrier, devices=devices, published=published)
        self.routed = self.stack.enter_context(
            Routed(self.client, self.cgroup, policy, self.directory / self.carrier)
        )
        self.rd = self.stack.enter_context(Client(self.routed.instance))

    def nft(self, host: Host) -> Nft:
        """The rule sets of a host. Raises FileNotFoundError where nft is not installed."""
        return self._nft.setdefault(host.name, Nft(host))

    def next_port(self, *, published: bool = False) -> int:
        """A port that no cell had before: nothing of an earlier one is met. published: one that
        the box serves.
        """
        return next(self._published if published else self._ports)

    def name_of(self, address: str) -> str:
        """An address by its name, where it has one."""
        plain = address.removeprefix("::ffff:")
        for names in self.addresses.values():
            for name, value in names.items():
                if ipaddress.ip_address(value) == ipaddress.ip_address(plain):
                    return name
        return "another address"

    def flows(self) -> list[dict[str, Any]]:
        """What `dmm-ebpf flows --json` prints, asked without starting a program for each cell."""
        rows: list[dict[str, Any]] = self.rd.call("flows") if self.rd else []
        return rows

    def opened(self) -> int:
        """Connections that the user stack has opened so far, both ways."""
        if self.routed is None or self.carrier == KERNEL:
            return 0
        try:
            counters = self.routed.ask_stack("ours")
        except OSError:  # it has died, and counts from nothing
            return 0
        return int(counters["core_active_open"] + counters["core_passive_open"])

    def close(self) -> None:
        """Detaches and removes the hosts; harmless when repeated."""
        self.stack.close()

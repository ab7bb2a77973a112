# SPDX-License-Identifier: Apache-2.0
"""The story that tools/demo tells, on real traffic: two hosts, a lossy link, unmodified
programs, one policy.

Each step says what it does, does it with the real programs and the real command line, and checks
what came out; the first thing that is not as told ends the demo with exit code 1. Everything is
made in a Lab, so everything goes with it.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.progress import Progress
from rich.syntax import Syntax
from rich.table import Table

from demo.messages import PACE, times_ms, trace
from demo.telling import expect, tell
from lab import (
    Cgroup,
    Fetched,
    Host,
    Lab,
    busybox_fetch,
    curl_fetch,
    iperf3,
    iperf3_server,
    nginx,
    random_file,
    redis_server,
    wait_for,
)
from lab.routed import Routed
from lab.steady import Sender, echo_server
from lab.waiting import patient, wait_readable

RATE_MBIT = 100
DELAY_MS = 25
LOSS = 0.01
MESSAGE_LOSS = 0.12
FILE_BYTES = 10_000_000
SHAPED_MBIT = 20
# Goodput is divided by what full-size segments leave of the rate: 1448 of 1538 bytes on the wire
# (and then loss).
LIMIT_BPS = RATE_MBIT * 1e6 * 1448 / 1538

CLIENT_POLICY = """\
[stacks.wan]                # a user-space TCP stack: its own process, AF_XDP to the NIC
kind = "user"
io = "af_xdp"
devices = ["eth0"]
transport = "tcp"
congestion = "wan"
fallback = "kernel"

[stacks.side]               # another one on the same NIC, by its tc hooks: qdiscs and nft's hooks hold for it
kind = "user"
io = "tap"
devices = ["eth0"]
congestion = "wan"
fallback = "kernel"

[stacks.lan]                # the kernel's stack, with options
kind = "kernel"
congestion = "cubic"
dscp = "af21"

[[rules]]                   # which sockets
name = "shop"
cgroup = "{cgroup}"
table = "shop"

[[tables.shop.routes]]      # which peers, and which stack serves them
to = "default"
proto = "tcp"
ports = "80, 4300, 5201, 6379"
stack = "wan"

[[tables.shop.routes]]
to = "default"
proto = "tcp"
ports = "8081"
stack = "lan"

[[tables.shop.routes]]
to = "default"
proto = "tcp"
ports = "5202"
stack = "side"
"""

SERVER_POLICY = """\
[stacks.wan]
kind = "user"
io = "af_xdp"
congestion = "wan"

[stacks.cubic]
kind = "kernel"
congestion = "cubic"

[[rules]]
name = "web"
cgroup = "{cgroup}"
direction = "listen"
table = "clients"

[[tables.clients.routes]]   # for a listener, the peer is the client
to = "default"
ports = "80, 4300"
stack = "wan"

[[tables.clients.routes]]
to = "default"
ports = "8081"
stack = "cubic"
"""
BBR_POLICY = """
[stacks.bbr]
kind = "kernel"
congestion = "bbr"

[[tables.clients.routes]]
to = "default"
ports = "8082"
stack = "bbr"
"""

# What a container engine sets up: a bridge with the container's gateway,
# forwarding, and masquerade.
BRIDGE = "br0"
MASQUERADE = """
table inet box {
    chain nat { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
    chain forward { type filter hook forward priority filter; ct state new counter; }
}
"""


class Story:
    """The hosts and what is told about them."""

    def __init__(self, lab: Lab, directory: Path, stack: ExitStack, progress: Progress) -> None:
        self.lab = lab
        self.directory = directory
        self.stack = stack
        self.progress = progress
        self.client: Host = lab.host("client", tcp_buffers=64 << 20)
        self.server: Host = lab.host("server", tcp_buffers=64 << 20)
        self.link = lab.wan(
            self.client, self.server, rate=f"{RATE_MBIT}mbit", delay=f"{DELAY_MS}ms", seed=7
        )
        self.container = container_of(lab, self.client)
        self.cg_client = stack.enter_context(Cgroup())
        self.cg_server = stack.enter_context(Cgroup())
        self.before = traces(self.client) + traces(self.server)
        self.routed: Routed | None = None
        self.file = directory / "www" / "file.bin"
        self.file.parent.mkdir()
        self.sha256 = random_file(self.file, FILE_BYTES)
        self.rivals: dict[str, int] = {}
        self.web = nginx(self.server, self.file.parent, directory / "nginx")

    @property
    def dmm(self) -> Routed:
        """The instance on the client's host."""
        assert self.routed is not None
        return self.routed

    def say(self, text: str) -> None:
        """One line of the story."""
        self.progress.console.print(f"  {text}")

    def fetch(
        self,
        *,
        port: int = 80,
        cgroup: Cgroup | None = None,
        timeout: float = 90,
        host: Host | None = None,
    ) -> Fetched:
        """curl gets the file; DemoError if it does not arrive as it was sent. host: the
        client's if left out.
        """
        url = f"http://{self.server.ip4}:{port}/file.bin"
        got = curl_fetch(host or self.client, url, cgroup=cgroup, timeout=timeout)
        expect(got.exit_code == 0, f"curl failed: {got.stderr.strip()}")
        expect(got.sha256 == self.sha256, "the file arrived changed")
        return got

    def hold(self, host: Host | None = None) -> subprocess.Popen[bytes]:
        """curl, getting the file, with part of it here: it goes on when read_rest() takes
        what it writes.

        Its own --limit-rate lets whole megabytes pass at once where the machine is slow.
        """
        curl: subprocess.Popen[bytes] = self.cg_client.spawn(
            ["curl", "-s", f"http://{self.server.ip4}/file.bin"],
            host=host or self.client,
            stdout=subprocess.PIPE,
        )
        assert curl.stdout is not None
        wait_readable(curl.stdout.fileno(), 30)
        return curl

    def read_rest(self, curl: subprocess.Popen[bytes]) -> None:
        """All that hold() held back; DemoError if it is not the file."""
        assert isinstance(curl.stdout, io.BufferedReader)
        with curl.stdout as output:
            digest = hashlib.file_digest(output, "sha256").hexdigest()
        expect(curl.wait(patient(60)) == 0, "the transfer that ran did not finish")
        expect(digest == self.sha256, "the transfer that ran was harmed")

    def fetch_head(self) -> None:
        """A new connection that is answered."""
        url = f"http://{self.server.ip4}/file.bin"
        got = curl_fetch(self.client, url, cgroup=self.cg_client, timeout=10, options=["--head"])
        expect(got.exit_code == 0, f"no new connection: {got.stderr.strip()}")

    def told(self, program: str, stack: str, got: Fetched) -> None:
        """A transfer's goodput and hash."""
        bps = got.size_bytes * 8 / got.seconds
        self.say(
            f"[bold]{program}[/]: stack [cyan]{stack}[/], {got.size_bytes / 1e6:.0f} MB in {got.seconds:.1f} s, "
            f"{bps / 1e6:.1f} Mb/s, sha256 {got.sha256[:12]}… [green]right[/]"
        )


def container_of(lab: Lab, host: Host) -> Host:
    """A network namespace behind a bridge and a masquerade of host's, as an engine makes them."""
    container = lab.host("container")
    lab.wire(host, container, offloads=True)
    nic = host.nics[-1]
    host.ip(
        f"link add {BRIDGE} type bridge",
        f"addr flush dev {nic.name}",
        f"link set {nic.name} master {BRIDGE}",
        f"link set {BRIDGE} up",
        f"addr add {nic.ip4}/24 dev {BRIDGE}",
    )
    host.sysctl("net.ipv4.ip_forward", 1)
    host.run(["nft", "-f", "-"], input=MASQUERADE)
    return container


def traces(host: Host) -> str:
    """All that an attached instance changes on a host, as text."""
    script = "ip rule; ip -6 rule; ip -br link; ip route show table all | grep -c dmm- || true"
    return str(host.run(["sh", "-c", script + "; cat /proc/sys/net/ipv4/tcp_fwmark_accept"]).stdout)


def attach(s: Story) -> None:
    """A policy file, and dmm-ebpf attached to the client's cgroup."""
    s.progress.console.print(Syntax(CLIENT_POLICY, "toml", background_color="default"))
    s.routed = s.stack.enter_context(
        Routed(s.client, s.cg_client, CLIENT_POLICY, s.directory, options=["--containers"])
    )
    stack = s.dmm.stack("wan")
    s.say(
        f"dmm-ebpf attach --cgroup {s.cg_client.relative} --policy {s.dmm.policy_file.name} --containers"
    )
    s.say(f"stack wan is {stack['state']}: process {stack['pid']} behind {stack['device']}")
    for port in (80, 8081, 22):
        where = ("route", "get", f"{s.server.ip4}:{port}", "--cgroup", s.cg_client.relative)
        answer = s.dmm.ask(*where)
        s.say(
            f"dmm-ebpf {' '.join(where[:3])} → stack [cyan]{answer['stack']}[/], route {answer['route']}"
        )


def programs(s: Story) -> None:
    """curl, a static busybox, iperf3 and redis-benchmark connect through the user stack."""
    s.told("curl ← nginx", "wan", s.fetch(cgroup=s.cg_client))
    url = f"http://{s.server.ip4}/file.bin"
    got = busybox_fetch(s.client, url, cgroup=s.cg_client)
    expect(got.sha256 == s.sha256, "busybox wget got another file")
    s.told("busybox wget (static)", "wan", got)
    iperf3_server(s.server, s.directory / "iperf3")
    answer = iperf3(s.client, s.server.ip4, "-t", "4", "-O", "1", cgroup=s.cg_client)
    bps = answer["end"]["sum_received"]["bits_per_second"]
    s.say(
        f"[bold]iperf3[/]: stack [cyan]wan[/], {bps / 1e6:.1f} Mb/s = {bps / LIMIT_BPS:.0%} of the link"
    )
    redis_server(s.server, s.directory / "redis")
    done = s.cg_client.run(
        ["redis-benchmark", "-h", s.server.ip4, "-n", "1000", "-c", "50", "-t", "set,get", "--csv"],
        host=s.client,
    )
    rows = [line.replace('"', "").split(",") for line in done.stdout.splitlines()[1:]]
    expect(len(rows) == 2, "redis-benchmark did not finish")
    s.say(
        "[bold]redis-benchmark[/]: stack [cyan]wan[/], "
        + ", ".join(f"{r[0]} {float(r[1]):.0f}/s" for r in rows)
    )


def seen(s: Story) -> None:
    """What everybody else on the host sees of a flow on the user stack: the flow as it is."""
    s.client.run(
        [
            "nft",
            "add table inet demo; add chain inet demo out { type filter hook output priority 0; };"
            f"add rule inet demo out ip daddr {s.server.ip4} tcp dport 80 counter",
        ]
    )
    curl = s.hold()
    (flow,) = wait_for(
        lambda: [f for f in s.dmm.flows(dport=80) if f["bytes_received"] > 100_000], 10, "the flow"
    )
    table = Table(title="dmm-ebpf flows", title_justify="left")
    keys = ("comm", "src", "sport", "dst", "dport", "stack", "rule", "srtt_us", "congestion")
    for key in keys:
        table.add_column(key)
    table.add_row(*(str(flow.get(key)) for key in keys))
    s.progress.console.print(table)
    listed = s.client.run(["ss", "-tnH", "state", "established"]).stdout
    expect(f"{s.server.ip4}:80" in listed, "ss does not show the peer")
    s.say(f"ss: {' '.join(listed.split()[2:4])}")
    s.read_rest(curl)
    packets = _counted(s.client, "out")
    expect(packets > 0, "the firewall did not see the flow")
    s.say(f"nft rule in OUTPUT on {s.server.ip4}:80 counted {packets} packets")
    s.client.run(["nft", "delete table inet demo"])


def beside(s: Story) -> None:
    """Another user stack on the same NIC: a firewall rule by the NIC's name and a shaper on it
    hold for its flows.
    """
    nic = s.client.nic.name
    stacks = {name: s.dmm.stack(name) for name in ("wan", "side")}
    expect(
        all(stack["nics"] == [nic] for stack in stacks.values()),
        "the two stacks are not on one NIC",
    )
    ports = ", ".join(f"{name} by {stack['port']}" for name, stack in stacks.items())
    s.say(f"on {nic}: {ports}")
    s.client.run(
        [
            "nft",
            "add table inet demo; add chain inet demo post { type filter hook postrouting priority 0; };"
            f"add rule inet demo post oifname {nic} tcp dport 5202 counter",
        ]
    )
    s.client.run(
        [
            "tc",
            *f"qdisc add dev {nic} root tbf rate {SHAPED_MBIT}mbit burst 32kb latency 100ms".split(),
        ]
    )
    s.say(f"tc qdisc add dev {nic} root tbf rate {SHAPED_MBIT}mbit …")
    iperf3_server(s.server, s.directory / "iperf3-side", port=5202)
    answer = iperf3(s.client, s.server.ip4, "-t", "4", "-O", "1", cgroup=s.cg_client, port=5202)
    mbit = answer["end"]["sum_received"]["bits_per_second"] / 1e6
    expect(mbit < SHAPED_MBIT, f"the shaper did not hold: {mbit:.1f} Mb/s")
    packets = _counted(s.client, "post")
    expect(packets > 0, "the firewall did not see the flow leave by the NIC")
    s.say(
        f"[bold]iperf3[/]: stack [cyan]side[/], {mbit:.1f} Mb/s; nft counted {packets} packets with oifname {nic}"
    )
    s.client.run(["tc", "qdisc", "del", "dev", nic, "root"])
    s.client.run(["nft", "delete table inet demo"])


def container(s: Story) -> None:
    """A container's flow, by its cgroup: the host's director routes it, and the host's firewall
    and NAT have it.
    """
    curl = s.hold(s.container)
    (flow,) = wait_for(
        lambda: [f for f in s.dmm.flows(dport=80) if f["src"] == s.container.ip4],
        10,
        "the container's flow",
    )
    expect(flow["stack"] == "wan", f"stack {flow['stack']} has the container's flow")
    listed = s.server.run(["ss", "-tnH", "state", "established", "sport", "=", ":80"]).stdout
    expect(s.client.ip4 in listed, "the server does not see the host's address")
    s.read_rest(curl)
    s.say(
        f"[bold]curl in the container ← nginx[/]: stack [cyan]wan[/] of the host, {flow['src']}:{flow['sport']}, "
        f"which the server sees as {s.client.ip4}; sha256 [green]right[/]"
    )
    packets = _counted(s.client, "forward", table="box")
    expect(packets > 0, "the host's FORWARD chain did not see the flow")
    s.say(f"nft rule in FORWARD counted {packets} new connection(s)")


def _counted(host: Host, chain: str, table: str = "demo") -> int:
    """What the one counter of a chain says."""
    rule = json.loads(host.run(["nft", "-j", "list", "chain", "inet", table, chain]).stdout)
    return next(
        int(e["counter"]["packets"])
        for item in rule["nftables"]
        if "rule" in item
        for e in item["rule"]["expr"]
        if "counter" in e
    )


def policy_change(s: Story) -> None:
    """The policy file changes while a transfer runs: the transfer stays where it is, the
    next connection moves.
    """
    curl = s.hold()
    wait_for(
        lambda: [f for f in s.dmm.flows(dport=80) if f["stack"] == "wan"],
        10,
        "the transfer on the user stack",
    )
    s.dmm.write_policy(
        CLIENT_POLICY.replace('ports = "80, ', 'ports = "').replace('"8081"', '"80, 8081"')
    )
    s.say("the policy file now gives port 80 to stack lan; the Resource Director sees it by itself")
    where = ("route", "get", f"{s.server.ip4}:80", "--cgroup", s.cg_client.relative)
    wait_for(lambda: s.dmm.ask(*where)["stack"] == "lan", 10, "the new policy")
    (old,) = s.dmm.flows(dport=80)
    expect(old["stack"] == "wan", "the open flow was moved")
    s.told("curl ← nginx", "lan", s.fetch(cgroup=s.cg_client))
    s.read_rest(curl)
    s.say("the transfer that ran meanwhile stayed on stack [cyan]wan[/] and ended [green]right[/]")
    s.dmm.apply(CLIENT_POLICY)


def killed(s: Story) -> None:
    """kill -9 for the stack process, then for the Resource Director."""
    pid = s.dmm.stack("wan")["pid"]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    s.fetch_head()
    s.say(
        f"stack process {pid} killed; a new connection was answered after {(time.monotonic() - began) * 1e3:.0f} ms"
    )
    wait_for(lambda: s.dmm.stack("wan")["state"] == "up", 10, "the stack to be started again")
    s.say(f"started again as process {s.dmm.stack('wan')['pid']}")
    s.dmm.kill_director()
    s.told("curl ← nginx, no Resource Director", "wan", s.fetch(cgroup=s.cg_client))
    s.dmm.restart()
    s.say("the next Resource Director adopted hooks, policy and stack process")


def listening(s: Story) -> None:
    """Now the server's host: nginx listens behind a user stack, the client is a plain kernel."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    policy = SERVER_POLICY + (BBR_POLICY if "bbr" in available else "")
    routed = s.stack.enter_context(Routed(s.server, s.cg_server, policy, s.directory))
    s.web.stop()
    s.rivals = {"kernel, cubic": 8081} | ({"kernel, bbr": 8082} if "bbr" in available else {})
    for port in (80, *s.rivals.values()):
        nginx(s.server, s.file.parent, s.directory / f"nginx-{port}", port=port, cgroup=s.cg_server)
    (row,) = [
        entry
        for entry in routed.ask("listeners")
        if (entry["addr"], entry["port"]) == ("0.0.0.0", 80)
    ]
    s.say(
        f"dmm-ebpf listeners: {row['comm']} on port {row['port']}, clients looked up in table {row['table']}"
    )
    s.told("curl (kernel) ← nginx (user stack)", "wan", s.fetch())
    s.told("curl (user stack) ← nginx (user stack)", "wan", s.fetch(cgroup=s.cg_client))


def side_by_side(s: Story) -> None:
    """The link loses packets at random. The same file, sent by the kernel and by the user stack
    of the server.
    """
    s.link.set(loss=LOSS)
    rows = [(label, s.fetch(port=port)) for label, port in s.rivals.items()]
    rows.append(("user stack, wan", s.fetch()))
    table = Table(
        title=f"{FILE_BYTES / 1e6:.0f} MB, {RATE_MBIT} Mb/s, {2 * DELAY_MS} ms round trip, {LOSS:.0%} loss",
        title_justify="left",
    )
    for name in ("sent by", "seconds", "Mb/s", "of the link"):
        table.add_column(name, justify="left" if name == "sent by" else "right")
    for label, got in rows:
        bps = got.size_bytes * 8 / got.seconds
        table.add_row(
            label, f"{got.seconds:.1f}", f"{bps / 1e6:.1f}", f"{bps / LIMIT_BPS / (1 - LOSS):.0%}"
        )
    s.progress.console.print(table)


def messages(s: Story) -> None:
    """A message of 1 KB every 50 ms and its echo, where one packet of eight is lost each way: by
    the kernel, and by user stacks on both hosts, at the same time.
    """
    s.link.set(loss=MESSAGE_LOSS)
    kernel = "bbr" if "kernel, bbr" in s.rivals else "cubic"
    for host in (s.client, s.server):
        host.sysctl("net.ipv4.tcp_congestion_control", kernel)
    by = {f"kernel, {kernel}": None, "user stacks, wan": s.cg_client}
    senders = {}
    for port, (name, cgroup) in zip((4301, 4300), by.items(), strict=True):
        server_cgroup = s.cg_server if cgroup else None
        echo_server(s.server, port, s.directory / f"echo-{port}.log", server_cgroup)
        senders[name] = Sender("ask", s.client, (s.server.ip4, port), PACE, cgroup)
    sides = {name: times_ms(sender.result()) for name, sender in senders.items()}
    expect(sides["user stacks, wan"][-1] < float("inf"), "a message never came back")
    s.say(
        f"{PACE.size_bytes} bytes each {PACE.interval_s * 1e3:.0f} ms there and back, "
        f"{2 * DELAY_MS} ms round trip, {MESSAGE_LOSS:.0%} loss each way; a mark is {DELAY_MS} ms"
    )
    for line in trace(sides, 2 * DELAY_MS):
        s.progress.console.print(f"  {line}", markup=False)


def nothing_left(s: Story) -> None:
    """Detach, and compare both hosts with what they were."""
    s.stack.close()
    after = traces(s.client) + traces(s.server)
    changed = [
        line for line in difflib.ndiff(s.before.splitlines(), after.splitlines()) if line[0] in "+-"
    ]
    expect(not changed, f"detach left something behind: {'; '.join(changed)}")
    s.say("rules, routes, devices and sysctls of both hosts are as they were")


STEPS: list[tuple[str, Callable[[Story], None]]] = [
    ("A policy, and a cgroup to apply it to", attach),
    ("Unmodified programs connect", programs),
    ("Firewall, ss and flows see the real addresses", seen),
    ("Two user stacks on one NIC, a rule that names it, and a shaper", beside),
    ("A container behind a bridge and NAT, by the host's director", container),
    ("The policy changes while programs run", policy_change),
    ("A stack is killed, then the Resource Director", killed),
    ("The other direction: a server listens behind a user stack", listening),
    ("The same file over a lossy link: kernel and user stack", side_by_side),
    ("Messages over a link that loses one packet of eight", messages),
    ("Detach", nothing_left),
]


def main() -> int:
    """Tell the story; 0 if all was as told."""

    def begin(lab: Lab, directory: Path, stack: ExitStack, progress: Progress) -> Story:
        story = Story(lab, directory, stack, progress)
        story.say(f"two hosts: client {story.client.ip4}, server {story.server.ip4}")
        story.say(f"between them a link of {RATE_MBIT} Mb/s, {DELAY_MS} ms each way")
        return story

    return tell("dmm-ebpf: protocol routing", begin, STEPS)


if __name__ == "__main__":
    sys.exit(main())

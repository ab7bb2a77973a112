# SPDX-License-Identifier: Apache-2.0
"""What others do to a NIC under open flows: a flow of the kernel's and one of a user stack's, side
by side on one host, by both families; the stack's goes on where the kernel's does.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections.abc import Callable

import pytest
from sitefixtures import Site, by
from talking import PORT, Talker, echo, program, server

from lab import Host, wait_for
from lab.links import Wire
from lab.routed import Routed

KERNEL, STACK = 7501, 7500
OTHER_PORT = 7310
SIZE = 800_000
GAP_S = 1.2
WITHIN_S = 90.0
OTHER_MAC = "02:dd:00:00:fe:01"

# Sends back what comes on both ports, at so many bytes a second of each connection and with little
# room, so that a change comes in the midst of it.
SERVE = """
import selectors, socket, sys, threading
SO_MAX_PACING_RATE = 47
chosen = selectors.DefaultSelector()
for port in sys.argv[1:]:
    listening = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    for room in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        listening.setsockopt(socket.SOL_SOCKET, room, 65536)
    listening.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 200_000)
    chosen.register(listening, selectors.EVENT_READ)
print("ready", flush=True)
def serve(c):
    try:
        while data := c.recv(16384):
            c.sendall(data)
    except OSError:
        pass
    c.close()
while True:
    for key, _ in chosen.select():
        c, _ = key.fileobj.accept()
        threading.Thread(target=serve, args=(c,), daemon=True).start()
"""

# One connection, with a thread that sends and one that reads. For each line how many bytes have
# come back; after "end", once all has, their digest, or an error.
LOAD = """
import hashlib, random, socket, sys, threading
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
c = socket.create_connection((address, port))
came, found, trouble = 0, hashlib.sha256(), []
def send():
    try:
        c.sendall(random.Random(port).randbytes(size))
        c.shutdown(socket.SHUT_WR)
    except OSError as error:
        trouble.append(str(error))
def read():
    global came
    try:
        while part := c.recv(1 << 16):
            found.update(part)
            came += len(part)
    except OSError as error:
        trouble.append(str(error))
threads = [threading.Thread(target=t, daemon=True) for t in (send, read)]
for t in threads: t.start()
for line in sys.stdin:
    if line.strip() == "end":
        break
    print(came, flush=True)
for t in threads: t.join()
print(trouble[0] if trouble else found.hexdigest(), flush=True)
"""

# One connection, quiet until a line comes.
HOLD = """
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("open", flush=True)
sys.stdin.readline()
c.sendall(b"still here")
print(c.recv(10, socket.MSG_WAITALL).decode(), flush=True)
"""


class Load:
    """A connection of a program in the client's cgroup, by one stack and one family."""

    def __init__(self, site: Site, port: int, address: str) -> None:
        self.stack = "kernel" if port == KERNEL else "wan"
        self.expected = hashlib.sha256(random.Random(port).randbytes(SIZE)).hexdigest()
        self.name = f"{self.stack}, {'IPv6' if ':' in address else 'IPv4'}"
        self.process = program(site.client, site.client_cgroup, LOAD, address, str(port), str(SIZE))

    def _ask(self, word: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def came(self) -> int:
        """Bytes that have come back."""
        return int(self._ask("how far"))

    def end(self) -> str:
        """How it ended."""
        found = self._ask("end")
        self.process.wait(WITHIN_S)
        return "whole" if found == self.expected else found


class Side:
    """The host whose NIC is changed, and the kernel's flows that show when it carries again."""

    def __init__(self, site: Site, host: Host, loads: list[Load]) -> None:
        self.site, self.host, self.nic = site, host, host.nic
        self.peer = next(n.nics[0] for n in (site.client, site.server) if n is not host)
        self.loads = loads

    def goes_on(self) -> None:
        """Until the kernel's flows have carried more than now."""
        kernels = {one: one.came() for one in self.loads if one.stack == "kernel"}
        wait_for(
            lambda: all(one.came() > before for one, before in kernels.items()),
            WITHIN_S,
            "the kernel's flows to go on",
        )

    def address(self, name: str) -> None:
        """What the NIC has as the laboratory makes it, on a device of that name."""
        self.host.ip(
            f"link set {name} up",
            f"addr replace {self.nic.ip4}/24 dev {name}",
            f"addr replace {self.nic.ip6}/64 dev {name} nodad",
            f"route replace default via {self.peer.ip4} dev {name}",
            f"route replace ::/0 via {self.peer.ip6} dev {name}",
        )


def gap() -> None:
    """What is tried is this silence, in which both ends send again."""
    threading.Event().wait(GAP_S)


def remade(side: Side, mac: str = "") -> None:
    host, link = side.host, side.site.link
    host.ip(f"link del {side.nic.name}")
    gap()
    near, far = (link.a, link.b) if link.a.host is host else (link.b, link.a)
    side.site.lab.remake(Wire(near, far))


def moved(side: Side) -> None:
    elsewhere = side.site.lab.hosts.get("elsewhere") or side.site.lab.host("elsewhere")
    side.host.ip(f"link set {side.nic.name} netns {elsewhere.netns}")
    gap()
    elsewhere.ip(f"link set {side.nic.name} netns {side.host.netns}")
    side.address(side.nic.name)


def moved_at_once(side: Side) -> None:
    elsewhere = side.site.lab.hosts.get("elsewhere") or side.site.lab.host("elsewhere")
    side.host.ip(f"link set {side.nic.name} netns {elsewhere.netns}")
    elsewhere.ip(f"link set {side.nic.name} netns {side.host.netns}")
    side.address(side.nic.name)


def under_bridge(side: Side) -> None:
    side.host.ip(
        f"link add br0 address {side.nic.mac} type bridge",
        f"link set {side.nic.name} master br0",
        f"addr flush dev {side.nic.name}",
    )
    side.address("br0")


def enslaved(side: Side) -> None:
    under_bridge(side)
    side.goes_on()
    side.host.ip("link del br0")
    side.address(side.nic.name)


def renamed(side: Side) -> None:
    for old, new in ((side.nic.name, "uplink0"), ("uplink0", side.nic.name)):
        side.host.ip(f"link set {old} down", f"link set {old} name {new}")
        side.address(new)
        side.goes_on()


def without_addresses(side: Side) -> None:
    side.host.ip(f"addr flush dev {side.nic.name}")
    gap()
    side.address(side.nic.name)


def without_routes(side: Side) -> None:
    nic, ip = side.nic.name, side.host.ip
    ip(f"route flush dev {nic}")
    side.host.run(["ip", "-6", "route", "flush", "dev", nic])
    gap()
    ip(
        f"route add {side.peer.ip4} dev {nic} src {side.nic.ip4}",
        f"route add {side.peer.ip6} dev {nic} src {side.nic.ip6}",
        f"route add fe80::/64 dev {nic}",
    )
    side.goes_on()
    side.address(nic)


def with_another_mac(side: Side) -> None:
    for mac in (OTHER_MAC, side.nic.mac):
        side.host.ip(f"link set {side.nic.name} address {mac}")
        side.goes_on()


CHANGES: tuple[Callable[[Side], None], ...] = (
    remade,
    moved,
    moved_at_once,
    enslaved,
    renamed,
    without_addresses,
    without_routes,
    with_another_mac,
)


def outcomes(
    site: Site, routed: Routed, host: Host, change: Callable[[Side], None]
) -> dict[str, str]:
    """How each flow ends that is open while that happens to the host."""
    loads = [
        Load(site, port, address)
        for port in (KERNEL, STACK)
        for address in (site.server.ip4, site.server.ip6)
    ]
    wait_for(lambda: all(one.came() for one in loads), WITHIN_S, "every flow to carry bytes")
    assert {f["stack"] for f in routed.flows()} == {"kernel", "wan"}
    change(Side(site, host, loads))
    return {one.name: one.end() for one in loads}


@pytest.mark.parametrize("end", ["client", "server"])
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_flows_go_on_where_the_kernels_do(wired: Site, io: str, end: str):
    """Of the client's host or of the server's."""
    client, server_ = wired.client, wired.server
    policy = by(io, "eth0").replace('to = "default"', f'to = "default"\nports = "{STACK}"')
    if end == "server":
        routed = wired.attach_server(policy)
        server(server_, wired.server_cgroup, SERVE, str(KERNEL), str(STACK))
    else:
        server(server_, wired.server_cgroup, SERVE, str(KERNEL), str(STACK))
        routed = wired.attach_client(policy)
    before = routed.stack("wan")
    host = client if end == "client" else server_
    # Keeps a process whose AF_XDP sockets are lost from making room for another one.
    quiet = program(client, wired.client_cgroup, HOLD, server_.ip4, str(STACK))
    assert quiet.stdout is not None and quiet.stdout.readline() == "open\n"
    found = {change.__name__: outcomes(wired, routed, host, change) for change in CHANGES}
    whole = dict.fromkeys(
        (f"{stack}, {family}" for stack in ("kernel", "wan") for family in ("IPv4", "IPv6")),
        "whole",
    )
    differing = {name: ends for name, ends in found.items() if ends != whole}
    assert not differing
    after = routed.stack("wan")
    assert (after["pid"], after["restarts"]) == (before["pid"], 0)
    assert quiet.communicate("end\n", timeout=WITHIN_S)[0] == "still here\n"


def test_af_xdp_comes_back_when_no_flow_is_left(wired: Site):
    """Its sockets went with the device: the open flow goes on by tap, and `stacks` says why."""
    client, nic = wired.client, wired.client.nic.name
    serving = echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("af_xdp", nic))
    before = routed.stack("wan")
    assert [p["port"] for p in before["ports"]] == ["af_xdp"]
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    client.ip(f"link del {nic}")
    wired.lab.remake(wired.link)
    assert talker.says("hello") == "hello"

    def row() -> tuple[str, str]:
        (port,) = routed.stack("wan")["ports"]
        return port["port"], port["why"].partition(":")[0]

    wait_for(lambda: row() == ("tap", "no AF_XDP sockets"), WITHIN_S, "why it goes by tap")
    assert routed.stack("wan")["pid"] == before["pid"]
    serving.kill()  # the peer's end first: nothing has to linger here
    talker.process.kill()

    def is_back() -> bool:
        stack = routed.stack("wan")
        renewed = stack["state"] == "up" and stack["pid"] != before["pid"]
        return renewed and [p["port"] for p in stack["ports"]] == ["af_xdp"]

    wait_for(is_back, WITHIN_S, "another process with AF_XDP")
    echo(wired.server, wired.server_cgroup)
    again = Talker(client, wired.client_cgroup, wired.server.ip4)
    assert again.says("hello") == "hello"
    assert again.flow(routed)["stack"] == "wan"


SEVERAL = (
    by("tap", "eth0").replace("[stacks.lan]", "processes = 2\n[stacks.lan]")
    + f"""
[[tables.shop.routes]]
to = "default"
ports = "{OTHER_PORT}"
stack = "far"

[stacks.far]
kind = "user"
io = "tap"
devices = ["eth0"]
"""
)


def test_every_stack_and_every_process_of_the_nic_follows(wired: Site):
    client, nic = wired.client, wired.client.nic.name
    for port in (PORT, OTHER_PORT):
        echo(wired.server, wired.server_cgroup, port)
    routed = wired.attach_client(SEVERAL)
    talkers = [
        Talker(client, wired.client_cgroup, address, port)
        for port in (PORT, PORT, PORT, PORT, OTHER_PORT)
        for address in (wired.server.ip4, wired.server.ip6)
    ]
    assert {one.flow(routed)["stack"] for one in talkers} == {"wan", "far"}
    used = [p["connections"] for p in routed.stack("wan")["processes"]]
    assert all(used), "one process had them all"
    client.ip(f"link del {nic}")
    wired.lab.remake(wired.link)
    assert {one.says("hello") for one in talkers} == {"hello"}
    rows = [p for name in ("wan", "far") for p in routed.stack(name)["processes"]]
    assert [p["restarts"] for p in rows] == [0, 0, 0]


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_a_director_that_comes_back_tells_what_has_changed(wired: Site, io: str):
    """The NIC was made anew while nobody was there to see it."""
    client, nic = wired.client, wired.client.nic.name
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by(io, nic))
    pid = routed.stack("wan")["pid"]
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    routed.kill_director()
    client.ip(f"link del {nic}")
    wired.lab.remake(wired.link)
    routed.restart()
    assert talker.says("hello") == "hello"
    assert routed.stack("wan")["pid"] == pid


@pytest.mark.parametrize("named", [True, False], ids=["named", "by the default route"])
@pytest.mark.parametrize("seen", [True, False], ids=["let go", "let go unseen"])
def test_a_director_that_comes_back_serves_the_bridge_on(wired: Site, named: bool, seen: bool):
    """And the NIC again, once that is let go: under its eyes, or while no director was there."""
    client, nic = wired.client, wired.client.nic
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", *[nic.name] * named))
    pid = routed.stack("wan")["pid"]
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    side = Side(wired, client, [])
    under_bridge(side)
    wait_for(lambda: routed.stack("wan")["nics"] == ["br0"], WITHIN_S, "the bridge to be served")
    routed.kill_director()
    if seen:
        routed.restart()
        assert talker.says("hello") == "hello"
        assert routed.stack("wan")["nics"] == ["br0"]
    client.ip("link del br0")
    side.address(nic.name)
    if not seen:
        routed.restart()
    assert talker.says("again") == "again"
    stack = routed.stack("wan")
    assert (stack["pid"], stack["nics"]) == (pid, [nic.name])


def test_a_process_that_dies_while_the_nic_is_gone_waits_for_it(wired: Site):
    client, nic = wired.client, wired.client.nic.name
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", nic))
    pid = routed.stack("wan")["pid"]
    client.ip(f"link del {nic}")
    os.kill(pid, signal.SIGKILL)
    why = f"device {nic} is gone; it starts when the device is back"
    wait_for(lambda: why in routed.log.read_text(), WITHIN_S, "the stack to wait")
    assert routed.stack("wan")["state"] == "down"
    wired.lab.remake(wired.link)
    wait_for(lambda: routed.stack("wan")["state"] == "up", WITHIN_S, "the stack to be up")
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    assert talker.flow(routed)["stack"] == "wan"

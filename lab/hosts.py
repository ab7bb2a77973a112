# SPDX-License-Identifier: Apache-2.0
"""Hosts (network namespaces) and the Lab that owns them.

A Lab's things can be told from everything else: namespaces are called dmmlab-LAB-HOST, its state is
/run/dmm-wanlab/LAB, and every process started in it has DMM_LAB=LAB in its environment. Closing the
Lab kills those processes by pid, then removes namespaces (and the links in them) and state. The
owner's pid and start time are in the state, so that `tools/wanlab clean` can tell a crashed Lab
from a live one.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import ConflictError, DmmError, PrivilegeError, UsageError
from lab.build import wanem_path
from lab.leftengines import remove_noted
from lab.links import LinkParams, WanLink, Wire, wan_assignments
from lab.netns import NETNS_DIR, call_in, ip_batch, offloads_off, pids, pids_in, start_time
from lab.waiting import patient, wait_pid_gone, wait_readable

T = TypeVar("T")

STATE_DIR = Path("/run/dmm-wanlab")
NETNS_PREFIX = "dmmlab-"
LAB_VARIABLE = "DMM_LAB"
READY_TIMEOUT_S = 10.0
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

_counter = itertools.count()


@dataclass(frozen=True)
class Nic:
    """A host's end of a link. Addresses are text without prefix length; prefixes are
    /24 and /64.
    """

    host: Host
    name: str
    mac: str
    ip4: str
    ip6: str


class Host:
    """A network namespace with lo up, IPv6 without duplicate address detection, and the
    processes started in it.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{NETNS_PREFIX}{lab.name}-{name}"
        self.netns_path = NETNS_DIR / self.netns
        self.nics: list[Nic] = []
        self.processes: list[subprocess.Popen[Any]] = []

    @property
    def nic(self) -> Nic:
        """The first interface."""
        if not self.nics:
            raise UsageError(f"use the interface of host {self.name}", why="it has no link yet")
        return self.nics[0]

    @property
    def ip4(self) -> str:
        """IPv4 address of the first interface."""
        return self.nic.ip4

    @property
    def ip6(self) -> str:
        """IPv6 address of the first interface."""
        return self.nic.ip6

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """function(*args) in this host's network namespace, on a thread of its own; its result
        or its exception.

        Sockets that it opens belong to this host and can be used from anywhere afterwards.
        """
        return call_in(self.netns_path, function, *args)

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """A process in this network namespace (mounts, cgroup and pid namespace are the caller's).

        It leads a process group of its own, and is killed with that group when the Lab closes.
        """
        env = dict(options.pop("env", None) or os.environ) | {LAB_VARIABLE: self.lab.name}
        words = [str(word) for word in argv]
        options.setdefault("start_new_session", True)
        process = self.call(lambda: subprocess.Popen(words, env=env, **options))
        self.processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 60.0,
        input: str | bytes | None = None,  # noqa: A002  (subprocess's own name for it)
        text: bool = True,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a command to its end, output captured; CalledProcessError with its stderr if
        check and it failed.
        """
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("stdin", subprocess.PIPE if input is not None else subprocess.DEVNULL)
        process = self.popen(argv, text=text, **options)
        try:
            out, err = process.communicate(input, patient(timeout))
        finally:
            kill_group(process)
            self.processes.remove(process)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        if check and process.returncode:
            failure = subprocess.CalledProcessError(process.returncode, process.args, out, err)
            failure.add_note(f"on host {self.name}: {err!s}")
            raise failure
        return done

    def ip(self, *lines: str) -> None:
        """ip(8) commands in this host, one a line: host.ip("route add 203.0.113.0/24 dev eth0")."""
        ip_batch(lines, self.netns)

    def sysctl(self, name: str, value: str | int) -> None:
        """Sets a sysctl of this network namespace: host.sysctl("net.ipv4.ip_forward", 1)."""
        self.call(write_sysctls, {name: str(value)})

    def tcp_buffers(self, most_bytes: int, receive_bytes: int = 131072) -> None:
        """Lets kernel TCP's automatic buffers grow to most_bytes each way, that for receiving
        from receive_bytes on.

        A long fat pipe needs it.
        """
        self.sysctl("net.ipv4.tcp_rmem", f"4096 {receive_bytes} {most_bytes}")
        self.sysctl("net.ipv4.tcp_wmem", f"4096 131072 {most_bytes}")

    def pids(self) -> list[int]:
        """Every process whose network namespace this is."""
        return pids_in(self.netns_path)


def write_sysctls(values: dict[str, str]) -> None:
    """Sets sysctls of the caller's network namespace."""
    for name, value in values.items():
        path = Path("/proc/sys") / name.replace(".", "/")
        try:
            path.write_text(value)
        except OSError as error:
            raise DmmError(
                f"set {name} to {value}", why=error.strerror or "the kernel refused"
            ) from error


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kills what is left of a process and of the group it leads, and reaps it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Only while its leader is unreaped or the group has members can the number not
        # be somebody else's.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def _prepare_host(is_wan: bool) -> None:
    """In a new namespace: lo up, no duplicate address detection, no router solicitation, no
    memory between flows.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", IFF_UP))
    values = {}
    for scope in ("all", "default"):
        values[f"net.ipv6.conf.{scope}.disable_ipv6"] = str(int(is_wan))
        values[f"net.ipv6.conf.{scope}.accept_dad"] = "0"
        values[f"net.ipv6.conf.{scope}.accept_ra"] = "0"
        values[f"net.ipv6.conf.{scope}.router_solicitations"] = "0"
    if not is_wan:
        values["net.ipv4.tcp_no_metrics_save"] = "1"
    write_sysctls(values)


class Lab(Closing):
    """Hosts and links that come and go together; a context manager.

    name: for people; the Lab's real name, self.name, adds the pid and a number unless
    unique is false.
    """

    def __init__(self, name: str = "lab", *, unique: bool = True) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.]{0,40}", name):
            raise UsageError(
                f"name a laboratory {name!r}",
                why="a name is letters, digits, _ and ., up to 41 of them",
            )
        if os.geteuid():
            raise PrivilegeError("make network namespaces", why="only root may", hint="use sudo")
        self.name = f"{name}.{os.getpid()}.{next(_counter)}" if unique else name
        self.state = STATE_DIR / self.name
        self.hosts: dict[str, Host] = {}
        self.links: list[WanLink | Wire] = []
        self._wan: Host | None = None
        self._closed = False
        self._claim()

    def _claim(self) -> None:
        """Makes the state directory, complete from its first moment: clean() in another process
        may look at any.
        """
        STATE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = STATE_DIR / f".{self.name}.{os.getpid()}"
        draft.mkdir(mode=0o700)
        owner = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
        (draft / "lab.json").write_text(json.dumps(owner))
        try:
            draft.rename(self.state)
        except OSError:
            shutil.rmtree(draft)
            raise ConflictError(
                f"make the laboratory {self.name}",
                why="one with that name is there",
                hint=f"end it with `wanlab down --name {self.name}`",
            ) from None

    def host(self, name: str, *, tcp_buffers: int | None = None) -> Host:
        """A new host; tcp_buffers as in Host.tcp_buffers."""
        if not re.fullmatch(r"[a-zA-Z0-9_]{1,20}", name) or name in {*self.hosts, "wan"}:
            raise UsageError(
                f"name a host {name!r}",
                why="names are unique, of letters, digits and _, up to 20, and wan is taken",
            )
        host = self.hosts[name] = self._make_host(name, is_wan=False)
        if tcp_buffers:
            host.tcp_buffers(tcp_buffers)
        return host

    def _make_host(self, name: str, *, is_wan: bool) -> Host:
        host = Host(self, name)
        ip_batch([f"netns add {host.netns}"])
        host.call(_prepare_host, is_wan)
        return host

    def wire(
        self,
        a: Host,
        b: Host,
        *,
        mtu: int = 1500,
        queues: int = 1,
        neighbours: str = "dynamic",
        offloads: bool = False,
    ) -> Wire:
        """Joins two hosts by a veth pair, with addresses and, if they have none yet, default
        routes. offloads: as the kernel makes it; else every frame is whole.
        """
        near, far = self._new_nics(a, b)
        self._add_veth(near, (b, far.name, far.mac), mtu, queues)
        self._configure(near, far, neighbours, offloads=offloads)
        link = Wire(near, far)
        self.links.append(link)
        return link

    def remake(self, link: Wire, *, mtu: int = 1500, queues: int = 1) -> None:
        """A plain wire that has been deleted is made anew, with the names and addresses
        that it had.
        """
        # Under its name a stack may be waiting for it, whose XDP program lets
        # nobody change offloads.
        unnamed = replace(link.a, name="remade0")
        self._add_veth(unnamed, (link.b.host, link.b.name, link.b.mac), mtu, queues)
        for nic in (unnamed, link.b):
            nic.host.call(offloads_off, nic.name)
        link.a.host.ip(f"link set {unnamed.name} name {link.a.name}")
        self._set_addresses(link.a, link.b, "dynamic")

    def wan(
        self,
        a: Host,
        b: Host,
        *,
        ab: dict[str, Any] | None = None,
        ba: dict[str, Any] | None = None,
        mtu: int = 1500,
        queues: int = 1,
        neighbours: str = "dynamic",
        tick_us: int | None = None,
        **both: Any,
    ) -> WanLink:
        """Joins two hosts by an emulated wide-area link.

        both: rate, delay (one way), queue, loss, reorder, reorder_delay, duplicate, corrupt,
        overhead, seed, for each direction, spelt as in lab.units; ab and ba: the same for one
        direction, winning over both. The queue is one bandwidth-delay product unless given.
        neighbours="static" gives both ends permanent neighbour entries.
        """
        params = (
            LinkParams().with_changes(both | (ab or {})),
            LinkParams().with_changes(both | (ba or {})),
        )
        wan = self._wan_host()
        near, far = self._new_nics(a, b)
        number = len(self.links)
        ports = (f"l{number}a", f"l{number}b")
        for nic, port in zip((near, far), ports, strict=True):
            self._add_veth(nic, (wan, port, None), mtu, queues)
        wan.ip(*(f"link set {port} arp off multicast off up" for port in ports))
        wan.call(offloads_off, *ports)
        self._configure(near, far, neighbours)
        control = self.state / f"link{number}.sock"
        link = WanLink(
            near, far, control, self._start_wanem(wan, control, ports, params, tick_us), params
        )
        self.links.append(link)
        return link

    def close(self) -> None:
        """Ends every process of the Lab and removes all that it made; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        for host in [*self.hosts.values(), *([self._wan] if self._wan else [])]:
            for process in host.processes:
                kill_group(process)
        remove_lab(self.name)

    def _wan_host(self) -> Host:
        if self._wan is None:
            self._wan = self._make_host("wan", is_wan=True)
        return self._wan

    def _new_nics(self, a: Host, b: Host) -> tuple[Nic, Nic]:
        number = len(self.links)
        if a is b or number > 253:
            raise UsageError(
                "join two hosts", why="a link has two ends, and a laboratory up to 254 links"
            )
        nics = tuple(
            Nic(
                host,
                f"eth{len(host.nics)}",
                f"02:dd:00:00:{number:02x}:{end:02x}",
                # RFC 2544 and RFC 3849: for benchmarks and documentation, so that no real
                # network is hidden.
                f"198.18.{number}.{end}",
                str(ipaddress.IPv6Address(f"2001:db8:{number:x}::{end}")),
            )
            for end, host in ((1, a), (2, b))
        )
        a.nics.append(nics[0])
        b.nics.append(nics[1])
        return nics[0], nics[1]

    def _add_veth(
        self, nic: Nic, peer: tuple[Host, str, str | None], mtu: int, queues: int
    ) -> None:
        peer_host, peer_name, peer_mac = peer
        # A host that binds AF_XDP needs at least as many receive queues as its peer
        # has transmit queues.
        shape = f"mtu {mtu} numtxqueues {queues} numrxqueues {queues}"
        ip_batch(
            [
                f"link add {nic.name} address {nic.mac} {shape} netns {nic.host.netns} type veth "
                f"peer name {peer_name} {f'address {peer_mac}' if peer_mac else ''} {shape} netns {peer_host.netns}"
            ]
        )

    def _configure(self, near: Nic, far: Nic, neighbours: str, *, offloads: bool = False) -> None:
        if not offloads:
            for nic in (near, far):
                nic.host.call(offloads_off, nic.name)
        self._set_addresses(near, far, neighbours)

    def _set_addresses(self, near: Nic, far: Nic, neighbours: str) -> None:
        if neighbours not in {"dynamic", "static"}:
            raise UsageError(f"use {neighbours!r} neighbours", why="they are dynamic or static")
        for nic, peer in ((near, far), (far, near)):
            host = nic.host
            lines = [
                f"link set {nic.name} up",
                f"addr add {nic.ip4}/24 dev {nic.name}",
                f"addr add {nic.ip6}/64 dev {nic.name} nodad",
            ]
            if host.nics[0] is nic:
                lines += [
                    f"route add default via {peer.ip4} dev {nic.name}",
                    f"route add ::/0 via {peer.ip6} dev {nic.name}",
                ]
            if neighbours == "static":
                lines += [
                    f"neigh replace {address} lladdr {peer.mac} nud permanent dev {nic.name}"
                    for address in (peer.ip4, peer.ip6)
                ]
            host.ip(*lines)

    def _start_wanem(
        self,
        wan: Host,
        control: Path,
        ports: tuple[str, str],
        params: tuple[LinkParams, LinkParams],
        tick_us: int | None,
    ) -> subprocess.Popen[Any]:
        ab, ba = wan_assignments(params)
        argv: list[str | Path] = [wanem_path(), "--control", control, "--watch-stdin"]
        argv += ["--tick-us", str(tick_us)] if tick_us else []
        argv += ports
        argv += [f"ab.{word}" for word in ab] + [f"ba.{word}" for word in ba]
        process = wan.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout and process.stderr
        ready = (
            wait_readable(process.stdout.fileno(), READY_TIMEOUT_S) and process.stdout.readline()
        )
        if ready != b"ready\n":
            process.kill()
            why = process.stderr.read().decode().strip()
            raise DmmError("start the link emulator", why=why or "it said nothing for 10 s")
        return process


def _pids_of(lab: str, namespaces: list[str]) -> set[int]:
    """Processes in the Lab's namespaces, or with its mark in their environment,
    this one excepted.
    """
    mark = f"{LAB_VARIABLE}={lab}".encode()
    found = {pid for name in namespaces for pid in pids_in(NETNS_DIR / name)}
    for pid in pids():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found - {os.getpid()}


def remove_lab(lab: str) -> None:
    """Kills every process of a Lab, then removes its container engines, namespaces and state."""
    namespaces = (
        [p.name for p in NETNS_DIR.glob(f"{NETNS_PREFIX}{lab}-*")] if NETNS_DIR.exists() else []
    )
    for pid in _pids_of(lab, namespaces):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            wait_pid_gone(pid, 5)
    remove_noted(STATE_DIR / lab)
    if namespaces:
        ip_batch([f"netns del {name}" for name in namespaces])
    shutil.rmtree(STATE_DIR / lab, ignore_errors=True)


def owner_of(lab: str) -> int | None:
    """Pid of the live process that made the Lab, or None when that has ended."""
    try:
        state = json.loads((STATE_DIR / lab / "lab.json").read_text())
    except (OSError, ValueError):
        return None
    pid = int(state["pid"])
    return pid if start_time(pid) == state["start_time"] else None


def labs() -> list[str]:
    """Every Lab of which there is a trace, live or not."""
    found = {p.name for p in STATE_DIR.glob("[!.]*")} if STATE_DIR.exists() else set()
    if NETNS_DIR.exists():
        for path in NETNS_DIR.glob(f"{NETNS_PREFIX}*"):
            found.add(path.name.removeprefix(NETNS_PREFIX).rpartition("-")[0])
    return sorted(found)


def clean() -> list[str]:
    """Removes every Lab whose owner has ended; their names."""
    dead = [lab for lab in labs() if owner_of(lab) is None]
    for lab in dead:
        remove_lab(lab)
    return dead

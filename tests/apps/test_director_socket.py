# SPDX-License-Identifier: Apache-2.0
"""The Resource Director's socket against callers who may not ask, who send too much, or who hang
up, and a listing of a hundred thousand flows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from dmm_ebpf import abi, loader
from dmm_ebpf.rd.api import client, wire
from dmm_ebpf.rd.api.clients import MAX_CLIENTS
from dmm_ebpf.rd.director.rundir import ROOT
from dmm_ebpf.rd.policy.parse import MAX_POLICY_BYTES
from lab import Cgroup, Lab, wait_for
from lab.commandline import CLI
from lab.routed import Routed

MANY = 100_000
MEMORY_KIB = 40 << 10
ESTABLISHED = 1  # TCP_ESTABLISHED


@pytest.fixture
def director(lab: Lab, cgroup: Cgroup, tmp_path: Path) -> Iterator[Routed]:
    with Routed(lab.host("one"), cgroup, None, tmp_path) as routed:
        yield routed


def _connect(routed: Routed) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(ROOT / routed.instance / "rd.sock"))
    return sock


def _frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def _memory_kib(routed: Routed, what: str = "VmRSS") -> int:
    return _memory_of(routed.process.pid, what)


def _memory_of(pid: int, what: str) -> int:
    """In KiB; 0 when the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(what)), 0)


def _answer(sock: socket.socket) -> wire.Message | None:
    return wire.Connection(sock).receive()


def test_who_may_not_ask_is_refused_before_anything_is_read(director: Routed) -> None:
    path = ROOT / director.instance
    modes = {p: p.stat().st_mode & 0o777 for p in (path, path / "rd.sock")}
    script = """
import os, socket, struct, sys
sock = socket.socket(socket.AF_UNIX)
os.setresuid(1000, 1000, 1000)
sock.settimeout(20)
sock.connect(sys.argv[1])
print(sock.recv(4096)[4:].hex())
"""
    for p in modes:
        p.chmod(0o777)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, path / "rd.sock"],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for p, mode in modes.items():
            p.chmod(mode)
    said = msgpack.unpackb(bytes.fromhex(done.stdout))
    assert said["id"] == wire.CONNECTION
    assert not said["ok"]
    assert "uid 1000" in said["error"]["why"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            b"\xdd"
            + struct.pack(">I", wire.MAX_REQUEST_BYTES - 5)
            + b"\x80" * (wire.MAX_REQUEST_BYTES - 5),
            id="maps",
        ),
        pytest.param((b"\xdc\x00\x20" * 900 + b"\xc0" * 32) * 1000, id="nested"),
        pytest.param(b"\x82\xa2id\x01\xa6method" + (b"\x91" * 400 + b"\xc0"), id="deep"),
        pytest.param(b"\xc6" + struct.pack(">I", 4 << 20) + bytes(4 << 20), id="bytes"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of 4 billion"),
        pytest.param(msgpack.packb({"id": True, "method": "status"}), id="id"),
        pytest.param(msgpack.packb({"id": 1, "method": 7, "params": {}}), id="method"),
        pytest.param(msgpack.packb({"id": 1, "method": "status", "params": []}), id="params"),
    ],
)
def test_what_is_no_request_costs_the_director_nothing(director: Routed, body: bytes) -> None:
    director.ask("status")
    before = _memory_kib(director, "VmHWM")
    with _connect(director) as sock:
        sock.sendall(_frame(body))
        assert _answer(sock) is None
    assert director.ask("status")[0]["rd"] == "up"
    assert _memory_kib(director, "VmHWM") - before < MEMORY_KIB


def test_a_length_beyond_any_request_ends_the_connection(director: Routed) -> None:
    with _connect(director) as sock:
        sock.sendall(struct.pack(">I", wire.MAX_REQUEST_BYTES + 1))
        assert _answer(sock) is None


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        ("policy_apply", {"text": 5}, "no text"),
        ("policy_apply", {"text": "", "path": 5}, "path"),
        ("route_get", {}, "addr"),
        ("route_get", {"addr": "192.0.2.1", "port": "http"}, "port"),
        ("route_get", {"addr": "192.0.2.1", "port": 65536}, "port"),
        ("route_get", {"addr": "192.0.2.1", "uid": "root"}, "uid"),
        ("route_get", {"addr": 5}, "addr"),
        ("nothing\n" * 100, {}, "knows no such request"),
    ],
)
def test_a_request_of_another_shape_is_refused_with_a_sentence(
    director: Routed, method: str, params: wire.Message, why: str
) -> None:
    with _connect(director) as sock:
        sock.sendall(wire.request(1, method, params))
        answer = _answer(sock)
    assert answer is not None
    assert not answer["ok"]
    assert why in answer["error"]["why"]
    assert "\n" not in answer["error"]["what"]
    assert "Traceback" not in director.log.read_text()


def test_the_largest_policy_fits_in_a_request() -> None:
    assert len(
        wire.request(1, "policy_apply", {"text": "x" * MAX_POLICY_BYTES, "path": "/" + "x" * 4095})
    ) < (wire.MAX_REQUEST_BYTES)


def _descriptors(routed: Routed) -> int:
    return len(os.listdir(f"/proc/{routed.process.pid}/fd"))  # noqa: PTH208


def test_followers_that_hang_up_are_gone(director: Routed) -> None:
    followers = [_connect(director) for _ in range(100)]
    for sock in followers:
        # The answer to a request says that its sender has been taken.
        sock.sendall(wire.request(1, "status", {}))
        assert _answer(sock)
        sock.sendall(wire.request(2, "follow", {}))
    followed = _descriptors(director)
    for sock in followers:
        sock.close()
    # A few of its own it may open meanwhile.
    wait_for(
        lambda: _descriptors(director) <= followed - 90,
        10,
        "the director to notice that they are gone",
    )


def test_clients_beyond_the_limit_are_told_so(director: Routed) -> None:
    followers = [_connect(director) for _ in range(MAX_CLIENTS)]
    try:
        for sock in followers:
            sock.sendall(wire.request(1, "follow", {}))
        director.cli(
            "status", "--instance", director.instance, check=False
        )  # they have been taken when it ends
        refused = director.cli("status", "--instance", director.instance, check=False)
        assert refused.returncode
        assert f"{MAX_CLIENTS} are connected" in refused.stderr
    finally:
        for sock in followers:
            sock.close()
    wait_for(
        lambda: not director.cli("status", "--instance", director.instance, check=False).returncode,
        10,
        "the director to answer again",
    )


def test_clients_that_ask_nothing_make_room(director: Routed) -> None:
    clients = [_connect(director) for _ in range(MAX_CLIENTS)]
    try:
        for sock in clients:
            sock.sendall(wire.request(1, "policy_show", {}))
        for sock in clients:
            assert _answer(sock)
        assert director.ask("status")[0]["rd"] == "up"
        told = _answer(clients[0])
        assert told and told["id"] == wire.CONNECTION
        assert told["error"]["why"] == "it has asked nothing, and others need its place"
        assert _answer(clients[0]) is None
        clients[-1].sendall(wire.request(2, "policy_show", {}))
        assert _answer(clients[-1])
    finally:
        for sock in clients:
            sock.close()


def test_who_has_asked_before_a_crowd_comes_is_answered(director: Routed) -> None:
    """All of them are there before the director looks: the first has sent its request, and would
    have to go first.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    director.process.send_signal(signal.SIGSTOP)
    clients = []
    try:
        for number in range(CROWD_CLIENTS):
            clients.append(_connect(director))
            if number in ASKING:
                clients[-1].sendall(wire.request(1, "policy_show", {}))
        director.process.send_signal(signal.SIGCONT)
        for number in ASKING:
            answer = _answer(clients[number])
            assert answer and answer["id"] == 1 and answer["ok"], (number, answer)
    finally:
        director.process.send_signal(signal.SIGCONT)
        for sock in clients:
            sock.close()


def test_a_client_that_made_room_asks_again_by_itself(director: Routed) -> None:
    others: list[socket.socket] = []
    with client.Client(director.instance) as rd:
        assert rd.status().pid == director.process.pid
        try:
            for _ in range(MAX_CLIENTS):  # each has asked, so the last takes the place of rd
                others.append(_connect(director))
                others[-1].sendall(wire.request(1, "policy_show", {}))
                assert _answer(others[-1])
            assert rd.status().pid == director.process.pid
            told = _answer(others[0])
            assert told and told["error"]["kind"] == "MadeRoomError"
        finally:
            for sock in others:
                sock.close()


CROWD = {
    "idle": b"",
    "half a length": b"\0\0",
    "half a message": struct.pack(">I", 100) + b"\x83\xa2id",
    "half a policy": struct.pack(">I", wire.MAX_REQUEST_BYTES) + b"\x83" * (256 << 10),
    "4 GB": b"\xff\xff\xff\xff",
    "garbage": random.Random(1).randbytes(4096),
    "nested": _frame(b"\x82\xa2id\x01\xa6method" + b"\x91" * 4000 + b"\xc0"),
    "no request": _frame(msgpack.packb({"id": 1, "method": "status", "params": []})),
}
CROWD_CLIENTS = 1000
ASKING = (0, 1, MAX_CLIENTS - 1, MAX_CLIENTS, CROWD_CLIENTS // 2, CROWD_CLIENTS - 1)


def _crowd(path: Path, ready: Path) -> None:
    """A process of its own: as many clients as CROWD_CLIENTS, of all kinds in turn, none of which
    hangs up.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    clients = []
    for number, sent in zip(range(CROWD_CLIENTS), itertools.cycle(CROWD.values())):
        sock = socket.socket(socket.AF_UNIX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.connect(str(path))
        with contextlib.suppress(OSError):  # it may hang up meanwhile
            sock.setblocking(False)
            sock.send(sent)
        clients.append(sock)
        if number == CROWD_CLIENTS - 1:
            ready.touch()
    signal.pause()


def test_a_crowd_changes_nothing_for_others(director: Routed, tmp_path: Path) -> None:
    """1,000 clients that are idle, send halves, garbage, lengths of 4 GB and deep nesting: who
    follows goes on, who has asked asks again, and who comes new is answered, also with a large
    policy. Another one is connected, and asks only when all of them are there.
    """
    follower, known, slow = _connect(director), _connect(director), _connect(director)
    follower.sendall(wire.request(1, "follow", {}))
    known.sendall(wire.request(1, "policy_show", {}))
    assert _answer(known)
    before, open_before = _memory_kib(director, "VmHWM"), _descriptors(director)
    ready = tmp_path / "ready"
    crowd = multiprocessing.get_context("fork").Process(
        target=_crowd, args=(ROOT / director.instance / "rd.sock", ready)
    )
    crowd.start()
    try:
        asked = 1
        while not ready.exists() or asked < 4:
            asked += 1
            assert crowd.is_alive()
            known.sendall(wire.request(asked, "policy_show", {}))
            answer = _answer(known)
            assert answer and answer["id"] == asked and answer["ok"]
            assert director.ask("status")[0]["rd"] == "up"
        slow.sendall(wire.request(1, "policy_show", {}))
        answer = _answer(slow)
        assert answer and answer["ok"]
        assert _descriptors(director) < open_before + MAX_CLIENTS + 10
        # Each half is still held, so a long request has to find its room, too.
        comment = f"{'#' * 1023}\n" * (wire.MAX_REQUEST_BYTES // 2048)
        director.apply(f"{comment}[stacks.lan]\nkind = 'kernel'\n")
        told = wire.Connection(follower).receive()
        assert told and told["event"]["type"] == "policy"
        assert _memory_kib(director, "VmHWM") - before < 150 << 10
    finally:
        crowd.kill()
        crowd.join()
        for sock in (follower, known, slow):
            sock.close()
    # A few of its own it may open meanwhile.
    gone = "the director to notice that they are gone"
    wait_for(lambda: _descriptors(director) < open_before + 10, 20, gone)
    assert "Traceback" not in director.log.read_text()


def _record(number: int) -> tuple[bytes, bytes]:
    flow = abi.new("dmm_flow", cookie=(1 << 40) + number, state=ESTABLISHED)
    flow.pair.family, flow.pair.proto = socket.AF_INET, socket.IPPROTO_TCP
    for address, last in ((flow.pair.laddr, 1), (flow.pair.raddr, 2)):
        address[0:16] = list(abi.addr16(f"10.{number >> 16}.{number >> 8 & 255}.{last}"))
    return struct.pack("=Q", flow.cookie), abi.pack(flow)


@pytest.mark.alone("a second is the clock's")
def test_a_hundred_thousand_flows_are_listed_in_pages(director: Routed, tmp_path: Path) -> None:
    """The records are made here: what is tried is the listing, and as many sockets would take
    longer to open.
    """
    table = loader.adopt(director.instance).maps["more_flows"]
    count = min(MANY, table.max_entries - 1000)
    records = [_record(number) for number in range(count)]
    keys, values = (b"".join(part) for part in zip(*records, strict=True))
    table.update_batch(keys, values, count)
    before = _memory_kib(director, "VmHWM")
    out = tmp_path / "flows.json"
    with out.open("wb") as file:
        listing = subprocess.Popen(
            [*CLI, "flows", "--instance", director.instance, "--json"], stdout=file
        )
        slowest, largest = 0.0, 0
        while listing.poll() is None:
            began = time.monotonic()
            with _connect(director) as sock:
                sock.sendall(wire.request(1, "policy_show", {}))
                assert _answer(sock)
            slowest = max(slowest, time.monotonic() - began)
            largest = max(largest, _memory_of(listing.pid, "VmHWM"))
    assert listing.returncode == 0
    rows = json.loads(out.read_bytes())
    assert len({row["cookie"] for row in rows}) == len(rows) == count
    assert slowest < 1.0
    assert largest < 150 << 10
    assert _memory_kib(director, "VmHWM") - before < 150 << 10

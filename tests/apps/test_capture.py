# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf capture`: both legs of a user stack, by either port, as tcpdump reads them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from sitefixtures import XDP, by

from dmm_ebpf import pcapng
from lab import curl_fetch, nginx
from lab.commandline import CLI
from lab.waiting import stop, wait_for

BYTES = 3_000_000
TWO = 'io = "tap"\nprocesses = 2\n'


@pytest.fixture
def fetched(wired, payload, tmp_path):
    """A function that fetches a file through the client's stack."""
    path, sha = payload(BYTES)
    url = nginx(wired.server, path.parent, tmp_path / "nginx").url(path.name)

    def fetch() -> None:
        got = curl_fetch(wired.client, url, cgroup=wired.client_cgroup)
        assert got.sha256 == sha, got.stderr

    return fetch


def started(routed, *words: str, **options) -> subprocess.Popen[bytes]:
    argv = [*CLI, "capture", "--instance", routed.instance, *words]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    wait_for(lambda: routed.ask_stack("wan")["capturing"], 10, "the capture to begin")
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, bytes]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, err.decode(), out


def tcpdump(file, *words: str) -> list[str]:
    argv = ["tcpdump", "-n", "-r", str(file), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_both_legs_of_a_transfer(wired, fetched, tmp_path, io):
    routed = wired.attach_client(by(io))
    file = tmp_path / "both.pcapng"
    process = started(routed, "wan", "-w", str(file), "--json")
    fetched()
    code, err, out = ended(process)
    assert code == 0, err
    assert json.loads(out)["frames"] == len(tcpdump(file))
    names = [body for kind, body in pcapng.blocks(file.read_bytes()) if kind == pcapng.INTERFACE]
    assert [b"inner leg" in body for body in names] == [False, True]
    # Each leg has its own SYN, and tells of the bytes of the file.
    assert len(tcpdump(file, "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn")) == 2
    lengths = [
        int(n)
        for line in tcpdump(file, "src port 80")
        for n in re.findall(r"length (\d+)", line)[:1]
    ]
    assert sum(lengths) >= 2 * BYTES


def test_one_leg_short_frames_and_a_number_of_them(wired, fetched, tmp_path):
    routed = wired.attach_client(by("tap"))
    file = tmp_path / "head.pcapng"
    process = started(routed, "--leg", "outer", "-s", "60", "-c", "20", "-w", str(file))
    fetched()
    assert process.wait(20) == 0
    assert len(tcpdump(file)) == 20
    packets = [
        body for kind, body in pcapng.blocks(file.read_bytes()) if kind == pcapng.ENHANCED_PACKET
    ]
    assert all(int.from_bytes(body[12:16], sys.byteorder) <= 60 for body in packets)
    fetched()


def test_through_a_pipe_that_is_closed(wired, fetched):
    routed = wired.attach_client(by("tap"))
    process = started(routed)
    assert process.stdout is not None
    fetched()
    assert os.read(process.stdout.fileno(), 4) == pcapng.section()[:4]
    process.stdout.close()
    fetched()
    assert process.wait(20) == 0


def test_a_reader_that_stands_still_loses_frames_and_holds_up_nothing(wired, fetched):
    routed = wired.attach_client(by("tap"))
    process = started(routed)
    stop(process.pid)
    try:
        for _ in range(4):
            fetched()
        wait_for(lambda: routed.ask_stack("wan")["capture_dropped"], 10, "frames to be dropped")
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: not routed.ask_stack("wan")["capturing"], 10, "the capture to end")
    fetched()


def test_every_process_of_a_stack_in_one_file(wired, fetched, tmp_path):
    routed = wired.attach_client(XDP.replace('io = "af_xdp"\n', TWO))
    file = tmp_path / "two.pcapng"
    process = started(routed, "-w", str(file))
    for _ in range(12):
        fetched()
    code, err, _ = ended(process)
    assert code == 0, err
    found = list(pcapng.blocks(file.read_bytes()))
    assert sum(kind == pcapng.INTERFACE for kind, _ in found) == 4
    interfaces = {
        int.from_bytes(b[:4], sys.byteorder) for kind, b in found if kind == pcapng.ENHANCED_PACKET
    }
    assert interfaces == {0, 1, 2, 3}


def refused(routed, *words: str) -> str:
    said = routed.cli("capture", "-i", routed.instance, *words, check=False)
    assert said.returncode and "Traceback" not in said.stderr, said.stderr
    return said.stderr


def test_a_second_one_and_what_is_not_there_are_refused(wired, tmp_path):
    routed = wired.attach_client(by("tap"))
    process = started(routed, "-w", str(tmp_path / "first.pcapng"))
    for words, why in (
        (["wan"], "somebody does already"),
        (["wann"], "has wan"),
    ):
        assert why in refused(routed, "-w", str(tmp_path / "f"), *words)
    code, err, _ = ended(process)
    assert code == 0, err
    assert "cannot write /nowhere/x: No such file" in refused(routed, "-w", "/nowhere/x")
    assert "cannot write /dev/full: No space left" in refused(routed, "-w", "/dev/full")
    assert "there is none" in refused(routed, "-i", "nobody", "-w", str(tmp_path / "f"))
    assert "is no text" not in refused(routed, "--json")


def test_a_process_that_dies_ends_it_with_a_sentence(wired, tmp_path):
    routed = wired.attach_client(by("tap"))
    process = started(routed, "-w", str(tmp_path / "f.pcapng"))
    os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "its process has ended" in err.decode()

# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf trace`: one line for each segment of a real connection, on both legs."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest
from sitefixtures import Site, by

from lab import curl_fetch, nginx
from lab.commandline import CLI
from lab.routed import Routed
from lab.waiting import wait_for

BYTES = 300_000


def started(routed: Routed, *words: str) -> subprocess.Popen[str]:
    argv = [*CLI, "trace", "-i", routed.instance, *words]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: routed.ask_stack("wan")["capturing"], 10, "the trace to begin")
    return process


def ended(process: subprocess.Popen[str]) -> list[str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


def opens(row: dict[str, Any]) -> bool:
    """A SYN of a client's, which may ask for ECN besides."""
    flags = row["flags"].split(",")
    return "SYN" in flags and "ACK" not in flags


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_each_segment_is_a_line(wired: Site, payload: Any, tmp_path: Any, io: str) -> None:
    path, sha = payload(BYTES)
    url = nginx(wired.server, path.parent, tmp_path / "nginx").url(path.name)
    routed = wired.attach_client(by(io))
    process = started(routed, "wan", "--json")
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha
    rows = [json.loads(line) for line in ended(process)]
    assert {(r["stack"], r["leg"], r["direction"]) for r in rows} == {
        ("wan", leg, direction) for leg in ("inner", "outer") for direction in ("in", "out")
    }
    times = [r["time_ns"] for r in rows]
    assert times == sorted(times)
    assert all(not r["why"] for r in rows)
    # Each leg opens with a SYN that has options, and carries the file whole, byte by byte.
    for leg, direction in (("inner", "in"), ("outer", "out")):
        opening = [r for r in rows if (r["leg"], r["direction"]) == (leg, direction) and opens(r)]
        assert len(opening) == 1
        assert opening[0]["dport"] == 80
        assert any(option.startswith("mss ") for option in opening[0]["options"])
    for leg, direction in (("outer", "in"), ("inner", "out")):
        mine = [r for r in rows if (r["leg"], r["direction"]) == (leg, direction)]
        (first,) = [r["seq"] for r in mine if "SYN" in r["flags"]]
        ends = [(r["seq"] + r["length_bytes"] - first) % 2**32 for r in mine if r["length_bytes"]]
        assert max(ends) > BYTES
        assert all(r["sport"] == 80 for r in mine)


def test_text_for_a_person_and_an_end_by_count(wired: Site, payload: Any, tmp_path: Any) -> None:
    path, sha = payload(BYTES)
    url = nginx(wired.server, path.parent, tmp_path / "nginx").url(path.name)
    routed = wired.attach_client(by("tap"))
    process = started(routed, "--leg", "outer", "-c", "2")
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    syn, answer = out.splitlines()
    assert " wan outer out " in syn and ":80 SYN" in syn and "[mss " in syn
    assert " wan outer in " in answer and " SYN,ACK" in answer and " ack " in answer


def test_what_is_not_there_and_a_second_one_are_refused(wired: Site) -> None:
    routed = wired.attach_client(by("tap"))
    process = started(routed)
    for words, why in ((["wan"], "somebody does already"), (["wann"], "has wan")):
        said = routed.cli("trace", "-i", routed.instance, *words, check=False)
        assert said.returncode and why in said.stderr
        assert "cannot trace stack wan" in said.stderr
    assert ended(process) == []
    said = routed.cli("trace", "-i", "nobody", check=False)
    assert said.returncode and "cannot trace instance nobody: there is none" in said.stderr

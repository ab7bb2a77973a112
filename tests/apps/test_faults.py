# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf faults`: real transfers arrive whole however their packets are treated on either leg,
by either port; what was done is counted exactly; and it goes with the process.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from sitefixtures import Site, by

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api import client
from lab import curl_fetch, nginx
from lab.routed import Routed
from lab.waiting import wait_for

BYTES = 2_000_000


@pytest.fixture
def fetch(wired: Site, payload: Any, tmp_path: Any) -> Callable[[], None]:
    """A function that fetches a file through the client's stack, and compares its hash."""
    path, sha = payload(BYTES)
    url = nginx(wired.server, path.parent, tmp_path / "nginx").url(path.name)

    def fetched() -> None:
        got = curl_fetch(wired.client, url, cgroup=wired.client_cgroup, timeout=90)
        assert got.sha256 == sha, got.stderr

    return fetched


def inject(routed: Routed, *words: str) -> list[dict[str, Any]]:
    said = routed.cli("faults", "wan", "-i", routed.instance, *words, "--json").stdout
    rows: list[dict[str, Any]] = json.loads(said)
    return rows


def row(routed: Routed, leg: str, direction: str) -> dict[str, Any]:
    (one,) = [
        found
        for found in routed.stack("wan")["faults"]
        if (found["leg"], found["direction"]) == (leg, direction)
    ]
    return one


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("leg", ["outer", "inner"])
@pytest.mark.parametrize(
    "words",
    [
        ("--drop", "1/40"),
        ("--corrupt", "1/30"),
        ("--duplicate", "1/20", "--reorder", "5%", "--seed", "7"),
        ("--delay", "2ms", "--drop", "0.5%", "--corrupt", "0.5%", "--seed", "3"),
    ],
    ids=["drop", "corrupt", "copies", "all"],
)
def test_a_payload_is_whole(
    wired: Site, fetch: Callable[[], None], io: str, leg: str, words: tuple[str, ...]
) -> None:
    routed = wired.attach_client(by(io))
    rows = inject(routed, "--leg", leg, *words)
    assert [(r["leg"], r["direction"]) for r in rows] == [(leg, "in"), (leg, "out")]
    fetch()
    for direction in ("in", "out"):
        found = row(routed, leg, direction)
        assert found["seen"] > 20
        assert found["no_room"] == 0
        for name, rule in found["rules"].items():
            if "every" in rule and name != "drop" and "drop" not in found["rules"]:
                assert found["done"][name] == found["seen"] // rule["every"]
    inject(routed, "--leg", leg, "--off")
    assert routed.stack("wan")["faults"] == []
    fetch()


def test_counts_are_exact(wired: Site, fetch: Callable[[], None]) -> None:
    """What the injector says is what the core's and the port's own counters say."""
    routed = wired.attach_client(by("tap"))
    before = routed.ask_stack("wan")
    inject(routed, "--leg", "outer", "--direction", "in", "--drop", "5", "--seed", "1")
    fetch()

    def both():
        """A packet between the two questions is in one answer."""
        after, found = routed.ask_stack("wan"), row(routed, "outer", "in")
        came = after["nic_rx_pkts"] - before["nic_rx_pkts"]
        return (after, found) if found["seen"] == came else None

    after, found = wait_for(both, 20, "both to have counted the same")
    assert found["done"]["drop"] == 5
    assert after["core_bad_csum"] == before["core_bad_csum"]

    inject(routed, "--leg", "outer", "--direction", "in", "--corrupt", "7")
    fetch()
    last, found = routed.ask_stack("wan"), row(routed, "outer", "in")
    assert found["done"]["corrupt"] == 7
    # Where the bit is of the data offset, the header is refused before its checksum is looked at.
    refused = [last[name] - after[name] for name in ("core_bad_csum", "core_malformed")]
    assert sum(refused) == 7, refused


def test_the_same_seed_gives_the_same_faults(wired: Site, fetch: Callable[[], None]) -> None:
    """The first losses of a stream are at the same packets, whatever the rest of the host did."""
    routed = wired.attach_client(by("tap"))
    (first,) = inject(routed, "--leg", "outer", "--direction", "out", "--drop", "100%")
    assert first["rules"] == {"drop": {"share_ppm": 1_000_000}}
    assert first["seed"] != 0
    shown = routed.cli("faults", "-i", routed.instance).stdout
    assert f"wan injects faults, outer leg out: drop 100%, seed {first['seed']}; of 0" in shown
    inject(routed, "--direction", "out", "--off")
    fetch()


def test_listings_say_that_faults_are_injected(wired: Site) -> None:
    routed = wired.attach_client(by("tap"))
    said = "wan injects faults, inner leg in: drop 1/100, delay 20ms 5%, seed 9; of 0 packets none"
    inject(
        routed,
        "--leg",
        "inner",
        "--direction",
        "in",
        "--drop",
        "1/100",
        "--delay",
        "20ms,5%",
        "--seed",
        "9",
    )
    for listing in ("faults", "stacks", "status"):
        assert said in routed.cli(listing, "-i", routed.instance).stdout
    # A director that takes over knows of them, and a process that is started again has none.
    routed.kill_director()
    routed.restart()
    assert said in routed.cli("stacks", "-i", routed.instance).stdout
    os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
    wait_for(lambda: routed.stack("wan")["state"] == "up", 20, "the stack to be up")
    wait_for(lambda: routed.stack("wan")["restarts"] == 1, 20, "the stack to be another")
    assert routed.stack("wan")["faults"] == []


WRONG = [
    (["wan", "--drop", "0"], "no packets are named so"),
    (["wan", "--drop", "101%"], "no packets are named so; write 1% (at random)"),
    (["wan", "--corrupt", "-1"], "no packets are named so"),
    (["wan", "--delay", "20"], "that is no time of 1us to 10s; write 20ms"),
    (["wan", "--delay", "11s"], "that is no time of 1us to 10s"),
    (["wan", "--delay", "1ms,x"], "no packets are named so"),
    (["wann", "--drop", "1%"], "cannot inject faults into stack wann: the instance has wan"),
    (["--drop", "1%"], "no stack is named"),
    (["wan", "--leg", "outer"], "none is named"),
    (["wan", "--off", "--drop", "1%"], "exclude each other"),
]


def test_what_is_wrong_is_said(wired: Site) -> None:
    routed = wired.attach_client(by("tap"))
    for words, why in WRONG:
        said = routed.cli("faults", "-i", routed.instance, *words, check=False)
        assert said.returncode and "Traceback" not in said.stderr
        assert why in said.stderr
    assert routed.stack("wan")["faults"] == []


def test_a_process_refuses_what_is_no_plan(wired: Site) -> None:
    """Whoever asks: the process does not trust its director's words either."""
    routed = wired.attach_client(by("tap"))
    for plan, why in (
        ({"leg": "middle", "direction": "in", "rules": {}}, "there is no leg 'middle'"),
        ({"leg": "outer", "direction": "in", "rules": {"eat": {"first": 1}}}, "there are drop"),
        ({"leg": "outer", "direction": "in", "rules": {"drop": {"first": -1}}}, "drop first -1 is"),
        ({"leg": "outer", "direction": "in", "rules": {"drop": {}}}, "says not which packets"),
        ({"leg": "outer", "direction": "in", "rules": {"delay": {"first": 1}}}, "has no time"),
    ):
        with client.Client(routed.instance) as rd, pytest.raises(DmmError, match=why):
            rd.call("faults", stacks=["wan"], plans=[plan])
    assert routed.stack("wan")["faults"] == []

# SPDX-License-Identifier: Apache-2.0
"""tools/bench connections: its arithmetic, and a few hundred real connections that are parked,
used and ended.
"""

from __future__ import annotations

import dataclasses
import io
import json
import mmap
import os
import resource

import pytest
from rich.console import Console

from bench.connections import Held, Memory, connections_table, held_once, rss_bytes
from dmm_ebpf.errors import DmmError
from lab import Lab
from lab.cgroups import Cgroup
from lab.holding import PAIR_MAX, Holders, Told, shares

FEW = 300
BEFORE = Memory(0, 0, 50_000_000, 2_000_000, 0, {"flows": 1000}, 0, 0)
IDLE = Memory(1000, 1000, 50_500_000, 2_400_000, 0, {"flows": 301_000}, 1000, 1000)


def test_every_connection_has_a_pair_with_room_for_it(monkeypatch):
    assert shares(1) == [1]
    assert shares(100_000) == [PAIR_MAX] * 10
    assert shares(PAIR_MAX + 1) == [5001, 5000]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 1024))
    assert sum(shares(2000)) == 2000
    assert max(shares(2000)) < 1024


def test_bytes_of_an_idle_connection():
    held = Held(Told(1000, 0, 0.5, ()), Told(1000, 0, 1, ()), BEFORE, IDLE, BEFORE)
    assert held.opened_per_second == 2000
    assert (held.idle_rss_bytes, held.idle_used_bytes, held.idle_maps_bytes) == (500, 2400, 300)
    alone = Held(held.opened, held.checked)
    assert alone.idle_rss_bytes is None
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(connections_table({"kernel": alone, "stack connects": held}))
    shown = console.export_text()
    assert "1,000 connections" in shown
    assert "2400" in shown


def test_what_a_process_takes_is_what_the_kernel_says():
    before = rss_bytes(os.getpid())
    with mmap.mmap(-1, 32 << 20) as ballast:  # pages of its own: malloc may have some to give
        for page in range(0, len(ballast), mmap.PAGESIZE):
            ballast[page] = 1
        assert rss_bytes(os.getpid()) - before > 0.9 * len(ballast)


def test_a_few_hundred_are_opened_parked_used_and_ended(no_leaks, tmp_path):
    tmp_path.chmod(0o755)
    phases: list[str] = []
    held = held_once("stack connects", FEW, tmp_path, phases.append)
    assert phases == ["opening", "idle", "checking", "ending"]
    for told in (held.opened, held.checked):
        assert (told.done, told.failed, told.errors) == (FEW, 0, ())
        assert told.seconds > 0
    assert (
        held.before.connections,
        held.idle.connections,
        held.idle.parked,
        held.after.connections,
    ) == (*(0, FEW, FEW, 0),)
    assert (held.idle.flow_records, held.idle.owned) == (FEW, FEW)
    assert (held.after.flow_records, held.after.owned) == (0, 0)
    grown = held.idle.used_bytes - held.before.used_bytes
    assert 100 * FEW < grown < 1024 * FEW
    assert dataclasses.replace(held.after, rss_bytes=0, held_bytes=0) == dataclasses.replace(
        held.before, rss_bytes=0, held_bytes=0
    )
    json.dumps(held.to_json())


def test_a_server_that_ends_is_found_by_the_check(lab: Lab, make_cgroup, tmp_path):
    client, server = lab.host("client"), lab.host("server")
    lab.wire(client, server)
    cgroups: tuple[Cgroup, Cgroup] = (make_cgroup(), make_cgroup())
    with Holders(client, server, cgroups, 20, tmp_path) as holders:
        assert holders.tell("open", 10).done == 20
        assert holders.tell("check", 10).done == 20
        holders.servers[0].stop()
        told = holders.tell("check", 10)
        assert (told.done, told.failed) == (0, 20)
        assert told.errors
        assert holders.tell("open", 10).errors == ("ECONNREFUSED",)
        with pytest.raises(DmmError, match="have holdconn dance its connections: it ended with 2"):
            holders.tell("dance", 10)

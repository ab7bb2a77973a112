# SPDX-License-Identifier: Apache-2.0
"""The journal of live routes: what it has is read again, and a line that is not whole is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.liveroutes import Edit, Journal
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.policy.routes import Match
from dmm_ebpf.rd.policy.values import Prefix

FIRST = LiveRoute(1, "t", Prefix(4, 10 << 24, 8), Match(6, ((443, 443), (8000, 8100))), "wan")
SECOND = LiveRoute(2, "t", Prefix(6, 0x20010DB8 << 96, 32), Match(0, ()), "lan")


def test_changes_are_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(5, (), {})
    journal.append(7, Edit((FIRST,), ()))
    journal.append(9, Edit((SECOND,), (FIRST,)))
    journal.close()
    again = Journal(tmp_path)
    assert (again.routes, again.gone) == ({2: SECOND}, {1: FIRST})
    assert (again.since, again.generation, again.next_number) == (5, 9, 3)
    assert again.name(FIRST.recorded) == "10.0.0.0/8 tcp 443,8000-8100 live"
    assert again.name(SECOND.recorded + 1) == ""

    again.begin(12, [SECOND], again.gone)
    anew = Journal(tmp_path)
    assert (anew.routes, anew.gone) == ({2: SECOND}, {1: FIRST})
    assert (anew.since, anew.generation, anew.next_number) == (12, 12, 3)


def test_a_number_is_given_once_also_when_its_route_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.next_number = 8
    journal.begin(3, (), {})
    assert Journal(tmp_path).next_number == 8


def test_half_a_line_was_never_in_force(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(7, Edit((FIRST,), ()))
    journal.append(9, Edit((SECOND,), ()))
    journal.close()
    file = tmp_path / "routes.live"
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        file.write_bytes(whole[:size])
        read = Journal(tmp_path)
        assert (read.routes, read.generation) == ({1: FIRST}, 7)
    file.write_bytes(b"\xff nonsense\n[]\n" + whole)
    assert Journal(tmp_path).routes == {1: FIRST, 2: SECOND}


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone")
    with pytest.raises(DmmError, match="no such file"):
        journal.append(7, Edit((FIRST,), ()))
    assert journal.generation == 0


def test_it_is_written_anew_and_tells_of_the_same_generations(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(5, [FIRST], {})
    for generation in range(7, 207, 2):
        journal.append(generation, Edit((), ()))
    assert journal.lines == 100
    fleets = SECOND._replace(place="want/routes/t/x:1")
    journal.append(207, Edit((fleets,), ()))
    journal.compact([FIRST, fleets], {})
    assert journal.lines == 0
    journal.append(209, Edit((), (FIRST,)))
    again = Journal(tmp_path)
    assert (again.since, again.generation) == (5, 209)
    assert again.routes == {2: fleets}, "and where it stands"
    assert again.name(fleets.recorded) == "2001:db8::/32"
    assert (tmp_path / "routes.live").read_bytes().count(b"\n") == 2

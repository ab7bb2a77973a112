# SPDX-License-Identifier: Apache-2.0
"""Imports and #includes keep to the table of rooms (tests/rooms.py), and the map
shows that table.
"""

from __future__ import annotations

from pathlib import PurePath

import pytest
import rooms

BOTH = pytest.mark.parametrize("language", sorted(rooms.LANGUAGES))


@BOTH
def test_every_file_is_in_a_room(language: str) -> None:
    assert [f for f in rooms.sources(language) if rooms.room_of(language, f) is None] == []


@BOTH
def test_arrows_point_down(language: str) -> None:
    """So there is no circle: a room uses none that stands behind it."""
    seen: set[str] = set()
    for room in rooms.LANGUAGES[language]:
        assert set(room.uses) <= seen, room.name
        seen.add(room.name)


@BOTH
def test_no_file_uses_what_its_room_may_not(language: str) -> None:
    allowed = {(room.name, name) for room in rooms.LANGUAGES[language] for name in room.uses}
    wrong = [
        f"{a.file} ({a.room}) uses {a.target} ({a.uses or 'no room'})"
        for a in rooms.arrows(language)
        if (a.room, a.uses) not in allowed and rooms.debt_of(a) is None
    ]
    assert wrong == [], "\n".join(wrong)


def test_no_c_function_of_a_higher_room_is_named() -> None:
    """A declaration of one's own needs no #include; what a lower room tells a higher one goes
    by a table (end.h).
    """
    allowed = {(room.name, name) for room in rooms.LANGUAGES["C"] for name in room.uses}
    wrong = [
        f"{a.file} ({a.room}) names a function of {a.target} ({a.uses})"
        for a in rooms.named()
        if (a.room, a.uses) not in allowed and rooms.debt_of(a) is None
    ]
    assert wrong == [], "\n".join(wrong)
    assert any(a.room == "relay" and a.uses == "wire" for a in rooms.named())


def test_a_transport_is_seen_through_its_table_alone() -> None:
    """The relay knows ends (end.h): one of its files takes tables from tcp_end.h, and none names a
    function of TCP's.
    """
    tcp = [a for a in rooms.arrows("C") if a.uses == "tcp"]
    assert {PurePath(a.target).name for a in tcp} == {"tcp_end.h"}
    assert {PurePath(a.file).name for a in tcp} == {"transports.c"}
    assert [a.file for a in rooms.named() if a.uses == "tcp"] == []


@BOTH
def test_no_arrow_is_for_nothing(language: str) -> None:
    """What an #include brings in by another header counts where its functions are named."""
    found = [*rooms.arrows(language), *(rooms.named() if language == "C" else ())]
    used = {(a.room, a.uses) for a in found}
    allowed = {(room.name, name) for room in rooms.LANGUAGES[language] for name in room.uses}
    assert allowed - used == set()


def test_no_debt_is_for_nothing() -> None:
    owed = {rooms.debt_of(a) for language in rooms.LANGUAGES for a in rooms.arrows(language)}
    assert set(rooms.DEBTS) - owed == set()


def test_the_map_is_the_table() -> None:
    again = "the map is not what the table says; run .venv/bin/python tests/rooms.py"
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert page.partition(rooms.START)[2].partition(rooms.END)[0] == rooms.tables(), again
    for language, table in rooms.LANGUAGES.items():
        assert rooms.picture_file(language).read_text(encoding="utf-8") == rooms.picture(table), (
            again
        )


def test_every_include_leads_to_a_file() -> None:
    """Also in the laboratory, whose programs are built only when a test needs them."""
    folders = [rooms.PurePath(folder) for folder in ("bpf", rooms.CORE, "lab/sim", "lab/fuzz")]
    lost = [
        f"{file} includes {name}"
        for file in rooms.tracked()
        if file.endswith((".c", ".h")) and "/compat/" not in file
        for name in rooms.included_names(file)
        if not any(
            (rooms.ROOT / at / name).is_file() for at in (rooms.PurePath(file).parent, *folders)
        )
    ]
    assert lost == []

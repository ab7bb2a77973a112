# SPDX-License-Identifier: Apache-2.0
"""The table of a stack process's phases."""

from __future__ import annotations

import pytest

from dmm_ebpf.rd.director.phase import FOLLOWS, Phase, move


def test_every_phase_has_a_line() -> None:
    assert set(FOLLOWS) == set(Phase)


@pytest.mark.parametrize("old", Phase)
@pytest.mark.parametrize("new", Phase)
def test_the_setter_keeps_to_the_table(old: Phase, new: Phase) -> None:
    assert move("wan", old, new) is (new if new in FOLLOWS[old] else old)


def test_nothing_comes_after_the_end() -> None:
    assert FOLLOWS[Phase.STOPPING] == {Phase.STOPPING}


def test_a_process_that_is_being_stopped_does_not_come_up() -> None:
    assert move("wan", Phase.STOPPING, Phase.UP) is Phase.STOPPING

# SPDX-License-Identifier: Apache-2.0
"""Numbers stay with their names, and are given out again only when they must be."""

from __future__ import annotations

import json

import pytest

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.ids import IdSpace


def test_names_keep_their_numbers() -> None:
    ids = IdSpace()
    ids.assign(["kernel", "a", "b"], ["t"])
    a, b, t = ids.stack("a"), ids.stack("b"), ids.table("t")
    ids.assign(["b", "c"], ["u", "t"])
    assert (ids.stack("a"), ids.stack("b"), ids.table("t")) == (a, b, t)
    assert len({0, a, b, ids.stack("c")}) == 4
    assert ids.table("u") != t
    assert (ids.stack("kernel"), ids.stack_name(0), ids.stack_name(b)) == (0, "kernel", "b")
    assert (ids.table_name(t), ids.table_name(0), ids.stack_name(63)) == ("t", None, None)


def test_kept_in_json() -> None:
    ids = IdSpace()
    ids.assign(["a"], ["t"])
    ids.assign(["b"], ["u"])
    again = IdSpace.from_dict(json.loads(json.dumps(ids.to_dict())))
    assert again.to_dict() == ids.to_dict()
    again.assign(["c"], ["v"])
    assert again.stack("c") not in (ids.stack("a"), ids.stack("b"))
    assert again.table("v") not in (ids.table("t"), ids.table("u"))


@pytest.mark.parametrize(
    "data",
    [
        {"stacks": {"a": 1, "b": 1}, "tables": {}, "next_table": 1},
        {"stacks": {"a": 64}, "tables": {}, "next_table": 1},
        {"stacks": {}, "tables": {"t": 3}, "next_table": 3},
    ],
)
def test_numbers_that_cannot_be(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="number"):
        IdSpace.from_dict(data)


def test_the_longest_unused_number_goes_first() -> None:
    ids = IdSpace()
    ids.assign([f"s{n}" for n in range(63)], [])
    first, second = ids.stack("s0"), ids.stack("s1")
    ids.assign(["s0"], [])  # used again, so s1 is the oldest now
    ids.assign(["new"], [])
    assert ids.stack("new") == second
    assert ids.stack_name(second) == "new"
    assert ids.stack("s0") == first
    with pytest.raises(KeyError):
        ids.stack("s1")


def test_number_of_an_open_flow_is_not_given_away() -> None:
    ids = IdSpace()
    ids.assign([f"s{n}" for n in range(63)], [])
    busy = {ids.stack(f"s{n}") for n in range(62)}
    ids.assign(["new"], [], busy)
    assert ids.stack_name(ids.stack("new")) == "new"
    before = ids.to_dict()
    with pytest.raises(PolicyError, match='"newer"'):
        ids.assign(["newer"], [], set(range(1, 64)))
    assert ids.to_dict() == before


def test_forgotten_tables_are_bounded() -> None:
    ids = IdSpace()
    for n in range(5000):
        ids.assign([], [f"t{n}"])
    assert len(ids.to_dict()["tables"]) == 4096
    assert ids.table("t4999") == 5000

# SPDX-License-Identifier: Apache-2.0
"""What rules and routes of earlier generations were called, by what state.json has of them."""

from __future__ import annotations

from pathlib import Path

from dmm_ebpf.rd.director.generations import MOST_TEXTS, Generations, after
from dmm_ebpf.rd.director.rundir import PolicyText, State
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import Labels

TEXT = """
[[rules]]
name = "{name}"
table = "t"
[[tables.t.routes]]
to = "192.0.2.0/24"
stack = "kernel"
"""


def put(known: Generations, generation: int, name: str) -> None:
    policy = policies.parse(TEXT.format(name=name), source="p", base=Path("/"))
    known.put(generation, policy, Labels(policy), Path("/p"))


def rule(known: Generations, generation: int) -> str | None:
    labels = known.labels(generation)
    return labels.rule_text(0) if labels else None


def test_names_come_back_from_what_was_written_down() -> None:
    known = Generations(State("i", 0, "/", 0))
    for generation, name in ((1, "a"), (2, "b"), (3, "a"), (4, "c")):
        put(known, generation, name)
    policy = policies.parse(TEXT.format(name="d"), source="p", base=Path("/"))
    state = State("i", 0, "/", 0, **after(policy, Path("/p"), 5), earlier=known.earlier({1, 3, 4}))
    assert [one.generations for one in state.earlier] == [[4], [3, 1]]
    again = Generations(state)
    again.read()
    assert [rule(again, n) for n in range(1, 6)] == ["a", None, "a", "c", "d"]
    labels = again.labels(1)
    assert labels is not None and labels.route_text(0) == "192.0.2.0/24"
    again.keep({5})
    assert [rule(again, n) for n in range(1, 6)] == [None] * 4 + ["d"]


def test_a_text_that_cannot_be_read_again_costs_its_names_alone() -> None:
    wrong = PolicyText(TEXT.format(name="a") + "nonsense", "/p", {}, [1, 2])
    fine = PolicyText(TEXT.format(name="b"), "/p", {}, [3])
    known = Generations(State("i", 0, "/", 0, earlier=[wrong, fine]))
    known.read()
    assert [rule(known, n) for n in (1, 2, 3)] == [None, None, "b"]


def test_the_latest_texts_are_written_down() -> None:
    known = Generations(State("i", 0, "/", 0))
    for generation in range(1, MOST_TEXTS + 3):
        put(known, generation, f"r{generation}")
    written = known.earlier(range(1, MOST_TEXTS + 3))
    assert [one.generations for one in written] == [[n] for n in range(MOST_TEXTS + 2, 2, -1)]

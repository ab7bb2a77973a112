# SPDX-License-Identifier: Apache-2.0
"""What a stack process may say of its plug-in: a sentence beside its numbers, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from dmm_ebpf.rd.director import load
from dmm_ebpf.records.stack import Plugin
from dmm_ebpf.userstack import answers

STATS: dict[str, Any] = dict.fromkeys(
    ("connections", "in_use", "max_connections", "memory_bytes", "memory_limit_bytes"), 0
)
PLUGIN = {"plugin_faults": 2, "plugin_connections": 3, "plugin_fault": "X.on_ack raised E"}


def said(stats: Any) -> Any:
    return answers.result_of("wan", "stats", 1, {"id": 1, "ok": True, "result": stats})


def test_a_sentence_is_taken() -> None:
    assert said(STATS | PLUGIN)["plugin_fault"] == "X.on_ack raised E"
    assert said(STATS) == STATS


@pytest.mark.parametrize("fault", [1, None, ["x"], "x" * 301, "\x1b[31m", "two\nlines", "\u202e"])
def test_what_is_no_sentence_is_not(fault: object) -> None:
    with pytest.raises(answers.AnswerError):
        said(STATS | {"plugin_fault": fault})


@pytest.mark.parametrize(
    "stats", [STATS | {"other": "text"}, STATS | {"plugin_faults": -1}, [], None, 3]
)
def test_other_text_is_not_either(stats: object) -> None:
    with pytest.raises(answers.AnswerError):
        said(stats)


def test_processes_are_told_of_together() -> None:
    quiet = {"plugin_faults": 0, "plugin_connections": 0, "plugin_fault": ""}
    told = {("wan", 0): STATS | quiet, ("wan", 1): STATS | PLUGIN, ("x", 0): STATS}
    assert load.plugin(told, "wan") == Plugin(2, 3, "X.on_ack raised E")
    assert load.plugin(told, "x") is None

# SPDX-License-Identifier: Apache-2.0
"""The runner itself: it is strict, and what it says when a scenario fails names the line
and both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenario_grammar import ScenarioError, parse
from scenario_run import Run

OPEN = "# a title\n+0 open active no=ts mss=1000\n"


def failure(tmp_path: Path, core: tuple[Any, Any], text: str) -> str:
    """What the runner says about a scenario that must fail."""
    path = tmp_path / "case.tcp"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        Run(parse(path), core).run()
    return str(caught.value)


CASES = {
    "+0 outer < P. 1:101(100) ack 1": "case.tcp:3: after the last line: before this line the core sent",
    "+0 outer < P. 1:101(100) ack 1\n+0 app write 5": "case.tcp:4: before this line the core sent",
    "+0 outer > . 1 ack 1": "case.tcp:3: no packet came",
    "+0 app write 50\n+0 outer > P. 1:51(50) ack 2": "ack: 2 wanted, 1 got",
    "+0 app write 50\n+0 outer > P. 2:52(50) ack 1": "seq: 2 wanted, 1 got",
    "+0 app write 50\n+0 outer > P. 1:50(49) ack 1": "length: 49 wanted, 50 got",
    "+0 app write 50\n+0 outer > F. 1:51(50) ack 1": "flag F: True wanted, False got",
    "+0 app write 50\n+0 outer > P. 1:51(50) ack 1 win 1": "win: 1 wanted, 64 got",
    "+0 app write 50\n+0 outer > P. 1:51(50) ack 1 <sack 1:2>": "option sack: missing",
    "+0 app write 50\n+0 outer > P. 1:51(50) ack 1 {len 99}": "len: 99 wanted, 90 got",
    "+0 app write 50\n+3ms outer > P. 1:51(50) ack 1": "time: 0.000 ms after the line before, 3.000 ± 0.1 wanted",
    "+0 outer > icmp too-big": "no packet came",
    "+0 state outer=TIME_WAIT": "it is inner=ESTABLISHED outer=ESTABLISHED",
    "+0 state gone": "it is there",
    "+0 info mss=7": "mss is 1000, =7 wanted",
    "+0 info nothing=7": "there is no 'nothing'",
    "+0 count paws>3": "paws is 0, >3 wanted",
    "+0 app got 3": "the application got 0 bytes",
    "+0 app eof": "the application's socket",
    "+0 action closed": "no action closed is there",
}


@pytest.mark.parametrize("line", CASES)
def test_a_difference_fails(tmp_path: Path, core_library: tuple[Any, Any], line: str) -> None:
    said = failure(tmp_path, core_library, OPEN + line + "\n")
    assert CASES[line] in said
    assert "expected: +" in said
    assert "what happened last:" in said


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("outer < Z 1", "is no packet"),
        ("outer < . 1:5(3) ack 1", "1:5 is not 3 bytes"),
        ("outer < . *:*(5) ack 1", "needs numbers"),
        ("outer < . 1 ack 1 <mss>", "mss takes 1 values"),
        ("outer < . 1 ack 1 <frob 2>", "'frob' is no option"),
        ("outer > . 1 ack 1 {bend 2}", "'bend' is not one of"),
        ("outer < icmp strange quote 1", "'strange' is not one of"),
        ("frobnicate", "begins no line"),
        ("+5", "a time alone"),
        ("config mtu=9", "config comes before"),
    ],
)
def test_an_error_of_writing_fails(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "case.tcp"
    path.write_text(f"# a title\n+0 app connect\n{line}\n")
    with pytest.raises(ScenarioError, match=r"case\.tcp:3: ") as caught:
        parse(path)
    assert why in str(caught.value)


def test_a_scenario_has_a_title(tmp_path: Path) -> None:
    path = tmp_path / "case.tcp"
    path.write_text("+0 app connect\n")
    with pytest.raises(ScenarioError, match="begins with a comment"):
        parse(path)


def test_every_scenario_has_a_title_of_its_own() -> None:
    titles = [parse(path).title for path in sorted(Path(__file__).parent.rglob("*.tcp"))]
    assert len(titles) == len(set(titles)) > 100

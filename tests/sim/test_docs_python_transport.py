# SPDX-License-Identifier: Apache-2.0
"""docs/develop/add-a-transport-in-python.md, done as it says; and what a transport in Python does
that it must not ends its connections, and nothing else.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.kit import probe
from dmm_ebpf.kit.names import TRANSPORT
from lab.sim import pysim
from lab.sim.corelab import HERE, S

PAGE = (HERE.parents[1] / "docs/develop/add-a-transport-in-python.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
RUN = """
import sys
from pathlib import Path
from lab.sim import pysim
sys.exit(pysim.run(sys.argv[1], sys.argv[3:], Path(sys.argv[2])))
"""
Write = Callable[..., str]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pysim.library(tmp_path_factory.mktemp("pysim"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The page's class in a file, with some of its text replaced, and its name."""

    def one(*changes: tuple[str, str]) -> str:
        text = CODE
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "gbn.py"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        return f"python:{path}:GoBackN"

    return one


def run(library: Path, text: str, **keys: float) -> tuple[dict[str, int], list[str]]:
    """What came of it; and faults, connections that ended by them, and the first in a sentence."""
    words = [f"{name}={value}" for name, value in ({"limit_ns": 600 * S} | keys).items()]
    done = subprocess.run(
        [sys.executable, "-c", RUN, text, library, "delay_ns=5000000", *words],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    figures = {k: int(v) for k, v in (line.split("=") for line in done.stdout.splitlines())}
    return figures, done.stderr.rstrip("\n").splitlines()[-1].split(" ", 2)


PATHS: dict[str, dict[str, float]] = {
    "all at once": {"loss": 0.02, "reorder": 0.02, "dup": 0.02, "corrupt": 0.01, "conns": 3},
    "IPv6, a short queue": {"v6": 1, "rate_Bps": 1_250_000, "queue_bytes": 20_000},
    "losses on the inner leg": {"loss": 0.01, "inner_loss": 0.02, "inner_reorder": 0.02},
    "to a kernel's TCP": {"direct": 1, "loss": 0.01},
}


@pytest.mark.parametrize("name", sorted(PATHS))
def test_every_stream_arrives(library: Path, write: Write, name: str) -> None:
    keys = PATHS[name]
    result, faults = run(library, write(), up=100_000, down=60_000, **keys)
    assert (result["errors"], result["wrong"]) == (0, 0)
    assert result["complete"] == keys.get("conns", 1)
    assert [result[f"{what}_a"] for what in ("left", "chunks", "plain")] == [0, 0, 0]
    assert faults[:2] == ["0", "0"]


def test_a_refusal_and_silence_are_told(library: Path, write: Write) -> None:
    refused, _ = run(library, write(), refuse=1)
    silent, _ = run(library, write(), direct=1, mute=1, limit_ns=3600 * S)
    assert (refused["error_a"], silent["core_error_a"]) == (111, 110)
    assert (refused["left_a"], silent["left_a"]) == (0, 0)


def test_the_page_s_class_can_be_loaded(write: Write) -> None:
    probe.check(write(), TRANSPORT)


def test_the_page_s_command_runs(tmp_path: Path) -> None:
    (command,) = re.findall(r"^\.venv/bin/python (-m lab\.sim\.pysim .*)$", PAGE, re.MULTILINE)
    (tmp_path / "gbn.py").write_text(CODE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HERE.parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"complete=1", "wrong=0"} <= set(done.stdout.splitlines())
    assert done.stderr.startswith("0 0")


AT = "        self.in_ack(end, seg)\n        if before"


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("1 // 0", "input raised ZeroDivisionError: integer division or modulo by zero"),
        ("raise SystemExit(3)", "input raised SystemExit: 3"),
        ("end.una = 'all'", "input set una to what is no number"),
        ("end.nxt = float('nan')", "input set nxt to what is no number"),
        ("end.deadline_ns = -1", "input set deadline_ns to what is no number"),
        ("end.nxt = end.tail + 9", "input answered with positions that are none of the stream's"),
        ("end.una = 0", "input answered with positions that are none of the stream's"),
        ("end.phase = Phase.ASKING", "input answered with a phase that does not follow"),
        ("end.phase = 77", "input answered with a phase that does not follow"),
        ("end.take(0, seg.length + 1)", "input answered with to take more than the segment has"),
        ("end.reset(99999)", "input answered with an error that there is not"),
    ],
)
def test_what_is_no_answer_ends_its_connection_alone(
    library: Path, write: Write, statement: str, told: str
) -> None:
    """One of three connections goes wrong, at one side; the others carry their bytes."""
    change = (
        AT,
        f"        if end.head > 20_000 and first(self):\n            {statement}\n            return\n{AT}",
    )
    ours = (
        "def signed(number):",
        "SEEN = []\n\n\ndef first(one):\n    SEEN.append(one)\n    return SEEN[0] is one\n\n\ndef signed(number):",
    )
    result, (faults, fallen, sentence) = run(
        library, write(change, ours), up=100_000, down=0, conns=3
    )
    assert (faults, fallen) == ("1", "1")
    assert told in sentence
    assert sentence.startswith("GoBackN.")
    assert sentence.endswith("; its connection has ended")
    assert (result["complete"], result["wrong"]) == (2, 0)
    assert [result[f"{what}_{side}"] for side in "ab" for what in ("left", "chunks")] == [0] * 4


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("'a packet'", "output returned what is no segment"),
        (
            "Segment(0, 1, first=end.tail, length=1)",
            "output answered with bytes that the stream does not hold",
        ),
        ("Segment(0, 1, wnd=70000)", "output answered with a window or an MSS of more than 65535"),
        ("Segment(512, 1)", "output answered with flags that a segment has not"),
        ("Segment(0, 1, length=60000)", "output answered with more than the path takes"),
    ],
)
def test_a_packet_that_is_none_is_not_sent(
    library: Path, write: Write, returned: str, told: str
) -> None:
    at = "        made = self.data(end) if"
    change = (at, f"        if end.head > 20_000:\n            return {returned}\n{at}")
    result, (_, _, sentence) = run(library, write(change), up=100_000, down=0)
    assert told in sentence
    assert (result["complete"], result["wrong"], result["left_a"]) == (0, 0, 0)
    assert result["rst_out_a"] >= 1


@pytest.mark.parametrize(
    "statement", ["while True: pass", "import threading; threading.Event().wait(3)"]
)
def test_a_call_that_does_not_return_is_the_last(
    library: Path, write: Write, statement: str
) -> None:
    change = (AT, f"        if end.head > 20_000:\n            {statement}\n{AT}")
    result, (faults, fallen, sentence) = run(
        library, write(change), up=60_000, down=0, conns=8, gap_ns=100_000_000
    )
    assert faults == "1"
    assert int(fallen) >= 1
    assert sentence == (
        "GoBackN.input did not return within 250 ms; it is not called any more: its connections have "
        "ended, and new ones go by tcp"
    )
    assert result["complete"] >= 5, "by TCP"
    assert result["left_a"] == result["left_b"] == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("    def timer(self", "    def other(self"), "GoBackN has no method timer"),
        (
            ("class GoBackN:", "class GoBackN:\n    room = 3\n    abi = 1"),
            "GoBackN.room is no method",
        ),
        (
            ("class GoBackN:", "class GoBackN:\n    abi = 99"),
            "written for ABI 99, and this is ABI 1",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(
    write: Write, change: tuple[str, str], told: str
) -> None:
    changes = [change]
    if "room = 3" in change[1]:
        changes.append(("    def room(self, end):", "    def rooms(self, end):"))
    with pytest.raises(DmmError, match="use transport 'python:") as caught:
        probe.check(write(*changes), TRANSPORT)
    assert told in str(caught.value)

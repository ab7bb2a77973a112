# SPDX-License-Identifier: Apache-2.0
"""A short run of the wire parser's fuzz target, and tools/fuzz itself. tools/fuzz is for
the long runs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.fuzz.fuzzlab import ROOT, TARGETS, BuildError

TOOL = ROOT / "tools" / "fuzz"


@pytest.mark.parametrize("name", ["wire", "fragment", "fec", "datagram", "udp-copies", "routes"])
def test_no_packet_breaks_what_reads_it_first(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.write_seeds(tmp_path / "seeds")
    done = subprocess.run(
        [
            target.build(tmp_path / name),
            "-max_total_time=3",
            f"-max_len={target.max_len}",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
            tmp_path / "seeds",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def test_a_target_that_does_not_build_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="clang was not found; run tools/bootstrap"):
        TARGETS["wire"].build(tmp_path / "wire")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TOOL, *words], capture_output=True, text=True, check=False, timeout=60)


def test_the_tool_runs_keeps_a_corpus_and_counts(tmp_path: Path) -> None:
    done = run(
        "--target", "wire", "--minutes", "0.02", "--workers", "1", "--directory", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fuzz: wire: " in done.stdout
    assert "nothing found" in done.stdout
    assert len(list((tmp_path / "wire" / "corpus").iterdir())) > 50
    assert list((tmp_path / "wire" / "crashes").iterdir()) == []


def test_the_tool_reports_a_crash_with_the_command_that_repeats_it(tmp_path: Path) -> None:
    done = run("--self-test", "--minutes", "0.2", "--workers", "1", "--directory", str(tmp_path))
    assert done.returncode == 1
    (found,) = [
        line for line in done.stdout.splitlines() if line.startswith("fuzz: self-test: found ")
    ]
    assert "repeat it with: " in found
    command = found.partition("repeat it with: ")[2].split()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "self-test" in again.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--minutes", "0"), "fuzz: cannot run for 0 minutes: it takes more than none"),
        (("--workers", "0"), "fuzz: cannot run 0 workers: it takes at least one"),
    ],
)
def test_the_tool_says_in_one_sentence_what_is_wrong(words: tuple[str, ...], why: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr.strip()) == (2, why)

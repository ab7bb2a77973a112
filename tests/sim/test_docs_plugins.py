# SPDX-License-Identifier: Apache-2.0
"""The pages about congestion controls as plug-ins, done as they say: their code is short, is
loaded, and does on the bench what the page promises.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmm_ebpf.cli import plugins
from dmm_ebpf.kit import bench, probe
from dmm_ebpf.kit.bench import Course, Flow

DOCS = Path(__file__).resolve().parents[2] / "docs/develop"
CLI = Path(sys.executable).parent / "dmm-ebpf"
MOST_LINES = 60
# As on the pages
COURSE = Course(rate_Bps=2.5e6, rtt_s=0.04, queue_bdp=4, duration_s=20)
LOSSY = Course(rate_Bps=2.5e6, rtt_s=0.04, queue_bdp=4, loss=0.01, duration_s=20)


def code(page: str, language: str) -> str:
    """The page's first code of a language."""
    text = (DOCS / f"add-a-congestion-control-in-{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[0]


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The names of both controls, written and built as the pages say."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "my_cc.py").write_text(code("python", "python"), encoding="utf-8")
    (folder / "ledbat.c").write_text(code("c", "c"), encoding="utf-8")
    (build,) = re.findall(r"^cc .*$", code("c", "text"), re.MULTILINE)
    build = build.replace("$(dmm-ebpf stacks --include)", str(plugins.include()))
    subprocess.run(["sh", "-c", f"umask 022; {build} -Werror"], cwd=folder, check=True)
    return {"python": f"python:{folder}/my_cc.py:Ledbat", "c": f"c:{folder}/ledbat.so"}


BOTH = pytest.mark.parametrize("kind", ["python", "c"])


def run(controls: dict[str, str], *kinds: str, course: Course = COURSE) -> list[Flow]:
    flows = list(bench.run([controls.get(kind, kind) for kind in kinds], course).flows)
    assert [flow.faults.faults for flow in flows] == [0] * len(kinds)
    return flows


@BOTH
def test_the_code_is_short(kind: str) -> None:
    assert len(code(kind, kind).splitlines()) < MOST_LINES


@BOTH
def test_it_can_be_loaded(controls: dict[str, str], kind: str) -> None:
    probe.check(controls[kind])


@BOTH
def test_alone_it_fills_the_path_with_a_queue_near_its_target(
    controls: dict[str, str], kind: str
) -> None:
    (flow,) = run(controls, kind)
    assert flow.share > 0.97
    assert 20 < flow.queue_ms < 30
    assert flow.retransmits == 0


@BOTH
def test_beside_cubic_it_steps_back(controls: dict[str, str], kind: str) -> None:
    ours, cubic = run(controls, kind, "cubic")
    assert ours.share < 0.15
    assert cubic.share > 0.8


@BOTH
def test_loss_makes_it_slower_and_it_goes_on(controls: dict[str, str], kind: str) -> None:
    (flow,) = run(controls, kind, course=LOSSY)
    assert 0.05 < flow.share < 0.6
    assert flow.retransmits > 10


def test_prototype_and_product_are_the_same_control(controls: dict[str, str]) -> None:
    (python,) = run(controls, "python")
    (c,) = run(controls, "c")
    assert python.goodput_Bps == pytest.approx(c.goodput_Bps, rel=0.01)
    assert python.queue_ms == pytest.approx(c.queue_ms, rel=0.05)


@pytest.mark.parametrize("page", ["python", "c"])
def test_the_commands_of_the_page_run(controls: dict[str, str], tmp_path: Path, page: str) -> None:
    folder = Path(controls["c"].removeprefix("c:")).parent
    for file in ("my_cc.py", "ledbat.so"):
        shutil.copy(folder / file, tmp_path / file)
    text = (DOCS / f"add-a-congestion-control-in-{page}.md").read_text(encoding="utf-8")
    commands = re.findall(r"^dmm-ebpf (sim .*)$", text, re.MULTILINE)
    assert commands
    for words in commands:
        done = subprocess.run(
            [CLI, *words.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "GOODPUT" in done.stdout
        assert (tmp_path / words.split()[-1]).stat().st_size > 10_000

# SPDX-License-Identifier: Apache-2.0
"""What docs/develop says stands where: the files that its pages name, and in them the things
that a page follows.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs/develop").glob("add-*.md")
}
# What pages let their readers write
NEW_FILES = {
    "dmm_ebpf/userstack/core/cc/cc_steady.c",
    "dmm_ebpf/hal/plain.c",
    "dmm_ebpf/hal/plain.h",
}
# page, what it follows: the files in which that stands
FOLLOWED = {
    ("add-a-map.md", "nics"): (
        "dmm_ebpf/loader/spec.py",
        "dmm_ebpf/rd/director/nics.py",
        "bpf/tcin.h",
    ),
    ("add-a-map.md", "DMM_MAX_DEVICES"): ("bpf/abi.h", "dmm_ebpf/loader/spec.py"),
    ("add-a-policy-key.md", "comm"): (
        "dmm_ebpf/rd/policy/rule.py",
        "dmm_ebpf/rd/policy/evaluate.py",
        "dmm_ebpf/rd/policy/compile.py",
        "bpf/decide.h",
        "bpf/abi.h",
        "tests/unit/policy_texts.py",
    ),
    ("add-a-command.md", "trace"): ("dmm_ebpf/cli/frames.py", "dmm_ebpf/cli/trace.py"),
    ("add-a-port.md", "PORT_CALL"): ("dmm_ebpf/userstack/port.h",),
    ("add-a-port.md", "DMM_PORT_TAP"): ("dmm_ebpf/hal/portcaps.h", "dmm_ebpf/userstack/port.h"),
    ("add-a-port.md", "dmm_port_caps"): (
        "dmm_ebpf/hal/portcaps.h",
        "dmm_ebpf/hal/afxdp.c",
        "dmm_ebpf/hal/tapnic.c",
    ),
    ("add-an-option.md", "busy_poll_us"): (
        "dmm_ebpf/rd/policy/model.py",
        "dmm_ebpf/userstack/engine.h",
        "dmm_ebpf/userstack/engine.c",
        "docs/policy.md",
        "tests/unit/test_policy_refused.py",
        "tests/unit/test_options.py",
    ),
    ("add-an-option.md", "user_timeout_ms"): (
        "bpf/abi.h",
        "dmm_ebpf/rd/policy/compile.py",
        "bpf/options.h",
        "tests/unit/test_compile.py",
    ),
}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_files_of_a_page_are_there(page: str) -> None:
    named = re.findall(r"`((?:dmm_ebpf|bpf|tests|tools|docs)/[\w/.*-]+)`", PAGES[page])
    assert len(named) > 3
    assert [name for name in named if name not in NEW_FILES and not list(ROOT.glob(name))] == []


@pytest.mark.parametrize(("page", "name"), sorted(FOLLOWED))
def test_what_a_page_follows_is_in_each_file(page: str, name: str) -> None:
    assert name in PAGES[page]
    for file in FOLLOWED[page, name]:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\b", text), f"{page} follows {name}, which is not in {file}"


@pytest.mark.parametrize(
    "page",
    [
        "add-a-command.md",
        "add-a-map.md",
        "add-a-policy-key.md",
        "add-an-option.md",
    ],
)
def test_code_of_a_page_is_the_code(page: str) -> None:
    """Each line of a code block stands in some file that the pages name."""
    sources = [
        *ROOT.glob("dmm_ebpf/**/*.py"),
        *ROOT.glob("bpf/*.h"),
        *ROOT.glob("dmm_ebpf/userstack/*.h"),
        *ROOT.glob("dmm_ebpf/hal/*.h"),
    ]
    lines = {
        line.strip(" \t\\")
        for file in sources
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    blocks = re.findall(r"```\w+\n(.*?)```", PAGES[page], re.DOTALL)
    assert blocks
    assert [x for block in blocks for x in block.splitlines() if x.strip() not in lines] == []

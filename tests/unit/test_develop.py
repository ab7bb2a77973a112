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
    page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs/develop").glob("*.md")
}
# What pages let their readers write
NEW_FILES = {
    "dmm_ebpf/userstack/core/cc/cc_steady.c",
    "dmm_ebpf/hal/plain.c",
    "dmm_ebpf/hal/plain.h",
    "dmm_ebpf/cli/count.py",
    "tests/unit/test_count.py",
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


FEC, PARITY = "dmm_ebpf/userstack/core/fec/repair.h", "dmm_ebpf/userstack/core/tcp/tcp_parity"
# What forward-error-correction.md says, and what the code has by that name
FIGURES = [
    ("header of a repair symbol**, 32 bytes", FEC, "FEC_HEADER", 32),
    ("up to seven runs", FEC, "FEC_RUNS", 7),
    ("modulo 2,048", f"{PARITY}.h", "PARITY_COUNT_MASK", 2048 - 1),
    ("next 32 after each repair", f"{PARITY}_in.c", "TELLS", 32),
    ("last 256 times S bytes", f"{PARITY}_in.c", "RING_SYMBOLS", 256),
    ("no more than a quarter of the stack's limit", f"{PARITY}_in.c", "MEMORY_SHARE", 4),
    ("spread over 4 ms", f"{PARITY}_out.c", "PARITY_SPREAD_MS", 4),
    ("waited for** by 20 ms", f"{PARITY}_out.c", "PATIENCE_MS", 20),
]


@pytest.mark.parametrize(("said", "file", "name", "value"), FIGURES)
def test_figures_of_forward_error_correction(said: str, file: str, name: str, value: int) -> None:
    page = " ".join(PAGES["forward-error-correction.md"].split())
    assert said in page
    (found,) = re.findall(rf"\b{name} = (\w+)", (ROOT / file).read_text(encoding="utf-8"))
    assert int(found, 0) == value

# SPDX-License-Identifier: Apache-2.0
"""Files that are no policy: junk, texts that would take gigabytes, what cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse as policy


def test_too_large_and_junk(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("junk that is not TOML\n" * 1_000_000)
    with pytest.raises(PolicyError, match="larger than 4 MiB"):
        policy.load(path)
    path.write_text("x\n" * 1_000_000)
    with pytest.raises(PolicyError, match=r"policy\.toml:1: it is not TOML"):
        policy.load(path)


_PARTS = ".".join(["a"] * 30_000)
_MANY = 300_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(f"{_PARTS} = 1", "a key has more than 8 dotted parts", id="key"),
        pytest.param(f"[{_PARTS}]", "a key has more than 8 dotted parts", id="table"),
        pytest.param(f"[[ {_PARTS} ]]", "a key has more than 8 dotted parts", id="array of tables"),
        pytest.param(
            f"x = {{ y = 1, {_PARTS} = 1 }}",
            "a key has more than 8 dotted parts",
            id="inline table",
        ),
        pytest.param(
            '[ "a" . ' + ".".join(["'b'"] * 16_000) + " ]", "a key has more than 8", id="quoted"
        ),
        pytest.param(
            "\n".join(f"[a{n}.b]" for n in range(_MANY)), "more than 10000 different", id="tables"
        ),
        pytest.param(
            "\n".join(f"a{n}.b=1" for n in range(_MANY)), "more than 10000 different", id="keys"
        ),
        pytest.param(
            "\n".join(f"[['{n}'.b]]" for n in range(_MANY // 2)),
            "more than 10000 different",
            id="quoted tables",
        ),
        pytest.param("x = " + "{a=" * 21_000, "nested too deeply", id="inline depth"),
        pytest.param("x = " + "[" * 65_000, "nested too deeply", id="array depth"),
        pytest.param("x = " + "9" * 65_000, "too many digits", id="digits"),
        pytest.param(("a . " * 16_000 + "\n") * 60, "", id="dots that are no key"),
        pytest.param(("." * 65_000 + "\n") * 60, "", id="nothing but dots"),
        pytest.param(("a.b " * 16_000 + "\n") * 60, "", id="words"),
        pytest.param((""" "'" """ * 10_000 + "\n") * 60, "", id="quotes"),
    ],
)
def test_a_text_that_would_take_gigabytes_takes_a_sentence(
    tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "huge.toml"
    file.write_text(text)
    script = """
import resource, sys
from pathlib import Path
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.parse import load
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    load(Path(sys.argv[1]))
except PolicyError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, file], capture_output=True, text=True, check=True
    )
    assert why in done.stdout
    assert done.stdout.count("\n") == 1
    assert len(done.stdout) < 500


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        policy.load(tmp_path / "absent.toml")
    with pytest.raises(PolicyError, match="is a directory"):
        policy.load(tmp_path)
    with pytest.raises(PolicyError, match="not a regular file"):
        policy.load(Path("/dev/null"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PolicyError, match="not a regular file"):
        policy.load(tmp_path / "fifo")
    with pytest.raises(PolicyError, match="file name too long"):
        policy.load(tmp_path / ("n" * 300))
    with pytest.raises(PolicyError, match="not a directory"):
        policy.load(Path("/etc/passwd/x"))
    (tmp_path / "latin.toml").write_bytes(b"# one\n# caf\xe9\n")
    with pytest.raises(PolicyError, match=r"latin\.toml:2: it is not UTF-8"):
        policy.load(tmp_path / "latin.toml")

# SPDX-License-Identifier: Apache-2.0
"""What is kept between starts: only what proves itself is used, anything else is said once
and made anew.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmm_ebpf.loader import cache

KEY = {"sources": "0123", "flags": ["-DA=1"]}
OTHER = {"sources": "0123", "flags": ["-DA=2"]}
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setattr(cache, "FOLDER", path)
    monkeypatch.setattr(cache, "_said", set())
    return path


pytestmark = pytest.mark.root  # the cache trusts root's files alone


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    monkeypatch.setattr(cache.log, "propagate", True)
    caplog.set_level(logging.WARNING, cache.log.name)
    return lambda: [record.getMessage() for record in caplog.records]


def kept_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_kept_is_found_by_its_whole_key(folder: Path, said) -> None:
    assert cache.read("programs", KEY) is None
    assert cache.write("programs", KEY, {"a": "00"})
    assert cache.read("programs", KEY) == {"a": "00"}
    assert cache.read("programs", OTHER) is None and cache.read("features", KEY) is None
    assert said() == []


def test_only_root_reads_and_writes_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        cache.write("programs", KEY, 1)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kept_file(folder).stat().st_mode & 0o777 == 0o600


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" " * cache.MAX_ENTRY_BYTES)


def _exchange(path: Path) -> None:
    """Another key's entry under this key's name."""
    cache.write("programs", OTHER, {"a": "ff"})
    (other,) = set(path.parent.iterdir()) - {path}
    other.rename(path)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (_truncate, "is damaged"),
        (_empty, "is damaged"),
        (_flip, "is damaged"),
        (_lengthen, "is damaged"),
        (_exchange, "was made for something else"),
        (_link, "is a symbolic link"),
        (_fifo, "is not a regular file"),
        (lambda path: os.chown(path, NOBODY, 0), "belongs to uid 65534, not to root"),
        (lambda path: path.chmod(0o620), "has mode 0620, so others may write to it"),
        (lambda path: path.chmod(0o602), "has mode 0602, so others may write to it"),
    ],
)
def test_a_file_that_is_not_to_be_trusted_is_refused_and_replaced(
    folder: Path, said, harm, why: str
) -> None:
    cache.write("programs", KEY, {"a": "00"})
    path = kept_file(folder)
    harm(path)
    assert cache.read("programs", KEY) is None
    assert cache.read("programs", KEY) is None
    (sentence,) = said()
    assert sentence.startswith(f"{path} {why}")
    assert cache.write("programs", KEY, {"a": "11"})
    assert cache.read("programs", KEY) == {"a": "11"}
    assert len(said()) == 1


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: os.chown(path, NOBODY, 0), "belongs to uid 65534, not to root"),
        (lambda path: path.chmod(0o777), "has mode 0777, so others may write to it"),
        (
            lambda path: (path.rename(f"{path}.old"), path.symlink_to(f"{path}.old")),
            "is not a directory",
        ),
    ],
)
def test_a_folder_that_is_not_to_be_trusted_is_neither_read_nor_written(
    folder: Path, said, harm, why: str
) -> None:
    cache.write("programs", KEY, {"a": "00"})
    harm(folder)
    before = sorted(folder.iterdir())
    assert cache.read("programs", KEY) is None
    assert not cache.write("programs", OTHER, {"a": "11"})
    (sentence,) = said()
    assert sentence.startswith(f"{folder} {why}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "why"), [("size=4k", "No space left"), ("ro", "Read-only file system")]
)
def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path, options: str, why: str) -> None:
    source = (
        "import logging; from pathlib import Path; from dmm_ebpf.loader import cache\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        f"cache.FOLDER = Path({str(tmp_path)!r}) / 'cache'\n"
        "print(cache.write('programs', {'a': 1}, 'x' * 10000), cache.read('programs', {'a': 1}),\n"
        "      *(cache.FOLDER.iterdir() if cache.FOLDER.exists() else ()))\n"
    )
    mount = f'mount -t tmpfs -o {options} none {tmp_path} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, sys.executable, source],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "False None\n"
    assert done.stderr.count("\n") == 1 and why in done.stderr


def test_entries_that_were_not_used_for_longest_are_forgotten(folder: Path) -> None:
    cache.write("programs", {"n": 0}, 0)
    cache.write("programs", {"n": 1}, 1)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert cache.read("programs", {"n": 0}) == 0  # used again
    (folder / "programs-0.123.part").write_bytes(b"of a writer that was killed")
    os.utime(folder / "programs-0.123.part", (1, 1))
    for n in range(2, cache.MAX_ENTRIES + 1):
        assert cache.write("programs", {"n": n}, n)
    found = [n for n in range(cache.MAX_ENTRIES + 1) if cache.read("programs", {"n": n}) == n]
    assert found == [0, *range(2, cache.MAX_ENTRIES + 1)]
    assert len(list(folder.iterdir())) == cache.MAX_ENTRIES


def test_a_reader_beside_writers_never_sees_half_a_file(folder: Path, said) -> None:
    cache.write("programs", KEY, "x" * 50_000)
    source = (
        "from pathlib import Path; from dmm_ebpf.loader import cache\n"
        f"cache.FOLDER = Path({str(folder)!r})\n"
        f"for _ in range(300): assert cache.write('programs', {KEY!r}, 'x' * 50_000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", source]) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        assert cache.read("programs", KEY) == "x" * 50_000
    assert [writer.wait() for writer in writers] == [0, 0]
    assert said() == [] and len(list(folder.iterdir())) == 1

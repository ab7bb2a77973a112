# SPDX-License-Identifier: Apache-2.0
"""What a start needs and what it can do without: the compiler, what was kept of it, packages it
has no use for.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from heavy import HEAVY

from dmm_ebpf.loader import cache
from dmm_ebpf.loader import compile as compiler
from lab import Cgroup, Lab

CLI = (sys.executable, "-m", "dmm_ebpf.cli.main")
MACHINE_ONLY = re.compile("DMM_(TASK|CRED|CGROUP|KN)")

USER_POLICY = """
[stacks.wan]
kind = "user"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "default"
stack = "wan"
"""

Apart = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def apart(tmp_path: Path, no_leaks: None) -> Apart:
    """Runs a command with a /var/cache of this test's own, and, if so wanted, where BCC
    cannot be imported.
    """
    folder, empty = tmp_path / "cache", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    spec = importlib.util.find_spec("bcc")
    assert spec is not None and spec.submodule_search_locations
    bcc = spec.submodule_search_locations[0]

    def run(*words: str, without_bcc: bool = False) -> subprocess.CompletedProcess[str]:
        mounts = f"mount --bind {folder} /var/cache && "
        if without_bcc:
            mounts += f"mount --bind {empty} {bcc} && "
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", mounts + 'exec "$@"', "sh", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/dmm-ebpf").glob("programs-*"))


def test_a_start_that_finds_its_programs_kept_needs_no_compiler(
    apart: Apart, tmp_path: Path, instance: Callable[[], str]
) -> None:
    run = (*CLI, "run", "--instance", instance(), "--", "echo", "ran")
    cold = apart(*run, without_bcc=True)
    assert (cold.returncode, cold.stdout) == (69, "")
    assert cold.stderr.count("\n") == 1
    assert "cannot compile the BPF programs: " in cold.stderr and "does not find BCC" in cold.stderr

    first = apart(*run)
    assert (first.returncode, first.stdout, first.stderr) == (0, "ran\n", "")
    (made,) = kept(tmp_path)
    warm = apart(*run, without_bcc=True)
    assert (warm.returncode, warm.stdout, warm.stderr) == (0, "ran\n", "")
    assert kept(tmp_path) == [made]


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "foreground"])
def test_an_attach_without_compiler_or_cache_is_one_sentence(
    apart: Apart, instance: Callable[[], str], cgroup: Cgroup, daemon: bool
) -> None:
    words = (
        "attach",
        "--cgroup",
        cgroup.relative,
        "--instance",
        instance(),
        *(["--daemon"] if daemon else []),
    )
    done = apart(*CLI, *words, without_bcc=True)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.count("\n") == 1
    assert "does not find BCC" in done.stderr and "install python3-bpfcc" in done.stderr


def test_what_install_keeps_serves_another_kernel_too(
    apart: Apart, tmp_path: Path, instance: Callable[[], str]
) -> None:
    """What was compiled for this kernel is taken away: then it is to the rest what another
    kernel would be.
    """
    done = apart(*CLI, "compile")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4
    for path in kept(tmp_path):
        if MACHINE_ONLY.search(path.read_text()):
            path.unlink()
    assert len(kept(tmp_path)) == 3
    warm = apart(*CLI, "run", "--instance", instance(), "--", "echo", "ran", without_bcc=True)
    assert (warm.returncode, warm.stdout, warm.stderr) == (0, "ran\n", "")


# What takes long to import and has nothing to do with starting.
def imported(stderr: str) -> set[str]:
    """Modules, as `python -X importtime` lists them."""
    return {
        line.rpartition("|")[2].strip()
        for line in stderr.splitlines()
        if line.startswith("import time:")
    }


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user stack"])
def test_a_start_imports_nothing_heavy(
    lab: Lab, instance: Callable[[], str], tmp_path: Path, user: bool
) -> None:
    host, peer = lab.host("host"), lab.host("peer")
    lab.wire(host, peer)
    policy = tmp_path / "policy.toml"
    policy.write_text(USER_POLICY)
    options = ("--policy", str(policy)) if user else ()
    python = (sys.executable, "-X", "importtime", "-m", "dmm_ebpf.cli.main")
    done = host.run([*python, "run", "--instance", instance(), *options, "--", "echo", "ran"])
    assert done.stdout == "ran\n"
    found = imported(done.stderr)
    assert {"dmm_ebpf.rd.life.attaching", "asyncio"} <= found
    assert not [name for name in found if name.startswith(HEAVY)]


def test_programs_of_another_bcc_are_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    compiler.compile_programs.cache_clear()
    first = compiler.compile_programs(())
    (path,) = (tmp_path / "cache").iterdir()
    before = path.stat().st_ino
    for version, same in ((compiler.bcc_version(), True), ("newer", False)):
        monkeypatch.setattr(compiler, "bcc_version", lambda version=version: version)
        compiler.compile_programs.cache_clear()
        assert compiler.compile_programs(()) == first
        assert (path.stat().st_ino == before) is same
    compiler.compile_programs.cache_clear()


def test_a_cache_that_is_damaged_is_said_once_and_made_anew(
    apart: Apart, tmp_path: Path, instance: Callable[[], str]
) -> None:
    run = (*CLI, "run", "--instance", instance(), "--", "echo", "ran")
    assert apart(*run).returncode == 0
    (path,) = kept(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    done = apart(*run)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.count("\n") == 1
    assert f"{cache.FOLDER / path.name} is damaged" in done.stderr
    again = apart(*run, without_bcc=True)
    assert (again.returncode, again.stdout, again.stderr) == (0, "ran\n", "")


def test_a_cache_that_cannot_be_written_is_no_error(
    apart: Apart, instance: Callable[[], str]
) -> None:
    read_only = f"mount -o remount,bind,ro /var/cache && exec {' '.join(CLI)} run -i {instance()} -- echo ran"
    done = apart("sh", "-c", read_only)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    done = apart("sh", "-c", f"mount -o remount,bind,ro /var/cache && exec {' '.join(CLI)} compile")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"cannot keep compiled programs in {cache.FOLDER}: " in done.stderr

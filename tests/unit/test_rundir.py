# SPDX-License-Identifier: Apache-2.0
"""The run directory: names, the lock between Resource Directors, and state that survives
being cut off.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmm_ebpf.errors import ConflictError, DmmError, UsageError
from dmm_ebpf.hal import netns
from dmm_ebpf.rd.director import rundir
from dmm_ebpf.rd.director.rundir import RunDir, StackState, State


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "ROOT", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-x", "a.b", "_a", "x" * 33, "ü", "a b", "a\n"]
)
def test_a_name_that_could_leave_the_directory_is_refused(name):
    with pytest.raises(UsageError, match="cannot use the instance name"):
        RunDir(name)


def test_state_comes_back_as_it_was_saved(root):
    run = RunDir("default")
    run.claim()
    state = State(
        "default",
        1,
        "/cg",
        42,
        stacks=[StackState("wan", 1, 3, "dmm-3", ["eth0"], 7, 99)],
        nics={"eth0": 0},
    )
    run.save(state)
    assert run.load() == state
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert rundir.all_states() == [state]


def test_a_folder_in_the_place_of_a_state_is_none(root):
    """Nobody else's instance may depend on it."""
    (root / "odd" / "state.json").mkdir(parents=True)
    assert RunDir("odd").load() is None
    assert rundir.all_states() == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path / "file" / "run", "not a directory"),
        (Path("/proc/dmm"), "no such file"),
    ):
        monkeypatch.setattr(rundir, "ROOT", place)
        with pytest.raises(DmmError, match=rf"cannot write {place}/.lock: {why}"):
            RunDir("default").claim()


def test_a_namespace_is_told_from_a_later_one_of_its_inode(root):
    inode, cookie = netns.identity()
    for name, of in (("now", cookie), ("before", cookie - 1), ("old", 0)):
        run = RunDir(name)
        run.claim()
        run.save(State(name, 1, "/cg", inode, of))
    with netns.NetNS.from_arg() as here:
        assert [RunDir(name).load().is_in(here) for name in ("now", "before", "old")] == [
            True,
            False,
            True,
        ]
    seen = {state.instance: state.netns_inode for state in rundir.all_states()}
    assert seen == {"now": inode, "before": 0, "old": inode}


def test_a_state_of_an_older_version_has_no_cookie(root):
    run = RunDir("default")
    run.claim()
    run.save(State("default", 1, "/cg", 42, 7))
    raw = json.loads((run.path / "state.json").read_text())
    del raw["netns_cookie"]
    (run.path / "state.json").write_text(json.dumps(raw))
    assert run.load() == State("default", 1, "/cg", 42, 0)


def test_a_foreign_state_file_is_no_state(root):
    run = RunDir("default")
    run.claim()
    for text in ("", "{", "[]", '{"instance": 1}', json.dumps({"x": 1})):
        (run.path / "state.json").write_text(text)
        assert run.load() is None


def test_a_second_director_is_told_who_has_the_instance(root):
    first, second = RunDir("default"), RunDir("default")
    first.claim()
    assert second.is_locked()
    with pytest.raises(ConflictError, match=f"pid {os.getpid()} serves it already"):
        second.claim()
    assert first.remove()
    assert not second.is_locked()
    assert not second.remove()
    assert not root.exists(), "the last instance takes the common directory along"


def test_the_common_directory_stays_while_an_instance_does(root):
    first, second = RunDir("a"), RunDir("b")
    first.claim()
    second.claim()
    assert first.remove()
    assert second.path.is_dir()
    with rundir.host_lock():
        assert (root / ".lock").exists()
    assert second.remove()
    assert not root.exists()


MOUNTED = """
mount -t tmpfs none /run && mkdir /run/dmm-ebpf && mount -t tmpfs none /run/dmm-ebpf && exec "$@"
"""


@pytest.mark.root
def test_a_run_directory_that_is_a_mount_hides_no_error():
    """As a volume of the container that the director runs in; rmdir(2) says EBUSY."""
    attach = [
        sys.executable,
        "-m",
        "dmm_ebpf.cli.main",
        "attach",
        "--cgroup",
        "/no-such",
        "--instance",
        "mounted",
    ]
    words = ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", *attach]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "dmm-ebpf: cannot use the cgroup /no-such: there is no such cgroup"
    )

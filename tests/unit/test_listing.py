# SPDX-License-Identifier: Apache-2.0
"""Directories that go away at the worst moment: after somebody saw that they are there, before
they are listed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dmm_ebpf import listing, loader
from dmm_ebpf.hal import netns, procgroup
from dmm_ebpf.loader import bpffs
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.api import client
from dmm_ebpf.rd.director import rundir
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.life import detaching


@pytest.fixture
def going(tmp_path, monkeypatch):
    """Makes a directory in a directory, which goes away with all in it when it is about
    to be listed.
    """

    def make(inside="one"):
        folder = tmp_path / "going"
        (folder / inside).mkdir(parents=True)
        waiting = [folder]
        for name in ("listdir", "scandir"):
            monkeypatch.setattr(os, name, _after_removal(getattr(os, name), waiting))
        return folder

    yield make
    assert not (tmp_path / "going").exists(), "nobody listed it"


def _after_removal(real, waiting):
    def listed(path="."):
        if waiting and not isinstance(path, int) and Path(path) == waiting[0]:
            shutil.rmtree(waiting.pop())
        return real(path)

    return listed


def test_what_is_gone_lists_as_nothing_and_what_may_not_be_listed_is_an_error(going, tmp_path):
    assert listing.entries(going()) == []
    (tmp_path / "b" / "folder").mkdir(parents=True)
    (tmp_path / "b" / "a").touch()
    assert [path.name for path in listing.entries(tmp_path / "b")] == ["a", "folder"]
    assert [path.name for path in listing.folders(tmp_path / "b")] == ["folder"]
    with pytest.raises(NotADirectoryError):
        listing.entries(tmp_path / "b" / "a")


@pytest.mark.parametrize("listed", [client.instances, detaching.instances, rundir.all_states])
def test_the_last_instance_ends_while_instances_are_listed(going, monkeypatch, listed):
    monkeypatch.setattr(rundir, "ROOT", going())
    monkeypatch.setattr(bpffs, "top", lambda: None)
    assert listed() == []


def test_the_last_instances_pins_go_while_instances_are_listed(going, monkeypatch):
    folder = going()
    monkeypatch.setattr(bpffs, "top", lambda: folder)
    assert loader.instances() == []


def test_pins_that_somebody_else_removes_are_detached(going, tmp_path, monkeypatch):
    monkeypatch.setattr(bpffs, "FOLDERS", (going().name,))
    monkeypatch.setattr(bpffs, "instance_dir", lambda _: tmp_path)
    loader.detach("x")
    assert not tmp_path.exists()
    tmp_path.mkdir()


def test_the_cgroups_of_processes_that_somebody_else_removes_are_gone(going, monkeypatch):
    folder = going()
    monkeypatch.setattr(procgroup, "ROOT_NAME", folder.parent.name)
    procgroup.remove_all(folder.parent.parent, folder.name)


def test_a_cgroup_that_somebody_else_removes_is_gone(going):
    assert cgroups.dissolve(going()) == []


def test_no_namespace_has_a_name_any_more(going, monkeypatch):
    monkeypatch.setattr(netns, "_RUN_DIRS", (going(),))
    assert netns.name_of(1) is None


def test_files_that_a_stack_process_takes_along_do_not_keep_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "ROOT", tmp_path / "run")
    run = RunDir("x")
    run.claim()
    (run.path / "stack-wan.sock").touch()
    real = os.unlink

    def others_were_faster(path, *, dir_fd=None):
        real(path, dir_fd=dir_fd)
        real(path, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", others_were_faster)
        assert run.remove()
    assert not rundir.ROOT.exists()

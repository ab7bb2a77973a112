# SPDX-License-Identifier: Apache-2.0
"""Rules by the file that a process executes: how the file is found, waited for and asked about."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_lab import Cli
from policy_parsing import parse

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError, PrivilegeError, UsageError
from dmm_ebpf.hal import exefile
from dmm_ebpf.hal.inotify import EntryWatch
from dmm_ebpf.rd.director import executables, hostcheck, sync
from dmm_ebpf.rd.policy.compile import NO_FILE, compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.usual import LINUX

RULE = '[[rules]]\n{}\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "reject"\n'


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A program, a link to it, a script, and a folder."""
    shutil.copy("/bin/sleep", tmp_path / "app-1")
    (tmp_path / "app").symlink_to("app-1")
    (tmp_path / "tool").write_text("#!/bin/sh -e\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_a_file_is_the_one_that_a_process_executes(here: Path) -> None:
    file = exefile.identify(here / "app")
    assert file is not None and file == exefile.identify(here / "app-1")
    assert file.inode == (here / "app-1").stat().st_ino
    with subprocess.Popen([here / "app", "600"]) as process:
        assert exefile.of_process(process.pid) == file
        # As a package manager puts another version in place
        shutil.copy("/bin/sleep", here / "new")
        (here / "new").rename(here / "app-1")
        now = exefile.identify(here / "app")
        assert now is not None and now != file
        assert exefile.of_process(process.pid) == file
        process.kill()
    assert exefile.of_process(process.pid) is None
    assert exefile.identify("/proc/self/exe") == exefile.of_process(os.getpid())


@pytest.mark.parametrize("path", ["nothing", "folder", "app-1/below"])
def test_what_is_no_file_is_none(here: Path, path: str) -> None:
    assert exefile.identify(here / path) is None
    assert executables.find(str(here / path)) == NO_FILE


def test_the_way_to_a_file_goes_over_its_links(here: Path) -> None:
    (here / "alternatives").mkdir()
    (here / "alternatives/app").symlink_to(here / "folder/../app")
    (here / "folder/run").symlink_to("../alternatives/app")
    (here / "round").symlink_to("round")
    way = list(exefile.way(str(here / "folder/run")))
    assert way[0] == (Path("/"), os.fsencode(here.parts[1]))
    below = [(str(at.relative_to(here)), name) for at, name in way if at.is_relative_to(here)]
    assert below == [
        (".", b"folder"),
        ("folder", b"run"),
        (".", b"alternatives"),
        ("alternatives", b"app"),
        (".", b"folder"),
        (".", b"app"),
        (".", b"app-1"),
    ]
    assert len(list(exefile.way(str(here / "round")))) < 100
    assert list(exefile.way("/no-such/a"))[-1] == (Path("/no-such"), b"a")


@pytest.mark.parametrize(
    "change",
    [
        lambda at: (at / "app-1").unlink(),
        lambda at: shutil.copy("/bin/true", at / "app-2") and (at / "app-2").rename(at / "app-1"),
        lambda at: (at / "app").unlink(),
        lambda at: at.rename(at.with_name("elsewhere")),
    ],
)
def test_what_may_change_the_file_is_heard_of(here: Path, change: Callable[[Path], object]) -> None:
    wanted: dict[Path, set[bytes]] = {}
    for folder, name in exefile.way(str(here / "app")):
        wanted.setdefault(folder, set()).add(name)
    with EntryWatch() as watch:
        watch.follow(wanted)
        (here / "other").touch()
        assert not watch.drain()
        change(here)
        assert select.select([watch.fileno()], [], [], 5)[0]
        assert watch.drain()


def test_a_script_names_its_interpreter(here: Path) -> None:
    (here / "empty").write_text("#!\n")
    (here / "bytes").write_bytes(b"#!\xff\xfe\n")
    found = [
        exefile.interpreter(str(here / name)) for name in ("tool", "app", "empty", "bytes", "x")
    ]
    assert found == ["/bin/sh", None, None, None, None]


@pytest.mark.parametrize(
    "value", ['"curl"', '"/usr/bin/"', '"/"', '""', '"/usr/../bin/curl"', "7", "[]", '"/a\\u0000"']
)
def test_paths_that_are_refused(value: str) -> None:
    with pytest.raises(PolicyError, match="rule 1, executable: "):
        parse(RULE.format(f"executable = {value}"))


def test_rules_are_compiled_for_files_that_are_there_or_not() -> None:
    found = {"/bin/a": (3, 40), "/bin/b": NO_FILE}
    policy = parse(
        RULE.format('executable = ["//bin/a", "/bin/b"]\nnot = { executable = "/bin/a" }')
    )
    out = compile_policy(
        policy, IdSpace(), lambda _path: (0, 0), executable_lookup=found.__getitem__
    )
    assert [(one.exe_device, one.exe_inode) for one in out.rules] == [(3, 40), (3, 40), NO_FILE]
    assert {one.flags for one in out.rules} == {C.DMM_RULE_EXECUTABLE}
    assert [one.skip for one in out.rules] == [2, 0, 0]
    assert policy.rules[0].text() == "executable /bin/a,/bin/b not executable /bin/a"
    waiting = hostcheck.pending(policy, out)
    assert [(one.number, one.cgroup, one.executable) for one in waiting] == [(1, None, "/bin/b")]


def test_listeners_are_held_against_the_file_that_they_were_opened_by() -> None:
    policy = parse(RULE.format('executable = "/bin/a"'))
    out = compile_policy(
        policy, IdSpace(), lambda _path: (0, 0), executable_lookup=lambda _path: (3, 40)
    )
    key = abi.new("dmm_listener_key")
    for file, rule in (((3, 40), 1), ((4, 40), 0), ((3, 41), 0), ((0, 0), 0)):
        listener = abi.new("dmm_listener", exe_device=file[0], exe_inode=file[1])
        assert sync.listener_table(out.rules, key, listener, lambda *_: False)[1] == rule


def test_a_kernel_that_cannot_tell_refuses_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = hostcheck.HostFacts(("cubic",), LINUX)
    policy = parse(RULE.format('uid = 1\nnot = [{ executable = ["/bin/a", "/bin/b"] }]'))
    monkeypatch.setattr(executables, "reads_executables", lambda: True)
    assert list(hostcheck.host_errors(policy, facts, {})) == []
    monkeypatch.setattr(executables, "reads_executables", lambda: False)
    with pytest.raises(
        PolicyError, match=r"rule 1, executable: .* who executes /bin/a .*BTF"
    ) as told:
        facts.compile(policy, IdSpace())
    assert "\n" not in str(told.value)
    assert [str(one) for one in hostcheck.host_errors(policy, facts, {})] == [str(told.value)]

    def may_not() -> bool:
        raise PrivilegeError("load BPF programs", why="not root")

    monkeypatch.setattr(executables, "reads_executables", may_not)
    assert list(hostcheck.host_errors(policy, facts, {})) == []


def test_what_is_asked_about_may_be_another_path_of_the_same_file(here: Path) -> None:
    policy = parse(RULE.format(f'executable = "{here}/app"'))
    for asked, rule in (
        (here / "app", 1),
        (here / "app-1", 1),
        (here / "tool", 0),
        (f"{here}/x (deleted)", 0),
    ):
        query = executables.by_file(policy, Query("192.0.2.1", executable=str(asked)))
        assert route_get(policy, query).rule == rule
    unsaid = route_get(policy, executables.by_file(policy, Query("192.0.2.1")))
    assert (unsaid.rule, unsaid.unasked[0][1]) == (0, ("executable",))
    with pytest.raises(UsageError, match="there is no file /no/such, and no rule waits for it"):
        executables.by_file(policy, Query("192.0.2.1", executable="/no/such"))
    waits = parse(RULE.format('executable = "/no/such"'))
    query = executables.by_file(waits, Query("192.0.2.1", executable="/no/such"))
    assert route_get(waits, query).rule == 1
    with pytest.raises(UsageError, match="is not an executable file's path"):
        Query.from_params({"addr": "192.0.2.1", "executable": "curl"})


def test_a_policy_file_is_asked_by_path_and_by_process(cli: Cli, here: Path) -> None:
    file = here / "p.toml"
    file.write_text(RULE.format(f'executable = "{here}/app"'))
    asked = ("route", "get", "192.0.2.1:80", "--policy", str(file), "--json")
    assert cli(*asked, "--executable", f"{here}/app-1").json["stack"] == "reject"
    with subprocess.Popen([here / "app", "600"]) as process:
        assert cli(*asked, "--pid", str(process.pid)).json["stack"] == "reject"
        (here / "app-1").unlink()  # as an update that its service has not heard of
        assert cli(*asked, "--pid", str(process.pid)).json["stack"] == "kernel"
        process.kill()
    assert cli(*asked, "--pid", str(os.getpid())).json["stack"] == "kernel"
    said = cli(
        "policy", "explain", "192.0.2.1", "--policy", str(file), "--executable", sys.executable
    )
    assert f"executable is {sys.executable}, and it asks for {here}/app" in said.out
    file.with_suffix(".expect").write_text(f"192.0.2.1 executable {here}/app -> reject\n")
    assert cli("policy", "test", str(file)).code == 0


def test_what_is_told_of_files_on_this_host(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "reads_executables", lambda: True)
    file = here / "p.toml"
    paths = ", ".join(f'"{here}/{name}"' for name in ("app", "tool", "*p"))
    file.write_text(RULE.format(f"executable = [{paths}]"))
    texts = [one["text"] for one in cli("policy", "check", str(file), "--json").json["warnings"]]
    assert [f"{here}/*p is a path, and matches only a file" in one for one in texts] == [True]
    told = cli("policy", "check", "--host", str(file), "--json").json["warnings"]
    assert [one["text"].rpartition(": ")[2] for one in told[1:]] == [
        f"{here}/tool is a script, which no process executes; its processes execute /bin/sh",
        f"the file {here}/*p does not exist on this host, and is waited for",
    ]

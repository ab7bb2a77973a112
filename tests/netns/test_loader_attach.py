# SPDX-License-Identifier: Apache-2.0
"""attach, adopt, detach against the kernel: whole or not at all, beside other programs,
from any namespace.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from bpf_lab import Agent, Policy, counter, netns_cookie, u32
from foreign import ALLOW, program_on

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.errors import ConflictError, DmmError, NotAttachedError, UsageError
from dmm_ebpf.loader import ahead, bpf, bpffs, programs, restore
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader.bpf import AttachType, ProgType
from dmm_ebpf.loader.spec import MAPS, PROGRAMS, hooks
from lab import Cgroup, Host, Lab
from lab.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
# Returns 1 without looking: r0 = 1; exit.
CHOICE = C.DMM_CONTROL_CHOICE
HOOKS = len(hooks(0))


@pytest.fixture
def made(lab: Lab, instance: Callable[[], str]) -> Iterator[Callable[..., loader.Attached]]:
    """Attaches to a cgroup under a fresh name, in the namespace of a new host; all of it is
    detached at the end.
    """
    with ExitStack() as stack:
        host = lab.host("h")

        def attach(group: Cgroup, name: str = "", where: Host = host) -> loader.Attached:
            name = name or instance()
            stack.callback(loader.detach, name)
            attached = loader.attach(name, group.path, netns_cookie=netns_cookie(where))
            stack.callback(attached.close)
            return attached

        yield attach


def attached_programs(group: Cgroup, asked: int = 0) -> dict[int, list[int]]:
    """attach type to program ids, as the kernel lists them for a cgroup."""
    fd = os.open(group.path, os.O_RDONLY)
    try:
        return {s.attach_type: bpf.prog_query(fd, s.attach_type)[1] for s in hooks(asked)}
    finally:
        os.close(fd)


def our_objects(instance_maps: set[int]) -> set[int]:
    """Which of these map ids still exist (bpftool)."""
    listed = json.loads(
        subprocess.run(["bpftool", "-j", "map"], check=True, capture_output=True, text=True).stdout
    )
    return instance_maps & {entry["id"] for entry in listed}


def descriptors_open() -> set[str]:
    """File descriptors of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def nothing_attached(group: Cgroup) -> bool:
    """Whether no program is on the cgroup."""
    return not any(attached_programs(group, CHOICE).values())


def test_attach_links_pins_and_fills_control_in(made, cgroup: Cgroup) -> None:
    attached = made(cgroup)
    assert all(len(ids) == 1 for ids in attached_programs(cgroup).values())
    assert attached.instance in loader.instances()
    assert attached.cgroup == cgroup.relative
    assert attached.cgroup_id == cgroups.cgroup_id(cgroup.path)
    pins = {str(p.relative_to(attached.folder)) for p in attached.folder.glob("*/*")}
    assert pins == (
        {f"maps/{s.name}" for s in MAPS}
        | {f"progs/{s.pin}" for s in PROGRAMS}
        | {f"links/{s.pin}" for s in hooks(0)}
    )
    control = attached.maps.control[0]
    assert (control.abi_version, control.generation) == (C.DMM_ABI_VERSION, 0)


def test_detach_leaves_nothing_and_may_be_repeated(made, cgroup: Cgroup) -> None:
    attached = made(cgroup)
    name, ids = attached.instance, {m.id for m in attached.maps.values()}
    removed = loader.detach(name)
    assert sum(text.startswith("link ") for text in removed) == HOOKS
    assert any(name in text for text in removed)
    assert (
        nothing_attached(cgroup) and not attached.folder.exists() and name not in loader.instances()
    )
    attached.close()
    wait_for(lambda: not our_objects(ids), 10, "the maps to be freed")
    assert loader.detach(name) == []


def test_detach_works_while_another_process_holds_the_links(made, cgroup: Cgroup) -> None:
    attached = made(cgroup)
    fds = [bpf.obj_get(str(path)) for path in (attached.folder / "links").iterdir()]
    try:
        loader.detach(attached.instance)
        assert nothing_attached(cgroup)
    finally:
        for fd in fds:
            os.close(fd)


def test_adopt_finds_the_same_maps_and_programs(made, cgroup: Cgroup) -> None:
    attached = made(cgroup)
    attached.maps["seats"].update(u32(4), bytes(abi.sizeof("dmm_seat")))
    attached.close()
    adopted = loader.adopt(attached.instance)
    try:
        assert adopted.maps["seats"].lookup(u32(4)) == bytes(abi.sizeof("dmm_seat"))
        assert adopted.cgroup_id == attached.cgroup_id and adopted.cgroup == cgroup.relative
        assert bpf.prog_info(adopted.ingress_fd()).name == "dmm_ingress"
    finally:
        adopted.close()


def test_adopt_knows_its_programs_without_loading_them(
    made, cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by loading them, on a kernel that hashes instructions in another way."""
    attached = made(cgroup)
    real, calls = programs.load_programs, []
    monkeypatch.setattr(
        programs, "load_programs", lambda *args: (calls.append(args), real(*args))[1]
    )
    loader.adopt(attached.instance).close()
    assert not calls
    monkeypatch.setattr(programs, "tags", lambda code: {name: set() for name in code})
    descriptors = descriptors_open()
    loader.adopt(attached.instance).close()
    assert len(calls) == 1 and descriptors_open() <= descriptors


def test_what_was_loaded_ahead_is_what_is_attached(
    made, cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = programs.load_programs, []
    monkeypatch.setattr(
        programs, "load_programs", lambda *args: (calls.append(args), real(*args))[1]
    )
    ahead.begin()
    wait_for(lambda: calls, 20, "loading to begin by itself")
    attached = made(cgroup)
    assert len(calls) == 1 and not nothing_attached(cgroup)
    loader.detach(attached.instance)
    made(cgroup)
    assert len(calls) == 2  # the next attach loads for itself


def test_what_fails_ahead_is_told_by_attach(
    made, cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise DmmError("load ahead", why="it was made to fail")

    descriptors = descriptors_open()
    with monkeypatch.context() as patched:
        patched.setattr(programs, "load_programs", failing)
        ahead.begin()
        with pytest.raises(DmmError, match="made to fail"):
            made(cgroup)
    assert descriptors_open() <= descriptors and nothing_attached(cgroup)
    made(cgroup)


def test_adopt_refuses_other_versions_and_halves(made, cgroup: Cgroup) -> None:
    attached = made(cgroup)
    name = attached.instance
    control = attached.maps.control[0]
    control.abi_version += 1
    attached.maps.control[0] = control
    with pytest.raises(ConflictError, match=f"ABI version {C.DMM_ABI_VERSION + 1}"):
        loader.adopt(name)
    newer = attached.folder / "maps" / "waited"
    newer.unlink()  # as of a version that did not have it yet
    with pytest.raises(ConflictError, match=f"ABI version {C.DMM_ABI_VERSION + 1}"):
        loader.adopt(name)
    bpf.obj_pin(attached.maps["waited"].fd, str(newer))
    first = attached.folder / "maps" / "control"
    first.unlink()
    with pytest.raises(ConflictError, match="half attached"):
        loader.adopt(name)
    bpf.obj_pin(attached.maps["control"].fd, str(first))
    control.abi_version -= 1
    attached.maps.control[0] = control
    pin = attached.folder / "progs" / "xdp"
    pin.unlink()
    with pytest.raises(ConflictError, match="half attached"):
        loader.adopt(name)
    fd = bpf.prog_load("dmm_xdp", ProgType.XDP, ALLOW, attach_type=AttachType.XDP)
    bpf.obj_pin(fd, str(pin))
    os.close(fd)
    with pytest.raises(ConflictError, match="dmm_xdp was loaded by another version"):
        loader.adopt(name)
    assert loader.detach(name)
    with pytest.raises(NotAttachedError):
        loader.adopt(name)


def test_an_instance_whose_cgroup_is_gone_is_adopted_and_hooked_to_the_new_one(
    made, cgroup: Cgroup
) -> None:
    child = cgroup.child("gone")
    attached = made(child)
    child.path.rmdir()
    wait_for(lambda: attached.cgroup is None, 5, "the cgroup to go")

    def on_none() -> bool:
        with closing(loader.adopt(attached.instance)) as adopted:
            return adopted.cgroup_id == 0

    wait_for(on_none, 10, "the links to be released")
    again = cgroup.child("gone")
    with closing(loader.adopt(attached.instance)) as adopted:
        assert len(restore.unhooked(adopted)) == HOOKS
        restore.hook(adopted, again.path)
        restore.pin(adopted)
        assert restore.unhooked(adopted) == []
        assert adopted.cgroup_id == cgroups.cgroup_id(again.path)
    assert all(len(ids) == 1 for ids in attached_programs(again).values())
    assert loader.detach(attached.instance)
    assert not any(attached_programs(again).values())


def test_a_name_is_attached_once(made, cgroup: Cgroup) -> None:
    attached = made(cgroup)
    with pytest.raises(ConflictError, match="attached already"):
        made(cgroup, attached.instance)
    assert all(len(ids) == 1 for ids in attached_programs(cgroup).values())
    assert len(list(attached.folder.glob("*/*"))) == len(MAPS) + len(PROGRAMS) + HOOKS


@pytest.mark.parametrize("name", ["", "a.b", "../x", "-x", "x" * 49, "a b", "a/b"])
def test_impossible_names_are_refused(cgroup: Cgroup, name: str) -> None:
    for call in (
        lambda: loader.attach(name, cgroup.path, netns_cookie=1),
        lambda: loader.adopt(name),
        lambda: loader.detach(name),
    ):
        with pytest.raises(UsageError, match="instance name"):
            call()


def test_a_cgroup_that_is_none_is_refused(
    instance: Callable[[], str], cgroup: Cgroup, tmp_path: Path
) -> None:
    for path, why in ((cgroup.path / "no", "No such file"), (tmp_path, "not in a cgroup v2")):
        with pytest.raises(UsageError, match=why):
            loader.attach(instance(), path, netns_cookie=1)
    with pytest.raises(UsageError, match="no such cgroup"):
        cgroups.resolve("/surely/not/here")


def test_cgroup_names_ids_and_levels(cgroup: Cgroup) -> None:
    deep = cgroup.child("a b").child("c\\d")
    assert cgroups.resolve(deep.relative) == deep.path == cgroups.resolve(str(deep.path))
    assert (
        cgroups.path_of(cgroups.cgroup_id(deep.path)) == deep.relative == cgroups.name_of(deep.path)
    )
    assert cgroups.level(deep.path) == 3 and cgroups.level(cgroups.find_cgroup2()) == 0
    assert cgroups.path_of(cgroups.cgroup_id(cgroups.find_cgroup2())) == "/"
    assert cgroups.path_of(2**40) is None


def test_the_kernel_tells_where_its_structs_have_what() -> None:
    """dev is in a struct in a union of sk_buff, neither of which has a name."""
    members = [("list_head", "prev"), ("sk_buff", "next"), ("sk_buff", "dev")]
    pointer = struct.calcsize("P")
    assert bpf.kernel_offsets(members) == [pointer, 0, 2 * pointer]
    for absent in (("sk_buff", "no_such_member"), ("no_such_struct", "next")):
        with pytest.raises(OSError) as raised:
            bpf.kernel_offsets([members[0], absent])
        assert raised.value.errno == errno.ENOENT


def test_two_instances_on_two_cgroups_coexist(made, make_cgroup, lab: Lab) -> None:
    groups = [make_cgroup(), make_cgroup()]
    both = [made(group) for group in groups]
    host = lab.hosts["h"]
    for attached, stack in zip(both, (1, 2), strict=True):
        Policy().rule(stack).stack(stack, C.DMM_STACK_KERNEL).route(
            stack, "0.0.0.0/0", stack
        ).apply(attached)
    for group, attached, stack in zip(groups, both, (1, 2), strict=True):
        agent = Agent(group, host)
        port = agent.listen("l", "127.0.0.1")
        agent.open("x")
        agent.connect("x", "127.0.0.1", port)
        flows = {f.cookie: f for f in attached.flows()}
        assert flows[agent.cookie("x")].decision.stack == stack
        assert counter(attached, C.DMM_CNT_CONNECT) == 1
    loader.detach(both[0].instance)
    assert loader.adopt(both[1].instance).cgroup == groups[1].relative


def test_hooks_that_cost_every_process_are_there_only_once_they_are_asked_for(
    made, cgroup: Cgroup
) -> None:
    """And stay with who takes the instance over, also if their pins were not made any more."""
    attached = made(cgroup)
    late = {spec.pin for spec in hooks(CHOICE)} - {spec.pin for spec in hooks(0)}
    assert late == {"getsockopt", "setsockopt"}
    assert sum(map(len, attached_programs(cgroup, CHOICE).values())) == HOOKS
    with closing(loader.adopt(attached.instance)) as adopted:
        assert restore.unhooked(adopted) == restore.removed(adopted) == []

    attached.asked |= CHOICE
    assert set(restore.unhooked(attached)) == late
    restore.hook(attached, cgroup.path)
    assert restore.unhooked(attached) == []
    assert restore.removed(attached) == []  # nobody has removed what has had no pin yet
    control = attached.maps.control[0]
    control.flags |= CHOICE
    attached.maps.control[0] = control
    with closing(loader.adopt(attached.instance)) as adopted:
        assert set(restore.unhooked(adopted)) == late
    restore.pin(attached)
    assert sum(map(len, attached_programs(cgroup, CHOICE).values())) == HOOKS + 2
    with closing(loader.adopt(attached.instance)) as adopted:
        assert restore.unhooked(adopted) == []
    (attached.folder / "links/setsockopt").unlink()
    assert restore.removed(attached) == ["links/setsockopt"]
    restore.pin(attached)
    assert loader.detach(attached.instance)
    assert nothing_attached(cgroup)


def test_an_exclusive_foreign_program_is_named_and_nothing_is_left(
    made, cgroup: Cgroup, instance: Callable[[], str]
) -> None:
    child = cgroup.child("below")
    with program_on(cgroup, "connect4"):
        for group in (cgroup, child):
            name = instance()
            with pytest.raises(ConflictError, match=r"\(foreign\).*exclusively"):
                made(group, name)
            assert name not in loader.instances()
        assert nothing_attached(child)
        assert sum(map(len, attached_programs(cgroup).values())) == 1


def test_a_sharing_foreign_program_stays(made, cgroup: Cgroup) -> None:
    with program_on(cgroup, "connect4", "multi"):
        attached = made(cgroup)
        assert len(attached_programs(cgroup)[AttachType.CGROUP_INET4_CONNECT]) == 2
        loader.detach(attached.instance)
        assert len(attached_programs(cgroup)[AttachType.CGROUP_INET4_CONNECT]) == 1


@pytest.mark.parametrize("step", ["create_maps", "load_programs", "pin_fd", "link_hook"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_failure_at_any_step_leaves_nothing(
    made,
    cgroup: Cgroup,
    instance: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: int,
) -> None:
    """The step fails at its first call, or after some of its calls have been made."""
    module = (
        programs if hasattr(programs, step) else importlib.import_module("dmm_ebpf.loader.attach")
    )
    real, calls = getattr(module, step), []

    def failing(*args: object) -> object:
        calls.append(step)
        if len(calls) > min(after, 0 if step.endswith("s") else after):
            raise DmmError("go on", why=f"{step} was made to fail")
        return real(*args)

    monkeypatch.setattr(module, step, failing)
    name = instance()
    descriptors = descriptors_open()
    with pytest.raises(DmmError, match="made to fail"):
        made(cgroup, name)
    assert name not in loader.instances() and bpffs.instance_dir(name) is None
    assert nothing_attached(cgroup)
    assert descriptors_open() <= descriptors


def test_an_attach_killed_half_way_is_refused_by_adopt_and_removed_by_detach(
    made, cgroup: Cgroup, instance: Callable[[], str]
) -> None:
    name = instance()
    source = (
        "import importlib, os, signal; from pathlib import Path\n"
        "a = importlib.import_module('dmm_ebpf.loader.attach')\n"
        "real, n = a.link_hook, []\n"
        "def link(*args):\n"
        "    n.append(1)\n"
        "    if len(n) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*args)\n"
        "a.link_hook = link\n"
        f"a.attach({name!r}, Path({str(cgroup.path)!r}), netns_cookie=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert name in loader.instances() and not nothing_attached(cgroup)
    with pytest.raises(ConflictError, match="half attached"):
        loader.adopt(name)
    with pytest.raises(ConflictError, match="attached already"):
        made(cgroup, name)
    assert loader.detach(name)
    assert nothing_attached(cgroup) and name not in loader.instances()


def test_everything_works_inside_ip_netns_exec(
    lab: Lab, cgroup: Cgroup, instance: Callable[[], str]
) -> None:
    """There, /sys is another mount: no bpffs and no cgroup v2 are in sight."""
    name, host = instance(), lab.host("inside")

    def inside(source: str) -> str:
        prelude = "from dmm_ebpf import loader; from dmm_ebpf.loader import cgroup as c, bpffs; import pathlib\n"
        command = ["ip", "netns", "exec", host.netns, sys.executable, "-c", prelude + source]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    try:
        assert inside(
            "print(pathlib.Path('/sys/fs/cgroup').exists() and any(pathlib.Path('/sys/fs/cgroup').iterdir()))"
        )
        inside(
            f"a = loader.attach({name!r}, c.resolve({cgroup.relative!r}), netns_cookie=5)\n"
            f"assert a.cgroup == {cgroup.relative!r}, a.cgroup"
        )
        outside = loader.adopt(name)
        assert outside.cgroup == cgroup.relative
        outside.close()
        assert inside("print(loader.instances())").count(name) == 1
        assert inside(f"print(loader.adopt({name!r}).cgroup)") == cgroup.relative
        assert "link connect4" in inside(f"print(loader.detach({name!r}))")
        assert nothing_attached(cgroup) and name not in loader.instances()
    finally:
        loader.detach(name)


def test_without_privileges_the_sentence_says_so(
    cgroup: Cgroup, instance: Callable[[], str]
) -> None:
    source = (
        "import os, sys; from pathlib import Path; from dmm_ebpf import loader; from dmm_ebpf.errors import DmmError\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "try:\n"
        f"    loader.attach({instance()!r}, Path({str(cgroup.path)!r}), netns_cookie=1)\n"
        "except DmmError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("PrivilegeError cannot"), done.stdout + done.stderr
    assert "run it as root" in done.stdout


def test_the_verifiers_last_words_are_shown(
    made, cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    # r0 = *(u64 *)(r1 + 4096): outside any context.
    bad = bytes.fromhex("7910001000000000 9500000000000000")
    real = programs.bind_maps
    monkeypatch.setattr(programs, "bind_maps", lambda code, fds: bad if code else real(code, fds))
    monkeypatch.setattr(programs, "LOG_FILE", Path("/run") / f"dmm-test-{os.getpid()}" / "log")
    try:
        with pytest.raises(
            DmmError, match=r"verifier says: .*invalid bpf_context access"
        ) as raised:
            made(cgroup)
        assert "whole log in" in str(raised.value)
        assert "invalid bpf_context access" in programs.LOG_FILE.read_text()
    finally:
        programs.LOG_FILE.unlink(missing_ok=True)
        programs.LOG_FILE.parent.rmdir()
    assert nothing_attached(cgroup)

# SPDX-License-Identifier: Apache-2.0
"""Rules by the file that a process executes: what the programs in the kernel see of it is what
user space finds, whatever file system it is on.
"""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bpf_lab import Bench, bench

from dmm_ebpf.abi import C
from dmm_ebpf.hal import exefile
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader import restore
from dmm_ebpf.loader.compile import reads_executables
from dmm_ebpf.rd.director import executables, groups, sync
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace

__all__ = ["bench"]

PYTHON = Path("/usr/bin/python3").resolve()
REFUSED = '[[rules]]\n{}\naction = "prohibit"\n'
# The errno of a call.
TRY = """
import socket, sys
with socket.socket(type=int(sys.argv[3])) as s:
    s.settimeout(10)
    address = (sys.argv[1], int(sys.argv[2]))
    try:
        s.sendto(b"x", address) if s.type == socket.SOCK_DGRAM else s.connect(address)
        print(0)
    except OSError as error:
        print(error.errno)
"""
LISTEN = """
import socket, sys
s = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read()
"""
CHOOSE = f"""
import socket
with socket.socket() as s:
    try:
        s.setsockopt({C.SOL_DMM}, {C.DMM_STACK}, b"k")
        print(0)
    except OSError as error:
        print(error.errno)
"""


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    """Undoes what mount() did."""
    with ExitStack() as stack:
        yield stack


def mount(undo: ExitStack, kind: str, place: Path, options: str = "", source: str = "none") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", kind, *(["-o", options] if options else []), source, str(place)]
    subprocess.run(words, check=True)
    undo.callback(subprocess.run, ["umount", str(place)], check=True)
    return place


def overlay(undo: ExitStack, base: Path, *lower: Path) -> Path:
    for name in ("upper", "work"):
        (base / name).mkdir(parents=True)
    layers = f"lowerdir={':'.join(map(str, lower))},upperdir={base}/upper,workdir={base}/work"
    return mount(undo, "overlay", base / "merged", layers)


def copied(folder: Path, name: str = "app") -> Path:
    """A program of its own, with all that Python has."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(PYTHON, folder / name)
    return folder / name


def put_in_force(bench: Bench, text: str, ids: IdSpace | None = None) -> int:
    parsed = policy.parse(text, source="p", base=Path("/"))
    compiled = compile_policy(
        parsed, ids or IdSpace(), groups.lookup, executable_lookup=executables.find
    )
    attached = bench.attached
    return sync.apply(attached.maps, compiled, listener_set=attached.set_listener_table)


def ran(bench: Bench, *argv: str | Path) -> int:
    done = bench.cgroup.run(argv, host=bench.a)
    return int(done.stdout)


def error_of(bench: Bench, program: Path, kind: int = socket.SOCK_STREAM) -> int:
    """Of its connection, or of its datagram."""
    return ran(bench, program, "-c", TRY, bench.b.ip4, str(bench.port), str(int(kind)))


def test_this_kernel_is_asked(bench: Bench) -> None:
    assert reads_executables()


@pytest.mark.parametrize(
    "place", ["plain", "tmpfs", "overlay", "overlay, written", "overlay of two", "bound"]
)
def test_a_program_is_known_on_every_file_system(
    bench: Bench, mounts: ExitStack, tmp_path: Path, place: str
) -> None:
    ram = mount(mounts, "tmpfs", tmp_path / "ram")  # takes an upper layer wherever /tmp is
    lower, program = copied(tmp_path / "lower"), ram / "merged/app"
    if place.startswith("overlay") and place != "overlay of two":
        lower = copied(ram / "lower")
    if place == "plain":
        program = lower
    elif place == "tmpfs":
        program = copied(ram)
    elif place == "bound":
        (tmp_path / "b").mkdir()
        mount(mounts, "none", tmp_path / "b", "bind", str(lower.parent))
        program = tmp_path / "b/app"
    elif place == "overlay of two":
        overlay(mounts, ram, copied(ram / "lower", "other").parent, lower.parent)
    else:
        overlay(mounts, ram, lower.parent)
    if place == "overlay, written":
        with program.open("ab") as file:  # so it is copied up
            file.write(b"\0")
    for rule in (f'executable = "{program}"', f'not = {{ executable = "{PYTHON}" }}'):
        put_in_force(bench, REFUSED.format(rule))
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            assert error_of(bench, program, kind) == errno.EACCES
            assert error_of(bench, PYTHON, kind) == 0
    # A layer's file is another one, and a bind mount's the same.
    put_in_force(bench, REFUSED.format(f'executable = "{lower}"'))
    same = place in ("plain", "bound")
    assert error_of(bench, program) == (errno.EACCES if same else 0)


def test_lists_links_and_scripts(bench: Bench, tmp_path: Path) -> None:
    one, two = copied(tmp_path / "1"), copied(tmp_path / "2")
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "hard").hardlink_to(two)
    script = tmp_path / "script"
    script.write_text(f"#!{one}\nimport sys\nexec(sys.argv.pop(1))\n")
    script.chmod(0o755)
    words = (TRY, bench.b.ip4, str(bench.port), "1")
    rule = f'executable = ["{tmp_path}/no", "{tmp_path}/link", "{tmp_path}/hard"]'
    put_in_force(bench, REFUSED.format(rule))
    assert error_of(bench, one) == error_of(bench, two) == errno.EACCES
    assert ran(bench, script, *words) == errno.EACCES
    put_in_force(bench, REFUSED.format(f'executable = "{script}"'))
    assert ran(bench, script, *words) == 0


def test_a_listener_is_known_by_it_when_it_begins_and_when_a_policy_changes(
    bench: Bench, tmp_path: Path
) -> None:
    program = copied(tmp_path / "1")
    text = '[[rules]]\nexecutable = "{}"\ndirection = "listen"\ntable = "t"\n'
    text += '[[tables.t.routes]]\nto = "default"\nstack = "kernel"\n'
    ids = IdSpace()
    put_in_force(bench, text.format(program), ids)
    process = bench.cgroup.spawn(
        [program, "-c", LISTEN, "7100"],
        host=bench.a,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    bench.agent.listen("l", "0.0.0.0", 7101)
    for named, rules in ((program, [1, 0]), (PYTHON, [0, 1]), (program, [1, 0])):
        generation = put_in_force(bench, text.format(named), ids)
        found = [bench.listener("0.0.0.0", port) for port in (7100, 7101)]
        assert [one.rules[generation & 1] for one in found if one] == rules
    (first,) = (bench.listener("0.0.0.0", 7100),)
    assert first is not None
    assert (first.exe_device, first.exe_inode) == exefile.of_process(process.pid)


def test_it_says_who_may_choose(bench: Bench, tmp_path: Path) -> None:
    program = copied(tmp_path / "1")
    text = f'[stacks.k]\nkind = "kernel"\n[[rules]]\nexecutable = "{program}"\nchoose = ["k"]\n'
    put_in_force(bench, text)
    bench.attached.asked |= C.DMM_CONTROL_CHOICE
    restore.hook(bench.attached, cgroups.place(str(bench.attached.cgroup)))
    assert ran(bench, program, "-c", CHOOSE) == 0
    assert ran(bench, PYTHON, "-c", CHOOSE) == errno.EPERM

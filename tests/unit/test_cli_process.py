# SPDX-License-Identifier: Apache-2.0
"""The command line as a process of its own: completion, pipes, signals, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import ANSWERS, FLOW
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture

from dmm_ebpf.cli.gather import Follower

# A shell's background job starts with SIGINT ignored, and its children inherit that.
BOOT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from dmm_ebpf.loader import bpffs
from dmm_ebpf.rd.director import rundir
rundir.ROOT = Path(sys.argv.pop(1))
bpffs.TOP = rundir.ROOT.name  # as run_root has it
from dmm_ebpf.cli.main import main
main()
"""


def command(root: Path, *args: str) -> list[str]:
    """The command line as a process of its own, with its run directory elsewhere."""
    return [sys.executable, "-c", BOOT, str(root), *args]


def test_completion(run_root: Path) -> None:  # noqa: F811
    (run_root / "blue").mkdir()
    for words, expected in (("dmm-ebpf fl", "flows"), ("dmm-ebpf flows --instance b", "blue")):
        env = os.environ | {
            "_DMM_EBPF_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run(
            command(run_root), env=env, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == [expected]


def test_help_imports_nothing_heavy(run_root: Path) -> None:  # noqa: F811
    heavy = ["pydantic", "textual", "pyroute2", "msgpack", "bcc", "rich.console", "asyncio"]
    code = f"""
import atexit
import sys
atexit.register(lambda: print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr))
from dmm_ebpf.cli.main import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "[]\n"


def test_a_reader_that_goes_away_is_no_error(run_root: Path) -> None:  # noqa: F811
    rows = [FLOW | {"cookie": n} for n in range(5000)]
    with FakeRd("default", {"flows": rows}):
        child = subprocess.Popen(
            command(run_root, "flows"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(20) == 141
        child.stderr.close()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_sentence(run_root: Path, unbuffered: str) -> None:  # noqa: F811
    with FakeRd("default", ANSWERS), Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(run_root, "flows", "--json"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write to standard output: No space left on device" in done.stderr


def test_follow_ends_when_its_reader_goes_though_nothing_happens(run_root: Path) -> None:  # noqa: F811
    with FakeRd("default", {"follow": [FLOW | {"type": "connect", "time": 0}]}):
        for named in ((), ("--instance", "default")):
            child = subprocess.Popen(
                command(run_root, "flows", "--follow", *named),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert child.stdout is not None
            assert child.stdout.readline()
            child.stdout.close()
            try:
                assert child.wait(20) == 141
                assert child.stderr is not None and child.stderr.read() == b""
            finally:
                child.kill()
                child.communicate()


def test_follow_ends_with_ctrl_c(run_root: Path) -> None:  # noqa: F811
    with FakeRd("default", {"follow": [FLOW | {"type": "connect", "time": 0}]}):
        child = subprocess.Popen(
            command(run_root, "flows", "--follow", "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["type"] == "connect"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (130, "", "")


def test_follow_finds_instances_that_come_later(run_root: Path) -> None:  # noqa: F811
    child = subprocess.Popen(
        command(run_root, "flows", "--follow", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        assert "waiting for one" in child.stderr.readline()
        with FakeRd(
            "late", {"follow": [FLOW | {"type": "connect", "instance": "late"}]}, hang_up=True
        ):
            assert json.loads(child.stdout.readline())["instance"] == "late"
            assert "instance late: its Resource Director closed" in child.stderr.readline()
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
    assert child.returncode == 130


def in_terminal(argv: list[str], until: bytes, then: bytes) -> tuple[bytes, int]:
    """Run argv in a terminal of 80 by 24 until it shows `until`, type `then`: all that it
    wrote, and its exit code.
    """
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
        os.execv(argv[0], argv)
    seen = b""
    deadline = time.monotonic() + 30
    typed = False
    while time.monotonic() < deadline:
        if not select.select([fd], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(fd, 65536)
        except OSError:
            break  # EIO: the other side is closed (pty(7))
        seen += data
        if not typed and until in seen:
            os.write(fd, then)
            typed = True
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(fd)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_terminal_gets_a_table_that_fits(run_root: Path) -> None:  # noqa: F811
    with FakeRd("default", ANSWERS):
        seen, code = in_terminal(command(run_root, "flows"), b"never shown", b"")
    assert code == 0
    plain = seen.decode()
    assert "\x1b[1m" in plain  # bold titles
    lines = re.sub(r"\x1b\[[0-9;]*m", "", plain).splitlines()
    assert len(lines) == 4
    assert max(len(line) for line in lines[:3]) <= 80
    assert "PEER" in lines[0]
    assert "CGROUP" not in lines[0]
    shown, told = lines[0].split(), lines[3]
    assert told.startswith("dmm-ebpf: 80 columns have no room for ")
    assert all((title in shown) != (title in told) for title in TITLES), (
        "a column that is not shown is told of"
    )


TITLES = (
    *(
        "STATE",
        "LOCAL",
        "DIR",
        "PEER",
        "STACK",
        "TABLE",
        "RULE",
        "ROUTE",
        "PROCESS",
        "SENT",
        "RECV",
        "SRTT",
    ),
    *("RETRANS", "AGE", "CGROUP"),
)
LONG = FLOW | {
    "dst": "2001:db8:1111:2222:3333:4444:5555:6666",
    "src": "2001:db8:1111:2222:3333:4444:5555:7777",
}


def test_no_terminal_cuts_an_address(run_root: Path) -> None:  # noqa: F811
    with FakeRd(
        "default",
        ANSWERS | {"flows": [LONG | {"comm": "a" * 15, "route": "2001:db8::/32 tcp 443"}]},
    ):
        seen, code = in_terminal(command(run_root, "flows"), b"never shown", b"")
    assert code == 0
    assert b"[2001:db8:1111:2222:3333:4444:5555:6666]:443" in seen


def test_top_in_a_terminal(run_root: Path) -> None:  # noqa: F811
    with FakeRd("default", ANSWERS):
        seen, code = in_terminal(command(run_root, "top"), b"203.0.113.7:443", b"q")
    assert code == 0
    assert b"Traceback" not in seen


def test_top_of_a_dead_director_comes_up(run_root: Path) -> None:  # noqa: F811
    (run_root / "dead").mkdir()
    seen, code = in_terminal(
        command(run_root, "top", "-i", "dead"), b"its Resource Director is not running", b"q"
    )
    assert code == 0
    assert b"Traceback" not in seen


def test_a_bug_in_top_is_one_sentence(run_root: Path) -> None:  # noqa: F811
    broken = "from dmm_ebpf.show import units; units.bit_rate = None\n" + BOOT
    with FakeRd("default", ANSWERS):
        seen, code = in_terminal(
            [sys.executable, "-c", broken, str(run_root), "top"], b"never shown", b""
        )
    assert code == 1
    assert b"Traceback" not in seen
    assert (
        b"dmm-ebpf: cannot go on: TypeError: 'NoneType' object is not callable; this is a bug"
        in seen
    )


def test_stale_sockets_do_not_stop_a_follow_of_all(run_root: Path) -> None:  # noqa: F811
    (run_root / "dead").mkdir()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(run_root / "dead" / "rd.sock"))
    stale.close()
    with FakeRd("default", {"follow": [FLOW | {"type": "connect"}]}):
        follower = Follower(None)
        assert next(follower.events()).instance == "default"
        follower.close()


IMPORT_INTERRUPTED = """
import importlib.abc
import os
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)

module = sys.argv.pop(1)

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from dmm_ebpf.cli.start import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "dmm_ebpf.cli.app", "dmm_ebpf.show.units"])
def test_ctrl_c_while_it_starts_shows_no_trace(module: str) -> None:
    words = [sys.executable, "-c", IMPORT_INTERRUPTED, module]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

# SPDX-License-Identifier: Apache-2.0
"""A stack process that has been taken over: what it may still do is listed here by what
it may not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hal_lab import hosts, link, wait_until
from stack_lab import Stack, stack_on

from dmm_ebpf import frames
from dmm_ebpf.errors import DmmError
from dmm_ebpf.userstack import control, pidfile
from dmm_ebpf.userstack.answers import AnswerError
from dmm_ebpf.userstack.supervisor import StackSupervisor

TAKEN_OVER = (sys.executable, "-P", str(Path(__file__).with_name("takenover.py")))
TUNSETPERSIST, TUNSETIFF, TUNSETOWNER = 0x400454CB, 0x400454CA, 0x400454CC
PIDFD_GETFD = 438
PROT_RWX, MAP_PRIVATE_ANONYMOUS = 7, 0x22

# What a process that serves must be refused, with the errno that it gets
REFUSED = {
    # programs and processes
    "execve": ("os.execv('/bin/true', ['true'])", "EPERM"),
    "execveat": ("call(322, -100, b'/bin/true', 0, 0, 0)", "EPERM"),
    "fork": ("os.fork()", "EPERM"),
    "vfork": ("call(58)", "EPERM"),
    "clone3": ("call(435, buffer, 88)", "ENOSYS"),
    "thread": ("thread()", "RuntimeError"),
    "kill": ("os.kill({other}, 9)", "EPERM"),
    "kill all": ("os.kill(-1, 9)", "EPERM"),
    "tkill": ("call(200, {other}, 9)", "EPERM"),
    "tgkill": ("call(234, {other}, {other}, 9)", "EPERM"),
    "pidfd_open": ("os.pidfd_open({other})", "EPERM"),
    "pidfd_getfd": ("call(438, 3, 0, 0)", "EPERM"),
    "ptrace": ("call(101, 16, {other}, 0, 0)", "EPERM"),
    "process_vm_readv": ("call(310, {other}, buffer, 1, buffer, 1, 0)", "EPERM"),
    "process_vm_writev": ("call(311, {other}, buffer, 1, buffer, 1, 0)", "EPERM"),
    "kcmp": ("call(312, os.getpid(), {other}, 0, 0, 0)", "EPERM"),
    "setpriority": ("os.setpriority(os.PRIO_PROCESS, 0, 19)", "EPERM"),
    "sched_setscheduler": ("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", "EPERM"),
    "sched_setaffinity": ("os.sched_setaffinity(0, [0])", "EPERM"),
    "setrlimit": ("call(302, 0, 7, buffer, 0)", "EPERM"),
    # rights
    "setuid": ("os.setuid(0)", "EPERM"),
    "capset": ("call(126, buffer, buffer)", "EPERM"),
    "dumpable": ("call(157, 4, 1, 0, 0, 0)", "EPERM"),
    "keep caps": ("call(157, 8, 1, 0, 0, 0)", "EPERM"),
    "seccomp": ("call(317, 1, 0, buffer)", "EPERM"),
    "unshare": ("call(272, 0x10000000)", "EPERM"),
    "setns": ("call(308, 3, 0)", "EPERM"),
    "mount": ("call(165, b'none', b'/tmp', b'tmpfs', 0, 0)", "EPERM"),
    "chroot": ("os.chroot('/')", "EPERM"),
    "personality": ("call(135, 0x0400000)", "EPERM"),
    "add_key": ("call(248, b'user', b'x', b'y', 1, -3)", "EPERM"),
    "keyctl": ("call(250, 0, -3)", "EPERM"),
    # large parts of the kernel
    "bpf lookup": ("call(321, 1, buffer, 128)", "EPERM"),
    "bpf update": ("call(321, 2, buffer, 128)", "EPERM"),
    "bpf prog_load": ("call(321, 5, buffer, 128)", "EPERM"),
    "bpf map_freeze": ("call(321, 22, buffer, 128)", "EPERM"),
    "bpf map by id": ("call(321, 14, buffer, 128)", "EPERM"),
    "bpf obj_get": ("call(321, 7, buffer, 128)", "EPERM"),
    "io_uring_setup": ("call(425, 8, buffer)", "EPERM"),
    "userfaultfd": ("call(323, 1)", "EPERM"),
    "perf_event_open": ("call(298, buffer, 0, -1, -1, 0)", "EPERM"),
    "memfd_create": ("os.memfd_create('code')", "EPERM"),
    "shmget": ("call(29, 0, 4096, 0o1600)", "EPERM"),
    # code in memory
    "mmap code": (f"call(9, 0, 4096, {PROT_RWX}, {MAP_PRIVATE_ANONYMOUS}, -1, 0)", "EPERM"),
    "mprotect code": ("call(10, buffer & ~4095, 4096, 5)", "EPERM"),
    "pkey_mprotect": ("call(329, buffer & ~4095, 4096, 5, 0)", "EPERM"),
    # files
    "open": ("os.open('/etc/passwd', os.O_RDONLY)", "EPERM"),
    "openat2": ("call(437, -100, b'/etc/passwd', buffer, 24)", "EPERM"),
    "stat": ("os.stat('/etc/passwd')", "EPERM"),
    "list": ("os.listdir('/proc')", "EPERM"),
    "unlink": ("os.unlink('/tmp/nothing')", "EPERM"),
    "truncate the log": ("os.ftruncate(2, 0)", "EPERM"),
    "rewrite the log": ("call(72, 2, 4, 0)", "EPERM"),
    # sockets and devices
    "socket": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "EPERM"),
    "socketpair": ("socket.socketpair()", "EPERM"),
    "connect": (
        "call(42, me.listener.fileno(), struct.pack('H108s', 1, b'{socket}'), 110)",
        "EPERM",
    ),
    "bind": ("call(49, me.device, buffer, 16)", "EPERM"),
    "setsockopt": ("me.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)", "EPERM"),
    "TUNSETPERSIST": (f"ioctl(me.device, {TUNSETPERSIST}, 1)", "EPERM"),
    "TUNSETOWNER": (f"ioctl(me.device, {TUNSETOWNER}, 0)", "EPERM"),
    "TUNSETIFF": (f"ioctl(me.device, {TUNSETIFF}, buffer)", "EPERM"),
    "TIOCSTI": ("ioctl(2, 0x5412, buffer)", "EPERM"),
    # memory
    "memory": ("len(bytearray(64 << 30))", "MemoryError"),
}


async def _ask(path: Path, method: str, params: dict[str, Any]) -> Any:
    reader, writer = await asyncio.open_unix_connection(str(path))
    await control.write(writer, frames.request(1, method, params))
    answer = await control.ANSWERS.read(reader)
    writer.close()
    return answer


def ask(stack: Stack, method: str, **params: Any) -> Any:
    """A request to the process itself, past the supervisor's checks."""
    return stack.do(_ask(stack.spec.control_path, method, params))["result"]


@contextmanager
def taken_over(monkeypatch: pytest.MonkeyPatch, **spec: Any) -> Iterator[Stack]:
    monkeypatch.setattr(StackSupervisor, "COMMAND", TAKEN_OVER)
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a, **spec) as stack:
            yield stack


def test_a_process_that_was_taken_over_can_do_nothing_but_serve(monkeypatch, tmp_path):
    victim = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "rd.sock"))
    listener.listen()
    try:
        with taken_over(monkeypatch) as stack:
            values = {"other": victim.pid, "socket": tmp_path / "rd.sock"}
            got = {
                name: ask(stack, "do", code=code.format(**values))
                for name, (code, _) in REFUSED.items()
            }
            assert got == {name: wanted for name, (_, wanted) in REFUSED.items()}
            assert victim.poll() is None
            assert ask(stack, "do", code="os.getpid()") == str(stack.supervisor.pid)
            assert stack.query("ping")["pid"] == stack.supervisor.pid
    finally:
        listener.close()
        victim.kill()
        victim.wait()


LANDLOCKED = """
import ctypes, errno, os, socket
from dmm_ebpf.userstack._core import ffi, lib

def tried(function, *args):
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]

sock = socket.socket()
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
abi = lib.dmm_landlock_apply(ffi.new("struct dmm_hal_error *"))
print(abi, tried(os.open, "/etc/passwd", os.O_RDONLY), tried(os.mkdir, "/tmp/dmm-landlocked"),
      tried(sock.bind, ("127.0.0.1", 0)), tried(os.kill, 1, 0))
"""


def test_landlock_alone_refuses_files_ports_and_signals():
    said = subprocess.run(
        [sys.executable, "-c", LANDLOCKED], capture_output=True, text=True, check=True
    )
    abi, *refused = said.stdout.split()
    if abi == "0":
        pytest.skip("this kernel has no Landlock")
    wanted = [
        "EACCES",
        "EACCES",
        "EACCES" if int(abi) >= 4 else "None",
        "EPERM" if int(abi) >= 6 else "None",
    ]
    assert refused == wanted


def test_what_it_has_open_is_its_own():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            directory = Path(f"/proc/{stack.supervisor.pid}/fd")
            links = [str(fd.readlink()) for fd in directory.iterdir()]
            kinds = ["socket" if text.startswith("socket:[") else text for text in links]
            assert set(kinds) <= {
                "/dev/null",
                str(stack.spec.log_path),
                "/dev/net/tun",
                "socket",
                "anon_inode:[eventpoll]",
                "anon_inode:[eventfd]",
            }


def test_no_two_processes_have_one_user():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as first, stack_on(b) as second:
            owners = [Path(f"/proc/{s.supervisor.pid}/mem").stat().st_uid for s in (first, second)]
            status = [Path(f"/proc/{s.supervisor.pid}/status").read_text() for s in (first, second)]
            uids = [
                line.split()[1]
                for text in status
                for line in text.splitlines()
                if line[:4] == "Uid:"
            ]
            assert owners == [0, 0]  # not dumpable
            assert uids == [str(pidfile.uid_of(s.supervisor.pid)) for s in (first, second)]
            assert len(set(uids)) == 2


def _make_persistent(pid: int) -> None:
    """As a process would that got through everything: by a copy of its own descriptor."""
    fds = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if str(fd.readlink()) == "/dev/net/tun"]
    pidfd = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    for fd in fds:
        copy = libc.syscall(PIDFD_GETFD, pidfd, int(fd.name), 0)
        assert copy >= 0
        fcntl.ioctl(copy, TUNSETPERSIST, 1)
        os.close(copy)
    os.close(pidfd)


def test_a_persistent_device_goes_with_its_process():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            _make_persistent(stack.supervisor.pid)
            os.kill(stack.supervisor.pid, signal.SIGKILL)
            with stack.changed:
                assert stack.changed.wait_for(lambda: len(stack.ups) == 2, 15)
            _make_persistent(stack.supervisor.pid)
            stack.do(stack.supervisor.stop())
            assert "dmm-0" not in a.sh("ip link")


LIES = {
    "no map": "[]",
    "another's answer": "{'id': id + 1, 'ok': True, 'result': None}",
    "no result": "{'id': id, 'ok': True}",
    "a list": "{'id': id, 'ok': True, 'result': [1, 2]}",
    "few figures": "{'id': id, 'ok': True, 'result': {'connections': 1}}",
    "no numbers": "{'id': id, 'ok': True, 'result': dict.fromkeys(['connections', 'in_use', 'max_connections',"
    " 'memory_bytes', 'memory_limit_bytes'], 'x')}",
    "below zero": "{'id': id, 'ok': True, 'result': dict.fromkeys(['connections', 'in_use', 'max_connections',"
    " 'memory_bytes', 'memory_limit_bytes'], -1)}",
    "too long": "{'id': id, 'ok': True, 'result': {str(i): i for i in range(200000)}}",
    "too many": "{'id': id, 'ok': True, 'result': [[] for i in range(500000)]}",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_process_that_lies_is_replaced(monkeypatch, lie):
    with taken_over(monkeypatch) as stack:
        pid = stack.supervisor.pid
        ask(stack, "lie", lies={"stats": LIES[lie]})
        with pytest.raises(AnswerError):
            stack.query("stats")
        with stack.changed:
            assert stack.changed.wait_for(lambda: len(stack.ups) == 2, 15)
        assert stack.supervisor.pid != pid
        assert stack.query("stats")["connections"] == 0


def test_only_root_is_heard(tmp_path):
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            path = stack.spec.control_path
            path.parent.chmod(0o755)
            path.chmod(0o666)
            code = (
                "import os, socket, sys; os.setresuid(65534, 65534, 65534); s = socket.socket(socket.AF_UNIX);"
                "s.connect(sys.argv[1]); s.settimeout(5); print(s.recv(1))"
            )
            said = subprocess.run(
                [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
            )
            assert said.stdout == "b''\n", said.stderr
            path.parent.chmod(0o700)
            wait_until(lambda: "user 65534 was not heard" in stack.spec.log_path.read_text())


@pytest.mark.parametrize(
    "request_bytes",
    [
        struct.pack(">I", 1 << 20) + bytes(64),
        struct.pack(">I", 4000) + b"\x91" * 4000,  # lists in lists
        struct.pack(">I", 9)
        + b"\xdd\xff\xff\xff\xff"
        + bytes(4),  # an array of four thousand million
    ],
)
def test_a_request_that_is_none_ends_its_connection_alone(request_bytes):
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(stack.spec.control_path))
                raw.sendall(request_bytes)
                raw.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert raw.recv(1) == b""
            assert stack.query("ping")["pid"] == stack.supervisor.pid


def test_clients_are_counted():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            crowd = [socket.socket(socket.AF_UNIX) for _ in range(20)]
            for sock in crowd:
                sock.connect(str(stack.spec.control_path))
                sock.settimeout(5)
            assert [sock.recv(1) for sock in crowd[16:]] == [b""] * 4
            for sock in crowd:
                sock.close()
            wait_until(lambda: _answers(stack))


def _answers(stack: Stack) -> bool:
    with contextlib.suppress(DmmError):
        return bool(stack.query("ping"))
    return False

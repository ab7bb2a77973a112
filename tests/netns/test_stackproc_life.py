# SPDX-License-Identifier: Apache-2.0
"""A stack process from start to end: privileges, stop, kill, restart, adoption, errors."""

from __future__ import annotations

import os
import signal
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hal_lab import hosts, link, listen, wait_until
from stack_lab import stack_on

from dmm_ebpf.errors import ConflictError, UsageError
from dmm_ebpf.userstack import pidfile
from dmm_ebpf.userstack.supervisor import StackSupervisor, kill_process


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def wait_changed(stack, ups: int, downs: int) -> None:
    with stack.changed:
        assert stack.changed.wait_for(
            lambda: (len(stack.ups), len(stack.downs)) >= (ups, downs), 15
        )


def exchange(stack, server: socket.socket, peer: str) -> None:
    with stack.connect((peer, server.getsockname()[1])) as app:
        accepted, _ = server.accept()
        with accepted:
            app.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert app.recv(100) == b"answer"


def test_privileges_are_gone_before_the_first_packet():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            exchange(stack, server, "10.9.1.2")
            for task in Path(f"/proc/{stack.supervisor.pid}/task").iterdir():
                now = status(int(task.name))
                for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                    assert int(now[name], 16) == 0, f"{task.name} {name}"
                assert now["NoNewPrivs"] == "1"
                assert now["Seccomp"] == "2"
                assert now["Uid"].split() == [str(pidfile.uid_of(stack.supervisor.pid))] * 4
                assert now["Gid"].split() == now["Uid"].split()
                assert now["Groups"] == ""
            limits = Path(f"/proc/{stack.supervisor.pid}/limits").read_text(encoding="ascii")
            assert "Max core file size        0                    0" in limits
            # Owned by root: the process is not dumpable, so its own user cannot trace it either.
            assert Path(f"/proc/{stack.supervisor.pid}/mem").stat().st_uid == 0
            mode = stack.spec.control_path.stat()
            assert stat.S_IMODE(mode.st_mode) == 0o600
            assert mode.st_uid == 0


def test_stop_resets_connections_and_leaves_nothing():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            app = stack.connect(("10.9.1.2", server.getsockname()[1]))
            accepted, _ = server.accept()
            wait_until(lambda: len(stack.query("connections")) == 1)
            pid = stack.supervisor.pid
            stack.do(stack.supervisor.stop())
            accepted.settimeout(5)
            for end in (app, accepted):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
                end.close()
            assert pidfile.start_time(pid) == 0
            assert stack.downs == []
            assert not stack.spec.control_path.exists()
            assert not stack.spec.pid_path.exists()
            assert "dmm-0" not in a.sh("ip link")
            stack.do(stack.supervisor.stop())  # idempotent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_death_is_noticed_and_a_new_process_serves(number):
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            app = stack.connect(("10.9.1.2", server.getsockname()[1]))
            accepted, _ = server.accept()
            first = stack.supervisor.pid
            os.kill(first, number)
            wait_changed(stack, 2, 1)
            assert stack.downs == [f"killed by {signal.Signals(number).name}"]
            assert stack.supervisor.pid != first
            assert stack.supervisor.restarts == 1
            app.settimeout(5)
            with pytest.raises(ConnectionAbortedError):
                app.recv(1)
            app.close()
            accepted.close()
            exchange(stack, server, "10.9.1.2")


def test_sigterm_from_outside_is_a_clean_end_and_is_made_good():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            os.kill(stack.supervisor.pid, signal.SIGTERM)
            wait_changed(stack, 2, 1)
            assert stack.downs == ["exit code 0"]


def test_losing_the_device_ends_the_process_with_a_reason():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            a.sh("ip link del dmm-0.0.in")
            wait_changed(stack, 2, 1)
            assert "No such device" in stack.downs[0]


def test_backoff_grows_while_it_cannot_start_and_ends_when_it_can():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            good = stack.spec
            stack.supervisor.spec = replace(good, nics=[replace(good.nics[0], ifindex=99_999)])
            os.kill(stack.supervisor.pid, signal.SIGKILL)
            wait_until(lambda: stack.supervisor._backoff_s >= 0.4)
            assert (len(stack.ups), len(stack.downs)) == (1, 1)
            stack.supervisor.spec = good
            wait_changed(stack, 2, 1)


def test_a_new_supervisor_adopts_the_process_and_sees_its_death():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            app = stack.connect(("10.9.1.2", server.getsockname()[1]))
            accepted, _ = server.accept()
            pid, started = pidfile.read(stack.spec.pid_path)
            assert pid == stack.supervisor.pid

            async def forget() -> None:  # what a Resource Director leaves behind that was killed
                stack._loop.remove_reader(stack.supervisor._pidfd)

            stack.do(forget())
            second = StackSupervisor(stack.spec, on_up=stack._up, on_down=stack._down)
            assert not stack.do(second.adopt(pid, started + 1))
            assert not stack.do(second.adopt(1, pidfile.start_time(1)))
            assert stack.do(second.adopt(pid, started))
            child, stack.supervisor._child = stack.supervisor._child, None
            os.close(stack.supervisor._pidfd)
            stack.supervisor._pidfd = -1
            stack.supervisor = second
            app.sendall(b"alive")
            assert accepted.recv(10) == b"alive"
            assert second.pid == pid
            assert stack.ups[1]["pid"] == pid
            os.kill(pid, signal.SIGKILL)
            child.wait(5)
            wait_changed(stack, 3, 1)
            accepted.close()
            app.close()
            exchange(stack, server, "10.9.1.2")


def test_start_ends_what_the_pid_file_names():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            first = stack.supervisor
            pid = first.pid

            async def forget() -> None:
                stack._loop.remove_reader(first._pidfd)

            stack.do(forget())
            second = StackSupervisor(stack.spec, on_up=stack._up, on_down=stack._down)
            stack.do(second.start())
            assert first._child.wait(5) == -signal.SIGKILL
            os.close(first._pidfd)
            stack.supervisor = second
            assert second.pid != pid


def test_a_recycled_pid_is_left_alone():
    me = os.getpid()
    assert kill_process(me, pidfile.start_time(me) + 1, signal.SIGKILL) is False
    assert kill_process(4194303, 12345) is False


def test_two_stacks_cannot_hold_one_queue():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            spec = replace(stack.spec, name="second", device="dmm-1", k=1)
            other = StackSupervisor(spec, on_up=stack._up, on_down=stack._down)
            with pytest.raises(
                ConflictError, match=r"bind an AF_XDP socket \(receive queue 0\) of eth0"
            ):
                stack.do(other.start())
            assert other.pid == 0
            assert "dmm-1" not in a.sh("ip link")
            taken = replace(stack.spec, name="third")
            other = StackSupervisor(taken, on_up=stack._up, on_down=stack._down)
            with pytest.raises(ConflictError, match=r"make TAP device dmm-0\.0\.in"):
                stack.do(other.start())


def test_control_socket_refuses_what_it_does_not_know():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            with pytest.raises(UsageError, match="no such request"):
                stack.query("dance")
            for bad in (b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", b"\0\0\0\5hello"):
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(str(stack.spec.control_path))
                    raw.sendall(bad)
                    raw.shutdown(socket.SHUT_WR)
                    while raw.recv(4096):
                        pass
            assert stack.query("ping")["pid"] == stack.supervisor.pid
            assert stack.query("connections") == []
            assert stack.query("stats")["connections"] == 0

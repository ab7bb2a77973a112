# SPDX-License-Identifier: Apache-2.0
"""Keeps one stack process alive: starts it, adopts one that is there, notices its death, restarts
it with backoff.

The process is in a session of its own and is not bound to the life of the Resource Director. Its
death is seen through a pidfd, which also works for an adopted process, is not polled, and never
means another process. on_up and on_down are called in the event loop, alternately, beginning with
on_up; on_down is not called for a stop() that was asked for. The next process starts when what
on_down returned is done.

What the process says is not believed: see answers.py. One that answers what no stack process of
ours says is ended and started again.

Invariants: at most one process of the stack is alive; a start first ends what the pid file
names. Before a process starts, and when it has ended, its devices are gone, also those that
were made persistent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dmm_ebpf import frames, states
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import procgroup, stackdevice
from dmm_ebpf.peercred import peer
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack import answers, control, launching, pidfile, sandbox
from dmm_ebpf.userstack.life import FOLLOWS, Life
from dmm_ebpf.userstack.pidfile import kill_process
from dmm_ebpf.userstack.spec import NicSpec, StackSpec

__all__ = ["NicSpec", "StackSpec", "StackSupervisor", "kill_process"]

READY_DEADLINE_S = 90.0  # an emulated or busy machine takes more than 30
QUERY_DEADLINE_S = 5.0
STOP_DEADLINE_S = 6.0  # it resets its connections first, for at most ABORT_NS of engine.c
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
HEALTHY_S = 60.0
READY_BYTES = 16384
LAST_WORDS_BYTES = 4096

log = logging.getLogger("dmm-ebpf")


class StackSupervisor:
    """One process of a stack. Lives in the Resource Director's event loop."""

    COMMAND = launching.COMMAND

    def __init__(
        self,
        spec: StackSpec,
        *,
        on_up: Callable[[Mapping[str, Any]], None],
        on_down: Callable[[str], Awaitable[Any] | None],
        renew: Callable[[], StackSpec] | None = None,
    ) -> None:
        """spec may be replaced at any time; the next process gets the new one. info of on_up: see
        StackProcess.info, and start_time. renew makes the spec anew before each restart, in a
        thread; what it raises puts that off.
        """
        self.spec = spec
        self.life = Life.OFF
        self.pid = 0
        self.restarts = 0
        self.no_group = ""  # why the process is in no cgroup of its own
        self._kills = procgroup.Kills()  # of its cgroup, before this process
        self._on_up = on_up
        self._on_down = on_down
        self._renew = renew
        self._failure = ""
        self._hurried = asyncio.Event()
        self._pidfd = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._backoff_s = BACKOFF_FIRST_S
        self._up_since = 0.0
        self._restarting: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)

    # -- life --

    def _become(self, life: Life, reason: str = "") -> None:
        label = f"the supervisor of stack {self.spec.label}"
        self.life = states.move(label, FOLLOWS, self.life, life, reason)

    async def start(self) -> None:
        """Starts the process and waits until it serves and on_up is through. Raises DmmError;
        then nothing runs.
        """
        self._become(Life.STARTING)
        try:
            recorded = pidfile.read(self.spec.pid_path)
            if recorded is not None:
                await asyncio.to_thread(kill_process, *recorded)
            info = await self._spawn()
            await self._came_up(info)
        except BaseException as error:
            if self.life is Life.STARTING:  # else it was stopped meanwhile
                self._become(Life.OFF, str(error))
            raise

    async def adopt(self, pid: int, started: int) -> bool:
        """Takes a running process over. False: it is gone, or does not answer; then
        nothing has changed.
        """
        fd = pidfile.open_process(pid, started)
        if fd is None:
            return False
        try:
            info = await self._ask(pid, "ping") | {"start_time": started}
        except (DmmError, OSError) as error:
            log.warning("stack %s, pid %d, cannot be adopted: %s", self.spec.label, pid, error)
            os.close(fd)
            return False
        self._pidfd, self.pid = fd, pid
        await self._came_up(info)
        return True

    async def stop(self) -> None:
        """Ends the process: it resets its connections first; after STOP_DEADLINE_S it is killed.
        Idempotent.
        """
        self._become(Life.STOPPING)
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
            self._restarting = None
        await self._end_process()
        self._tidy()
        self._become(Life.OFF)

    def fail(self, reason: str) -> None:
        """Ends a process that cannot go on; on_down gets the reason, and the next
        one is started.
        """
        if self.pid and not self._failure:
            self._failure = reason
            self._kill()

    def hurry(self) -> None:
        """Start the next process now: what kept it from starting has gone."""
        self._backoff_s = BACKOFF_FIRST_S
        self._hurried.set()

    async def query(self, method: str, **params: Any) -> Any:
        """Asks the process. Raises DmmError when it refuses, is not there or does not answer; the
        process that answers nonsense is ended, and so replaced.
        """
        pid = self.pid
        try:
            return await self._ask(pid, method, **params)
        except answers.AnswerError as error:
            if pid and pid == self.pid:
                log.error("%s; pid %d is ended", error, pid)
                self._kill()
            raise

    async def _ask(self, pid: int, method: str, **params: Any) -> Any:
        label, number = self.spec.label, next(self._ids)
        what = f"ask stack {label} for {method}"
        try:
            async with asyncio.timeout(QUERY_DEADLINE_S):
                reader, writer = await asyncio.open_unix_connection(str(self.spec.control_path))
                try:
                    listener, _uid = peer(writer.get_extra_info("socket"))
                    if listener != pid:
                        raise DmmError(what, why="its socket is another process's")
                    await control.write(writer, frames.request(number, method, params))
                    answer = await control.ANSWERS.read(reader)
                finally:
                    writer.close()
        except TimeoutError as error:
            raise DmmError(what, why=f"no answer within {QUERY_DEADLINE_S:g} s") from error
        except OSError as error:
            raise DmmError(what, why=os.strerror(error.errno or 0)) from error
        except frames.EndedError:
            answer = None
        except frames.FrameError as error:
            raise answers.nonsense(label, method, error.why) from error
        if answer is None:
            raise DmmError(what, why="it hung up")
        return answers.result_of(label, method, number, answer)

    # -- the process --

    async def _spawn(self) -> dict[str, Any]:
        """Starts a process and returns what it says when it serves; on failure it is gone again."""
        self._remove_devices()
        parent, child = socket.socketpair()
        with parent:
            with child:
                self._child = self._popen(child.fileno())
            self.pid = self._child.pid
            self._pidfd = os.pidfd_open(self.pid)
            try:
                # Before it is told what to do: should we be killed, no process serves
                # that nothing names.
                started = pidfile.start_time(self.pid)
                self._record(started)
                self._into_group()
                return await self._ready(parent) | {"start_time": started}
            except BaseException:
                self._kill()
                await self._end_process()
                self._tidy()
                raise

    def _record(self, started: int) -> None:
        try:
            pidfile.write(self.spec.pid_path, self.pid, started)
        except OSError as error:
            raise _file_error(self.spec.pid_path, error) from error

    def _into_group(self) -> None:
        """Before the process is told what to do. Without a group it has its
        resource limits alone.
        """
        path = Path(self.spec.cgroup)
        self.no_group = ""
        if not self.spec.cgroup:
            return
        limits = procgroup.Limits(self.spec.memory_limit_bytes, sandbox.MAX_PROCESSES)
        try:
            procgroup.make(path, limits)
            self._kills = procgroup.kills(path)
            procgroup.take(path, self.pid)
        except OSError as error:
            self.no_group = f"{path}: {os.strerror(error.errno or 0)}"
            log.warning("stack %s has no cgroup of its own: %s", self.spec.label, self.no_group)

    def _remove_devices(self) -> None:
        for name in stackdevice.remove(self.spec.devices(), idle_only=True):
            log.warning(
                "stack %s: device %s had outlived its process and is removed", self.spec.label, name
            )

    def _popen(self, channel_fd: int) -> subprocess.Popen[bytes]:
        spec = self.spec
        with self._log_file() as output:
            return subprocess.Popen(
                # What it is, after the descriptor, is for ps(1) and for whoever looks
                # for it (rd/director/found.py).
                [
                    *(spec.command or self.COMMAND),
                    str(channel_fd),
                    spec.instance,
                    spec.label,
                    spec.device,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[channel_fd, *spec.inherited()],
                env=launching.environment(),
                cwd="/",
                start_new_session=True,
            )

    def _log_file(self) -> BinaryIO:
        """Where the process writes; nowhere if the file cannot be opened, which is no reason
        not to serve.
        """
        try:
            return self.spec.log_path.open("ab")
        except OSError as error:
            log.warning(
                "stack %s goes without a log: %s",
                self.spec.label,
                _file_error(self.spec.log_path, error),
            )
            return Path(os.devnull).open("wb")

    async def _ready(self, channel: socket.socket) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        channel.setblocking(False)
        what = f"start stack {self.spec.label}"
        data = b""
        try:
            async with asyncio.timeout(READY_DEADLINE_S):
                await loop.sock_sendall(channel, self.spec.to_json().encode())
                channel.shutdown(socket.SHUT_WR)
                while len(data) <= READY_BYTES and (
                    part := await loop.sock_recv(channel, READY_BYTES)
                ):
                    data += part
        except TimeoutError as error:
            raise DmmError(what, why=f"it was not ready within {READY_DEADLINE_S:g} s") from error
        except ConnectionError:
            data = b""
        if not data:
            raise DmmError(
                what,
                why=f"its process ended: {self._last_words()}",
                hint=f"see {self.spec.log_path}",
            )
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        info: dict[str, Any] = answers.result_of(self.spec.label, "ping", 0, answer)
        return info

    def _last_words(self) -> str:
        """The last line of the process's log."""
        with contextlib.suppress(OSError), self.spec.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
            lines = file.read(LAST_WORDS_BYTES).decode("utf-8", "replace").splitlines()
            if lines:
                return answers.plain(lines[-1])
        return "it said nothing"

    async def _came_up(self, info: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._on_up(info)
            self._become(Life.UP)
        except BaseException:
            await self._end_process()
            self._tidy()
            raise
        self._up_since = loop.time()
        # Added last: a process that has died meanwhile makes the descriptor readable at once.
        loop.add_reader(self._pidfd, self._died)

    def _kill(self, number: int = signal.SIGKILL) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def _end_process(self) -> None:
        """SIGTERM, a deadline, SIGKILL; returns when the process is gone and reaped."""
        if self._pidfd < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        gone = asyncio.Event()
        loop.add_reader(self._pidfd, gone.set)
        try:
            self._kill(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_DEADLINE_S):
                    await gone.wait()
            except TimeoutError:
                log.warning(
                    "stack %s, pid %d, does not end and is killed", self.spec.label, self.pid
                )
                self._kill()
                await gone.wait()
        finally:
            loop.remove_reader(self._pidfd)
        self._reap()

    def _reap(self) -> str:
        """Forgets the process that has ended; how it ended."""
        reason, code = "it ended", -int(signal.SIGKILL)
        if self._child is not None:
            code = self._child.wait()
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if code > 0:
                reason += f" ({self._last_words()})"
        if code == -signal.SIGKILL:  # one that was adopted may have been, too
            reason = self._starved() or reason
        self._child = None
        os.close(self._pidfd)
        self._pidfd, self.pid = -1, 0
        try:
            self._remove_devices()
        except (DmmError, OSError) as error:
            log.warning("stack %s: %s", self.spec.label, error)
        return reason

    def _starved(self) -> str:
        """That the kernel's OOM killer has ended it, if its cgroup says so."""
        group = self.spec.cgroup
        why = procgroup.want_of_memory(Path(group), self._kills) if group else ""
        return f"killed by SIGKILL: {why}" if why else ""

    def _tidy(self) -> None:
        """The process cannot take its files along: it has no right to the directory."""
        for path in (self.spec.control_path, self.spec.pid_path):
            path.unlink(missing_ok=True)
        if self.spec.cgroup:
            procgroup.remove(Path(self.spec.cgroup))

    # -- death --

    def _died(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        reason = self._reap()
        reason, self._failure = self._failure or reason, ""
        if self.life is not Life.STOPPING:
            self._become(Life.BETWEEN, reason)
        if loop.time() - self._up_since >= HEALTHY_S:
            self._backoff_s = BACKOFF_FIRST_S
        settled = None
        try:
            settled = self._on_down(reason)
        finally:
            if self.life is Life.BETWEEN:
                self._restarting = loop.create_task(self._restart(settled))

    async def _restart(self, settled: Awaitable[Any] | None) -> None:
        if settled is not None:
            await settled
        while self.life is Life.BETWEEN:
            delay = self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
            await self._pause(delay)
            try:
                if self._renew is not None:
                    self.spec = await in_thread(self._renew)
                info = await self._spawn()
                self.restarts += 1
                await self._came_up(info)
                return
            except (DmmError, OSError) as error:
                log.warning(
                    "stack %s: %s; next try in %g s", self.spec.label, error, self._backoff_s
                )

    async def _pause(self, delay_s: float) -> None:
        """The wait between two tries, unless there is hurry."""
        self._hurried.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._hurried.wait()


def _file_error(path: Path, error: OSError) -> DmmError:
    return DmmError(f"write {path}", why=os.strerror(error.errno or 0).lower())

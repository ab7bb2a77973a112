# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf run`: a command in a cgroup and an instance of its own, which live as long as it does.

Signals before the command begins end everything; while it runs they are the command's, and its end
ends the rest. Should this process be killed, a watcher detaches, and the command goes on without
us. What the command leaves running goes to the cgroup that this process was started in, so that who
began it there finds and ends it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.api.server import Server
from dmm_ebpf.rd.director.instance import AttachOptions, Instance
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.life import starting
from dmm_ebpf.rd.life.home import Doors, Home
from dmm_ebpf.rd.life.signals import HEARD, Signals, Stop
from dmm_ebpf.rd.life.watcher import Watcher
from dmm_ebpf.rd.policy.cgroupglob import is_in

log = logging.getLogger("dmm-ebpf")


@dataclass(frozen=True)
class RunOptions:
    """What `dmm-ebpf run` was told."""

    argv: list[str]
    instance: str | None = None
    policy: Path | None = None
    netns: str | None = None
    user: str | None = None  # name or uid; None: root, as who calls


@dataclass(frozen=True)
class _Person:
    """Who a command runs as: what initgroups(3), setgid(2) and setuid(2) set,
    and environ(7) says.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str]

    @classmethod
    def of(cls, user: str) -> _Person:
        """Of a user of passwd(5), by name or uid. Raises UsageError."""
        is_number = user.isascii() and user.isdecimal()
        try:
            entry = pwd.getpwuid(int(user)) if is_number else pwd.getpwnam(user)
        except (KeyError, OverflowError, ValueError):
            why = f"there is no user {user!r} on this host"
            raise UsageError(
                "run a command as another user", why=why, hint="see getent passwd"
            ) from None
        # As runuser(1) does; of root, who calls, it changes neither USER nor LOGNAME.
        environment = {"HOME": entry.pw_dir, "SHELL": entry.pw_shell or "/bin/sh"}
        if entry.pw_uid:
            environment |= {"USER": entry.pw_name, "LOGNAME": entry.pw_name}
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return cls(entry.pw_uid, entry.pw_gid, groups, environment)

    def become(self) -> None:
        """For good: no right of root's is left."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def run(options: RunOptions) -> int:
    """Run a command in a cgroup of its own, attached for its lifetime. Returns its exit code,
    128 + n for signal n.
    """
    starting.need_root("run a command under a policy")
    if not options.argv:
        raise UsageError(
            "run", why="no command is given", hint="dmm-ebpf run [--policy FILE] -- CMD..."
        )
    person = _Person.of(options.user) if options.user is not None else None
    run_dir = RunDir(options.instance or f"run-{os.getpid()}")
    starting.log_to(sys.stderr, logging.WARNING)
    with Signals() as signals, starting.claimed(run_dir), Watcher(run_dir.instance):
        netns = NetNS.from_arg(options.netns)
        netns.enter()
        attach = AttachOptions(
            run_dir.instance,
            str(cgroups.find_cgroup2() / f"dmm-ebpf-{run_dir.instance}"),
            options.policy.absolute() if options.policy else None,
            options.netns,
            home=cgroups.own(),
        )
        return asyncio.run(_main(attach, run_dir, netns, (options.argv, person), signals))


async def _main(
    options: AttachOptions,
    run_dir: RunDir,
    netns: NetNS,
    what: tuple[list[str], _Person | None],
    signals: Signals,
) -> int:
    stop = Stop(signals)
    instance = await starting.opened(
        Instance.open(options, run_dir, netns, own_cgroup=True), stop, run_dir
    )
    server = Server(instance, run_dir.socket)
    instance.ground += [
        Home(run_dir, instance.state, server.listen),
        Doors(run_dir, instance.state),
    ]
    serving = asyncio.get_running_loop().create_task(server.serve())
    status = None
    try:
        _warn_of_others(instance, Path(options.cgroup))
        command = await _spawn(*what, Path(options.cgroup), signals.ignored())
        signals.listen(lambda number: _forward(command, number))
        if stop.by is not None:
            _forward(command, stop.by)
        status = asyncio.get_running_loop().create_task(command.wait())
        await asyncio.wait({status, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.stop()
        await asyncio.wait([serving])
        await _close(instance, server)
    # After `dmm-ebpf detach` it goes on without us.
    code = await status
    return code if code >= 0 else 128 - code


def _warn_of_others(instance: Instance, own: Path) -> None:
    """Rules for another cgroup than the command's never match it; who wrote them may
    have expected otherwise.
    """
    policy, name = instance.policy, cgroups.name_of(own)
    for index, rule in enumerate(policy.rules if policy else ()):
        if rule.cgroup is not None and not any(is_in(name, one) for one in rule.cgroup):
            log.warning(
                "rule %s is for the cgroup %s, and the command runs in one of its own, %s: the rule does not match it",
                policy.rule_text(index) if policy else index + 1,
                " or ".join(rule.cgroup),
                name,
            )


async def _close(instance: Instance, server: Server) -> None:
    """What could not be removed is told, and the exit code is the command's all the same."""
    try:
        await starting.closed(instance, server)
    except DmmError as error:
        log.error("%s", error)


async def _spawn(
    argv: list[str], person: _Person | None, cgroup: Path, ignored: Collection[signal.Signals]
) -> asyncio.subprocess.Process:
    procs = os.open(cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def enter() -> None:
        """Nothing here takes a lock: safe in a child forked from a process with threads."""
        for number in HEARD:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        os.write(procs, b"0")
        if person is not None:
            person.become()

    environment = {**os.environ, **person.environment} if person else None
    try:
        return await asyncio.create_subprocess_exec(*argv, preexec_fn=enter, env=environment)
    except FileNotFoundError as error:
        raise _CommandError(f"run {argv[0]}", why="no such command", code=127) from error
    except PermissionError as error:
        why = (
            f"uid {person.uid} may not execute it"
            if person and person.uid
            else "it is not executable"
        )
        raise _CommandError(f"run {argv[0]}", why=why, code=126) from error
    except subprocess.SubprocessError as error:
        why = "the kernel does not let it become that user" if person else str(error)
        raise _CommandError(f"run {argv[0]}", why=why, code=126) from error
    finally:
        os.close(procs)


def _forward(command: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """A signal that this process got is for the command, which has a terminal's Ctrl-C already."""
    if number == signal.SIGINT and _in_foreground():
        return
    with contextlib.suppress(ProcessLookupError):
        command.send_signal(number)


def _in_foreground() -> bool:
    """Whether Ctrl-C on the controlling terminal goes to our process group, which is
    the command's too.
    """
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    finally:
        os.close(fd)


class _CommandError(DmmError):
    """The command could not be started; the exit codes are the shell's."""

    def __init__(self, what: str, *, why: str, code: int) -> None:
        super().__init__(what, why=why)
        self.exit_code = code

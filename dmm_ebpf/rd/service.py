# SPDX-License-Identifier: Apache-2.0
"""What the command line starts: attach (in the foreground or as a daemon), run, detach, and looking at an instance
whose Resource Director is dead.

The process that attaches moves into the instance's network namespace for good, before anything else is opened; it
has no other work there. SIGINT and SIGTERM detach; SIGKILL leaves hooks and stack processes serving, for the next
attach to adopt or for detach to remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmm_ebpf import abi, loader
from dmm_ebpf.errors import DmmError, PrivilegeError, UsageError, from_wire
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd import flows
from dmm_ebpf.rd.ids import IdSpace
from dmm_ebpf.rd.instance import AttachOptions, Instance
from dmm_ebpf.rd.rundir import ROOT, RunDir, StackState, State, check_name
from dmm_ebpf.rd.server import Server

__all__ = [
    "AttachOptions",
    "RunOptions",
    "attach",
    "detach",
    "instances",
    "offline_flows",
    "offline_status",
    "run",
]

log = logging.getLogger("dmm-ebpf")
STOP_TIMEOUT_S = 20


@dataclass(frozen=True)
class RunOptions:
    """What `dmm-ebpf run` was told."""

    argv: list[str]
    instance: str | None = None
    policy: Path | None = None
    netns: str | None = None


def instances() -> list[str]:
    """Instances of this host, whether their RD lives or not."""
    names = {d.name for d in ROOT.iterdir() if d.is_dir()} if ROOT.is_dir() else set()
    with contextlib.suppress(DmmError):
        names |= set(loader.instances())
    return sorted(names)


# -- attach --


def attach(options: AttachOptions) -> int:
    """Attach and serve until told to stop; as a daemon, return when it serves. Returns an exit code."""
    _need_root(f"attach instance {options.instance}")
    run_dir = RunDir(options.instance)
    run_dir.create()
    run_dir.lock()
    if options.policy is not None:
        # Where it is now: a daemon works in /, and the path is kept for the watch and the next attach.
        options = replace(options, policy=options.policy.absolute())
    if options.netns is not None and "/" in options.netns:
        options = replace(options, netns=str(Path(options.netns).absolute()))
    if not options.daemon:
        _log_to(sys.stderr)
        return _serve(options, run_dir, lambda: _say_ready(options))
    return _daemonize(options, run_dir)


def _serve(options: AttachOptions, run_dir: RunDir, ready: Any) -> int:
    try:
        netns = NetNS.from_arg(options.netns)
        netns.enter()
        asyncio.run(_main(options, run_dir, netns, ready))
    except BaseException:
        if options.instance not in _attached_names():
            run_dir.remove()
        raise
    return 0


async def _main(options: AttachOptions, run_dir: RunDir, netns: NetNS, ready: Any) -> None:
    instance = await Instance.open(options, run_dir, netns)
    server = Server(instance, run_dir.socket)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    serving = loop.create_task(server.serve())
    loop.call_soon(ready)
    await serving
    removed = await instance.close()
    await server.finish(removed)
    log.info("detached: %s", ", ".join(removed) or "nothing was left")


def _say_ready(options: AttachOptions) -> None:
    log.info("instance %s is attached to %s; Ctrl-C detaches", options.instance, options.cgroup)


def _daemonize(options: AttachOptions, run_dir: RunDir) -> int:
    """Fork twice (daemon(7)); the parent waits until the daemon serves or says why it cannot."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        if said == b"ready":
            return 0
        if not said:
            raise DmmError("start the daemon", why="it ended without a word", hint=f"see {run_dir.log}")
        raise from_wire(json.loads(said))
    os.setsid()
    if os.fork():
        os._exit(0)
    run_dir.relock_pid()
    os.chdir("/")
    _log_to(run_dir.log.open("a", encoding="utf-8", buffering=1))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)

    def ready() -> None:
        os.write(writing, b"ready")
        os.close(writing)

    code = 1
    try:
        code = _serve(options, run_dir, ready)
    except DmmError as e:
        log.error("%s", e)
        with contextlib.suppress(OSError):
            os.write(writing, json.dumps(e.to_wire()).encode())
    except BaseException as e:
        log.exception("the Resource Director ended")
        with contextlib.suppress(OSError):
            error = DmmError("start the daemon", why=f"{type(e).__name__}: {e}")
            os.write(writing, json.dumps(error.to_wire()).encode())
    os._exit(code)


# -- run --


def run(options: RunOptions) -> int:
    """Run a command in a cgroup of its own, attached for its lifetime. Returns its exit code, 128 + n for signal n."""
    _need_root("run a command under a policy")
    if not options.argv:
        raise UsageError("run", why="no command is given", hint="dmm-ebpf run [--policy FILE] -- CMD...")
    name = check_name(options.instance or f"run-{os.getpid()}")
    run_dir = RunDir(name)
    cgroup = cgroups.find_cgroup2() / f"dmm-ebpf-{name}"
    run_dir.create()
    run_dir.lock()
    _log_to(sys.stderr, logging.WARNING)
    try:
        cgroup.mkdir(exist_ok=True)
        netns = NetNS.from_arg(options.netns)
        netns.enter()
        policy = options.policy.absolute() if options.policy else None
        attach_options = AttachOptions(name, str(cgroup), policy, options.netns)
        return asyncio.run(_run_main(attach_options, run_dir, netns, cgroup, options.argv))
    finally:
        _leave_cgroup(cgroup)
        if name not in _attached_names():
            run_dir.remove()


async def _run_main(
    options: AttachOptions, run_dir: RunDir, netns: NetNS, cgroup: Path, argv: list[str]
) -> int:
    instance = await Instance.open(options, run_dir, netns, own_cgroup=True)
    server = Server(instance, run_dir.socket)
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve())
    try:
        child = await _spawn(argv, cgroup)
        # Ctrl-C reaches the command from the terminal; it decides when it ends, and we then detach.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, child.send_signal, number)
        status = await child.wait()
    finally:
        server.stop()
        await serving
        await server.finish(await instance.close())
    return status if status >= 0 else 128 - status


async def _spawn(argv: list[str], cgroup: Path) -> asyncio.subprocess.Process:
    procs = os.open(cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            # One write(2) and nothing that takes a lock: safe in a child forked from a process with threads.
            preexec_fn=lambda: os.write(procs, b"0"),
        )
    except FileNotFoundError as e:
        raise _CommandError(f"run {argv[0]}", why="no such command", code=127) from e
    except PermissionError as e:
        raise _CommandError(f"run {argv[0]}", why="it is not executable", code=126) from e
    finally:
        os.close(procs)


class _CommandError(DmmError):
    """The command could not be started; the exit codes are the shell's."""

    def __init__(self, what: str, *, why: str, code: int) -> None:
        super().__init__(what, why=why)
        self.exit_code = code


def _leave_cgroup(cgroup: Path) -> None:
    """Remove the command's cgroup; what it left running moves one level up and goes on, unrouted."""
    with contextlib.suppress(OSError):
        for pid in (cgroup / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (cgroup.parent / "cgroup.procs").write_text(pid)
        cgroup.rmdir()


# -- detach --


def detach(instance: str) -> list[str]:
    """Remove every trace of an instance, its RD alive or not. Returns what was removed; empty: there was nothing."""
    from dmm_ebpf.rd.client import Client
    from dmm_ebpf.rd.undo import undo

    _need_root(f"detach instance {instance}")
    run_dir = RunDir(instance)
    if run_dir.is_locked():
        with Client(instance, timeout_s=STOP_TIMEOUT_S) as client:
            removed: list[str] = client.call("stop")["removed"]
        _await_unlocked(run_dir)
        return removed
    return undo(run_dir)


def _await_unlocked(run_dir: RunDir) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while run_dir.is_locked():
        if time.monotonic() > deadline:
            raise DmmError(
                f"detach instance {run_dir.instance}",
                why="its Resource Director answered but does not end",
                hint="kill it and detach again",
            )
        time.sleep(0.01)


# -- without a Resource Director --


def offline_status(instance: str) -> dict[str, Any]:
    """`status` from pins and state.json alone; the shape is that of a live RD's answer."""
    state = RunDir(instance).load() or State(instance, 0, "", 0)
    attached = loader.adopt(instance)
    maps = attached.maps
    return {
        "instance": instance,
        "pid": None,
        "netns": state.netns,
        "cgroup": state.cgroup,
        "policy": state.policy,
        "generation": state.generation,
        "uptime_s": None,
        "flows": sum(1 for _ in attached.flows()),
        "listeners": sum(1 for _ in maps["listeners"].items()),
        "rules": None,
        "routes": None,
        "counters": flows.counters_dict(maps["counters"].lookup_percpu),
        "stacks": [
            {"instance": instance, "name": s.name, "id": s.stack_id, "kind": "user", "tun": s.tun}
            | _offline_stack_state(maps["stack_state"].lookup(s.stack_id.to_bytes(4, sys.byteorder)))
            | {"processes": [_offline_process(p) for p in state.stacks if p.name == s.name]}
            for s in state.stacks
            if s.process == 0
        ],
    }


def offline_flows(instance: str) -> list[dict[str, Any]]:
    """`flows` from the pinned maps and inet_diag; what the stack processes know of their outer legs is missing."""
    state = RunDir(instance).load() or State(instance, 0, "", 0)
    names = _OfflineNames(state)
    now_ns = time.monotonic_ns()
    rows = [
        flows.flow_dict(abi.unpack("dmm_flow", value), instance, names, now_ns)
        for value in loader.adopt(instance).flows()
    ]
    netns = NetNS.find(state.netns_inode)
    if netns is None:  # and with it every socket
        return []
    with netns:
        sockets = netns.run_in(sockdiag.list_tcp, listeners=False)
    return flows.merge_live(rows, {s.cookie: vars(s) for s in sockets}, {})


def _offline_stack_state(value: bytes | None) -> dict[str, Any]:
    up = bool(value and abi.unpack("dmm_stack_state", value).up)
    return {
        "state": "up" if up else "down",
        "pid": abi.unpack("dmm_stack_state", value).pid if value else None,
    }


def _offline_process(record: StackState) -> dict[str, Any]:
    return {"process": record.process, "pid": record.pid or None, "tun": record.tun}


class _OfflineNames:
    """Names as far as state.json knows them; rules and routes stay numbers."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._ids = IdSpace.from_dict(state.ids) if state.ids else IdSpace()
        self._cgroup_paths: dict[int, str | None] = {}

    def stack(self, stack_id: int) -> str:
        return self._ids.stack_name(stack_id) or f"#{stack_id}"

    def table(self, table: int) -> str | None:
        return self._ids.table_name(table) or None

    def rule(self, generation: int, rule: int) -> str | None:
        return f"#{rule} of generation {generation}" if rule else None

    def route(self, generation: int, route: int) -> str | None:
        none = route == abi.C.DMM_ROUTE_NONE or not generation
        return None if none else f"#{route} of generation {generation}"

    def cgroup(self, cgroup_id: int) -> str | None:
        if cgroup_id not in self._cgroup_paths:
            self._cgroup_paths[cgroup_id] = cgroups.path_of(cgroup_id) if cgroup_id else None
        return self._cgroup_paths[cgroup_id]


# -- helpers --


def _attached_names() -> list[str]:
    try:
        return loader.instances()
    except DmmError:
        return []


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise PrivilegeError(what, why="not root", hint="run it with sudo")


def _log_to(stream: Any, level: int = logging.INFO) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False

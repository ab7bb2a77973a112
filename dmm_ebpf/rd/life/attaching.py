# SPDX-License-Identifier: Apache-2.0
"""What the command line starts: attach (in the foreground or as a daemon), run, detach, and looking
at an instance whose Resource Director is dead.

The process that attaches moves into the instance's network namespace for good, before anything else
is opened; it has no other work there. SIGINT and SIGTERM detach, from the first moment on; SIGHUP
reads the policy again, or detaches where the terminal is gone; SIGKILL leaves hooks and stack
processes serving, for the next attach to adopt or for detach to remove.
"""

from __future__ import annotations

import dmm_ebpf.lean  # noqa: F401 - before asyncio is imported

# isort: split

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.rd.api.server import Server
from dmm_ebpf.rd.director.instance import AttachOptions, Instance
from dmm_ebpf.rd.director.nested import nested, nested_text
from dmm_ebpf.rd.director.offline import offline_flows, offline_listeners, offline_status
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.life import notify, starting
from dmm_ebpf.rd.life.daemon import daemonize
from dmm_ebpf.rd.life.detaching import detach, instances
from dmm_ebpf.rd.life.home import Doors, Home
from dmm_ebpf.rd.life.running import RunOptions, run
from dmm_ebpf.rd.life.signals import Signals, Stop

if TYPE_CHECKING:
    from dmm_ebpf.rd.sources.follower import Follower

__all__ = [
    "AttachOptions",
    "RunOptions",
    "attach",
    "detach",
    "instances",
    "offline_flows",
    "offline_listeners",
    "offline_status",
    "run",
]

log = logging.getLogger("dmm-ebpf")


def attach(options: AttachOptions, follower: Follower | None = None) -> int:
    """Attach and serve until told to stop; as a daemon, return when it serves. follower: the policy
    is a fleet's. Returns an exit code.
    """
    starting.need_root(f"attach instance {options.instance}")
    starting.allow_descriptors()
    options = _absolute(options)
    run_dir = RunDir(options.instance)
    run_dir.readers = options.readers

    def serve(ready: Callable[[], None]) -> int:
        netns = NetNS.from_arg(options.netns)
        netns.enter()
        opening = partial(_opened, options, follower, run_dir, netns)
        asyncio.run(_main(options, opening, run_dir, signals, ready))
        return 0

    def serve_as_daemon(ready: Callable[[], None]) -> int:
        with starting.clean(run_dir):
            starting.log_to(starting.log_file(run_dir.log))
            return serve(ready)

    with Signals() as signals, starting.claimed(run_dir):
        if options.daemon:
            return daemonize(run_dir, signals, serve_as_daemon)
        starting.log_to(sys.stderr)
        return serve(lambda: _tell(options))


def _tell(options: AttachOptions) -> None:
    log.info("%s; Ctrl-C detaches", _attached(options))
    notify.tell("READY=1", f"STATUS={_attached(options)}")


def _attached(options: AttachOptions) -> str:
    return f"instance {options.instance} is attached to {options.cgroup}"


def _absolute(options: AttachOptions) -> AttachOptions:
    """With paths as they are now: a daemon works in /, and they are kept for the watch and
    the next attach.
    """
    policy, netns = options.policy, options.netns
    return replace(
        options,
        policy=policy.absolute() if policy is not None else None,
        netns=str(Path(netns).absolute()) if netns is not None and "/" in netns else netns,
    )


async def _opened(
    options: AttachOptions, follower: Follower | None, run_dir: RunDir, netns: NetNS
) -> Instance:
    """The instance, with what it follows."""
    if follower is None:
        return await Instance.open(options, run_dir, netns)
    from dmm_ebpf.rd.sources import etcdsource  # which is much, and for a fleet alone

    async with etcdsource.opened(follower) as fleet:
        instance = await Instance.open(options, run_dir, netns)
        try:
            source = etcdsource.EtcdSource(instance, fleet, follower)
            instance.watch = source
            await source.begin()
        except BaseException as error:
            await instance.give_up(error)
            raise
        return instance


async def _main(
    options: AttachOptions,
    opening: Callable[[], Coroutine[Any, Any, Instance]],
    run_dir: RunDir,
    signals: Signals,
    ready: Callable[[], None],
) -> None:
    stop = Stop(signals)
    instance = await starting.opened(opening(), stop, run_dir)
    server = Server(instance, run_dir.socket, options.readers)
    instance.ground += [
        Home(run_dir, instance.state, server.listen),
        Doors(run_dir, instance.state),
    ]
    manager = notify.Manager(_attached(options), instance.watch)
    stop.then(server.stop, manager.reload)
    telling = asyncio.get_running_loop().create_task(manager.run())
    try:
        for one in nested(options.instance):
            log.warning("%s", nested_text(one))
        serving = asyncio.get_running_loop().create_task(server.serve())
        asyncio.get_running_loop().call_soon(ready)
        await serving
    finally:
        removed = await starting.closed(instance, server)
        telling.cancel()
    log.info("detached: %s", ", ".join(removed) or "nothing was left")

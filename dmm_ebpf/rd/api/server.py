# SPDX-License-Identifier: Apache-2.0
"""The Resource Director's Unix socket: who may ask, and what can be asked.

Only uid 0 is answered (SO_PEERCRED, unix(7)), and a group that was named for it, which changes
nothing; whatever the socket's mode became, nothing that others send is read. A request that fails
is answered with its sentence; it never ends the connection of another client, nor the RD. Who sends
half a request, or does not read the answer, is hung up on. How many there may be, and who makes
room: clients.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.errors import DmmError, MadeRoomError, PrivilegeError, UsageError, unforeseen
from dmm_ebpf.peercred import peer
from dmm_ebpf.rd.api import wire
from dmm_ebpf.rd.api.backlog import Backlog
from dmm_ebpf.rd.api.clients import Clients, Owner
from dmm_ebpf.rd.director import faults, routechange
from dmm_ebpf.rd.director.instance import Instance
from dmm_ebpf.rd.policy.values import shown
from dmm_ebpf.readers import belongs
from dmm_ebpf.records.record import Record

if TYPE_CHECKING:
    from dmm_ebpf.records.event import Event
    from dmm_ebpf.records.policy import Applied

log = logging.getLogger("dmm-ebpf")
BACKLOG = 4096  # somaxconn of Linux: who finds it full has to wait
REQUEST_WITHIN_S = 10.0
AGAIN_S = 1.0
ANSWER_WITHIN_S = 600.0  # a listing may go to a pager

Method = Callable[[dict[str, Any]], Awaitable[Any]]
Listing = Callable[[], AsyncIterator[Sequence[Record]]]


class Server:
    """Answers for one Instance until asked to stop."""

    def __init__(self, instance: Instance, path: Path, readers: int | None = None) -> None:
        """readers: gid of the group that may ask."""
        self._readers = readers
        self._instance = instance
        self._path = path
        self._stop = asyncio.Event()
        self._listening: asyncio.Server | None = None
        self._removed: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._clients = Clients()
        self._backlog: Backlog[Event] = Backlog()
        self._methods: dict[str, Method] = {
            "status": lambda _: instance.status(),
            "stacks": lambda _: instance.list_stacks(),
            "listeners": _plain(lambda _: instance.list_listeners()),
            "paths": _plain(lambda _: instance.list_paths()),
            "route_get": _plain(instance.route_get),
            "policy_show": _plain(lambda _: instance.policy_show()),
        }
        self._changes: dict[str, tuple[str, Method]] = {  # root's alone, each in words
            "policy_apply": ("apply a policy", self._apply),
            "route_change": (
                "change a route",
                lambda params: instance.change(lambda here: routechange.change(here, params)),
            ),
            "faults": ("inject a fault", lambda params: faults.inject(instance.stacks, params)),
            "stop": ("detach", self._stop_method),
        }
        self._listings: dict[str, Listing] = {
            "flows": instance.list_flows,
            "routes": instance.list_routes,
        }

    async def serve(self) -> None:
        """Answer until stop() is called or a client asks for it. Returns with the socket
        still in place.
        """
        await self.listen()
        loop = asyncio.get_running_loop()
        instance = self._instance
        watches = [
            loop.create_task(kept_up(watch))
            for watch in (
                instance.watch.run,
                instance.guard.run,
                instance.groups.run,
                instance.adaptive.run,
                instance.sets.run,
                self._stop_when_orphaned,
            )
        ]
        await self._stop.wait()
        if self._listening is not None:
            self._listening.close()
        for watch in watches:
            watch.cancel()
        # What they were putting back must not come after it has been removed.
        await asyncio.gather(*watches, return_exceptions=True)

    async def listen(self) -> None:
        """Make the socket, also in the place of one that was removed: its clients are served
        to their end.
        """
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # the lock is ours, so a socket that stands here is stale
        mask = os.umask(0o177)
        try:
            new = await asyncio.start_unix_server(self._client, str(self._path), backlog=BACKLOG)
        finally:
            os.umask(mask)
        if self._readers is not None:
            os.chown(self._path, 0, self._readers)
            self._path.chmod(0o660)
        old, self._listening = self._listening, new
        if old is not None:
            old.close()

    def stop(self) -> None:
        """End serve()."""
        self._stop.set()

    async def finish(self, removed: list[str] | DmmError) -> None:
        """Tell whoever asked for the stop what was removed, or why not all was, and hang up
        on every client.
        """
        if isinstance(removed, DmmError):
            self._removed.set_exception(removed)
            self._removed.exception()  # it is told where it was raised, should nobody have asked
        else:
            self._removed.set_result(removed)
        await asyncio.sleep(0)
        if pending := self._clients.pending():
            _, late = await asyncio.wait(pending, timeout=0.5)
            for task in late:
                task.cancel()

    async def _stop_method(self, _: dict[str, Any]) -> dict[str, Any]:
        self.stop()
        return {"removed": await asyncio.shield(self._removed)}

    async def _apply(self, params: dict[str, Any]) -> Applied:
        text, path = params.get("text"), params.get("path")
        if not isinstance(text, str):
            raise UsageError("apply a policy", why="the request has no text")
        if path is not None and not isinstance(path, str):
            raise UsageError("apply a policy", why="the path in the request is no text")
        return await self._instance.apply_text(text, path)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            sock = writer.get_extra_info("socket")
            owner = Owner(*peer(sock))
            uid = owner.uid
            refusal = self._refusal(sock, uid) or await self._clients.admit(task, owner)
            if refusal is None:
                await self._talk(reader, writer, uid)
            else:
                writer.write(wire.failure(wire.CONNECTION, refusal))
            writer.close()
        except asyncio.CancelledError as error:
            if error.args:  # it made room for another one; if it lives, it is told
                what = "go on with this client"
                said = MadeRoomError(what, why=str(error.args[0]), hint="connect again")
                writer.write(wire.failure(wire.CONNECTION, said))
            writer.close()
        except OSError:
            writer.close()
        except DmmError as error:
            log.warning("a client was hung up on: %s", error)
            writer.transport.abort()  # it may not read what it is still to be sent
        except Exception:
            log.exception("a client was hung up on")
            writer.transport.abort()

    def _refusal(self, sock: Any, uid: int) -> DmmError | None:
        """Why this client is not served; told before a byte of what it sends is read."""
        if uid == 0 or (self._readers is not None and belongs(sock, self._readers)):
            return None
        may = "only root may" if self._readers is None else f"only root and gid {self._readers} may"
        return PrivilegeError("answer on this socket", why=f"uid {uid} asks, and {may}")

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        while (message := await self._request(reader, task, uid)) is not None:
            number, method, params = wire.REQUESTS.request_of(message)
            if uid and method in self._changes:
                refused = _no_change(self._changes[method][0], uid)
                await wire.write_frame(writer, wire.failure(number, refused))
                self._clients.waits(task)
                continue
            if method == "follow":
                await self._follow(number, reader, writer)
                return
            async with contextlib.aclosing(self._answer(number, method, params)) as frames:
                async for frame in frames:
                    await wire.write_frame(writer, frame, within_s=ANSWER_WITHIN_S)
            self._clients.waits(task)

    async def _request(
        self, reader: asyncio.StreamReader, task: asyncio.Task[None], uid: int
    ) -> wire.Message | None:
        first = await reader.read(1)
        if not first:
            return None
        hold = partial(_refuse_long, uid) if uid else partial(self._clients.hold, task)
        message = await wire.read_request(reader, first, within_s=REQUEST_WITHIN_S, hold=hold)
        self._clients.asked(task)
        return message

    async def _answer(
        self, number: int, method: str, params: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """The frames that answer a request: pages of a long listing, and the reply."""
        known, listing = self._methods.get(method), self._listings.get(method)
        if method in self._changes:
            known = self._changes[method][1]
        try:
            if listing is not None:
                by_columns = params.get("columns") is True
                async for rows in listing():
                    for page in wire.pages(number, rows, by_columns=by_columns):
                        yield page
                yield wire.reply(number, [])
            elif known is not None:
                yield wire.reply(number, await known(params))
            else:
                raise UsageError(
                    f"answer {shown(method)}", why="this Resource Director knows no such request"
                )
        except DmmError as error:
            yield wire.failure(number, error)
        except Exception as error:
            log.exception("request %s failed", shown(method))
            yield wire.failure(number, unforeseen(f"answer {shown(method)}", error))

    async def _follow(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send events until the client hangs up, or sends anything more."""
        loop = asyncio.get_running_loop()
        ends = [
            loop.create_task(self._send_events(number, writer)),
            loop.create_task(reader.read(1)),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _send_events(self, number: int, writer: asyncio.StreamWriter) -> None:
        unsubscribe = self._instance.followers.subscribe(self._backlog.add)
        try:
            async for told, lost in self._backlog.follow():
                event: Record = replace(told, events_lost=lost) if lost else told
                await wire.write_frame(writer, wire.event(number, event))
        finally:
            unsubscribe()

    async def _stop_when_orphaned(self) -> None:
        await self._instance.orphaned.wait()
        log.warning("the network namespace was deleted: detaching")
        self.stop()


def _no_change(what: str, uid: int) -> PrivilegeError:
    return PrivilegeError(
        what,
        why=f"uid {uid} may ask this Resource Director, and only root may change something",
        hint="run it as root",
    )


def _refuse_long(uid: int, _count: int) -> None:
    """What one asks is short; a policy is long."""
    why = f"uid {uid} may only ask, and what it sends is longer than any question"
    raise PrivilegeError("take in a request", why=why, hint="run it as root")


async def kept_up(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """run(), begun anew if it ends by an exception: what it looks after must not go untended. Not
    once it is cancelled, whatever run() makes of that: who cancels waits for the end.
    """
    task = asyncio.current_task()
    while True:
        try:
            await run()
        except Exception:
            if task is not None and task.cancelling():
                raise
            log.exception("%s ended; it is begun anew", run.__qualname__)
            await asyncio.sleep(AGAIN_S)
        else:
            return


def _plain(function: Callable[[dict[str, Any]], Any]) -> Method:
    async def method(params: dict[str, Any]) -> Any:
        return function(params)

    return method

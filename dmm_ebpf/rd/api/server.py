# SPDX-License-Identifier: Apache-2.0
"""The Resource Director's Unix socket: who may ask, and what can be asked.

Only uid 0 is answered (SO_PEERCRED, unix(7)), whatever the socket's mode became; nothing that
others send is read. A request that fails is answered with its sentence; it never ends the
connection of another client, nor the RD. Who sends half a request, or does not read the answer, is
hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from dmm_ebpf.errors import DmmError, PrivilegeError, UsageError
from dmm_ebpf.rd.api import wire
from dmm_ebpf.rd.api.backlog import Backlog
from dmm_ebpf.rd.director.instance import Instance
from dmm_ebpf.rd.policy.values import shown

log = logging.getLogger("dmm-ebpf")
MAX_CLIENTS = 256
LARGE_AT_ONCE = 4  # requests that are longer than any but a policy is
REQUEST_WITHIN_S = 10.0
ANSWER_WITHIN_S = 600.0  # a listing may go to a pager

Method = Callable[[dict[str, Any]], Awaitable[Any]]
Listing = Callable[[], AsyncIterator[list[dict[str, Any]]]]


class Server:
    """Answers for one Instance until asked to stop."""

    def __init__(self, instance: Instance, path: Path) -> None:
        self._instance = instance
        self._path = path
        self._stop = asyncio.Event()
        self._listening: asyncio.Server | None = None
        self._removed: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._clients: set[asyncio.Task[None]] = set()
        # Clients that ask nothing now, the longest idle one first
        self._idle: dict[asyncio.Task[None], None] = {}
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._backlog = Backlog()
        self._reloading: asyncio.Task[None] | None = None
        self._methods: dict[str, Method] = {
            "status": lambda _: instance.status(),
            "stacks": lambda _: instance.list_stacks(),
            "listeners": _plain(lambda _: instance.list_listeners()),
            "route_get": _plain(instance.route_get),
            "policy_show": _plain(lambda _: instance.policy_show()),
            "policy_apply": self._apply,
            "stop": self._stop_method,
        }
        self._listings: dict[str, Listing] = {"flows": instance.list_flows}

    async def serve(self) -> None:
        """Answer until stop() is called or a client asks for it. Returns with the socket
        still in place.
        """
        await self.listen()
        loop = asyncio.get_running_loop()
        instance = self._instance
        watches = [
            loop.create_task(watch)
            for watch in (
                instance.watch.run(),
                instance.guard.run(),
                instance.groups.run(),
                self._stop_when_orphaned(),
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
            new = await asyncio.start_unix_server(
                self._client, str(self._path), backlog=MAX_CLIENTS
            )
        finally:
            os.umask(mask)
        old, self._listening = self._listening, new
        if old is not None:
            old.close()

    def stop(self) -> None:
        """End serve()."""
        self._stop.set()

    def reload(self) -> None:
        """Read the policy file again (SIGHUP)."""
        self._reloading = asyncio.get_running_loop().create_task(self._instance.watch.reload())

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
        pending = [t for t in self._clients if not t.done()]
        if pending:
            _, late = await asyncio.wait(pending, timeout=0.5)
            for task in late:
                task.cancel()

    async def _stop_method(self, _: dict[str, Any]) -> dict[str, Any]:
        self.stop()
        return {"removed": await asyncio.shield(self._removed)}

    async def _apply(self, params: dict[str, Any]) -> dict[str, Any]:
        text, path = params.get("text"), params.get("path")
        if not isinstance(text, str):
            raise UsageError("apply a policy", why="the request has no text")
        if path is not None and not isinstance(path, str):
            raise UsageError("apply a policy", why="the path in the request is no text")
        return await self._instance.apply_text(text, path)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if (refusal := self._refusal(writer)) is not None:
            writer.write(wire.failure(wire.CONNECTION, refusal))
            writer.close()
            return
        if task is not None:
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)
        try:
            await self._talk(reader, writer)
            writer.close()
        except (OSError, asyncio.CancelledError):
            writer.close()  # the client is gone, or we are
        except DmmError as e:
            log.warning("a client was hung up on: %s", e)
            writer.transport.abort()  # it may not read what it is still to be sent

    def _refusal(self, writer: asyncio.StreamWriter) -> DmmError | None:
        """Why this client is not served; told before a byte of what it sends is read."""
        uid = _peer_uid(writer)
        if uid != 0:
            return PrivilegeError("answer on this socket", why=f"uid {uid} asks, and only root may")
        if len(self._clients) >= MAX_CLIENTS and not self._hang_up_on_one():
            return DmmError(
                "answer one more client",
                why=f"{MAX_CLIENTS} are connected",
                hint="end programs that follow flows",
            )
        return None

    def _hang_up_on_one(self) -> bool:
        """Who has asked nothing for the longest time makes room; false if all
        are being answered.
        """
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        del self._idle[longest]
        self._clients.discard(longest)
        longest.cancel()
        return True

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (message := await self._request(reader)) is not None:
            number, method, params = wire.parse_request(message)
            if method == "follow":
                await self._follow(number, reader, writer)
                return
            async with contextlib.aclosing(self._answer(number, method, params)) as frames:
                async for frame in frames:
                    await wire.write_frame(writer, frame, within_s=ANSWER_WITHIN_S)

    async def _request(self, reader: asyncio.StreamReader) -> wire.Message | None:
        task = asyncio.current_task()
        assert task is not None
        self._idle[task] = None
        try:
            first = await reader.read(1)
        finally:
            self._idle.pop(task, None)
        if not first:
            return None
        return await wire.read_request(reader, first, within_s=REQUEST_WITHIN_S, large=self._large)

    async def _answer(
        self, number: int, method: str, params: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """The frames that answer a request: pages of a long listing, and the reply."""
        known, listing = self._methods.get(method), self._listings.get(method)
        try:
            if listing is not None:
                async for rows in listing():
                    yield wire.page(number, rows)
                yield wire.reply(number, [])
            elif known is not None:
                yield wire.reply(number, await known(params))
            else:
                raise UsageError(
                    f"answer {shown(method)}", why="this Resource Director knows no such request"
                )
        except DmmError as e:
            yield wire.failure(number, e)
        except Exception as e:
            log.exception("request %s failed", shown(method))
            error = DmmError(
                f"answer {shown(method)}",
                why=f"{type(e).__name__}: {e}",
                hint="the RD's log has more",
            )
            yield wire.failure(number, error)

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
        unsubscribe = self._instance.subscribe(self._backlog.add)
        try:
            async for event in self._backlog.follow():
                await wire.write_frame(writer, wire.event(number, event))
        finally:
            unsubscribe()

    async def _stop_when_orphaned(self) -> None:
        await self._instance.orphaned.wait()
        log.warning("the network namespace was deleted: detaching")
        self.stop()


def _plain(function: Callable[[dict[str, Any]], Any]) -> Method:
    async def method(params: dict[str, Any]) -> Any:
        return function(params)

    return method


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)

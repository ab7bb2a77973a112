# SPDX-License-Identifier: Apache-2.0
"""The messages of both sockets, the director's and a stack process's, against any bytes at all; and
both servers against clients that send what is no request, half of one, or nothing.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import msgpack
import pytest
from cli_lab import FLOW
from hypothesis import given, settings
from hypothesis import strategies as st

from dmm_ebpf import frames
from dmm_ebpf.frames import Decoder, EndedError, FrameError, Frames, Limits
from dmm_ebpf.rd.api import server as director
from dmm_ebpf.rd.api import wire
from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.record import from_columns
from dmm_ebpf.userstack import control, controlserver, serving

KINDS = {
    "director asked": wire.REQUESTS,
    "director answers": wire.ANSWERS,
    "stack asked": control.REQUESTS,
    "stack answers": control.ANSWERS,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SMALL = Frames("read it", Limits(50, containers=4, entries_of_list=4, entries_of_map=4))
WITHIN_S = 10

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=20)
    | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=6,
)
LEAST_CONTAINERS = min(most for kind in KINDS.values() if (most := kind.limits.containers) >= 0)


def containers(value: Any) -> int:
    """How many lists and maps it is made of; empty ones are no leaves to hypothesis."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(containers, inner))


MESSAGES = st.dictionaries(st.text(max_size=9), VALUES, max_size=3).filter(
    lambda message: containers(message) <= LEAST_CONTAINERS
)


@each_kind
@given(messages=st.lists(MESSAGES, max_size=4), step=st.integers(1, 9))
def test_messages_survive_any_cut_of_the_stream(
    kind: Frames, messages: list[dict[str, Any]], step: int
) -> None:
    stream = b"".join(kind.encode(message) for message in messages)
    decoder = Decoder(kind)
    got = []
    for at in range(0, len(stream), step):
        got += decoder.feed(stream[at : at + step])
    assert got == messages
    assert decoder.at_boundary()


@each_kind
@given(data=st.binary(max_size=200), framed=st.booleans())
@settings(max_examples=400)
def test_any_bytes_are_messages_or_one_sentence(kind: Frames, data: bytes, framed: bool) -> None:
    stream = struct.pack(">I", len(data)) + data if framed else data
    try:
        messages = Decoder(kind).feed(stream)
    except FrameError as error:
        assert str(error).startswith("cannot ")
        assert "\n" not in str(error)
    else:
        assert all(isinstance(message, dict) for message in messages)


@each_kind
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (msgpack.packb([1, 2]), "a msgpack list arrived where a map was expected"),
        (msgpack.packb({1: 2}), "not one msgpack map"),
        (msgpack.packb({"a": 1}) + b"\0", "not one msgpack map"),
        (b"\x81\xc1\x01", "not one msgpack map"),
        (b"\x91" * 5000, "not one msgpack map"),
        (b"\x81\xa1a" * 2000, "not one msgpack map"),
        (b"\xdd\xff\xff\xff\xff", "not one msgpack map"),
        (b"\xdf\xff\xff\xff\xff", "not one msgpack map"),
        (b"\xdb\xff\xff\xff\xff", "not one msgpack map"),
        (b"\x81\xa1a\xc7\x08\x01" + bytes(8), "not one msgpack map"),  # an extension type
        (b"", "0 bytes arrived"),
    ],
)
def test_bodies_that_are_refused(kind: Frames, body: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        kind.decode(body)


@each_kind
def test_a_length_above_the_limit_is_refused_before_its_body_comes(kind: Frames) -> None:
    for length in (kind.limits.message_bytes + 1, (1 << 32) - 1):
        with pytest.raises(FrameError, match=f"a message of {length} bytes is announced"):
            Decoder(kind).feed(struct.pack(">I", length))


@each_kind
def test_a_message_above_the_limit_is_not_sent(kind: Frames) -> None:
    most = kind.limits.message_bytes
    with pytest.raises(FrameError, match=f"is above the limit of {most}"):
        kind.encode({"text": "x" * most})


def test_a_stranger_makes_no_more_objects_than_a_request_has() -> None:
    for body in ({"a": [[]] * 20}, {"a": [0] * 33}, {str(n): 0 for n in range(33)}, {"a": b"x"}):
        with pytest.raises(FrameError):
            wire.REQUESTS.decode(msgpack.packb(body))


@each_kind
@given(message=MESSAGES)
def test_requests_are_parsed_or_refused(kind: Frames, message: dict[str, Any]) -> None:
    try:
        number, method, params = kind.request_of(message)
    except FrameError:
        return
    assert isinstance(number, int)
    assert isinstance(method, str)
    assert isinstance(params, dict)


async def _read_all(read: Callable[[asyncio.StreamReader], Awaitable[Any]], data: bytes) -> Any:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    got = []
    try:
        while (message := await read(reader)) is not None:
            got.append(message)
    except FrameError:
        return "refused"
    return got


async def _as_the_director(reader: asyncio.StreamReader) -> wire.Message | None:
    first = await reader.read(1)
    if not first:
        return None
    return await wire.read_request(
        reader, first, within_s=WITHIN_S, hold=lambda _: None, kind=SMALL
    )


@given(st.binary(max_size=60))
def test_all_readers_agree(data: bytes) -> None:
    decoder, decoded = Decoder(SMALL), "refused"
    try:
        got: Any = decoder.feed(data)
        decoded = got if decoder.at_boundary() else decoded
    except FrameError:
        pass
    assert asyncio.run(_read_all(SMALL.read, data)) == decoded
    assert asyncio.run(_read_all(_as_the_director, data)) == decoded


@each_kind
def test_the_end_of_a_stream_is_none_and_inside_a_message_an_error(kind: Frames) -> None:
    assert asyncio.run(_read_all(kind.read, b"")) == []
    for cut in (1, 3, 4, 6):

        async def read(cut: int = cut) -> None:
            reader = asyncio.StreamReader()
            reader.feed_data(kind.encode({"id": 1})[:cut])
            reader.feed_eof()
            await kind.read(reader)

        with pytest.raises(EndedError, match="ended inside a message"):
            asyncio.run(read())


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_connection_that_ends_inside_a_message_is_an_error(cut: int) -> None:
    near, far = socket.socketpair()
    far.sendall(frames.encode({"id": 1})[:cut])
    far.close()
    connection = wire.Connection(near)
    with pytest.raises(EndedError, match="ended inside a message"):
        connection.receive()
    connection.close()


def test_half_a_request_is_waited_for_so_long() -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"\0\0\5ab")
        await wire.read_request(reader, b"\0", within_s=0.01, hold=lambda _: None)

    with pytest.raises(FrameError, match=r"a request was not whole after 0\.01 s$"):
        asyncio.run(read())


# -- both servers --


@asynccontextmanager
async def _director(path: Path) -> AsyncIterator[str]:
    instance = MagicMock(list_flows=AsyncMock(), policy_show=lambda: {"text": None})
    served = director.Server(instance, path)
    await served.listen()
    yield "policy_show"
    await served.finish([])


@asynccontextmanager
async def _stack(path: Path) -> AsyncIterator[str]:
    def answer(number: int, method: str, params: frames.Message) -> frames.Message:
        return serving.answer(number, method, params, lambda *_: {"text": None})

    served = controlserver.ControlServer(
        controlserver.listen(path), answer, lambda _method, _params, _fd: None
    )
    yield "ping"
    served.close()


BAD = {
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "four gigabytes": b"\xff\xff\xff\xff" + bytes(64),
    "no map": frames.LENGTH.pack(1) + b"\x90",
    "deep": frames.LENGTH.pack(4000) + b"\x91" * 4000,
    "a list of four thousand million": frames.LENGTH.pack(5) + b"\xdd\xff\xff\xff\xff",
    "no request": frames.encode({"id": "x", "method": "ping"}),
    "no method": frames.encode({"id": 1, "method": None}),
    "no parameters": frames.encode({"id": 1, "method": "ping", "params": []}),
}
each_server = pytest.mark.parametrize("served", [_director, _stack], ids=["director", "stack"])


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is."""
    for module in (director, controlserver):
        monkeypatch.setattr(module, "peer", lambda _sock: (1, 0))


def _run(served: Any, talk: Callable[[Path, str], Awaitable[None]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="dmm-u-") as folder:
            path = Path(folder) / "sock"
            async with asyncio.timeout(WITHIN_S), served(path) as method:
                await talk(path, method)

    asyncio.run(run())


async def _ask(path: Path, method: str) -> None:
    """Somebody who asks as one should is answered."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(frames.encode(frames.request(7, method, {})))
    answer = await control.ANSWERS.read(reader)
    assert answer == {"id": 7, "ok": True, "result": {"text": None}}
    writer.close()


@each_server
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@pytest.mark.usefixtures("root")
def test_what_is_no_request_ends_its_connection_alone(served: Any, data: bytes) -> None:
    async def talk(path: Path, method: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        with suppress(ConnectionResetError):
            assert await reader.read(1) == b""
        writer.close()
        await _ask(path, method)

    _run(served, talk)


@each_server
@pytest.mark.usefixtures("root")
def test_who_says_nothing_or_half_a_request_keeps_nobody_waiting(served: Any) -> None:
    async def talk(path: Path, method: str) -> None:
        silent = [await asyncio.open_unix_connection(path) for _ in range(4)]
        halves = [await asyncio.open_unix_connection(path) for _ in range(4)]
        for cut, (_, writer) in enumerate(halves, start=1):
            writer.write(frames.encode(frames.request(1, method, {}))[: 2 * cut])
        await _ask(path, method)
        for _, writer in [*silent, *halves]:
            writer.close()
        await _ask(path, method)

    _run(served, talk)


@pytest.mark.usefixtures("root")
def test_a_stack_process_ends_a_connection_that_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlserver, "IDLE_S", 0.01)

    async def talk(path: Path, _method: str) -> None:
        reader, _writer = await asyncio.open_unix_connection(path)
        assert await reader.read(1) == b""

    _run(_stack, talk)


# -- a long listing --

FLOWS = [replace(Flow.from_map(FLOW), cookie=number) for number in range(3)]


@asynccontextmanager
async def _listing(path: Path) -> AsyncIterator[str]:
    async def pages() -> AsyncIterator[list[Flow]]:
        yield FLOWS[:2]
        yield FLOWS[2:]

    served = director.Server(MagicMock(list_flows=pages), path)
    await served.listen()
    yield "flows"
    await served.finish([])


@pytest.mark.parametrize("params", [{}, {"columns": True}], ids=["maps", "columns"])
@pytest.mark.usefixtures("root")
def test_a_long_listing_comes_as_its_reader_knows_it(params: dict[str, Any]) -> None:
    async def talk(path: Path, method: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(wire.request(1, method, params))
        found: list[Flow] = []
        while (message := await wire.ANSWERS.read(reader)) and "page" in message:
            assert ("columns" in message) == bool(params)
            if params:
                found += from_columns(Flow, message["columns"], message["page"])
            else:
                found += map(Flow.from_map, message["page"])
        assert message == {"id": 1, "ok": True, "result": []}
        assert found == FLOWS
        writer.close()

    _run(_listing, talk)

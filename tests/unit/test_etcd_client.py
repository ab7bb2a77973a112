# SPDX-License-Identifier: Apache-2.0
"""What the client of etcd makes of gateways that are slow, odd, hostile, or no etcd at all. The
real one is in tests/apps/test_fleet.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from dmm_ebpf.central import client, controller, place
from dmm_ebpf.central.client import At, CompactedError, Etcd, EtcdDownError, EtcdError, Put
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.errors import DmmError, PrivilegeError
from lab import wait_for

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def saying(value: Any, status: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return web.Response(body=body, status=status)

    return answer


def streaming(*lines: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        return response

    return answer


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@contextlib.asynccontextmanager
async def gateways(*answers: Answer, user: str = ""):
    """A client, and what was asked of each gateway. A gateway gives one answer to everything."""
    runners, endpoints = [], []
    asked: list[list[tuple[str, dict[str, str]]]] = []
    for one in answers:
        seen: list[tuple[str, dict[str, str]]] = []
        asked.append(seen)

        async def handle(request: web.Request, one=one, seen=seen) -> web.StreamResponse:
            seen.append((request.path, dict(request.headers)))
            return await one(request)

        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        endpoints.append(f"127.0.0.1:{runner.addresses[0][1]}")
    more = f"?user={user}" if user else ""
    etcd = await client.connect(place.parse(f"etcd://{','.join(endpoints)}/dmm{more}"))
    try:
        yield etcd, asked
    finally:
        await etcd.close()
        for runner in runners:
            await runner.cleanup()


FOUND = {
    "header": {"revision": "12"},
    "kvs": [{"key": b64("/dmm/a"), "value": b64("one"), "mod_revision": "7"}],
}


def test_what_is_found_is_read() -> None:
    async def main() -> None:
        async with gateways(saying(FOUND)) as (etcd, asked):
            found = await etcd.range("/dmm/", prefix=True)
            assert (found.revision, found.items[0].key, found.items[0].value) == (
                12,
                "/dmm/a",
                b"one",
            )
            assert found.items[0].revision == 7
            assert asked[0][0][0] == "/v3/kv/range"

    asyncio.run(main())


@pytest.mark.parametrize("first", [saying({"error": "no leader"}, 503), saying(b"<html>"), never])
def test_another_endpoint_answers_and_is_asked_first_from_then_on(first, monkeypatch) -> None:
    monkeypatch.setattr(client, "REQUEST_S", 0.3)

    async def main() -> None:
        async with gateways(first, saying(FOUND)) as (etcd, asked):
            for _ in range(3):
                assert (await etcd.range("/dmm/a")).revision == 12
            assert (len(asked[0]), len(asked[1])) == (1, 3)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (saying(b"\x00" * 100), "not JSON: is that etcd?"),
        (saying([1]), "no JSON object: is that etcd?"),
        (saying(b"[" * 200_000), "not JSON"),
        (
            saying({"message": "etcdserver: request timed out"}, 503),
            "etcdserver: request timed out",
        ),
        (saying(b"x" * 5000, 404), "xxx"),
        (saying({"kvs": [{"key": 7}]}), "not as etcd has it"),
        (saying({"kvs": [{"key": "%"}]}), "not as etcd has it"),
        (saying({"kvs": [7]}), "not as etcd has it"),
        (never, "no answer in time"),
    ],
)
def test_what_is_no_answer_is_one_sentence(answer, why, monkeypatch) -> None:
    monkeypatch.setattr(client, "REQUEST_S", 0.3)

    async def main() -> None:
        async with gateways(answer) as (etcd, _):
            with pytest.raises(DmmError) as refused:
                await etcd.range("/dmm/", prefix=True)
            assert why in str(refused.value)
            assert len(str(refused.value)) < 600

    asyncio.run(main())


def test_an_endless_answer_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1 << 20)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65536)
        return response

    async def main() -> None:
        async with gateways(endless) as (etcd, _):
            with pytest.raises(EtcdDownError, match="longer than 1 MiB"):
                await etcd.range("/dmm/")

    asyncio.run(main())


def test_a_name_that_leads_nowhere() -> None:
    async def main() -> None:
        etcd = await client.connect(place.parse("etcd://127.0.0.1:1/dmm"))
        with pytest.raises(EtcdDownError, match=r"127\.0\.0\.1:1: .*refused"):
            await etcd.grant(5)
        await etcd.close()

    asyncio.run(main())


def test_a_scheme_that_is_not_etcd_s_is_told() -> None:
    """What comes back from one that speaks TLS says nothing of it."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()  # as etcd does with what is no TLS

    async def main() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        etcd = await client.connect(place.parse(f"etcd://127.0.0.1:{port}/dmm"))
        with pytest.raises(EtcdDownError, match="if it speaks TLS, begin its address with etcds"):
            await etcd.grant(5)
        await etcd.close()
        server.close()

    asyncio.run(main())


async def changes_of(etcd: Etcd) -> list[Any]:
    return [one async for one in etcd.watch("/dmm/", 8)]


def test_a_watch_tells_changes_until_it_ends() -> None:
    put = {"kv": {"key": b64("/dmm/a"), "value": b64("x"), "mod_revision": "9"}}
    gone = {"type": "DELETE", "kv": {"key": b64("/dmm/b"), "mod_revision": "9"}}
    whole = json.dumps({"result": {"events": [put, gone]}}).encode() + b"\n"
    created = b'{"result": {"created": true}}\n'

    async def main() -> None:
        async with gateways(streaming(created, whole[:20], whole[20:])) as (etcd, asked):
            told = []
            with pytest.raises(EtcdDownError, match="the watch ended"):
                async for changes in etcd.watch("/dmm/", 8):
                    told += changes
            assert [(one.key, one.item and one.item.value) for one in told] == [
                ("/dmm/a", b"x"),
                ("/dmm/b", None),
            ]
            assert asked[0][0][1]["Grpc-Metadata-hasleader"] == "true"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("lines", "kind", "why"),
    [
        (
            [b'{"result": {"canceled": true, "compact_revision": "9"}}\n'],
            CompactedError,
            "before 9",
        ),
        ([b'{"result": {"canceled": true, "cancel_reason": "so"}}\n'], EtcdDownError, "so"),
        ([b'{"error": {"message": "etcdserver: no leader"}}\n'], EtcdDownError, "no leader"),
        ([b'{"result": {"events": [{"kv": {"key": 1}}]}}\n'], EtcdError, "not as etcd has it"),
        ([b"garbage\n"], EtcdDownError, "not JSON"),
        ([b'{"result": {"events": 7}}\n'], EtcdDownError, "the watch ended"),
        ([b"x" * 70000] * 40, EtcdDownError, "a change has over 1 MiB"),
    ],
)
def test_a_watch_that_goes_wrong(lines, kind, why, monkeypatch) -> None:
    monkeypatch.setattr(client, "MAX_EVENT_BYTES", 1 << 20)

    async def main() -> None:
        async with gateways(streaming(*lines)) as (etcd, _):
            with pytest.raises(kind, match=why):
                await changes_of(etcd)

    asyncio.run(main())


def test_a_watch_ends_when_its_endpoint_fails_a_request() -> None:
    """As when the link is down: the watch itself hears nothing."""
    healthy = True

    async def first(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/watch"):
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"result": {"created": true}}\n')
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return response
        return await saying(FOUND, 200 if healthy else 503)(request)

    async def main() -> None:
        nonlocal healthy
        async with gateways(first, saying(FOUND)) as (etcd, asked):
            watching = asyncio.ensure_future(changes_of(etcd))
            begun = functools.partial(etcd._watches.get, etcd.place.endpoints[0])
            await asyncio.to_thread(wait_for, begun, 10, "a watch that has begun")
            async with asyncio.timeout(10):
                assert asked[0]
                healthy = False
                await etcd.range("/dmm/a")
                with pytest.raises(EtcdDownError):
                    await watching

    asyncio.run(main())


def test_a_token_is_got_once_and_anew_when_it_is_old(monkeypatch) -> None:
    monkeypatch.setenv(place.PASSWORD_VARIABLE, "geheim")
    tokens = iter(["first", "second"])

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("authenticate"):
            assert await request.json() == {"name": "me", "password": "geheim"}
            return await saying({"token": next(tokens)})(request)
        if request.headers["Authorization"] == "first" and len(asked_ranges) == 1:
            asked_ranges.append(request)
            said = {"message": "etcdserver: invalid auth token"}
            return await saying(said, 401)(request)
        asked_ranges.append(request)
        return await saying(FOUND)(request)

    asked_ranges: list[web.Request] = []

    async def main() -> None:
        async with gateways(answer, user="me") as (etcd, _):
            for _ in range(3):
                assert (await etcd.range("/dmm/a")).revision == 12

    asyncio.run(main())
    used = [one.headers["Authorization"] for one in asked_ranges]
    assert used == ["first", "first", "second", "second"]


def test_a_token_that_is_never_good_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setenv(place.PASSWORD_VARIABLE, "geheim")

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("authenticate"):
            return await saying({"token": "a"})(request)
        return await saying({"message": "etcdserver: invalid auth token"}, 401)(request)

    async def main() -> None:
        async with gateways(answer, answer, user="me") as (etcd, asked):
            with pytest.raises(EtcdDownError, match="invalid auth token"):
                await etcd.range("/dmm/a")
            assert all(asked), "each endpoint was asked"

    asyncio.run(main())


@pytest.mark.parametrize("revision", ["--5", "9" * 5000, None, [], "x"])
def test_a_number_that_is_none_is_0(revision: Any) -> None:
    async def main() -> None:
        async with gateways(saying({"header": {"revision": revision}, "kvs": None})) as (etcd, _):
            found = await etcd.range("/dmm/a")
            assert (found.revision, found.items) == (0, ())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("etcdserver: permission denied", "check user, password and role"),
        ("etcdserver: user name is empty", "etcd asks for a user and a password"),
        ("CommonName of client ...", "without a common name"),
    ],
)
def test_what_etcd_does_not_allow(said: str, why: str) -> None:
    async def main() -> None:
        async with gateways(saying({"message": said}, 401)) as (etcd, _):
            with pytest.raises(PrivilegeError, match=why):
                await etcd.commit([At("k", 0)], [Put("k", b"v")])

    asyncio.run(main())


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_commit_says_whether_it_was_done(succeeded: bool) -> None:
    said = {"header": {"revision": "5"}} | ({"succeeded": True} if succeeded else {})

    async def main() -> None:
        async with gateways(saying(said)) as (etcd, _):
            assert await etcd.commit([At("k", 0)], [Put("k", b"v")]) == (5 if succeeded else 0)

    asyncio.run(main())


def test_a_lease_that_has_ended_is_known() -> None:
    async def main() -> None:
        async with gateways(saying({"result": {"ID": "7"}})) as (etcd, _):
            assert await etcd.keep(7) is False
        async with gateways(saying({"result": {"ID": "7", "TTL": "15"}})) as (etcd, _):
            assert await etcd.keep(7) is True

    asyncio.run(main())


# -- an operator's watch --


def test_a_watch_that_was_compacted_goes_on_also_when_etcd_fails_meanwhile(monkeypatch) -> None:
    """What has changed in between is told, and what is gone."""
    monkeypatch.setattr(controller, "AGAIN_S", 0.0)
    host = {"key": b64("/dmm/hosts/a/i"), "value": b64('{"format": 1, "state": "applied"}')}
    route = {"key": b64("/dmm/want/routes/t/x"), "value": b64("192.0.2.0/24,,,far")}
    ranges = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal ranges
        asked = await request.json()
        if request.path.endswith("/watch"):
            first = int(asked["create_request"]["start_revision"])
            if first < 20:
                return await streaming(b'{"result":{"compact_revision":"20"}}\n')(request)
            told = {"result": {"events": [{"kv": {**route, "mod_revision": "21"}}]}}
            return await streaming(json.dumps(told).encode() + b"\n")(request)
        ranges += 1
        if ranges in (4, 6):  # at first there are three, of what there is
            return await saying({"error": "etcdserver: no leader"}, 503)(request)
        here = base64.b64decode(asked["key"]).decode()
        there = [host] if here == "/dmm/hosts/" else [route] if ranges == 3 else []
        items = [{**one, "mod_revision": "9" if ranges < 4 else "19"} for one in there]
        header = {"revision": "10" if ranges < 4 else "20"}
        return await saying({"header": header, "kvs": items})(request)

    async def main() -> list[Any]:
        async with gateways(answer) as (etcd, _), asyncio.timeout(20):
            following = controller.Controller(Fleet(etcd)).follow()
            return [await anext(following) for _ in range(3)]

    gone, told, put = asyncio.run(main())
    assert (gone.key, gone.item) == ("want/routes/t/x", None)
    assert (told.host, told.state) == ("a", "applied")
    assert (put.key, put.item.revision) == ("want/routes/t/x", 21)

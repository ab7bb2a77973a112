# SPDX-License-Identifier: Apache-2.0
"""A client of etcd (3.4 or later), by its JSON gateway: HTTP/1.1, so that no gRPC library is
needed.

Owns the forms of https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/: keys and values are base64,
64-bit numbers are text, and what is 0 or empty is left out. Every request but a watch has a
deadline, and is tried at each endpoint once; who has failed is asked last from then on. Lives in
one event loop.

aiohttp is imported by connect() alone: who reads a policy from a file needs none of it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmm_ebpf.central.place import Place
from dmm_ebpf.errors import DmmError, KernelFeatureError, PrivilegeError

if TYPE_CHECKING:
    import ssl

    import aiohttp

CONNECT_S = 2.0
REQUEST_S = 5.0
MAX_ANSWER_BYTES = 32 << 20  # a page of values as base64
MAX_EVENT_BYTES = 16 << 20  # what one revision changed, likewise
PAGE_KEYS = 500
_BUSY = {500, 502, 503, 504}  # another member may do better
_ENDED = "the connection ended"  # also what a server of TLS makes of a request without
_INT64 = re.compile(r"-?[0-9]{1,19}")
_UNAUTHENTICATED = ("invalid auth token", "user name is empty", "revision of auth store is old")


class EtcdError(DmmError):
    """etcd refused a request."""


class EtcdDownError(EtcdError):
    """No endpoint answered as a member of a cluster that works; exit code: try again later."""

    exit_code = 75  # sysexits.h EX_TEMPFAIL


class CompactedError(EtcdError):
    """What a watch was to begin with has been compacted away."""


@dataclass(frozen=True)
class Item:
    """A key and its value; revision: of its last change."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True)
class Found:
    """What a range has; revision: of the store when it was read."""

    revision: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Change:
    """A key that was put (item), or deleted (None)."""

    key: str
    item: Item | None


@dataclass(frozen=True)
class Put:
    """An operation of a transaction. lease: 0 for none."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    """An operation of a transaction; prefix: of all keys that begin so."""

    key: str
    prefix: bool = False


@dataclass(frozen=True)
class At:
    """A condition of a transaction: key was last changed at revision; 0: there is none."""

    key: str
    revision: int


@dataclass(frozen=True)
class Until:
    """A condition of a transaction: of all keys that begin with key none was changed after
    revision.
    """

    key: str
    revision: int


async def connect(place: Place) -> Etcd:
    """A client of the cluster at place, which need not answer yet. Raises KernelFeatureError
    where aiohttp is not installed, UsageError for files that cannot be read.
    """
    try:
        import aiohttp
    except ImportError as error:
        raise KernelFeatureError(
            f"speak to {place}",
            why="the Python package aiohttp is not installed",
            hint="pip install 'dmm-ebpf[etcd]'",
        ) from error
    context = _tls(place) if place.tls else None
    connector = aiohttp.TCPConnector(ssl=context if context else True, limit=0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S)
    session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
    return Etcd(place, session)


def _tls(place: Place) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=str(place.ca) if place.ca else None)
        if place.cert:
            context.load_cert_chain(str(place.cert), str(place.key))
    except OSError as error:
        files = ", ".join(str(one) for one in (place.ca, place.cert, place.key) if one)
        why = f"{files}: {error.strerror or str(error)}"
        raise EtcdError(f"speak to {place}", why=why, hint="name PEM files that fit") from error
    return context


class Etcd:
    """Made by connect()."""

    def __init__(self, place: Place, session: aiohttp.ClientSession) -> None:
        self.place = place
        self._session = session
        self._endpoints = list(place.endpoints)  # whom to ask first, first
        self._token = ""
        self._watches: dict[str, set[aiohttp.ClientResponse]] = {}  # by endpoint

    @property
    def endpoint(self) -> str:
        """Who is asked first now."""
        return self._endpoints[0]

    async def close(self) -> None:
        """End every request and watch."""
        await self._session.close()

    async def range(
        self, key: str, *, prefix: bool = False, newer_than: int = 0, keys_only: bool = False
    ) -> Found:
        """What is at key, or at all keys that begin with it, in their order; of one revision,
        which a majority of members has. newer_than: only what was changed after that revision.
        Raises EtcdError.
        """
        items: list[Item] = []
        first, revision = key.encode(), 0
        end = _after(key.encode()) if prefix else b""
        while True:
            body: dict[str, Any] = {"key": _b64(first), "limit": PAGE_KEYS}
            body |= {"range_end": _b64(end)} if end else {}
            body |= {"revision": str(revision)} if revision else {}
            body |= {"min_mod_revision": str(newer_than + 1)} if newer_than else {}
            body |= {"keys_only": True} if keys_only else {}
            said = await self._call("kv/range", body)
            revision = revision or _revision(said)
            page = [_item(one) for one in _list(said.get("kvs"))]
            items += page
            if not said.get("more") or not page:
                return Found(revision, tuple(items))
            first = page[-1].key.encode() + b"\0"

    async def commit(self, wants: Sequence[At | Until], does: Sequence[Put | Delete]) -> int:
        """Do all of does if all of wants hold, in one revision, which is returned; 0: not all
        hold, and nothing is done. Raises EtcdError.
        """
        body = {
            "compare": [_condition(one) for one in wants],
            "success": [_operation(one) for one in does],
        }
        said = await self._call("kv/txn", body)
        return _revision(said) if said.get("succeeded") else 0

    async def grant(self, ttl_s: int) -> int:
        """A new lease that ends ttl_s seconds after the last keep(). Raises EtcdError."""
        return _number((await self._call("lease/grant", {"TTL": str(ttl_s)})).get("ID"))

    async def keep(self, lease: int) -> bool:
        """Renew a lease; False: it has ended. Raises EtcdError."""
        said = await self._call("lease/keepalive", {"ID": str(lease)})
        return _number(_object(said.get("result")).get("TTL")) > 0

    async def revoke(self, lease: int) -> None:
        """End a lease, and with it its keys. Raises EtcdError."""
        await self._call("lease/revoke", {"ID": str(lease)})

    async def watch(self, prefix: str, first: int) -> AsyncIterator[tuple[Change, ...]]:
        """Every change of keys that begin with prefix, from revision first on, as they come; one
        at a time, or more that came together. Raises CompactedError; EtcdDownError when the
        endpoint is lost, or has no leader.
        """
        wanted = {
            "key": _b64(prefix.encode()),
            "range_end": _b64(_after(prefix.encode())),
            "start_revision": str(first),
        }
        # See "hasleader" in etcd's api/v3rpc/rpctypes: without a leader a watch ends.
        headers = {"Grpc-Metadata-hasleader": "true"}
        endpoint = self.endpoint
        request = {"create_request": wanted}
        try:
            async with self._opened(endpoint, "watch", request, headers) as answer:
                watches = self._watches.setdefault(endpoint, set())
                watches.add(answer)
                try:
                    async for said in self._lines(answer):
                        changes = self._changes(said, endpoint)
                        if changes:
                            yield changes
                finally:
                    watches.discard(answer)
        except _StaleTokenError as error:
            self._token = ""
            raise self._down([(endpoint, str(error))]) from error
        except _EndpointError as error:
            self._failed(endpoint)
            raise self._down([(endpoint, str(error))]) from error
        raise self._down([(endpoint, "the watch ended")])

    def _changes(self, said: dict[str, Any], endpoint: str) -> tuple[Change, ...]:
        if "error" in said:
            raise self._down([(endpoint, _sentence(said["error"]))])
        result = _object(said.get("result"))
        if "compact_revision" in result:
            why = f"its revisions before {result['compact_revision']} are compacted"
            raise CompactedError(f"follow {self.place}", why=why)
        if result.get("canceled"):
            raise self._down([(endpoint, result.get("cancel_reason") or "the watch was cancelled")])
        return tuple(_change(_object(one)) for one in _list(result.get("events")))

    async def _lines(self, answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        held = bytearray()
        async for some in answer.content.iter_any():
            held += some
            *lines, rest = held.split(b"\n") if b"\n" in some else (held,)
            held = bytearray(rest)
            for line in filter(None, lines):
                yield _json(bytes(line))
            if len(held) > MAX_EVENT_BYTES:
                raise _EndpointError(f"a change has over {MAX_EVENT_BYTES >> 20} MiB")

    # -- one request --

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request: by the first endpoint that has one."""
        reasons: list[tuple[str, str]] = []
        for endpoint in list(self._endpoints):
            try:
                return await self._ask(endpoint, path, body)
            except _EndpointError as error:
                reasons.append((endpoint, str(error)))
                self._failed(endpoint)
        raise self._down(reasons)

    async def _ask(self, endpoint: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._opened(endpoint, path, body) as answer:
                return _json(await _body(answer))
        except _StaleTokenError:
            self._token = ""
        try:
            async with self._opened(endpoint, path, body) as answer:
                return _json(await _body(answer))
        except _StaleTokenError as error:  # the one that it has just given
            self._token = ""
            raise _EndpointError(str(error)) from error

    @contextlib.asynccontextmanager
    async def _opened(
        self, endpoint: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose answer has begun well. headers: of a watch, which has no deadline."""
        import aiohttp

        if self.place.user and not self._token and path != "auth/authenticate":
            await self._log_in(endpoint)
        sent = {"Authorization": self._token} if self._token else {}
        total = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S) if headers else None
        more: dict[str, Any] = {"timeout": total} if total else {}
        try:
            async with self._session.post(
                f"{endpoint}/v3/{path}", json=body, headers=sent | (headers or {}), **more
            ) as answer:
                if answer.status != 200:
                    await self._refuse(answer, endpoint, path)
                yield answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _EndpointError(_why(error)) from error

    async def _refuse(self, answer: aiohttp.ClientResponse, endpoint: str, path: str) -> None:
        """Raise what an answer other than 200 means."""
        text = _sentence(await _body(answer))
        if any(one in text for one in _UNAUTHENTICATED) and self.place.user and self._token:
            raise _StaleTokenError(text)
        if answer.status in _BUSY:
            raise _EndpointError(text)
        what = f"ask {self.place} for {path.partition('/')[2] or path}"
        if "permission denied" in text or "authentication failed" in text:
            raise PrivilegeError(what, why=text, hint="check user, password and role")
        if text.startswith("CommonName"):
            hint = "where etcd asks for a user, use a certificate without a common name"
            raise PrivilegeError(what, why=text, hint=hint)
        if "user name is empty" in text:
            hint = "add user=NAME and password_file=FILE to the address"
            raise PrivilegeError(what, why="etcd asks for a user and a password", hint=hint)
        if "request is too large" in text or "larger than max" in text:
            hint = "let etcd take what it does by default: --max-request-bytes 1572864, or more"
            raise EtcdError(what, why=text, hint=hint)
        raise EtcdError(what, why=text)

    async def _log_in(self, endpoint: str) -> None:
        body = {"name": self.place.user, "password": self.place.load_password()}
        async with self._opened(endpoint, "auth/authenticate", body) as answer:
            said = _json(await _body(answer))
        self._token = str(said.get("token", ""))

    def _failed(self, endpoint: str) -> None:
        """Ask it last from now on; its watches end."""
        if len(self._endpoints) > 1 and endpoint == self._endpoints[0]:
            self._endpoints.append(self._endpoints.pop(0))
        for answer in self._watches.pop(endpoint, set()):
            answer.close()

    def lost(self) -> None:
        """What was heard from the endpoint that is asked first cannot be: see _failed()."""
        self._failed(self.endpoint)

    def _down(self, reasons: list[tuple[str, str]]) -> EtcdDownError:
        why = "; ".join(f"{one.partition('://')[2]}: {text}" for one, text in reasons)
        hint = ""
        if not self.place.tls and all(text == _ENDED for _, text in reasons):
            hint = "if it speaks TLS, begin its address with etcds://"
        elif self.place.tls and all("WRONG_VERSION_NUMBER" in text for _, text in reasons):
            hint = "it speaks no TLS: begin its address with etcd://"
        return EtcdDownError(f"reach {self.place}", why=why, hint=hint)


class _EndpointError(Exception):
    """This endpoint cannot answer; another one may."""


class _StaleTokenError(Exception):
    """The token was good once."""


def _json(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _EndpointError("what it answers is not JSON: is that etcd?") from error
    if not isinstance(said, dict):
        raise _EndpointError("what it answers is no JSON object: is that etcd?")
    return said


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """All of an answer, of bounded length."""
    parts, length = [], 0
    async for part in answer.content.iter_any():
        length += len(part)
        if length > MAX_ANSWER_BYTES:
            raise _EndpointError(f"its answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _sentence(said: Any) -> str:
    """What etcd says of an error, in its words, on one line."""
    if isinstance(said, bytes):
        try:
            said = json.loads(said)
        except (ValueError, RecursionError):
            said = said[:200].decode(errors="replace")
    if isinstance(said, dict):
        said = said.get("message") or said.get("error") or said
    return " ".join(str(said).split())[:300] or "no answer"


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if type(error).__name__ in {"ClientPayloadError", "ServerDisconnectedError"}:
        return _ENDED
    number, text = getattr(error, "errno", None), str(error) or type(error).__name__
    if number and "SSL" not in text:  # whose numbers are not errno's
        text = os.strerror(number).lower()
    return " ".join(str(text).split())[:200]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _after(key: bytes) -> bytes:
    """The first key behind all that begin with key, see range_end in etcd's rpc.proto."""
    head = key.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


def _revision(said: dict[str, Any]) -> int:
    return _number(_object(said.get("header")).get("revision"))


def _object(said: Any) -> dict[str, Any]:
    return said if isinstance(said, dict) else {}


def _list(said: Any) -> list[Any]:
    return said if isinstance(said, list) else []


def _number(said: Any) -> int:
    """A 64-bit number, which JSON has as text; what is left out is 0."""
    is_one = isinstance(said, int | str) and _INT64.fullmatch(str(said))
    return int(said) if is_one else 0


def _item(said: dict[str, Any]) -> Item:
    try:
        key = base64.b64decode(said.get("key", ""), validate=True)
        value = base64.b64decode(said.get("value", ""), validate=True)
    except (AttributeError, TypeError, ValueError) as error:
        why = "a key is not as etcd has it"
        raise EtcdError("read what etcd answers", why=why, hint="is that etcd?") from error
    return Item(key.decode(errors="replace"), value, _number(said.get("mod_revision")))


def _change(said: dict[str, Any]) -> Change:
    item = _item(_object(said.get("kv")))
    return Change(item.key, None if said.get("type") == "DELETE" else item)


def _condition(one: At | Until) -> dict[str, Any]:
    key = one.key.encode()
    said = {"key": _b64(key), "target": "MOD"}
    if isinstance(one, At):
        return said | {"result": "EQUAL", "mod_revision": str(one.revision)}
    later = str(one.revision + 1)
    return said | {"range_end": _b64(_after(key)), "result": "LESS", "mod_revision": later}


def _operation(one: Put | Delete) -> dict[str, Any]:
    key = one.key.encode()
    if isinstance(one, Delete):
        end = {"range_end": _b64(_after(key))} if one.prefix else {}
        return {"request_delete_range": {"key": _b64(key), **end}}
    lease = {"lease": str(one.lease)} if one.lease else {}
    return {"request_put": {"key": _b64(key), "value": _b64(one.value), **lease}}

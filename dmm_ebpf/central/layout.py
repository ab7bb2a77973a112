# SPDX-License-Identifier: Apache-2.0
"""What stands in etcd below a fleet's prefix, key by key, and the forms of the values.

    want/rollout               which push is for which hosts: a Rollout
    want/routes/TABLE/NAME     lines of a routes file that TABLE has besides: one route, or many
    want/watch                 that an operator watches paths (a lease): paths.py's Watch
    pushes/00000007            who pushed what and when: a Push
    text/00000007/0000 ...     the push itself: a Bundle, in parts
    hosts/HOST/INSTANCE        what an instance says of itself, for as long as it lives (a lease)
    twice/HOST/INSTANCE/ID     what another one says that found the name taken
    paths/HOST/INSTANCE        what an instance counts of its paths while that is asked: Figures
    learnt/HOST/INSTANCE       what it has learnt of paths, where the policy shares that (its lease)

A host follows want/ and reads the rest when that leads there. Values are JSON objects but for
routes and parts; "format" says which version of this page they keep to, and one that is not ours is
refused rather than guessed at. Everything read is a stranger's word: of bounded size, and of the
form that is told here. Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.rd.policy.hosts import Labels, parse_selector
from dmm_ebpf.rd.policy.toml_limits import MAX_POLICY_BYTES
from dmm_ebpf.rd.policy.values import ValueRefusedError

FORMAT = 1
WANT = "want/"
ROLLOUT = "want/rollout"
ROUTES = "want/routes/"
WATCH = "want/watch"
PUSHES = "pushes/"
TEXTS = "text/"
HOSTS = "hosts/"
TWICE = "twice/"
PATHS = "paths/"
LEARNT = "learnt/"
PART_BYTES = 512 << 10  # below etcd's --max-request-bytes, 1.5 MiB, as base64 too
MAX_PARTS = 256
MAX_VALUE_BYTES = 256 << 10  # of one that is JSON
MAX_ROUTES_BYTES = 1 << 20  # of a key below want/routes/
MAX_BUNDLE_BYTES = 512 << 20
MAX_STEPS = 32
MAX_NUMBER = 99_999_999
MAX_TIME = 1e11  # seconds: 3,000 years on
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

State = Literal["rolling", "halted", "everywhere"]


class LayoutError(DmmError):
    """A value in etcd that cannot be used."""


def refused(key: str, why: str, hint: str = "") -> LayoutError:
    """The sentence for a value that cannot be used."""
    return LayoutError(f"use the value of {key} in etcd", why=why, hint=hint)


@dataclass(frozen=True)
class Rollout:
    """Hosts that one of the first reached steps selects take push; all do once state is
    "everywhere"; others take stable, the last that was everywhere. 0: none.
    why: of "halted". at: Unix time.
    """

    push: int
    digest: str
    stable: int
    stable_digest: str
    state: State
    steps: list[str] = field(default_factory=list)
    reached: int = 0
    why: str = ""
    by: str = ""
    at: float = 0.0
    format: int = FORMAT

    def of(self, labels: Labels) -> tuple[int, str]:
        """The push that is for a host, and its digest; 0: none is."""
        selected = any(parse_selector(one).holds(labels) for one in self.steps[: self.reached])
        if selected or self.state == "everywhere":
            return self.push, self.digest
        return self.stable, self.stable_digest

    @classmethod
    def read(cls, key: str, value: bytes) -> Self:
        """Raises LayoutError."""
        said: Self = _read(cls, key, value)
        if said.state not in {"rolling", "halted", "everywhere"} or not _are_texts(said.steps):
            raise refused(key, "its state or its steps are of no known form")
        if not 0 < said.push <= MAX_NUMBER or len(said.steps) > MAX_STEPS:
            raise refused(key, "its push or its number of steps is out of bounds")
        if not 0 <= said.reached <= len(said.steps):
            raise refused(key, "it has reached a step that it does not have")
        try:
            for one in said.steps:
                parse_selector(one)
        except ValueRefusedError as error:
            raise refused(key, f"a step of it: {error.why}", error.hint) from None
        return said


@dataclass(frozen=True)
class Push:
    """by: user@host. of: the push that it brings back, 0: none. before: what was everywhere when
    it was pushed. parts: of its text.
    """

    push: int
    digest: str
    parts: int
    by: str
    at: float
    note: str = ""
    of: int = 0
    before: int = 0
    source: str = ""
    rules: int = 0
    routes: int = 0
    format: int = FORMAT

    @classmethod
    def read(cls, key: str, value: bytes) -> Self:
        """Raises LayoutError."""
        said: Self = _read(cls, key, value)
        if not 0 < said.parts <= MAX_PARTS:
            raise refused(key, f"it says that its text has {said.parts} parts")
        return said


@dataclass(frozen=True)
class Bundle:
    """A policy's text, and the routes files that it names, by name."""

    policy: str
    files: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(self._json()).hexdigest()

    def parts(self) -> list[bytes]:
        """Values for etcd. Raises PolicyError if it is too large."""
        packed = zlib.compress(self._json())
        parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
        if len(parts) > MAX_PARTS:
            most = MAX_PARTS * PART_BYTES >> 20
            why = f"it has {len(packed) >> 20} MiB when compressed, and a push at most {most}"
            raise PolicyError("push the policy", why=why, hint="aggregate prefixes")
        return parts

    def _json(self) -> bytes:
        said = {"policy": self.policy, "files": dict(self.files)}
        return json.dumps(said, sort_keys=True).encode()

    @classmethod
    def of_parts(cls, key: str, parts: list[bytes], digest: str) -> Self:
        """Raises LayoutError, also if it has not this digest."""
        unpacking = zlib.decompressobj()
        try:
            text = unpacking.decompress(b"".join(parts), MAX_BUNDLE_BYTES)
        except zlib.error:
            raise refused(key, "it is not what was pushed: it cannot be decompressed") from None
        if hashlib.sha256(text).hexdigest() != digest:
            raise refused(key, "it is not what was pushed: its digest is another", "push again")
        said = _object(key, text, MAX_BUNDLE_BYTES)
        policy, files = said.get("policy"), said.get("files")
        if not isinstance(policy, str) or len(policy) > MAX_POLICY_BYTES:
            raise refused(key, "it has no policy")
        if not isinstance(files, dict) or not all(map(is_file_name, files)):
            raise refused(key, "it has files with names that cannot be")
        if not _are_texts(list(files.values())):
            raise refused(key, "it has files that are no text")
        return cls(policy, files)


def is_file_name(name: object) -> bool:
    """Whether a routes file may be called so beside a fleet's policy."""
    return isinstance(name, str) and bool(_FILE.fullmatch(name)) and name != "policy.toml"


def push_key(push: int) -> str:
    """Of a Push."""
    return f"{PUSHES}{push:08}"


def text_key(push: int) -> str:
    """What the keys of its parts begin with."""
    return f"{TEXTS}{push:08}/"


def host_key(host: str, instance: str) -> str:
    """Of what an instance says of itself."""
    return f"{HOSTS}{host}/{instance}"


def paths_key(host: str, instance: str) -> str:
    """Of what an instance counts of its paths."""
    return f"{PATHS}{host}/{instance}"


def learnt_key(host: str, instance: str) -> str:
    """Of what an instance has learnt of paths."""
    return f"{LEARNT}{host}/{instance}"


def route_key(key: str) -> tuple[str, str]:
    """Table and name of a key below want/routes/. Raises LayoutError."""
    parts = key.removeprefix(ROUTES).split("/")
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)):
        raise refused(key, "it is not called TABLE/NAME")
    return parts[0], parts[1]


def write(value: Any) -> bytes:
    """A Rollout or Push as a value."""
    return json.dumps(asdict(value)).encode()


def read_report(key: str, value: bytes) -> dict[str, Any]:
    """What an instance says of itself. Raises LayoutError."""
    said = _object(key, value)
    _check_format(key, said)
    return said


def _read(kind: type[Any], key: str, value: bytes) -> Any:
    said = _object(key, value)
    _check_format(key, said)
    known = {}
    for one in fields(kind):
        if one.name not in said:
            continue
        found = said[one.name]
        wanted = _TYPES[str(one.type).partition("[")[0]]
        if not isinstance(found, wanted) or isinstance(found, bool) or not _is_time(found):
            raise refused(key, f"its {one.name} is {json.dumps(found)[:60]}")
        known[one.name] = found
    try:
        return kind(**known)
    except TypeError:
        raise refused(key, "it does not say all that it has to") from None


def _is_time(value: object) -> bool:
    """Whether a number with a fraction is one that a clock may show; anything else is, too."""
    return not isinstance(value, float) or 0 <= value <= MAX_TIME


_TYPES: dict[str, Any] = {"int": int, "str": str, "float": (int, float), "list": list, "State": str}


def _object(key: str, value: bytes, most: int = MAX_VALUE_BYTES) -> dict[str, Any]:
    if len(value) > most:
        raise refused(key, f"it has {len(value) >> 10} KiB, and may have {most >> 10}")
    try:
        said = json.loads(value)
    except (ValueError, RecursionError):
        raise refused(key, "it is not JSON") from None
    if not isinstance(said, dict):
        raise refused(key, "it is no JSON object")
    return said


def _check_format(key: str, said: dict[str, Any]) -> None:
    found = said.get("format")
    if found != FORMAT:
        shown = json.dumps(found)[:20]
        hint = "use one version of dmm-ebpf in the fleet, or another prefix for each"
        raise refused(key, f"it is of format {shown}, and this dmm-ebpf reads {FORMAT}", hint)


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


def below(prefix: str, keys: Mapping[str, Any]) -> Iterator[str]:
    """Those keys that begin with prefix, in order."""
    return (key for key in sorted(keys) if key.startswith(prefix))

# SPDX-License-Identifier: Apache-2.0
"""A policy's text: TOML, read into records, and one sentence with its place for each thing that is
wrong. What a policy means is parse.py's.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from dmm_ebpf.errors import PolicyError, apart
from dmm_ebpf.rd.policy import toml_limits
from dmm_ebpf.rd.policy.keyed import KeysRefusedError, OldName, Record
from dmm_ebpf.rd.policy.locate import describe, order, place
from dmm_ebpf.rd.policy.readers import check_name
from dmm_ebpf.rd.policy.suggest import suggest
from dmm_ebpf.rd.policy.values import ValueRefusedError, shown

MAX_ERRORS = 20  # of one policy; each costs a walk over the text
_TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)")

# What TCP has no socket option for.
_OF_A_NAMESPACE = {
    key: f"Linux has it for a whole network namespace only (sysctl net.ipv4.tcp_{key}), where it holds for the sockets "
    "of every stack; of one stack set user_timeout_ms"
    for key in ("retries1", "retries2", "syn_retries", "orphan_retries")
}

KeyPath = tuple[str | int, ...]
AnyRecord = TypeVar("AnyRecord", bound=Record)


class EnoughError(Exception):
    """As many errors as are told of one policy."""


class PolicyText:
    """A policy's text on its way to a Policy, and what has been found wrong with it."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.wrong: list[PolicyError] = []
        self.old_names: list[OldName] = []

    def note(self, error: PolicyError) -> None:
        """EnoughError: no more are wanted."""
        self.wrong.append(apart(error))
        if len(self.wrong) >= MAX_ERRORS:
            raise EnoughError

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """A part of the policy, which is given up at the first error; what comes behind
        it goes on.
        """
        try:
            yield
        except PolicyError as error:
            self.note(error)

    def order_of(self, error: PolicyError) -> tuple[bool, str, int]:
        """What sorts errors as the text has their places."""
        return order(self.source, error.what.removeprefix("accept "))

    def place(self, path: KeyPath) -> str:
        """File and line of a key."""
        return place(self.source, self.text, path)

    def refused(self, path: KeyPath, why: str, hint: str = "") -> PolicyError:
        """An error at a key's place."""
        return PolicyError(f"accept {self.place(path)}", why=f"{describe(path)}: {why}", hint=hint)

    def unknown_key(self, path: KeyPath, known: Iterable[str]) -> PolicyError:
        """An error at a key that is none of known; the hint names the nearest."""
        above = describe(path[:-1])
        why = f"unknown key {shown(path[-1])}"
        hint = _OF_A_NAMESPACE.get(str(path[-1])) or suggest(path[-1], known, "key")
        return PolicyError(
            f"accept {self.place(path)}", why=f"{above}: {why}" if above else why, hint=hint
        )

    def toml(self) -> dict[str, Any]:
        """The text as TOML; PolicyError where it is none, or too much of it."""
        toml_limits.check(self.text, self.source)
        try:
            return tomllib.loads(self.text)
        except RecursionError:
            raise PolicyError(
                f"accept {self.source}", why="its values are nested too deeply"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise self._syntax(str(error)) from None
        except ValueError:
            # int() gives up on more than sys.get_int_max_str_digits(), and tomllib
            # lets that through.
            raise self._syntax("a number has too many digits") from None

    def _syntax(self, message: str) -> PolicyError:
        match = _TOML_PLACE.search(message)
        why = _TOML_PLACE.sub("", message)
        if match is None:
            place = self.source
        elif match[1]:
            place = f"{self.source}:{match[1]}"
            why += f", at column {match[2]}"
        else:
            place = f"{self.source}:{max(1, len(self.text.splitlines()))}"
            why += ", at the end of the file"
        return PolicyError(
            f"accept {place}",
            why=f"it is not TOML: {why[:1].lower()}{why[1:]}",
            hint="see https://toml.io",
        )

    def table(self, parent: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        """The tables of parent below the last key of path; none where it is not there."""
        value = parent.get(str(path[-1]), {})
        if not isinstance(value, dict):
            raise self.refused(path, f"expected a table, [{path[-1]}.NAME]")
        return value

    def array(self, value: object, path: KeyPath, header: str) -> list[dict[str, Any]]:
        """The value as an array of tables."""
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.refused(path, f"expected tables, each beginning with {header}")
        return value

    def record(self, kind: type[AnyRecord], data: object, path: KeyPath) -> AnyRecord:
        """A table as a record of that kind; all but the last error of it are noted."""
        if not isinstance(data, dict):
            raise self.refused(path, f"{shown(data)} is not a table")
        known, olds = kind.keys(), kind.old_keys()
        unknown = itertools.islice(
            (key for key in data if key not in known and key not in olds), MAX_ERRORS
        )
        wrong = [self.unknown_key((*path, key), known) for key in unknown]
        try:
            made = kind.read(data)
        except KeysRefusedError as error:
            wrong += [self.refused_key(path, key, refused) for key, refused in error.keys.items()]
        if not wrong:
            self.old_names += (OldName((*path, key), said) for key, said in kind.old_names(data))
            return made
        for one in wrong[:-1]:
            self.note(one)
        raise wrong[-1]

    def refused_key(
        self, path: KeyPath, key: str, refused: ValueRefusedError | None
    ) -> PolicyError:
        """An error at a key of path: it is missing (None), or its value is refused."""
        if refused is None:
            return self.refused(path, f'the key "{key}" is missing', f"add {key} = ...")
        return self.refused((*path, key), refused.why, refused.hint)

    def name(self, name: str, what: str, path: KeyPath) -> None:
        """PolicyError unless it may be the name of what."""
        try:
            check_name(name, what)
        except ValueRefusedError as refused:
            raise self.refused(path, refused.why, refused.hint) from None

# SPDX-License-Identifier: Apache-2.0
"""Why a command failed: the `error` of every command's JSON. docs/json.md tells of each field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from dmm_ebpf.errors import DmmError
from dmm_ebpf.records.record import ABSENT, Maybe, Record


@dataclass(frozen=True, slots=True)
class Failed(Record):
    """An error. message: all of it as one sentence. others: what else is wrong with a refused
    policy, in the form that DmmError.to_wire() gives. enough: of no more than these it is said.
    """

    kind: str
    what: str
    why: str
    hint: str
    exit_code: int
    message: str
    others: Maybe[list[dict[str, Any]]] = ABSENT
    enough: Maybe[bool] = ABSENT

    @classmethod
    def of(cls, error: DmmError) -> Self:
        """Of error."""
        return cls.from_map({**error.to_wire(), "message": str(error)})

    @classmethod
    def alone(cls, error: DmmError) -> Self:
        """Of error, without the others."""
        said = error.to_wire()
        kept = {key: said[key] for key in said.keys() - {"others", "enough"}}
        return cls.from_map({**kept, "message": str(error)})

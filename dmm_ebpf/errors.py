# SPDX-License-Identifier: Apache-2.0
"""Every error that a user can be shown: one sentence with what was tried, on what, why not, and
what to do.

Nothing else is shown to a user; anything that reaches the command line and is not a DmmError
is a bug.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

AnyError = TypeVar("AnyError", bound=BaseException)


class DmmError(Exception):
    """A failure with a sentence for the user.

    what: what was tried and on what, as the rest of "cannot ...".
    why: the reason, in the kernel's or the RFC's words where there are any.
    hint: what to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str, hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        sentence = f"cannot {self.what}: {self.why}"
        return f"{sentence}; {self.hint}" if self.hint else sentence

    def to_wire(self) -> dict[str, Any]:
        """The error as a msgpack-able map, for the RD's socket."""
        return {
            "kind": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(DmmError):
    """Arguments that cannot be meant."""

    exit_code = 2


class PolicyError(DmmError):
    """A policy file that is refused; the running policy stays. others: what else is wrong with it,
    each a sentence.
    enough: no more was looked for.
    """

    exit_code = 2
    others: tuple[PolicyError, ...] = ()
    enough = False

    def all(self) -> tuple[PolicyError, ...]:
        """All that is wrong, this first."""
        return (self, *self.others)

    def to_wire(self) -> dict[str, Any]:
        """With the others, which have none themselves."""
        wire = super().to_wire()
        if self.others:
            wire |= {"others": [one.to_wire() for one in self.others], "enough": self.enough}
        return wire


class PrivilegeError(DmmError):
    """The caller may not do this."""

    exit_code = 77  # sysexits.h EX_NOPERM


class KernelFeatureError(DmmError):
    """The kernel or the NIC lacks what is needed."""

    exit_code = 69  # sysexits.h EX_UNAVAILABLE


class ConflictError(DmmError):
    """Something that is not ours stands where we would have to."""

    exit_code = 75  # sysexits.h EX_TEMPFAIL


class NotAttachedError(DmmError):
    """No such instance, or no Resource Director answers for it."""

    exit_code = 1


class MadeRoomError(DmmError):
    """The Resource Director hung up on a connection that it had been asked nothing by, for
    another one's sake: what is asked by one that is made anew was not begun.
    """

    exit_code = 75  # sysexits.h EX_TEMPFAIL


def run_as_root() -> str:
    """The hint for what root alone may; to root itself, from whom somebody has taken it, where to
    look.
    """
    if os.geteuid():
        return "run it as root"
    return "root has it unless a unit's sandbox (systemd.exec(5)) or a container takes it away"


def apart(error: AnyError) -> AnyError:
    """An error to be kept, without where it came from: the frames there have all that was there
    then, a policy of a million routes, and perhaps the error itself, so that nothing but the
    garbage collector would free them.
    """
    error.__context__ = error.__cause__ = error.__traceback__ = None
    return error


def from_wire(error: dict[str, Any]) -> DmmError:
    """The DmmError that to_wire() described; an unknown kind becomes a plain DmmError."""
    kinds: dict[str, type[DmmError]] = {
        c.__name__: c
        for c in (
            UsageError,
            PolicyError,
            PrivilegeError,
            KernelFeatureError,
            ConflictError,
            NotAttachedError,
            MadeRoomError,
        )
    }
    kind = kinds.get(str(error.get("kind")), DmmError)
    made = kind(str(error.get("what")), why=str(error.get("why")), hint=str(error.get("hint", "")))
    if isinstance(made, PolicyError):
        others = [from_wire(one) for one in error.get("others") or () if isinstance(one, dict)]
        made.others = tuple(one for one in others if isinstance(one, PolicyError))
        made.enough = error.get("enough") is True
    return made


def unforeseen(what: str, error: Exception) -> DmmError:
    """The DmmError for a fault of our own that the Resource Director (RD) met while it did what."""
    why = f"{type(error).__name__}: {error}"
    return DmmError(what, why=why, hint="the RD's log has more")

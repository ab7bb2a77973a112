# SPDX-License-Identifier: Apache-2.0
"""Readers of a policy's values that several keys have, and what makes readers: of whole numbers, of
one of some words, of what is built in or a plug-in.

A reader takes what TOML gives and returns the value, or refuses it with ValueRefusedError. What
JSON Schema says of it stands at it (shape.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dmm_ebpf.kit.names import FORMS, PLUGIN_PATTERN, Seam, has_form, offered_names, offers
from dmm_ebpf.rd.policy.shape import Shape, any_of, spelled, takes, whole
from dmm_ebpf.rd.policy.values import ValueRefusedError, shown

MAX_NAME = 31

DEVICE = re.compile(r"[^\s/:]{1,127}")  # altnames may be that long (ALTIFNAMSIZ)
DEVICE_NAME = spelled(rf"(?!\.\.?$){DEVICE.pattern}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NAME = spelled(_NAME.pattern, most=MAX_NAME)


def a_text(value: object, what: str) -> str:
    """A text in quotes."""
    if not isinstance(value, str):
        raise ValueRefusedError(f"{shown(value)} is not {what}", "expected a text in quotes")
    return value


def check_name(name: object, what: str) -> str:
    """A name of a stack, table or rule; short enough for listings and plain enough
    for file names.
    """
    text = a_text(name, f"a {what}'s name")
    if not _NAME.fullmatch(text) or len(text) > MAX_NAME:
        raise ValueRefusedError(
            f"{shown(text)} cannot name a {what}",
            f"names have 1 to {MAX_NAME} letters, digits, '_', '-' or '.', and begin with a letter, digit or '_'",
        )
    return text


def _described(what: str, shape: Shape) -> Shape:
    return {"description": f"{what[0].upper()}{what[1:]}", **shape}


def one_of(what: str, choices: tuple[str, ...]) -> Callable[[object], str]:
    """The reader of one of choices."""

    @takes(_described(what, {"enum": list(choices)}))
    def read(value: object) -> str:
        if value not in choices:
            raise ValueRefusedError(
                f"{shown(value)} is not {what} that exists", f"expected {_alternatives(choices)}"
            )
        return str(value)

    return read


def _alternatives(choices: tuple[str, ...]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


@takes({"type": "boolean"})
def truth(value: object) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise ValueRefusedError(
            f"{shown(value)} is neither true nor false", "expected true or false"
        )
    return value


def whole_number(least: int, most: int, what: str, unit: str = "") -> Callable[[object], int]:
    """The reader of a whole number from least to most. unit: what is said of it behind
    the range.
    """

    @takes(_described(f"{what}, {least} to {most}{unit}", whole(least, most)))
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueRefusedError(
                f"{shown(value)} is not {what}", f"expected {least} to {most}{unit}"
            )
        return value

    return read


def built_in_or_plugin(seam: Seam) -> Callable[[object], str]:
    """The reader of what is built in, or the name of a plug-in."""
    what = f"a {seam.noun} of user stacks"
    built_in = one_of(what, seam.built_in)

    def shape() -> Shape:
        names = {"enum": [*seam.built_in, *offered_names(seam)]}
        return _described(f"{what}, or a plug-in: {FORMS}", any_of(names, spelled(PLUGIN_PATTERN)))

    @takes(shape)
    def read(value: object) -> str:
        if (
            isinstance(value, str)
            and value not in seam.built_in
            and has_form(value)
            and (":" in value or offers(value, seam))
        ):
            return value
        try:
            return built_in(value)
        except ValueRefusedError as error:
            raise ValueRefusedError(error.why, f"{error.hint}, or a plug-in: {FORMS}") from None

    return read

# SPDX-License-Identifier: Apache-2.0
"""What JSON Schema (2020-12) says of the values that a reader of a policy takes: its shape.

Owns the way a shape stands at the reader that it is of, so that the two change together, and the
forms that several shapes have. A shape may take more than its reader does, never less. Its patterns
are read alike by ECMA-262, Python and Rust's regex: they have no flags, and digits are [0-9].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Shape = dict[str, Any]
Reader = TypeVar("Reader", bound=Callable[..., Any])

ANY_TEXT = r"[^\x00]"  # a character of a name, a path
_shapes: dict[Callable[..., Any], Shape | Callable[[], Shape]] = {}


def takes(shape: Shape | Callable[[], Shape]) -> Callable[[Reader], Reader]:
    """Decorates a reader, whose docstring is what editors show. A function, where the shape depends
    on what is installed.
    """

    def mark(read: Reader) -> Reader:
        _shapes[read] = shape
        return read

    return mark


def shape_of(read: Callable[..., Any]) -> Shape:
    """What the reader takes. KeyError: that was never said."""
    said = _shapes[read]
    shape = said() if callable(said) else said
    told = {"description": " ".join(read.__doc__.split())} if read.__doc__ else {}
    return {**told, **shape}


def spelled(pattern: str, *, most: int | None = None) -> Shape:
    """A text that pattern describes whole, of at most so many characters."""
    shape: Shape = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return shape if most is None else {**shape, "maxLength": most}


def whole(least: int, most: int) -> Shape:
    """A whole number from least to most."""
    return {"type": "integer", "minimum": int(least), "maximum": int(most)}


def any_of(*shapes: Shape) -> Shape:
    """One of these."""
    return {"anyOf": list(shapes)}


def list_of(shape: Shape) -> Shape:
    """A list that is not empty."""
    return {"type": "array", "minItems": 1, "items": shape}


def one_or_more(shape: Shape) -> Shape:
    """One such, or a list of them."""
    return any_of(shape, list_of(shape))


def spaced(pattern: str) -> str:
    """pattern, with blanks before and behind."""
    return rf"\s*(?:{pattern})\s*"


def any_case(words: Sequence[str]) -> str:
    """The pattern of these words, in large letters and small ones."""
    letters = (
        "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in word) for word in words
    )
    return "|".join(letters)

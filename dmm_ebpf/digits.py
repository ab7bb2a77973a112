# SPDX-License-Identifier: Apache-2.0
"""Numbers that somebody wrote in digits, of whatever length."""

from __future__ import annotations


def whole(text: str, below: int) -> int | None:
    """The number, if text is ASCII digits alone and it is less than below; else None. int() would
    raise ValueError for more than 4,300 of them.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    significant = text.lstrip("0")
    if len(significant) > len(str(below)):
        return None
    value = int(significant or "0")
    return value if value < below else None

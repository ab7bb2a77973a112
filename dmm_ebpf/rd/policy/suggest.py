# SPDX-License-Identifier: Apache-2.0
"""What an unknown name may have been meant for."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

_SUGGESTIONS_FROM = 1000  # names that are compared, a tenth of a millisecond each


def suggest(name: object, known: Iterable[str], kind: str) -> str:
    """What to do about an unknown name: a hint. kind: what known are, in one word."""
    names = list(itertools.islice(known, _SUGGESTIONS_FROM))
    close = difflib.get_close_matches(str(name)[:64], names, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    if not names:
        return f"no {kind} is defined"
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known are {listed}"

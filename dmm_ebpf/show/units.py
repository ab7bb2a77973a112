# SPDX-License-Identifier: Apache-2.0
"""Figures, addresses and names as people read them, for the tables and for the TUI.

Pure. JSON never passes through here: it carries raw numbers. Text that comes from outside (a
process may call itself anything) leaves printable, so that it cannot drive the terminal.
"""

from __future__ import annotations

from typing import Any

from dmm_ebpf.tcpstates import TCP_STATES

_SI = ("", "K", "M", "G", "T", "P", "E")
_SAID = {state.name: state.said for state in TCP_STATES}
NONE = "-"


def clean(text: Any) -> str:
    """text without control characters and terminal sequences; "-" for None and the empty string."""
    if text is None or text == "":
        return NONE
    return "".join(c if c.isprintable() else "?" for c in readable(str(text)))


def readable(text: str) -> str:
    """text, where bytes of a name that are no UTF-8 (PEP 383) are backslash, x and two digits."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair from elsewhere
        return text.encode("utf-8", "backslashreplace").decode()


def quantity(value: float | None, *, iec: bool = False) -> str:
    """At most three digits and a prefix, as iproute2 writes: 999, 1.5K, 23M. iec: by 1024, "Ki"."""
    if value is None:
        return NONE
    step = 1024 if iec else 1000
    amount = float(value)
    for prefix in _SI:
        # What would round to 1000 belongs to the next prefix.
        if amount < 999.5 or prefix == _SI[-1]:
            break
        amount /= step
    suffix = prefix + ("i" if iec and prefix else "")
    digits = f"{amount:.1f}" if prefix and amount < 9.95 else f"{amount:.0f}"
    return digits + suffix


def size(value_bytes: float | None, *, iec: bool = False) -> str:
    """Bytes: 10K, 1.5M; in iec 9.8Ki."""
    return quantity(value_bytes, iec=iec)


def bit_rate(value_Bps: float | None, *, iec: bool = False) -> str:  # noqa: N803 - the unit's own case
    """Bytes a second as bits a second: 8.0M; "-" when nothing is known yet."""
    return NONE if value_Bps is None else quantity(value_Bps * 8, iec=iec)


def duration_us(value_us: float | None) -> str:
    """Microseconds: 250us, 1.2ms, 105ms, 2.1s; "-" for None and 0 (no sample yet)."""
    if not value_us:
        return NONE
    if value_us < 999.5:
        return f"{value_us:.0f}us"
    for divisor, unit in ((1e3, "ms"), (1e6, "s")):
        amount = value_us / divisor
        if amount < 999.5 or unit == "s":
            break
    return f"{amount:.1f}{unit}" if amount < 9.95 else f"{amount:.0f}{unit}"


def age(seconds: float | None) -> str:
    """Seconds: 5s, 3m20s, 2h05m, 4d03h."""
    if seconds is None:
        return NONE
    whole = int(seconds)
    for unit, below, part, divisor in (("m", 3600, "s", 60), ("h", 86400, "m", 3600)):
        if whole < 60:
            return f"{whole}s"
        if whole < below:
            return f"{whole // divisor}{unit}{whole % divisor * 60 // divisor:02d}{part}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def endpoint(address: Any, port: Any) -> str:
    """203.0.113.7:443 or [2001:db8::7]:443; "*" for a wildcard address or port 0."""
    host = clean(address)
    if host in {"0.0.0.0", "::"}:
        host = "*" if host == "0.0.0.0" else "[::]"
    elif ":" in host:
        host = f"[{host}]"
    return f"{host}:{port or '*'}"


def state(name: Any) -> str:
    """A TCP state of the kernel as ss(8) writes it: ESTAB, SYN-SENT, FIN-WAIT-1."""
    text = clean(name).upper()
    return _SAID.get(text, text)


def process(comm: Any, pid: Any) -> str:
    """curl/4242."""
    return f"{clean(comm)}/{pid}" if pid else clean(comm)


def cells(text: str) -> int:
    """Columns of a terminal that text takes: two for a wide character (UAX 11), none for a mark
    that goes onto the one before it.
    """
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    import unicodedata

    if unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _begin(text: str, width: int) -> str:
    """As much of the beginning as width columns take."""
    if cells(text) <= width:
        return text
    taken = 0
    for i, character in enumerate(text):
        taken += cells(character)
        if taken > width:
            return text[:i]
    return text


def pad(text: str, width: int, *, right: bool = False) -> str:
    """text and as many spaces as fill width columns; right: before it."""
    spaces = " " * (width - cells(text))
    return spaces + text if right else text + spaces


def shorten(text: str, width: int) -> str:
    """text in at most width columns, its end given up for an ellipsis."""
    if cells(text) <= width:
        return text
    return _begin(text, max(width - 1, 0)) + "…" if width > 0 else ""


def shorten_middle(text: str, width: int) -> str:
    """text in at most width columns, its middle given up: the ends of an address tell the most."""
    if cells(text) <= width:
        return text
    if width < 2:
        return _begin(text, width)
    tail = _begin(text[::-1], width // 2)[::-1]
    return _begin(text, width - cells(tail) - 1) + "…" + tail


def shorten_name(text: str, width: int) -> str:
    """curl/4242 in at most width columns, the name's end given up: a part of a number is another
    number.
    """
    name, slash, number = text.rpartition("/")
    room = width - cells(slash + number)
    return shorten(name, room) + slash + number if slash and room >= 2 else shorten(text, width)


def shorten_marked(text: str, width: int) -> str:
    """text in at most width columns, its end given up, but not a mark "!" that stands there."""
    if text.endswith("!") and width >= 2:
        return shorten(text[:-1], width - 1) + "!"
    return shorten(text, width)

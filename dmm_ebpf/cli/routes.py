# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf route add`, `replace`, `del`, `flush` and `show`: single routes of a running instance.

A route is typed in the words in which it is listed, those of ip-route(8) where it has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import gather, output
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.policy.values import PROTOCOLS, shown
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.records.policy import RouteRow

# What each word before a value says; "via" and the plural are what people type.
_KEYS = {
    "to": "to",
    "proto": "proto",
    "port": "ports",
    "ports": "ports",
    "stack": "stack",
    "via": "stack",
    "table": "table",
}
_PROTOCOLS = (*PROTOCOLS, "any")
_LIVE = "live"  # what stands behind a route in a listing


def parse_route(words: Sequence[str], verb: str) -> dict[str, str]:
    """A route as words: to, proto, ports, stack and table, as far as they are said. UsageError."""
    said: dict[str, str] = {}
    left = list(words)
    what = f"{verb} a route"
    while left:
        word = left.pop(0)
        key = _KEYS.get(word)
        if key is not None and left:
            _say(said, key, left.pop(0), what)
        elif key is not None:
            raise UsageError(what, why=f"nothing stands behind {word}")
        elif "to" not in said:
            _say(said, "to", word, what)
        elif word in _PROTOCOLS and "proto" not in said:
            _say(said, "proto", word, what)
        elif word != _LIVE or left:
            hint = "expected TO [proto tcp|udp] [port PORTS] [stack STACK] [table TABLE]"
            raise UsageError(what, why=f"{shown(word)} is no word of a route", hint=hint)
    if "to" not in said:
        raise UsageError(what, why="it does not say to where", hint="for example 203.0.113.0/24")
    return said


def _say(said: dict[str, str], key: str, value: str, what: str) -> None:
    if key in said:
        raise UsageError(what, why=f"{key} is said twice, {said[key]} and {shown(value)}")
    said[key] = value


def text_of(row: RouteRow) -> str:
    """A route in the words that parse_route() takes."""
    words = [row.to if " " not in row.to else f'"{row.to}"']
    words += ["proto", row.proto] if row.proto else []
    words += ["port", row.ports] if row.ports else []
    return " ".join(
        [*words, "stack", row.stack, "table", row.table, *([_LIVE] if row.live else [])]
    )


def change(
    verb: str, words: Sequence[str], lines: Iterable[str] | None, instance: str, *, as_json: bool
) -> None:
    """Have the director do it. lines: one route in each, in the place of words. UsageError."""
    from dmm_ebpf.rd.api import client

    if lines is None:
        routes = [parse_route(words, verb)] if verb != "flush" else []
    elif words:
        raise UsageError(f"{verb} a route", why="a route and --batch exclude each other")
    else:
        split = (line.partition("#")[0].split() for line in lines)
        routes = [parse_route(line, verb) for line in split if line]
        if not routes:
            raise UsageError(f"{verb} routes", why="the batch has none")
    with client.Client(instance, timeout_s=client.APPLY_TIMEOUT_S) as rd:
        done = rd.route_change(verb, routes)
    if as_json:
        output.print_json(done)
        return
    for sign, rows in (("-", done.removed), ("+", done.added)):
        for row in rows:
            print(f"{sign} {units.clean(text_of(row))}")
    if verb == "flush" and not done.removed:
        output.note(f"instance {instance} has no live routes")


def show(instance: str | None, table: str | None, *, live: bool, as_json: bool) -> None:
    """List the routes of an instance: the live ones, then the policy's."""
    from dmm_ebpf.rd.api import client

    name = gather.the_instance(instance)
    with client.Client(name) as rd:
        rows = _wanted(rd.routes(), table, live=live)
        if as_json:
            output.print_json(list(rows))
            return
        none = True
        for row in rows:
            none = False
            print(units.clean(text_of(row)))
    if none:
        what = "live routes" if live else "routes"
        output.note(f"instance {name} has no {what}" + (f" in table {table}" if table else ""))


def _wanted(rows: Iterable[Any], table: str | None, *, live: bool) -> Iterator[Any]:
    for row in rows:
        if live and not row.live:
            return  # the live ones come first
        if table is None or row.table == table:
            yield row

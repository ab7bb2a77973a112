# SPDX-License-Identifier: Apache-2.0
"""What etcd has for a fleet, made one policy for this host: the push's text, then single routes as
tables of their own, then the host's labels. What is added stands behind the text, so that lines
keep their numbers. Pure.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import Item
from dmm_ebpf.central.layout import Bundle, LayoutError
from dmm_ebpf.rd.policy.hosts import Labels
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.policy.model import AUTO
from dmm_ebpf.rd.policy.named import parse_prefixes
from dmm_ebpf.rd.policy.routes import Match
from dmm_ebpf.rd.policy.routes_file import HEADER, MAX_LINE
from dmm_ebpf.rd.policy.values import Prefix, ValueRefusedError, parse_ports, parse_protocol


@dataclass(frozen=True)
class Composed:
    """text: of the policy, whose routes files are files. digest: of all of it."""

    text: str
    files: Mapping[str, str]
    routes: int  # that stand in etcd by themselves
    digest: str


def compose(bundle: Bundle, routes: Iterable[Item], labels: Labels) -> Composed:
    """Raises LayoutError for routes that are none."""
    lines = [bundle.policy, ""]
    count = 0
    for item in routes:
        table, name = layout.route_key(item.key)
        lines.append(f"# {item.key}")
        for row in _rows(item):
            lines += [f"[[tables.{json.dumps(table)}.routes]]", *row]
            count += 1
        if name:
            lines.append("")
    lines += ["# this host's, for [hosts]", "[labels]"]
    lines += [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in sorted(labels.items())]
    text = "\n".join(lines) + "\n"
    digest = hashlib.sha256(json.dumps([text, dict(bundle.files)], sort_keys=True).encode())
    return Composed(text, bundle.files, count, digest.hexdigest())


def single(routes: Iterable[Item]) -> list[LiveRoute] | None:
    """The routes that stand in etcd by themselves, without their numbers; None: some mean what only
    a policy can, as the name of a set. Raises LayoutError.
    """
    found: list[LiveRoute] = []
    for item in routes:
        table, _ = layout.route_key(item.key)
        for number, values in _lines(item):
            row = dict(zip(HEADER, values, strict=True))
            try:
                to = parse_prefixes(row["to"])
                ports = parse_ports(row["ports"]) if row["ports"] else ()
                match = Match(parse_protocol(row["proto"] or "any"), ports)
            except ValueRefusedError:
                return None  # the policy's parser says what is wrong
            prefixes = [one for one in to if isinstance(one, Prefix)]
            if row["stack"] == AUTO or len(prefixes) < len(to):
                return None
            place = f"{item.key}:{number}"
            found += [LiveRoute(0, table, one, match, row["stack"], place) for one in prefixes]
    return found


def _rows(item: Item) -> Iterable[list[str]]:
    """The routes of a key, each as lines of TOML. What they mean is for the policy's parser."""
    for _, values in _lines(item):
        yield [
            f"{name} = {json.dumps(value)}"
            for name, value in zip(HEADER, values, strict=True)
            if value
        ]


def _lines(item: Item) -> Iterator[tuple[int, list[str]]]:
    """The routes of a key: number of the line, and what it says."""
    if len(item.value) > layout.MAX_ROUTES_BYTES:
        most = layout.MAX_ROUTES_BYTES >> 10
        raise layout.refused(item.key, f"it has {len(item.value) >> 10} KiB, and may have {most}")
    try:
        text = item.value.decode("ascii")
    except UnicodeDecodeError:
        raise layout.refused(item.key, "it is not ASCII") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        yield number, _row(item.key, number, line)


def _row(key: str, number: int, line: str) -> list[str]:
    try:
        values = [one.strip() for one in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise _refused(key, number, f"it is not comma separated values ({error})") from None
    if len(values) != len(HEADER) or len(line) > MAX_LINE or not line.isprintable():
        raise _refused(key, number, f"expected {','.join(HEADER)}")
    return values


def _refused(key: str, number: int, why: str) -> LayoutError:
    return layout.refused(key, f"line {number}: {why}")

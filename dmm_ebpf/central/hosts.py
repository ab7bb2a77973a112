# SPDX-License-Identifier: Apache-2.0
"""What instances say of themselves in etcd, as rows. What a host says is a stranger's word: what
cannot be read is a row that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import Change, Item
from dmm_ebpf.central.layout import LayoutError
from dmm_ebpf.records.central import HostRow

_MOST = layout.MAX_TIME  # more than a push's number may be, too


def rows(items: Iterable[Item]) -> list[HostRow]:
    """Of what stands below hosts/ and twice/, by host and instance."""
    found = [row(one) for one in items]
    return sorted(found, key=lambda one: (one.host, one.instance, one.state == "twice"))


def row(item: Item) -> HostRow:
    """Of one key."""
    host, _, rest = item.key.partition("/")[2].partition("/")
    instance = rest.partition("/")[0]
    try:
        said = layout.read_report(item.key, item.value)
    except LayoutError as error:
        said = {"state": "unreadable", "why": str(error)}
    if item.key.startswith(layout.TWICE):
        said = {"state": "twice", "why": f"{_text(said, 'who')} has a name that another has"}
    return HostRow(
        host=host,
        instance=instance,
        state=_text(said, "state") or "unreadable",
        push=_number(said, "push"),
        wanted=_number(said, "wanted"),
        newest=_number(said, "newest"),
        routes=_number(said, "routes"),
        why=_text(said, "why"),
        since=float(_number(said, "since")),
        labels=_labels(said.get("labels")),
        version=_text(said, "version"),
        kernel=_text(said, "kernel"),
        stacks=_maps(said.get("stacks")),
        listeners=_maps(said.get("listeners")),
        revision=item.revision,
    )


class Hosts:
    """Instances by key, kept current by changes."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = {one.key: one for one in items}

    def change(self, one: Change) -> HostRow | None:
        """The row as it is now; None: it is gone."""
        if one.item is None:
            self._items.pop(one.key, None)
            return None
        self._items[one.key] = one.item
        return row(one.item)

    def rows(self) -> list[HostRow]:
        """All of them."""
        return rows(self._items.values())


def _text(said: Mapping[str, Any], key: str) -> str:
    value = said.get(key)
    return value[:1000] if isinstance(value, str) else ""


def _number(said: Mapping[str, Any], key: str) -> int:
    """A whole number that a push or a time may be; 0: it is none."""
    value = said.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _MOST:
        return 0
    return int(value)


def _labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(name): text for name, text in value.items() if isinstance(text, str)}


def _maps(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []

# SPDX-License-Identifier: Apache-2.0
"""What listings and events say: one record for each kind of row, and how it travels.

`from dmm_ebpf import records`, and then `records.flow.Flow`, imports a part when it is first used:
a start has no use for any, and to make the classes would take a tenth of its time.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmm_ebpf.records import (
        central,
        device,
        event,
        fault,
        flow,
        path,
        plugin,
        policy,
        record,
        segment,
        stack,
        status,
    )

__all__ = [
    "central",
    "device",
    "event",
    "fault",
    "flow",
    "path",
    "plugin",
    "policy",
    "record",
    "segment",
    "stack",
    "status",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(name)

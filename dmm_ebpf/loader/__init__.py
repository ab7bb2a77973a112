# SPDX-License-Identifier: Apache-2.0
"""Compile (BCC), load, link and pin the BPF programs; adopt and detach what is pinned;
maps and events.
"""

from dmm_ebpf.loader.attach import (
    Attached,
    HalfAttachedError,
    adopt,
    attach,
    detach,
    flow_of,
    flow_records,
    instances,
    open_maps,
    unhook,
)
from dmm_ebpf.loader.maps import Map, create_routes_map, set_inner
from dmm_ebpf.loader.ringbuf import EventReader
from dmm_ebpf.loader.spec import Maps

__all__ = [
    "Attached",
    "EventReader",
    "HalfAttachedError",
    "Map",
    "Maps",
    "adopt",
    "attach",
    "create_routes_map",
    "detach",
    "flow_of",
    "flow_records",
    "instances",
    "open_maps",
    "set_inner",
    "unhook",
]

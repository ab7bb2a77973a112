# SPDX-License-Identifier: Apache-2.0
"""What is loaded: every map and every program, as constants. The names are those of bpf/abi.h and bpf/dmm.bpf.c.

A map's number is its place in MAPS; the compiler passes it to C (-DDMM_MAP_<name>), the loader replaces it by an fd.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader.bpf import (
    BPF_F_CLONE,
    BPF_F_NO_PREALLOC,
    BPF_F_SLEEPABLE,
    AttachType,
    MapType,
    ProgType,
)


@dataclass(frozen=True)
class MapSpec:
    """One map; sizes in bytes. inner: the kind of its inner tries, for an array of maps."""

    name: str
    type: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    inner: str = ""


@dataclass(frozen=True)
class ProgSpec:
    """One program; cgroup: linked to the instance's cgroup at attach. A pin's name is the program's without dmm_."""

    name: str
    type: ProgType
    attach_type: AttachType = AttachType.NONE
    flags: int = 0
    cgroup: bool = False

    @property
    def pin(self) -> str:
        """File name under progs/ and, for cgroup programs, under links/."""
        return self.name.removeprefix("dmm_")


def _array(name: str, value: str, entries: int) -> MapSpec:
    return MapSpec(name, MapType.ARRAY, 4, abi.sizeof(value), entries)


def _hash(name: str, key_size: int, value_size: int, entries: int) -> MapSpec:
    return MapSpec(name, MapType.HASH, key_size, value_size, entries, BPF_F_NO_PREALLOC)


def _storage(name: str, value: str, flags: int = 0) -> MapSpec:
    return MapSpec(name, MapType.SK_STORAGE, 4, abi.sizeof(value), 0, BPF_F_NO_PREALLOC | flags)


_LISTENER_KEY = abi.sizeof("dmm_listener_key")

MAPS: tuple[MapSpec, ...] = (
    _array("control", "dmm_control", 1),
    _array("heads", "dmm_policy_head", 2),
    _array("rules", "dmm_rule", 2 * C.DMM_MAX_RULES),
    _array("stacks", "dmm_stack", 2 * C.DMM_MAX_STACKS),
    _array("stack_state", "dmm_stack_state", C.DMM_MAX_STACKS),
    _array("stack_load", "dmm_stack_load", C.DMM_MAX_STACKS * C.DMM_MAX_PROCESSES),
    MapSpec("routes4", MapType.ARRAY_OF_MAPS, 4, 4, 2, inner="routes4"),
    MapSpec("routes6", MapType.ARRAY_OF_MAPS, 4, 4, 2, inner="routes6"),
    MapSpec("ports", MapType.ARRAY_OF_MAPS, 4, 4, 2, inner="ports"),
    _storage("decisions", "dmm_decision"),
    _storage("shared_facts", "dmm_decision", BPF_F_CLONE),
    _storage("ways", "dmm_way"),
    _storage("unwatched", "dmm_listener_key"),
    _array("flows", "dmm_near_flow", C.DMM_NEAR_FLOWS),
    _hash("more_flows", 8, abi.sizeof("dmm_flow"), C.DMM_MAX_FLOWS),
    MapSpec("events", MapType.RINGBUF, 0, 0, C.DMM_EVENTS_BYTES),
    _hash("listeners", _LISTENER_KEY, abi.sizeof("dmm_listener"), C.DMM_MAX_LISTENERS),
    _hash("earlier", 8, abi.sizeof("dmm_earlier"), C.DMM_MAX_EARLIER),
    _hash("nics", 4, abi.sizeof("dmm_nic"), C.DMM_MAX_DEVICES),
    _hash("xdp_flows", abi.sizeof("dmm_addr_pair"), abi.sizeof("dmm_xdp_flow"), C.DMM_MAX_XDP_FLOWS),
    _array("cookie_state", "dmm_cookie_state", C.DMM_MAX_STACKS),
    MapSpec("xsks", MapType.XSKMAP, 4, 4, C.DMM_MAX_NICS * C.DMM_MAX_QUEUES),
    MapSpec("outer_devs", MapType.ARRAY, 4, 4, C.DMM_MAX_STACKS * C.DMM_MAX_NICS),
    MapSpec("inner_devs", MapType.ARRAY, 4, 4, C.DMM_MAX_STACKS * C.DMM_MAX_NICS),
    _array("forwards", "dmm_forward", 2 * C.DMM_MAX_FORWARDS),
    _hash("inside", 4, abi.sizeof("dmm_inside"), C.DMM_MAX_INSIDE),
    MapSpec("notes", MapType.LRU_HASH, 4, abi.sizeof("dmm_forwarded"), C.DMM_MAX_NOTES),
    MapSpec(
        "forwarded",
        MapType.LRU_HASH,
        abi.sizeof("dmm_addr_pair"),
        abi.sizeof("dmm_forwarded"),
        C.DMM_MAX_FORWARDED,
    ),
    MapSpec(
        "fragments",
        MapType.LRU_HASH,
        abi.sizeof("dmm_fragment_key"),
        abi.sizeof("dmm_fragment"),
        C.DMM_MAX_FRAGMENTS,
    ),
    _hash("seats", 4, abi.sizeof("dmm_seat"), C.DMM_MAX_STACKS * C.DMM_MAX_NICS),
    MapSpec("counters", MapType.PERCPU_ARRAY, 4, 8, C.DMM_CNT_MAX),
    # The four below belong to the programs alone.
    _array("recent_routes", "dmm_recent_route", C.DMM_RECENT_ROUTES),
    _hash("listener_locks", _LISTENER_KEY, 4, 1024),
    MapSpec("more_count", MapType.ARRAY, 4, 8, 1),
    MapSpec("wakeup", MapType.ARRAY, 4, 8, 1),
)

_ADDR = ProgType.CGROUP_SOCK_ADDR

# In the order in which they are linked: what ends a flow record comes before what makes one, so that none is left.
PROGRAMS: tuple[ProgSpec, ...] = (
    ProgSpec("dmm_release", ProgType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_RELEASE, cgroup=True),
    ProgSpec("dmm_sockops", ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, cgroup=True),
    ProgSpec("dmm_connect4", _ADDR, AttachType.CGROUP_INET4_CONNECT, cgroup=True),
    ProgSpec("dmm_connect6", _ADDR, AttachType.CGROUP_INET6_CONNECT, cgroup=True),
    ProgSpec("dmm_sendmsg4", _ADDR, AttachType.CGROUP_UDP4_SENDMSG, cgroup=True),
    ProgSpec("dmm_sendmsg6", _ADDR, AttachType.CGROUP_UDP6_SENDMSG, cgroup=True),
    ProgSpec("dmm_bind4", _ADDR, AttachType.CGROUP_INET4_BIND, cgroup=True),
    ProgSpec("dmm_bind6", _ADDR, AttachType.CGROUP_INET6_BIND, cgroup=True),
    ProgSpec("dmm_xdp", ProgType.XDP, AttachType.XDP),
    ProgSpec("dmm_tcin", ProgType.SCHED_CLS),
    ProgSpec("dmm_tcfrom", ProgType.SCHED_CLS),
    ProgSpec("dmm_tcout", ProgType.SCHED_CLS),
    ProgSpec("dmm_ingress", ProgType.SCHED_CLS),
    ProgSpec("dmm_listener_set", ProgType.SYSCALL, flags=BPF_F_SLEEPABLE),
)

# Loaded when it is run, and neither linked nor pinned; only where the kernel has BTF.
EARLIER = ProgSpec("dmm_earlier", ProgType.TRACING, AttachType.TRACE_ITER)

# Steps of loops, which link.py puts behind the programs that refer to them. A step's number is its place here; C calls
# it DMM_STEP(name without dmm_).
STEPS: tuple[str, ...] = (
    "dmm_rule_connect",
    "dmm_rule_listen",
    "dmm_forward_try",
    "dmm_process_try",
    "dmm_lock_try",
    "dmm_option_tc",
    "dmm_option_xdp",
    "dmm_header_next",
)

# What is compiled, each on its own.
FUNCTIONS: tuple[str, ...] = (*(spec.name for spec in PROGRAMS), EARLIER.name, *STEPS)

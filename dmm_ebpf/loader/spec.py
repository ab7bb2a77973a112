# SPDX-License-Identifier: Apache-2.0
"""What is loaded: every map and every program, as constants. The names are those of
bpf/abi.h and bpf/dmm.bpf.c.

A map's number is its place in MAPS; the compiler passes it to C (-DDMM_MAP_<name>), the loader
replaces it by an fd. Its types are passed on, too (c_types()): a program that takes a key or a
value for another is not compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.abi import U32, U64, C, Form, KeyForm, StructForm
from dmm_ebpf.loader.bpf import (
    BPF_F_CLONE,
    BPF_F_NO_PREALLOC,
    BPF_F_SLEEPABLE,
    AttachType,
    MapType,
    ProgType,
)
from dmm_ebpf.loader.maps import INNER, RoutesKind
from dmm_ebpf.loader.table import K, MapSpec, Opened, V


@dataclass(frozen=True)
class ProgSpec:
    """One program; cgroup: linked to the instance's cgroup at attach, or if asked has flags (enum
    dmm_control_flag) only once a policy needs them, and from then on. A pin's name is the program's
    without dmm_.
    """

    name: str
    type: ProgType
    attach_type: AttachType = AttachType.NONE
    flags: int = 0
    cgroup: bool = False
    asked: int = 0

    @property
    def pin(self) -> str:
        """File name under progs/ and, for cgroup programs, under links/."""
        return self.name.removeprefix("dmm_")


def _array(value: Form[V], entries: int) -> MapSpec[int, V]:
    return MapSpec(MapType.ARRAY, U32, value, entries)


def _hash(key: Form[K], value: Form[V], entries: int) -> MapSpec[K, V]:
    return MapSpec(MapType.HASH, key, value, entries, BPF_F_NO_PREALLOC)


def _lru(key: Form[K], value: Form[V], entries: int) -> MapSpec[K, V]:
    return MapSpec(MapType.LRU_HASH, key, value, entries)


def _storage(value: Form[V], flags: int = 0) -> MapSpec[int, V]:
    """By socket; here, by its descriptor."""
    return MapSpec(MapType.SK_STORAGE, U32, value, 0, BPF_F_NO_PREALLOC | flags)


def _inner(kind: RoutesKind) -> MapSpec[int, None]:
    """By half; see maps.set_inner()."""
    return MapSpec(MapType.ARRAY_OF_MAPS, U32, None, 2, inner=kind)


ADAPTIVE_KEY = KeyForm("dmm_adaptive_key")
ADDR_PAIR = KeyForm("dmm_addr_pair")
DATAGRAM_KEY = KeyForm("dmm_datagram_key")
LISTENER_KEY = KeyForm("dmm_listener_key")
LIVE_KEY = KeyForm("dmm_route6_key")
PORT_KEY = KeyForm("dmm_port_key")
WAITED_KEY = KeyForm("dmm_waited_key")
_DECISION = StructForm("dmm_decision")
_FORWARDED = StructForm("dmm_forwarded")
_UDP_FLOW = StructForm("dmm_udp_flow")


class Maps(Opened):
    """The maps of an instance: here what they are, and of an object, their tables."""

    control = _array(StructForm("dmm_control"), 1)
    own_group = _array(U64, 1)
    waited = _hash(WAITED_KEY, StructForm("dmm_waited"), C.DMM_MAX_WAITED)
    globbed = _hash(U64, StructForm("dmm_globbed"), C.DMM_MAX_GLOBBED)
    heads = _array(StructForm("dmm_policy_head"), 2)
    rules = _array(StructForm("dmm_rule"), 2 * C.DMM_MAX_CHECKS)
    stacks = _array(StructForm("dmm_stack"), 2 * C.DMM_MAX_STACKS)
    stack_state = _array(StructForm("dmm_stack_state"), C.DMM_MAX_STACKS)
    stack_load = _array(StructForm("dmm_stack_load"), C.DMM_MAX_STACKS * C.DMM_MAX_PROCESSES)
    routes = _inner("routes")
    ports = _inner("ports")
    live = MapSpec(
        MapType.LPM_TRIE,
        LIVE_KEY,
        StructForm("dmm_route_value"),
        C.DMM_MAX_LIVE,
        BPF_F_NO_PREALLOC,
    )
    live_ports = MapSpec(
        MapType.LPM_TRIE,
        PORT_KEY,
        StructForm("dmm_port_value"),
        C.DMM_MAX_LIVE,
        BPF_F_NO_PREALLOC,
    )
    adaptive = MapSpec(
        MapType.LPM_TRIE,
        ADAPTIVE_KEY,
        StructForm("dmm_adaptive"),
        C.DMM_MAX_ADAPTIVE,
        BPF_F_NO_PREALLOC,
    )
    decisions = _storage(_DECISION)
    shared_facts = _storage(_DECISION, BPF_F_CLONE)
    ways = _storage(StructForm("dmm_way"))
    choices = _storage(StructForm("dmm_choice"))
    unwatched = _storage(StructForm("dmm_listener_key"))
    bounds = _storage(StructForm("dmm_bound_socket"))
    flows = _array(StructForm("dmm_near_flow"), C.DMM_NEAR_FLOWS)
    more_flows = _hash(U64, StructForm("dmm_flow"), C.DMM_MAX_FLOWS)
    events: MapSpec[None, None] = MapSpec(MapType.RINGBUF, None, None, C.DMM_EVENTS_BYTES)
    listeners = _hash(LISTENER_KEY, StructForm("dmm_listener"), C.DMM_MAX_LISTENERS)
    earlier = _hash(U64, StructForm("dmm_earlier"), C.DMM_MAX_EARLIER)
    nics = _hash(U32, StructForm("dmm_nic"), C.DMM_MAX_DEVICES)
    xdp_flows = _hash(ADDR_PAIR, StructForm("dmm_xdp_flow"), C.DMM_MAX_XDP_FLOWS)
    cookie_state = _array(StructForm("dmm_cookie_state"), C.DMM_MAX_STACKS)
    xsks = MapSpec(MapType.XSKMAP, U32, U32, C.DMM_MAX_NICS * C.DMM_MAX_QUEUES)
    outer_devs = _array(U32, C.DMM_MAX_STACKS * C.DMM_MAX_NICS)
    inner_devs = _array(U32, C.DMM_MAX_STACKS * C.DMM_MAX_NICS)
    forwards = _array(StructForm("dmm_forward"), 2 * C.DMM_MAX_FORWARDS)
    inside = _hash(U32, StructForm("dmm_inside"), C.DMM_MAX_INSIDE)
    notes = _lru(U32, _FORWARDED, C.DMM_MAX_NOTES)
    forwarded = _lru(ADDR_PAIR, _FORWARDED, C.DMM_MAX_FORWARDED)
    datagrams = _lru(DATAGRAM_KEY, StructForm("dmm_flow"), C.DMM_MAX_DATAGRAMS)
    udp_flows = _lru(ADDR_PAIR, _UDP_FLOW, C.DMM_MAX_DATAGRAMS)
    fragments = _lru(KeyForm("dmm_fragment_key"), StructForm("dmm_fragment"), C.DMM_MAX_FRAGMENTS)
    seats = _hash(U32, StructForm("dmm_seat"), 2 * C.DMM_MAX_STACKS * C.DMM_MAX_NICS)
    counters = MapSpec(MapType.PERCPU_ARRAY, U32, U64, C.DMM_CNT_MAX)
    # The five below belong to the programs alone.
    recent_routes = _array(StructForm("dmm_recent_route"), C.DMM_RECENT_ROUTES)
    listener_locks = _hash(LISTENER_KEY, U32, 1024)
    more_count = _array(U64, 1)
    wakeup = _array(U64, 1)
    udp_blank = _array(_UDP_FLOW, 1)


MAPS: tuple[MapSpec[Any, Any], ...] = tuple(
    spec for spec in vars(Maps).values() if isinstance(spec, MapSpec)
)


def c_types() -> Iterator[tuple[str, str]]:
    """The macros by which bpf/defs.h knows what a map holds, each with the type that
    it stands for.
    """
    for spec in MAPS:
        yield f"DMM_KEY_{spec.name}", spec.key.c_type if spec.key else "void"
        yield f"DMM_VALUE_{spec.name}", spec.value.c_type if spec.value else "void"
    for kind, (key, value) in INNER.items():
        yield f"DMM_KEY_inner_{kind}", key.c_type
        yield f"DMM_VALUE_inner_{kind}", value.c_type


_ADDR = ProgType.CGROUP_SOCK_ADDR
_SOCK = ProgType.CGROUP_SOCK


def _sockopt(name: str, attach_type: AttachType) -> ProgSpec:
    """Its being there alone makes each call longer, for every process of the cgroup."""
    return ProgSpec(
        name, ProgType.CGROUP_SOCKOPT, attach_type, cgroup=True, asked=C.DMM_CONTROL_CHOICE
    )


# In the order in which they are linked: what ends a flow record comes before what makes one, so
# that none is left.
PROGRAMS: tuple[ProgSpec, ...] = (
    ProgSpec("dmm_release", _SOCK, AttachType.CGROUP_INET_SOCK_RELEASE, cgroup=True),
    ProgSpec("dmm_sockops", ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, cgroup=True),
    ProgSpec("dmm_connect4", _ADDR, AttachType.CGROUP_INET4_CONNECT, cgroup=True),
    ProgSpec("dmm_connect6", _ADDR, AttachType.CGROUP_INET6_CONNECT, cgroup=True),
    ProgSpec("dmm_sendmsg4", _ADDR, AttachType.CGROUP_UDP4_SENDMSG, cgroup=True),
    ProgSpec("dmm_sendmsg6", _ADDR, AttachType.CGROUP_UDP6_SENDMSG, cgroup=True),
    _sockopt("dmm_getsockopt", AttachType.CGROUP_GETSOCKOPT),
    _sockopt("dmm_setsockopt", AttachType.CGROUP_SETSOCKOPT),
    ProgSpec("dmm_bind4", _ADDR, AttachType.CGROUP_INET4_BIND, cgroup=True),
    ProgSpec("dmm_bind6", _ADDR, AttachType.CGROUP_INET6_BIND, cgroup=True),
    ProgSpec("dmm_post_bind4", _SOCK, AttachType.CGROUP_INET4_POST_BIND, cgroup=True),
    ProgSpec("dmm_post_bind6", _SOCK, AttachType.CGROUP_INET6_POST_BIND, cgroup=True),
    ProgSpec("dmm_xdp", ProgType.XDP, AttachType.XDP),
    ProgSpec("dmm_tcin", ProgType.SCHED_CLS),
    ProgSpec("dmm_tcfrom", ProgType.SCHED_CLS),
    ProgSpec("dmm_tcout", ProgType.SCHED_CLS),
    ProgSpec("dmm_ingress", ProgType.SCHED_CLS),
    ProgSpec("dmm_listener_set", ProgType.SYSCALL, flags=BPF_F_SLEEPABLE),
    ProgSpec("dmm_rule_set", ProgType.SYSCALL, flags=BPF_F_SLEEPABLE),
)


def hooks(flags: int) -> list[ProgSpec]:
    """The programs that are linked to the cgroup of an instance whose policies have needed these
    flags of enum dmm_control_flag.
    """
    return [spec for spec in PROGRAMS if spec.cgroup and not spec.asked & ~flags]


# Loaded when it is run, and neither linked nor pinned; only where the kernel has BTF.
EARLIER = ProgSpec("dmm_earlier", ProgType.TRACING, AttachType.TRACE_ITER)

# Loaded and linked while a policy has a stack with mptcp, and pinned by its link alone; only where
# the kernel lets it be put on its function (protocolprobe.py).
PROTOCOL = ProgSpec("dmm_protocol", ProgType.TRACING, AttachType.MODIFY_RETURN)

# Loaded and linked while a cgroup is waited for, and pinned by its link alone (groupmade.py).
GROUP_MADE = ProgSpec("dmm_group_made", ProgType.RAW_TRACEPOINT)

# Steps of loops, which link.py puts behind the programs that refer to them. A step's number is its
# place here; C calls it DMM_STEP(name without dmm_).
STEPS: tuple[str, ...] = (
    "dmm_group_rule",
    "dmm_rule_connect",
    "dmm_rule_listen",
    "dmm_rule_choose",
    "dmm_rule_protocol",
    "dmm_stack_named",
    "dmm_forward_try",
    "dmm_route_walk",
    "dmm_process_try",
    "dmm_lock_try",
    "dmm_option_tc",
    "dmm_option_xdp",
    "dmm_header_next",
)

# Of those, which are called (DMM_CALL of bpf/defs.h), and the bytes of what their argument is a
# pointer to.
CALLED: Mapping[str, int] = {"dmm_route_walk": 24}

# What is compiled, each on its own.
FUNCTIONS: tuple[str, ...] = (
    *(spec.name for spec in (*PROGRAMS, EARLIER, PROTOCOL, GROUP_MADE)),
    *STEPS,
)

# SPDX-License-Identifier: Apache-2.0
"""Maps created, bytecode bound to them, programs loaded. Nothing is attached or pinned here.

A program that the verifier refuses is a KernelFeatureError with the last lines of its log; the
whole log is in /run/dmm-ebpf/verifier.log.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmm_ebpf.errors import DmmError, KernelFeatureError
from dmm_ebpf.loader import bpf, explain, link, maps, protocolprobe
from dmm_ebpf.loader.bpf import AttachType, MapType, ProgType
from dmm_ebpf.loader.link import Linked
from dmm_ebpf.loader.maps import Map
from dmm_ebpf.loader.spec import (
    CALLED,
    EARLIER,
    GROUP_MADE,
    MAPS,
    PROGRAMS,
    PROTOCOL,
    STEPS,
    Maps,
    ProgSpec,
)
from dmm_ebpf.loader.table import MapSpec

LOG_FILE = Path("/run/dmm-ebpf/verifier.log")
LOG_LINES = 3
BPF_F_XDP_HAS_FRAGS = 1 << 5
_FIGURES = ("processed ", "verification time ", "stack depth ")

_FUNC_SKC_TO_TCP_SOCK, _SOCK_OPS_SK = 137, 184  # the latter in struct bpf_sock_ops
_CALL, _EXIT, _MOV_IMM, _LDX_W, _LDX_B, _LDX_DW, _JEQ_IMM = 0x85, 0x95, 0xB7, 0x61, 0x71, 0x79, 0x15
_MOV_REG, _ADD_IMM = 0xBF, 0x07
_FUNC_SKB_GET_XFRM_STATE, _XFRM_STATE_BYTES = 66, 28
_FUNC_SKC_TO_MPTCP_SOCK, _SOCK_ADDR_SK = 196, 64  # the latter in struct bpf_sock_addr
_FUNC_GET_CURRENT_PID_TGID, _FUNC_GET_CURRENT_TASK_BTF = 14, 158
_FUNC_PROBE_READ_KERNEL = 113
_MOV_REG, _ADD_IMM, _FRAME = 0xBF, 0x07, 10

_TASK_MEMBERS = {
    "DMM_TASK_TGID": ("task_struct", "tgid"),
    "DMM_TASK_FLAGS": ("task_struct", "flags"),
    "DMM_TASK_LEADER": ("task_struct", "group_leader"),
    "DMM_TASK_COMM": ("task_struct", "comm"),
    "DMM_TASK_CRED": ("task_struct", "cred"),
    "DMM_CRED_UID": ("cred", "uid"),
    "DMM_CRED_GID": ("cred", "gid"),
    "DMM_TASK_CGROUPS": ("task_struct", "cgroups"),
    "DMM_CGROUPS_DFL": ("css_set", "dfl_cgrp"),
    "DMM_CGROUP_KN": ("cgroup", "kn"),
    "DMM_KN_ID": ("kernfs_node", "id"),
}
_EXE_MEMBERS = {
    "DMM_TASK_MM": ("task_struct", "mm"),
    "DMM_MM_EXE": ("mm_struct", "exe_file"),
    "DMM_FILE_INODE": ("file", "f_inode"),
    "DMM_EXE_INODE": ("inode", "i_ino"),
    "DMM_INODE_SB": ("inode", "i_sb"),
    "DMM_SB_DEV": ("super_block", "s_dev"),
}
_TCP_MEMBERS = {
    "DMM_TCP_KEEPALIVE_TIME": ("tcp_sock", "keepalive_time"),
    "DMM_TCP_KEEPALIVE_INTVL": ("tcp_sock", "keepalive_intvl"),
    "DMM_TCP_KEEPALIVE_PROBES": ("tcp_sock", "keepalive_probes"),
    "DMM_TCP_CA_FLAGS": ("inet_connection_sock", "icsk_ca_setsockopt"),
}
_TCP_WORDS = {"DMM_TCP_KEEPALIVE_TIME", "DMM_TCP_KEEPALIVE_INTVL"}  # the others are bytes
_GROUP_MEMBERS = {
    "DMM_CGROUP_ROOT": ("cgroup", "root"),
    "DMM_ROOT_HIERARCHY": ("cgroup_root", "hierarchy_id"),
    "DMM_CGROUP_LEVEL": ("cgroup", "level"),
    "DMM_CGROUP_ANCESTORS": ("cgroup", "ancestors"),
    "DMM_SK_CGROUP": ("sock", "sk_cgrp_data"),
}
ITER_TCP = "DMM_ITER_TCP"
_TASK_CHAINS = (
    ("DMM_TASK_LEADER", "DMM_TASK_COMM"),
    ("DMM_TASK_CRED", "DMM_CRED_UID"),
    ("DMM_TASK_CGROUPS", "DMM_CGROUPS_DFL", "DMM_CGROUP_KN", "DMM_KN_ID"),
)


def bind_maps(code: bytes, fds: Mapping[int, int]) -> bytes:
    """code with each map number replaced by that map's fd."""
    out = bytearray(code)
    for at, number in link.references(code, link.PSEUDO_MAP_FD):
        link.set_immediate(out, at, fds[number])
    return bytes(out)


def storage_btf(value_bytes: int) -> bytes:
    """The least BTF that a socket storage map is accepted with: [1] int (the key), [2]
    char, [3] char[value_bytes].

    Layout: Documentation/bpf/btf.rst. Storage maps are refused without BTF, and BCC makes
    none for them.
    """
    strings = b"\0int\0char\0"
    kind_int, kind_array = 1 << 24, 3 << 24
    types = struct.pack("=4I", 1, kind_int, 4, 1 << 24 | 32)
    types += struct.pack("=4I", 5, kind_int, 1, 8)
    types += struct.pack("=6I", 0, kind_array, 0, 2, 1, value_bytes)
    return link.btf(types, strings)


def _created(spec: MapSpec[Any, Any], **more: Any) -> Map:
    return Map(
        bpf.map_create(
            spec.name,
            spec.kind,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            flags=spec.flags,
            **more,
        )
    )


def _create(spec: MapSpec[Any, Any]) -> Map:
    if spec.inner:
        with maps.create_routes_map(spec.inner, 1) as template:
            return _created(spec, inner_fd=template.fd)
    btf_fd = -1
    try:
        btf = (0, 0, 0)
        if spec.kind == MapType.SK_STORAGE:
            btf_fd = bpf.btf_load(storage_btf(spec.value_size))
            btf = (btf_fd, 1, 3)
        return _created(spec, btf=btf)
    finally:
        if btf_fd >= 0:
            os.close(btf_fd)


def create_maps() -> Maps:
    """Every map of spec.MAPS, empty."""
    made: dict[str, Map] = {}
    try:
        for spec in MAPS:
            made[spec.name] = _create(spec)
    except OSError as error:
        close_maps(made)
        raise explain.map_refused(f"create the BPF map {spec.name}", spec.kind, error) from error
    except BaseException:
        close_maps(made)
        raise
    return Maps(made)


def close_maps(opened: Mapping[str, Map]) -> None:
    """Closes every fd."""
    for one in opened.values():
        one.close()


def _keep_log(log: str) -> str:
    """Where the whole log is; empty if it could not be written."""
    try:
        LOG_FILE.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        LOG_FILE.write_text(log, encoding="utf-8")
    except OSError:
        return ""
    return f"whole log in {LOG_FILE}"


@contextmanager
def _functions(linked: Linked) -> Iterator[bpf.Functions | None]:
    """What the kernel is told of a program's functions; None: there is but one."""
    if not linked.functions:
        yield None
        return
    fd = bpf.btf_load(link.function_btf([name for name, _ in linked.functions], CALLED))
    try:
        yield bpf.Functions(fd, link.function_info(linked))
    finally:
        os.close(fd)


def _load(spec: ProgSpec, linked: Linked, attach_btf_id: int = 0) -> tuple[int, str]:
    with _functions(linked) as functions:
        return bpf.prog_verify(
            spec.name,
            spec.type,
            linked.code,
            attach_type=spec.attach_type,
            flags=spec.flags,
            functions=functions,
            attach_btf_id=attach_btf_id,
        )


def _refused(spec: ProgSpec, error: OSError) -> DmmError:
    what = f"load the BPF program {spec.name}"
    if not isinstance(error, bpf.VerifierError):
        return explain.refused(what, error)
    lacking = explain.program_lacks(spec.type, error.log)
    if lacking:
        return KernelFeatureError(what, why=lacking, hint=explain.NEEDED)
    tail = [line for line in error.log.strip().splitlines() if not line.startswith(_FIGURES)]
    why = " / ".join(tail[-LOG_LINES:]) or str(error.strerror)
    return KernelFeatureError(what, why=f"the verifier says: {why}", hint=_keep_log(error.log))


def load(spec: ProgSpec, linked: Linked, attach_btf_id: int = 0) -> tuple[int, str]:
    """An fd, and what the verifier says of its work. attach_btf_id: of the kernel's function
    that it is for.
    """
    try:
        return _load(spec, linked, attach_btf_id)
    except OSError as error:
        raise _refused(spec, error) from error


def map_fds(opened: Mapping[str, Map]) -> dict[int, int]:
    """By map number, for linked()."""
    return {number: opened[spec.name].fd for number, spec in enumerate(MAPS)}


def linked(code: Mapping[str, bytes], fds: Mapping[int, int]) -> dict[str, Linked]:
    """Program name to what the kernel is given of it. code: what compile_programs() gave. fds:
    by map number.
    """
    bound = {name: bind_maps(one, fds) for name, one in code.items()}
    return {spec.name: link.link(spec.name, bound, STEPS) for spec in PROGRAMS}


def tags(code: Mapping[str, bytes]) -> dict[str, set[str]]:
    """What the kernel may call each program: a hash of its instructions without fds, SHA-1 before
    Linux 6.18 and SHA-256 since (bpf_prog_calc_tag()), of which it keeps 8 bytes.
    """
    bare = linked(code, dict.fromkeys(range(len(MAPS)), 0))
    return {
        name: {made(whole.code).hexdigest()[:16] for made in (hashlib.sha1, hashlib.sha256)}
        for name, whole in bare.items()
    }


def load_programs(code: Mapping[str, bytes], opened: Mapping[str, Map]) -> dict[str, int]:
    """Program name to fd, all of spec.PROGRAMS. code: what compile_programs() gave.

    As many at a time as there are processors: the kernel's verifier holds no lock for who may load
    any program. The longest begin first.
    """
    whole = linked(code, map_fds(opened))
    order = sorted(PROGRAMS, key=lambda spec: len(whole[spec.name].code), reverse=True)
    with ThreadPoolExecutor(os.cpu_count(), "dmm-load") as pool:
        loading = {spec.name: pool.submit(_load, spec, whole[spec.name]) for spec in order}
    loaded: dict[str, int] = {}
    refused: DmmError | None = None
    for spec in PROGRAMS:
        try:
            loaded[spec.name] = loading[spec.name].result()[0]
        except OSError as error:
            refused = refused or _refused(spec, error)
    if refused is not None:
        close_all(loaded)
        raise refused
    return loaded


def load_xdp_frags(code: Mapping[str, bytes], opened: Mapping[str, Map]) -> int:
    """An fd of dmm_xdp that takes packets in several frames.

    By itself, not instead of the other: from generic XDP such a program makes tc programs behind it
    see packets without their Ethernet header (skb_pp_cow_data(), Linux 6.9, copies no mac_len),
    those of others, too.
    """
    (spec,) = (one for one in PROGRAMS if one.name == "dmm_xdp")
    whole = linked(code, map_fds(opened))[spec.name]
    return load(replace(spec, flags=spec.flags | BPF_F_XDP_HAS_FRAGS), whole)[0]


def load_earlier(
    code: Mapping[str, bytes], opened: Mapping[str, Map], attach_btf_id: int
) -> tuple[int, str]:
    """load() of spec.EARLIER. attach_btf_id: of the kernel's TCP iterator, as
    iterator_id() tells it.
    """
    return _load_tracing(EARLIER, code, opened, attach_btf_id)


def load_protocol(code: Mapping[str, bytes], opened: Mapping[str, Map]) -> tuple[int, str]:
    """load() of spec.PROTOCOL. OSError: the kernel has no such function."""
    function = bpf.kernel_function(protocolprobe.FUNCTION)
    return _load_tracing(PROTOCOL, code, opened, function)


def load_group_made(code: Mapping[str, bytes], opened: Mapping[str, Map]) -> tuple[int, str]:
    """load() of spec.GROUP_MADE."""
    return _load_tracing(GROUP_MADE, code, opened, 0)


def _load_tracing(
    spec: ProgSpec, code: Mapping[str, bytes], opened: Mapping[str, Map], attach_btf_id: int
) -> tuple[int, str]:
    bound = {name: bind_maps(one, map_fds(opened)) for name, one in code.items()}
    return load(spec, link.link(spec.name, bound, STEPS), attach_btf_id)


def close_all(loaded: MutableMapping[str, int]) -> None:
    """Closes every fd and empties loaded, so that a second call does nothing."""
    while loaded:
        os.close(loaded.popitem()[1])


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return link.INSN.pack(code, src << 4 | dst, off, imm)


def _accepts(kind: ProgType, attach_type: AttachType, code: bytes) -> bool:
    """Whether the kernel loads a program that does this and ends; DmmError when it
    cannot be told.
    """
    code += _insn(_MOV_IMM, imm=1) + _insn(_EXIT)
    try:
        fd = bpf.prog_load("dmm_probe", kind, code, attach_type=attach_type)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EACCES):
            return False
        raise explain.refused("load BPF programs", error) from error
    os.close(fd)
    return True


# bpf_skc_to_mptcp_sock() of the context's socket
_MPTCP_OF = (
    _insn(_LDX_DW, dst=1, src=1, off=_SOCK_ADDR_SK)
    + _insn(_JEQ_IMM, dst=1, off=1)
    + _insn(_CALL, imm=_FUNC_SKC_TO_MPTCP_SOCK)
)

# bpf_skb_get_xfrm_state() of the context, to the stack
_XFRM_OF = (
    _insn(_MOV_IMM, dst=2)
    + _insn(_MOV_REG, dst=3, src=10)
    + _insn(_ADD_IMM, dst=3, imm=-32)
    + _insn(_MOV_IMM, dst=4, imm=_XFRM_STATE_BYTES)
    + _insn(_MOV_IMM, dst=5)
    + _insn(_CALL, imm=_FUNC_SKB_GET_XFRM_STATE)
)


def _offsets(members: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Where members are in the running kernel; empty if it does not tell."""
    try:
        return dict(zip(members, bpf.kernel_offsets(list(members.values())), strict=True))
    except OSError:
        return {}


def iterator_id(defines: Sequence[str]) -> int | None:
    """What load_earlier() wants, from defines(); None: the kernel has no BTF, or
    no such iterator.
    """
    told = (one.removeprefix(f"{ITER_TCP}=") for one in defines if one.startswith(f"{ITER_TCP}="))
    return next(map(int, told), None)


def _iterator() -> list[str]:
    """Macros for bpf/earlier.h: where a socket's state is, and the id of the TCP iterator; none
    if it has none.
    """
    try:
        (state,) = bpf.kernel_offsets([("sock_common", "skc_state")])
        return [f"DMM_SKC_STATE={state}", f"{ITER_TCP}={bpf.kernel_function('bpf_iter_tcp')}"]
    except OSError:
        return []


def _socket_error() -> list[str]:
    """The macro for socket_error() in bpf/sockops.h: where a socket's error is; none if it may
    not be read.
    """
    return _socket_macros([("DMM_SK_ERR", "sock", "sk_err")])


def _socket_device() -> list[str]:
    """Those for is_behind() there: the way from a socket to the device by which it sends."""
    return _socket_macros(
        [
            ("DMM_SK_DST", "sock", "sk_dst_cache"),
            ("DMM_DST_DEV", "dst_entry", "dev"),
            ("DMM_DEV_IFINDEX", "net_device", "ifindex"),
        ]
    )


def _socket_macros(way: Sequence[tuple[str, str, str]]) -> list[str]:
    """Macros by name, struct and member, of pointers that lead from a TCP socket to
    an integer; none if that may not be read.
    """
    try:
        offsets = bpf.kernel_offsets([(struct, member) for _, struct, member in way])
    except OSError:
        return []
    loads = b"".join(
        _insn(_LDX_W if i == len(way) - 1 else _LDX_DW, dst=1, src=1 if i else 0, off=at)
        for i, at in enumerate(offsets)
    )
    code = _insn(_LDX_DW, dst=1, src=1, off=_SOCK_OPS_SK)
    code += _insn(_JEQ_IMM, dst=1, off=2 + len(way))
    code += _insn(_CALL, imm=_FUNC_SKC_TO_TCP_SOCK) + _insn(_JEQ_IMM, off=len(way)) + loads
    readable = _accepts(ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, code)
    return [f"{name}={at}" for (name, *_), at in zip(way, offsets, strict=True)] if readable else []


def _socket_file() -> list[str]:
    """Macros for socket_is_kernels() in bpf/connect.h: the way from a TCP socket to its file; none
    if it may not be read.
    """
    at = _offsets({"DMM_SK_SOCKET": ("sock", "sk_socket"), "DMM_SOCKET_FILE": ("socket", "file")})
    if not at:
        return []
    code = _insn(_LDX_DW, dst=1, src=1, off=_SOCK_ADDR_SK) + _insn(_JEQ_IMM, dst=1, off=5)
    code += _insn(_CALL, imm=_FUNC_SKC_TO_TCP_SOCK) + _insn(_JEQ_IMM, off=3)
    code += _insn(_LDX_DW, dst=1, off=at["DMM_SK_SOCKET"]) + _insn(_JEQ_IMM, dst=1, off=1)
    code += _insn(_LDX_DW, dst=1, src=1, off=at["DMM_SOCKET_FILE"])
    if not _accepts(ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, code):
        return []
    return [f"{name}={offset}" for name, offset in at.items()]


def _socket_cookie() -> list[str]:
    """The macro for cookie_of() in bpf/sockopt.h: where a socket's cookie is; none if it may not be
    read there.
    """
    try:
        (at,) = bpf.kernel_offsets([("sock_common", "skc_cookie")])
    except OSError:
        return []
    code = _insn(_LDX_DW, dst=3, src=1) + _insn(_MOV_REG, dst=1, src=_FRAME)
    code += _insn(_ADD_IMM, dst=1, imm=-(at + 8)) + _insn(_MOV_IMM, dst=2, imm=at + 8)
    code += _insn(_CALL, imm=_FUNC_PROBE_READ_KERNEL)
    readable = at % 8 == 0 and _accepts(ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_GETSOCKOPT, code)
    return [f"DMM_SK_COOKIE={at}"] if readable else []


def _group_members() -> list[str]:
    """Macros for bpf/group.h: where a cgroup, and a socket's, have what is read of them; none if it
    may not be read.
    """
    at = _offsets(_GROUP_MEMBERS)
    if not at:
        return []
    code = _insn(_LDX_DW, dst=1, src=1, off=_SOCK_OPS_SK)
    code += _insn(_JEQ_IMM, dst=1, off=4)
    code += _insn(_CALL, imm=_FUNC_SKC_TO_TCP_SOCK) + _insn(_JEQ_IMM, off=2)
    code += _insn(_LDX_DW, dst=1, off=at["DMM_SK_CGROUP"])
    code += _insn(_LDX_W, dst=1, src=1, off=at["DMM_CGROUP_LEVEL"])
    if not _accepts(ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, code):
        return []
    return [f"{name}={offset}" for name, offset in at.items()]


def _tcp_chosen() -> list[str]:
    """Macros for chosen_read() in bpf/options.h: where a TCP socket keeps what its program has set;
    none if it may not be read.
    """
    try:
        found = bpf.kernel_offsets(list(_TCP_MEMBERS.values()))
    except OSError:
        return []
    at = dict(zip(_TCP_MEMBERS, found, strict=True))
    loads = b"".join(
        _insn(_LDX_W if name in _TCP_WORDS else _LDX_B, dst=1, off=off) for name, off in at.items()
    )
    for kind, attach_type, sock in (
        (ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, _SOCK_OPS_SK),
        (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, _SOCK_ADDR_SK),
    ):
        code = _insn(_LDX_DW, dst=1, src=1, off=sock) + _insn(_JEQ_IMM, dst=1, off=2 + len(at))
        code += _insn(_CALL, imm=_FUNC_SKC_TO_TCP_SOCK) + _insn(_JEQ_IMM, off=len(at)) + loads
        if not _accepts(kind, attach_type, code):
            return []
    return ["DMM_TCP_CHOSEN", *(f"{name}={offset}" for name, offset in at.items())]


def _task_reading(at: Mapping[str, int]) -> bytes:
    """The loads of facts_current() in bpf/actor.h."""
    code = _insn(_CALL, imm=_FUNC_GET_CURRENT_TASK_BTF)
    code += _insn(_LDX_W, dst=1, off=at["DMM_TASK_TGID"]) + _insn(
        _LDX_W, dst=1, off=at["DMM_TASK_FLAGS"]
    )
    for first, *others in _TASK_CHAINS:
        code += _insn(_LDX_DW, dst=1, off=at[first])
        for left, name in zip(range(len(others), 0, -1), others, strict=True):
            load = _LDX_W if name == "DMM_CRED_UID" else _LDX_DW
            # NULL: over this load and the pairs that follow.
            code += _insn(_JEQ_IMM, dst=1, off=2 * left - 1) + _insn(
                load, dst=1, src=1, off=at[name]
            )
    return code


def _exe_reading(at: Mapping[str, int]) -> bytes:
    """Those of executable_current() there, with no check of a pointer."""
    code = _insn(_CALL, imm=_FUNC_GET_CURRENT_TASK_BTF)
    for name in ("DMM_TASK_MM", "DMM_MM_EXE", "DMM_FILE_INODE"):
        code += _insn(_LDX_DW, dst=0, off=at[name])
    code += _insn(_LDX_DW, dst=1, off=at["DMM_EXE_INODE"])
    code += _insn(_LDX_DW, dst=1, off=at["DMM_INODE_SB"])
    return code + _insn(_LDX_W, dst=1, src=1, off=at["DMM_SB_DEV"])


def defines() -> tuple[str, ...]:
    """Macros for the compiler: what this kernel's helpers allow, and where its structs have
    what is read of a task.
    """
    found: list[str] = []
    call = _insn(_CALL, imm=_FUNC_GET_CURRENT_PID_TGID)
    in_sockops = _accepts(ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, call)
    if in_sockops:
        found.append("DMM_SOCKOPS_CURRENT")
    if _accepts(ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, _MPTCP_OF):
        found.append("DMM_MPTCP")
    if _accepts(ProgType.SCHED_CLS, AttachType.NONE, _XFRM_OF):
        found.append("DMM_XFRM")
    asking = (
        (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT),
        (ProgType.CGROUP_SOCK, AttachType.CGROUP_INET4_POST_BIND),
        (ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
        *([(ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS)] if in_sockops else []),
    )
    for members, reading in ((_TASK_MEMBERS, _task_reading), (_EXE_MEMBERS, _exe_reading)):
        offsets = _offsets(members)
        if offsets and all(_accepts(*kind, reading(offsets)) for kind in asking):
            found += [f"{name}={offset}" for name, offset in offsets.items()]
    found += _iterator() + _socket_error() + _socket_device() + _tcp_chosen() + _socket_cookie()
    found += _group_members() + _socket_file()
    found += protocolprobe.macros()
    return tuple(found)

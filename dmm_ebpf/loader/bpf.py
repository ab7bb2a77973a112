# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through libbpf: one function per call, typed; a failure is an OSError with
the kernel's errno.

The only module that touches dmm_ebpf.loader._libbpf. Nothing here knows what the programs and maps
are for; callers turn OSError into sentences. Numbers are linux/bpf.h's.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from dmm_ebpf.hal.answer import Unknown, YesNo
from dmm_ebpf.loader._libbpf import ffi, lib

lib.dmm_quiet()

ENOTSUPP = 524  # the kernel's own; not in errno
BPF_FS_MAGIC = 0xCAFE4A11
CGROUP2_MAGIC = 0x63677270
STATS_LOG_BYTES = 1 << 16
FIRST_LOG_BYTES = 1 << 20
LAST_LOG_BYTES = 1 << 26


class MapType(IntEnum):
    """enum bpf_map_type, as far as used."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    DEVMAP = 14
    XSKMAP = 17
    SK_STORAGE = 24
    RINGBUF = 27


class ProgType(IntEnum):
    """enum bpf_prog_type, as far as used."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    TRACING = 26
    SYSCALL = 31


class AttachType(IntEnum):
    """enum bpf_attach_type, as far as used."""

    NONE = 0
    CGROUP_SOCK_OPS = 3
    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    MODIFY_RETURN = 26
    TRACE_ITER = 28
    CGROUP_GETSOCKOPT = 21
    CGROUP_SETSOCKOPT = 22
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37
    TCX_INGRESS = 46  # Linux 6.6
    TCX_EGRESS = 47


class LinkType(IntEnum):
    """enum bpf_link_type, as far as used."""

    RAW_TRACEPOINT = 1
    TRACING = 2
    CGROUP = 3
    XDP = 6


LOG_STATES, LOG_STATS = 1, 4
# What the verifier answers when a program is too much for it.
_GAVE_UP = (-errno.E2BIG, -errno.EFAULT)

BPF_F_NO_PREALLOC = 1
BPF_F_INNER_MAP = 1 << 12
BPF_F_MMAPABLE = 1 << 10
BPF_F_CLONE = 1 << 9
BPF_F_SLEEPABLE = 1 << 4
BPF_F_ALLOW_MULTI = 2
BPF_NOEXIST = 1
BPF_EXIST = 2
XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4
XDP_ATTACHED_SKB = 2


@dataclass(frozen=True)
class MapInfo:
    """struct bpf_map_info; sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True)
class Functions:
    """A program's functions: fd of the BTF with their types, and struct bpf_func_info of each."""

    btf_fd: int
    info: bytes


@dataclass(frozen=True)
class ProgInfo:
    """struct bpf_prog_info; tag is the kernel's hash of the instructions."""

    type: int
    id: int
    tag: str
    name: str


@dataclass(frozen=True)
class LinkInfo:
    """struct bpf_link_info; cgroup_id and attach_type for cgroup links, ifindex for XDP links
    (0: device gone).
    """

    type: int
    id: int
    prog_id: int
    attach_type: int
    ifindex: int
    cgroup_id: int


@dataclass(frozen=True)
class XdpState:
    """XDP programs of a device; ids are 0 where there is none."""

    prog_ids: tuple[int, ...]
    generic: bool


@dataclass(frozen=True)
class TestResult:
    """What BPF_PROG_TEST_RUN gave back."""

    retval: int
    duration_ns: int
    data: bytes
    context: bytes


class VerifierError(OSError):
    """The verifier refused a program; log is its whole output."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log


def _check(ret: int) -> int:
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret) if -ret != ENOTSUPP else "Operation not supported")
    return int(ret)


def _name(array: object) -> str:
    return bytes(ffi.buffer(array)).split(b"\0", 1)[0].decode("ascii", "replace")


def map_create(
    name: str,
    kind: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    inner_fd: int = 0,
    btf: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """BPF_MAP_CREATE; btf is (BTF fd, key type id, value type id). Returns an fd."""
    c_name = ffi.new("char[]", name.encode()[:15])
    spec = ffi.new("struct dmm_map_spec *")
    spec.name, spec.type, spec.flags, spec.inner_fd = c_name, kind, flags, inner_fd
    spec.key_size, spec.value_size, spec.max_entries = key_size, value_size, max_entries
    spec.btf_fd, spec.btf_key_type, spec.btf_value_type = btf
    return _check(lib.dmm_map_create(spec))


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    info = ffi.new("struct dmm_map_info *")
    _check(lib.dmm_map_info(fd, info))
    return MapInfo(
        info.type,
        info.id,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.flags,
        _name(info.name),
    )


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes:
    """BPF_MAP_LOOKUP_ELEM; value_bytes is what the kernel will write."""
    value = bytearray(value_bytes)
    _check(lib.dmm_map_lookup(fd, key, ffi.from_buffer(value)))
    return bytes(value)


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """BPF_MAP_UPDATE_ELEM."""
    _check(lib.dmm_map_update(fd, key, value, flags))


def map_delete(fd: int, key: bytes) -> None:
    """BPF_MAP_DELETE_ELEM."""
    _check(lib.dmm_map_delete(fd, key))


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes:
    """BPF_MAP_GET_NEXT_KEY; None starts; ENOENT ends."""
    following = bytearray(key_size)
    _check(lib.dmm_map_next_key(fd, ffi.NULL if key is None else key, ffi.from_buffer(following)))
    return bytes(following)


def map_lookup_batch(
    fd: int, position: bytes | None, key_size: int, value_size: int, count: int
) -> tuple[bytes, bytes, bytes, int, bool]:
    """BPF_MAP_LOOKUP_BATCH: (next position, keys, values, entries read, whether that was
    the last batch).
    """
    following = bytearray(max(key_size, 4))
    keys, values = bytearray(key_size * count), bytearray(value_size * count)
    n = ffi.new("unsigned int *", count)
    ret = lib.dmm_map_lookup_batch(
        fd,
        ffi.NULL if position is None else ffi.from_buffer(bytearray(position)),
        ffi.from_buffer(following),
        ffi.from_buffer(keys),
        ffi.from_buffer(values),
        n,
    )
    last = ret == -errno.ENOENT  # the end, with n[0] entries all the same
    if not last:
        _check(ret)
    return bytes(following), bytes(keys), bytes(values), int(n[0]), last


def map_update_batch(
    fd: int, keys: bytes | memoryview, values: bytes | memoryview, count: int
) -> None:
    """BPF_MAP_UPDATE_BATCH; on failure some of the entries may have been written."""
    n = ffi.new("unsigned int *", count)
    _check(lib.dmm_map_update_batch(fd, ffi.from_buffer(keys), ffi.from_buffer(values), n))


def btf_load(data: bytes) -> int:
    """BPF_BTF_LOAD. Returns an fd."""
    return _check(lib.dmm_btf_load(data, len(data)))


def kernel_offsets(members: Sequence[tuple[str, str]]) -> list[int]:
    """Where members of the running kernel's structs are, in bytes, by its BTF;
    members: (struct, member).

    OSError: no BTF, or (ENOENT) no such member.
    """
    names = [ffi.new("char[]", name.encode()) for pair in members for name in pair]
    offsets = ffi.new("unsigned int[]", len(members))
    _check(lib.dmm_kernel_offsets(ffi.new("const char *[]", names), len(members), offsets))
    return list(offsets)


def kernel_function(name: str) -> int:
    """The id of a function in the running kernel's BTF. OSError: no BTF, or (ENOENT)
    no such function.
    """
    return _check(lib.dmm_kernel_function(name.encode()))


def prog_load(
    name: str,
    kind: int,
    insns: bytes,
    *,
    attach_type: int = AttachType.NONE,
    flags: int = 0,
    functions: Functions | None = None,
) -> int:
    """BPF_PROG_LOAD. Returns an fd; a refusal is a VerifierError with the log."""
    return prog_verify(
        name, kind, insns, attach_type=attach_type, flags=flags, functions=functions
    )[0]


def prog_verify(
    name: str,
    kind: int,
    insns: bytes,
    *,
    attach_type: int = AttachType.NONE,
    flags: int = 0,
    functions: Functions | None = None,
    attach_btf_id: int = 0,
) -> tuple[int, str]:
    """prog_load(), with what the verifier says of its work. attach_btf_id: of the kernel's function
    that it is for.

    The log of a refusal has every state of the verifier's, for which the program is loaded again,
    unless that would take as long once more as it takes to give up.
    """
    spec = ffi.new("struct dmm_prog_spec *")
    c_name = ffi.new("char[]", name.encode()[:15])
    code = ffi.from_buffer(insns)
    spec.name, spec.type, spec.expected_attach_type, spec.flags = c_name, kind, attach_type, flags
    spec.insns, spec.insn_cnt = code, len(insns) // 8
    spec.attach_btf_id = attach_btf_id
    info = ffi.from_buffer(functions.info if functions else b"")
    spec.btf_fd, spec.func_info, spec.func_info_bytes = (
        functions.btf_fd if functions else 0,
        info,
        len(info),
    )
    ret, log = _load(spec, LOG_STATS, STATS_LOG_BYTES)
    if ret >= 0:
        return ret, log
    if ret == -errno.EPERM:  # privileges, not the program
        return _check(ret), log
    if ret in _GAVE_UP:
        raise VerifierError(-ret, log)
    log_bytes = FIRST_LOG_BYTES
    while True:
        again, log = _load(spec, LOG_STATES, log_bytes)
        if again >= 0:
            return again, log
        if again != -errno.ENOSPC or log_bytes >= LAST_LOG_BYTES:  # ENOSPC: the log did not fit
            raise VerifierError(-again, log)
        log_bytes *= 8


def _load(spec: Any, log_level: int, log_bytes: int) -> tuple[int, str]:
    log = ffi.new("char[]", log_bytes)
    spec.log, spec.log_bytes, spec.log_level = log, log_bytes, log_level
    ret = int(lib.dmm_prog_load(spec))
    return ret, ffi.string(log).decode("utf-8", "replace")


def _outcome(ret: int) -> bool | None:
    return None if ret < 0 else bool(ret)


def has_map_type(kind: int) -> bool | None:
    """Whether the kernel has maps of that type; None: could not tell. Wrong without privileges,
    as all has_*().
    """
    return _outcome(lib.dmm_has_map_type(kind))


def has_prog_type(kind: int) -> bool | None:
    """Whether the kernel has programs of that type; None: could not tell."""
    return _outcome(lib.dmm_has_prog_type(kind))


def has_links() -> bool | None:
    """Whether the kernel has BPF_LINK_CREATE, asked with descriptors that are none; None:
    could not tell.
    """
    ret = int(lib.dmm_link_create(-1, -1, AttachType.CGROUP_SOCK_OPS, 0))
    return {-errno.EBADF: True, -errno.EINVAL: False}.get(ret)


def helper_name(helper: int) -> str:
    """As in bpf-helpers(7)."""
    name = lib.dmm_helper_name(helper)
    return f"number {helper}" if name == ffi.NULL else f"bpf_{ffi.string(name).decode()}"


def prog_info(fd: int) -> ProgInfo:
    """What the kernel says of a program."""
    info = ffi.new("struct dmm_prog_info *")
    _check(lib.dmm_prog_info(fd, info))
    return ProgInfo(info.type, info.id, bytes(ffi.buffer(info.tag)).hex(), _name(info.name))


def prog_by_id(prog_id: int) -> int:
    """BPF_PROG_GET_FD_BY_ID. Returns an fd."""
    return _check(lib.dmm_prog_fd_by_id(prog_id))


def prog_name(prog_id: int) -> str:
    """The name of a program by id; empty if it has none or is gone."""
    fd = lib.dmm_prog_fd_by_id(prog_id)
    if fd < 0:
        return ""
    try:
        return prog_info(fd).name
    finally:
        os.close(fd)


def prog_query(target_fd: int, attach_type: int) -> tuple[int, list[int]]:
    """BPF_PROG_QUERY of a cgroup: (attach flags, program ids)."""
    flags = ffi.new("unsigned int *")
    ids, count = ffi.new("unsigned int[64]"), ffi.new("unsigned int *", 64)
    _check(lib.dmm_prog_query(target_fd, attach_type, flags, ids, count))
    return int(flags[0]), [int(ids[i]) for i in range(count[0])]


def prog_test(fd: int, data: bytes | None, *, context: bytes = b"", repeat: int = 1) -> TestResult:
    """BPF_PROG_TEST_RUN. data: the packet (at least 14 bytes), or None for a
    program without one.
    """
    test = ffi.new("struct dmm_test *")
    ctx = ffi.new("unsigned char[]", context or b"\0")
    out = ffi.new("unsigned char[]", 0 if data is None else len(data) + 256)
    test.repeat = repeat if data is not None else 0  # a syscall program runs once
    if data is not None:
        packet = ffi.from_buffer(data)
        test.data_in, test.data_in_bytes = packet, len(data)
        test.data_out, test.data_out_bytes = out, len(data) + 256
    if context:
        test.ctx, test.ctx_bytes = ctx, len(context)
    _check(lib.dmm_prog_test(fd, test))
    return TestResult(
        test.retval,
        test.duration_ns,
        b"" if data is None else bytes(ffi.buffer(out, test.data_out_bytes)),
        bytes(ffi.buffer(ctx, len(context))) if context else b"",
    )


def link_create(prog_fd: int, target: int, attach_type: int, flags: int = 0) -> int:
    """BPF_LINK_CREATE; target is a cgroup's fd or an ifindex of the current namespace.
    Returns an fd.
    """
    return _check(lib.dmm_link_create(prog_fd, target, attach_type, flags))


def tracepoint(name: str, prog_fd: int) -> int:
    """BPF_RAW_TRACEPOINT_OPEN: the program runs each time the kernel comes by there. Returns the fd
    of a link.
    """
    return _check(lib.dmm_tracepoint(name.encode(), prog_fd))


def iterate(link_fd: int) -> None:
    """Run an iterator once over all that it is for, in the current network namespace."""
    fd = _check(lib.dmm_iter_create(link_fd))
    try:
        while True:
            try:
                if not os.read(fd, 4096):
                    return
            except BlockingIOError:  # a million objects so far
                continue
    finally:
        os.close(fd)


def link_detach(fd: int) -> None:
    """BPF_LINK_DETACH: the program stops running whoever else holds the link."""
    _check(lib.dmm_link_detach(fd))


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of a link."""
    info = ffi.new("struct dmm_link_info *")
    _check(lib.dmm_link_info(fd, info))
    return LinkInfo(
        info.type, info.id, info.prog_id, info.attach_type, info.ifindex, info.cgroup_id
    )


@functools.cache
def xsk_metadata() -> YesNo:
    """Whether AF_XDP sockets take metadata of frames to be sent, such as that a checksum is
    open (Linux 6.11).
    """
    done = int(lib.dmm_xsk_metadata())
    return bool(done) if done >= 0 else Unknown(f"an AF_XDP socket: {os.strerror(-done)}")


@functools.cache
def xsk_frags() -> bool:
    """Whether AF_XDP sockets take packets in several frames (Linux 6.6); False, too, for who
    may not ask.
    """
    return bool(lib.dmm_xsk_frags())


def xdp_query(ifindex: int) -> XdpState:
    """The XDP programs of a device of the current network namespace."""
    state = ffi.new("struct dmm_xdp_state *")
    _check(lib.dmm_xdp_query(ifindex, state))
    ids = (state.prog_id, state.drv_prog_id, state.skb_prog_id, state.hw_prog_id)
    return XdpState(tuple(sorted({i for i in ids if i})), state.mode == XDP_ATTACHED_SKB)


def obj_pin(fd: int, path: str) -> None:
    """BPF_OBJ_PIN."""
    _check(lib.dmm_obj_pin(fd, os.fsencode(path)))


def obj_get(path: str) -> int:
    """BPF_OBJ_GET. Returns an fd."""
    return _check(lib.dmm_obj_get(os.fsencode(path)))


def possible_cpus() -> int:
    """How many values a per-CPU map entry has."""
    return _check(lib.dmm_cpus())


def fs_magic(path: str) -> int:
    """statfs(2)'s f_type."""
    return _check(lib.dmm_fs_magic(os.fsencode(path)))


def mount_bpffs(mntns_fd: int, path: str) -> None:
    """Mounts bpffs on path inside the mount namespace mntns_fd."""
    _check(lib.dmm_mount_bpffs(mntns_fd, os.fsencode(path)))


@contextmanager
def cgroup_open(mount_fd: int, cgroup_id: int) -> Iterator[int]:
    """An fd of the cgroup's directory by id; ESTALE when it is gone."""
    fd = _check(lib.dmm_cgroup_open(mount_fd, cgroup_id))
    try:
        yield fd
    finally:
        os.close(fd)


class Ring:
    """A consumer of a ring buffer whose records all have one size. late_ns: how long after a read
    that found something it is woken once more, for what came unannounced.
    """

    def __init__(self, map_fd: int, record_bytes: int, buffer_records: int, late_ns: int) -> None:
        error = ffi.new("int *")
        ring = lib.dmm_ring_create(map_fd, late_ns, error)
        if ring == ffi.NULL:
            _check(-error[0])
        self._ring = ffi.gc(ring, lib.dmm_ring_destroy)
        self._record_bytes = record_bytes
        self._buffer = bytearray(record_bytes * buffer_records)

    def fileno(self) -> int:
        """Readable when a producer asked for a wake-up (an epoll fd)."""
        return int(lib.dmm_ring_fd(self._ring))

    def read(self) -> bytes:
        """Every record that is there now, oldest first, laid end to end."""
        records = b""
        size = self._record_bytes
        while True:
            n = lib.dmm_ring_read(
                self._ring, ffi.from_buffer(self._buffer), len(self._buffer), size
            )
            _check(min(n, 0))
            records += self._buffer[:n]
            if n < len(self._buffer):
                return records

    def close(self) -> None:
        """Unmaps the ring; the records stay."""
        ffi.release(self._ring)

# SPDX-License-Identifier: Apache-2.0
"""What this host can do, each with one of three outcomes: yes, no, or unknown with the reason.

"No" is only said when the kernel refused for want of the feature; a probe that failed for another cause (no
privilege, no descriptor left) says unknown, and the caller goes on to try. Probes leave nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from dmm_ebpf.errors import KernelFeatureError

_AF_XDP = 44
_TUNGETFEATURES = 0x800454CF
_IFF_VNET_HDR = 0x4000
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_BPF = 12, 21, 39
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_ARRAY = 2
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}


class Outcome(Enum):
    """What a probe found."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Feature:
    """One probe's result; why is empty for yes."""

    name: str
    outcome: Outcome
    why: str = ""

    def require(self, what: str, hint: str = "") -> None:
        """Raises KernelFeatureError when the outcome is no."""
        if self.outcome is Outcome.NO:
            raise KernelFeatureError(what, why=self.why, hint=hint)


def _yes(name: str) -> Feature:
    return Feature(name, Outcome.YES)


def btf() -> Feature:
    """The kernel's own type information, which fentry and CO-RE programs need."""
    path = Path("/sys/kernel/btf/vmlinux")
    if os.access(path, os.R_OK):
        return _yes("btf")
    if not Path("/sys/kernel").exists():
        return Feature("btf", Outcome.UNKNOWN, "sysfs is not mounted")
    return Feature("btf", Outcome.NO, f"{path} is missing (CONFIG_DEBUG_INFO_BTF)")


def cgroup2_mount() -> Path | None:
    """Where the cgroup v2 hierarchy is mounted (/sys/fs/cgroup, /sys/fs/cgroup/unified, or elsewhere)."""
    try:
        lines = (
            Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        )
    except OSError:
        return None
    for line in lines:
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] == "cgroup2":
            return Path(left.split(" ")[4].encode().decode("unicode_escape"))
    return None


def cgroup2() -> Feature:
    """A mounted cgroup v2 hierarchy."""
    if cgroup2_mount() is not None:
        return _yes("cgroup2")
    try:
        known = "cgroup2" in Path("/proc/filesystems").read_text(encoding="ascii")
    except OSError as exc:
        return Feature("cgroup2", Outcome.UNKNOWN, f"/proc/filesystems: {os.strerror(exc.errno or 0)}")
    why = "cgroup v2 is not mounted" if known else "this kernel has no cgroup v2"
    return Feature("cgroup2", Outcome.NO, why)


def af_xdp() -> Feature:
    """AF_XDP sockets (CONFIG_XDP_SOCKETS)."""
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as exc:
        if exc.errno == errno.EAFNOSUPPORT:
            return Feature("af_xdp", Outcome.NO, "this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")
        return Feature("af_xdp", Outcome.UNKNOWN, os.strerror(exc.errno or 0))
    return _yes("af_xdp")


def tun() -> Feature:
    """TUN devices with vnet headers."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return Feature("tun", Outcome.NO, "/dev/net/tun is missing (CONFIG_TUN)")
        return Feature("tun", Outcome.UNKNOWN, f"/dev/net/tun: {os.strerror(exc.errno or 0)}")
    try:
        features = struct.unpack("=I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))[0]
    except OSError as exc:
        return Feature("tun", Outcome.UNKNOWN, f"TUNGETFEATURES: {os.strerror(exc.errno or 0)}")
    finally:
        os.close(fd)
    if not features & _IFF_VNET_HDR:
        return Feature("tun", Outcome.NO, "this kernel's TUN has no vnet headers")
    return _yes("tun")


def bpf() -> Feature:
    """bpf(2) may be used: a map of one element is created and closed."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        return Feature("bpf", Outcome.UNKNOWN, f"number of bpf(2) on {platform.machine()} is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    attr = ctypes.create_string_buffer(struct.pack("=4I", _BPF_MAP_TYPE_ARRAY, 4, 4, 1), 120)
    fd = libc.syscall(number, _BPF_MAP_CREATE, attr, len(attr))
    if fd >= 0:
        os.close(fd)
        return _yes("bpf")
    code = ctypes.get_errno()
    if code == errno.ENOSYS:
        return Feature("bpf", Outcome.NO, "this kernel has no bpf(2)")
    return Feature("bpf", Outcome.UNKNOWN, os.strerror(code))


def effective_capabilities() -> int:
    """The calling thread's effective capabilities as a bit set."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def privileges() -> Feature:
    """The capabilities that attaching takes."""
    have = effective_capabilities()
    needed = {"CAP_NET_ADMIN": _CAP_NET_ADMIN, "CAP_SYS_ADMIN": _CAP_SYS_ADMIN, "CAP_BPF": _CAP_BPF}
    missing = [name for name, bit in needed.items() if not have >> bit & 1]
    if missing:
        return Feature("privileges", Outcome.NO, f"{', '.join(missing)} missing")
    return _yes("privileges")


def sock_destroy() -> Feature:
    """SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY): asked to destroy a socket that cannot exist."""

    def work() -> int:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as sock:
            sock.settimeout(5)
            request = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, 2) + bytes(48)
            sock.send(struct.pack("=IHHII", 16 + len(request), 21, 5, 1, 0) + request)
            return -int(struct.unpack_from("=i", sock.recv(4096), 16)[0])

    try:
        code = work()
    except OSError as exc:
        return Feature("sock_destroy", Outcome.UNKNOWN, os.strerror(exc.errno or 0))
    if code == errno.ENOENT:
        return _yes("sock_destroy")
    if code == errno.EOPNOTSUPP:
        return Feature("sock_destroy", Outcome.NO, "this kernel has no INET_DIAG_DESTROY")
    return Feature("sock_destroy", Outcome.UNKNOWN, os.strerror(code))


def all_features() -> list[Feature]:
    """Every probe, for listings and for the sentence that explains a failure."""
    return [privileges(), bpf(), btf(), cgroup2(), tun(), af_xdp(), sock_destroy()]

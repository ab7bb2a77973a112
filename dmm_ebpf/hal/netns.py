# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: to work in one without moving the caller, or to move a process for good.

setns(2) moves one thread, and a thread takes its creator's namespace. Everything in hal works in
the namespace of the thread that calls it. A process that serves one namespace calls enter() once,
before it has other threads; anybody else uses run_in(), which has a worker thread in the namespace,
so that the caller's event loop never looks up sysctls, sockets or devices in the wrong place.
Descriptors made there stay in that namespace wherever they are used.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from dmm_ebpf import listing
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError, PrivilegeError, UsageError, run_as_root
from dmm_ebpf.mountinfo import mounts

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
_RUN_DIRS = (Path("/run/netns"), Path("/var/run/netns"))

_libc = ctypes.CDLL(None, use_errno=True)


def _path_of(spec: str | int | os.PathLike[str] | None) -> Path:
    if spec is None:
        return Path("/proc/thread-self/ns/net")
    if isinstance(spec, int):
        return Path(f"/proc/{spec}/ns/net")
    text = os.fspath(spec)
    if "/" in text:
        return Path(text)
    for directory in _RUN_DIRS:
        if (directory / text).exists():
            return directory / text
    if text.isdecimal():
        return Path(f"/proc/{text}/ns/net")
    raise UsageError(
        f"use network namespace {text!r}",
        why="there is no namespace of that name",
        hint="see 'ip netns list'",
    )


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def _not_entered(label: str, error: OSError) -> DmmError:
    what = f"enter network namespace {label}"
    if error.errno == errno.EPERM:
        return PrivilegeError(what, why="CAP_SYS_ADMIN is needed", hint=run_as_root())
    if error.errno == errno.EINVAL:
        return UsageError(what, why="it is no network namespace", hint="see 'ip netns list'")
    return UsageError(what, why=os.strerror(error.errno or 0))


class NetNS(Closing):
    """An open network namespace: fd, inode (its identity on this host) and cookie (its
    identity in BPF).
    """

    def __init__(self, fd: int, label: str) -> None:
        """Takes fd over. Raises UsageError when it is no network namespace, PrivilegeError when it
        may not be used.
        """
        self.fd = fd
        self.label = label
        self._executor: ThreadPoolExecutor | None = None
        try:
            self.inode = os.fstat(fd).st_ino
            self.cookie = self.run_in(_cookie)
        except OSError as error:
            self.close()
            raise _not_entered(label, error) from error
        except DmmError:
            self.close()
            raise

    @classmethod
    def from_arg(cls, spec: str | int | os.PathLike[str] | None = None) -> Self:
        """None is the caller's own, a bare word a name as ip-netns(8) has it or a pid,
        else a path.
        """
        path = _path_of(spec)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise PrivilegeError(
                f"open network namespace {path}", why="permission denied"
            ) from error
        except OSError as error:
            raise UsageError(
                f"open network namespace {path}", why=os.strerror(error.errno or 0)
            ) from error
        return cls(fd, "current" if spec is None else str(spec))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """The namespace that an open descriptor refers to; the descriptor stays the caller's."""
        return cls(os.dup(fd), f"descriptor {fd}")

    @classmethod
    def find(cls, inode: int, cookie: int = 0) -> Self | None:
        """The namespace of that inode, looked for among names and processes; None when it is gone.
        The kernel gives the inode of one that is gone to the next; its cookie, where it is known
        (not 0), tells them apart.
        """
        for path in _candidates():
            with contextlib.suppress(OSError, DmmError):
                if path.stat().st_ino != inode:
                    continue
                found = cls.from_arg(path)
                if cookie in {0, found.cookie}:
                    return found
                found.close()
                return None
        return None

    @classmethod
    def find_cookie(cls, cookie: int) -> Self | None:
        """The namespace of that cookie, likewise."""
        seen: set[int] = set()
        for path in _candidates():
            with contextlib.suppress(OSError, DmmError):
                inode = path.stat().st_ino
                if inode in seen:
                    continue
                seen.add(inode)
                found = cls.from_arg(path)
                if found.cookie == cookie:
                    return found
                found.close()
        return None

    @property
    def executor(self) -> ThreadPoolExecutor:
        """For loop.run_in_executor(); one thread, so what is sent runs in order."""
        if self._executor is None:
            executor = ThreadPoolExecutor(1, "dmm-netns")
            try:
                executor.submit(_setns, self.fd).result()
            except OSError:
                executor.shutdown()
                raise
            self._executor = executor
        return self._executor

    def run_in(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs function in the namespace and waits for it; not to be called from within
        such a function.
        """
        if Path("/proc/thread-self/ns/net").stat().st_ino == self.inode:
            return function(*args, **kwargs)
        return self.executor.submit(function, *args, **kwargs).result()

    def enter(self) -> None:
        """Moves the calling thread, and the threads that it will make, for good. DmmError."""
        try:
            _setns(self.fd)
        except OSError as error:
            raise _not_entered(self.label, error) from error

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that belongs to this namespace."""
        return self.run_in(socket.socket, family, kind, proto)

    def close(self) -> None:
        """Ends the worker and closes the descriptor; may be called twice."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def identity() -> tuple[int, int]:
    """Inode and cookie of the calling thread's namespace."""
    return Path("/proc/thread-self/ns/net").stat().st_ino, _cookie()


def inode_at(path: Path) -> int:
    """The inode of the namespace that path leads to; 0 when it leads nowhere."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def home_of(inode: int, without: Collection[int] = ()) -> Path | None:
    """A name or a process that has the namespace of that inode, processes without left out;
    None: there is none.
    """
    left_out = {Path("/proc/thread-self/ns/net"), *(Path(f"/proc/{pid}/ns/net") for pid in without)}
    return next((p for p in _candidates() if p not in left_out and inode_at(p) == inode), None)


def name_of(inode: int) -> Path | None:
    """The name of the namespace of that inode: as ip-netns(8) has it, or where a container engine
    keeps it mounted;
    None: it has none that is seen from here.
    """
    return next((path for path in _names() if inode_at(path) == inode), None)


def _names() -> list[Path]:
    names = [path for directory in _RUN_DIRS for path in listing.entries(directory)]
    return names + [mount.point for mount in mounts("nsfs") if mount.root.startswith("net:")]


def _candidates() -> list[Path]:
    found = [Path("/proc/thread-self/ns/net"), *_names()]
    return found + [p / "ns/net" for p in Path("/proc").iterdir() if p.name.isdecimal()]


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            raw = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            raise DmmError(
                "read the network namespace's cookie",
                why=os.strerror(error.errno or 0),
                hint="Linux 5.14 is needed",
            ) from error
    return int(struct.unpack("=Q", raw)[0])

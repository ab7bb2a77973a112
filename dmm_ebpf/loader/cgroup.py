# SPDX-License-Identifier: Apache-2.0
"""cgroup v2: where it is mounted, and paths, ids and depths of its groups.

A group is known to people by its path from the hierarchy's root ("/shop.slice") and to BPF by its
id, its inode number. Inside `ip netns exec` the hierarchy is hidden with the rest of /sys; it is
then reached by way of initns.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.errors import DmmError, KernelFeatureError, PrivilegeError, UsageError, run_as_root
from dmm_ebpf.loader import bpf, initns
from dmm_ebpf.mountinfo import mounts

NOWHERE = 2**64 - 1  # the id of no cgroup
_ROOT_ID = 1  # of the hierarchy's root itself
_TRIES = 100


@dataclass(frozen=True)
class _Mount:
    """point: as the mount's own namespace names it. prefix: what leads there from here."""

    point: Path
    prefix: Path

    @property
    def path(self) -> Path:
        return self.prefix / self.point.relative_to("/")


class NoSuchCgroupError(UsageError):
    """It may be made later."""


def _mounts(mountinfo: Path, prefix: Path) -> list[_Mount]:
    """cgroup2 mounts of one namespace; those that show the whole hierarchy first."""
    whole: list[_Mount] = []
    partial: list[_Mount] = []
    for root, point in mounts("cgroup2", mountinfo):
        mount = _Mount(point, prefix)
        try:
            seen = bpf.fs_magic(str(mount.path)) == bpf.CGROUP2_MAGIC
        except OSError:
            seen = False
        if seen:  # not covered by a later mount
            (whole if root == "/" else partial).append(mount)
    return whole + partial


def _known() -> bool:
    """Whether the kernel has the file system; true where it does not tell."""
    try:
        return "cgroup2" in Path("/proc/filesystems").read_text(encoding="ascii").split()
    except OSError:
        return True


def _find() -> _Mount:
    found = _mounts(Path("/proc/self/mountinfo"), Path("/"))
    if not found:
        found = _mounts(Path("/proc/1/mountinfo"), initns.root())
    if not found:
        if not _known():
            raise KernelFeatureError("find cgroup v2", why="this kernel has none (CONFIG_CGROUPS)")
        raise KernelFeatureError(
            "find cgroup v2",
            why="no cgroup2 file system is mounted",
            hint="mount it: mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    return found[0]


def find_cgroup2() -> Path:
    """The root of the cgroup v2 hierarchy as this process reaches it, wherever it is mounted."""
    return _find().path


def place(path: str) -> Path:
    """The directory of a cgroup, named from the hierarchy's root ("/shop.slice") or by its place in
    the file system, whether it exists or not.
    """
    if not path.startswith("/"):
        raise UsageError(
            f"use the cgroup {path!r}",
            why="a cgroup is named by an absolute path, such as /shop.slice",
        )
    mount = _find()
    given = Path(os.path.normpath(f"/{path.lstrip('/')}"))  # which leaves two slashes as they are
    for base in (mount.path, mount.point):
        if given.is_relative_to(base):
            return mount.path / given.relative_to(base)
    return mount.path / given.relative_to("/")


def resolve(path: str) -> Path:
    """place(path), where that exists; else NoSuchCgroupError."""
    found = place(path)
    if not found.is_dir():
        raise NoSuchCgroupError(
            f"use the cgroup {path}",
            why=f"there is no such cgroup under {find_cgroup2()}",
            hint=f"create it: mkdir {found}",
        )
    return found


def cgroup_id(path: Path) -> int:
    """What bpf_get_current_cgroup_id() gives in that group."""
    return path.stat().st_ino


def id_of(path: Path) -> int:
    """cgroup_id(); NOWHERE: there is none."""
    try:
        return cgroup_id(path)
    except (FileNotFoundError, NotADirectoryError):
        return NOWHERE


def sees_root() -> bool:
    """Whether find_cgroup2() is the root of the hierarchy, and not of a part of it, as in a
    container (cgroup_namespaces(7)).
    """
    return cgroup_id(find_cgroup2()) == _ROOT_ID


def nearest(path: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def name_of(path: Path) -> str:
    """The path from the hierarchy's root ("/shop.slice") of a directory that resolve() gave."""
    relative = path.relative_to(find_cgroup2())
    return "/" if relative == Path() else f"/{relative}"


def level(path: Path) -> int:
    """Depth below the hierarchy's root, which is 0: the argument of
    bpf_get_current_ancestor_cgroup_id().

    In a cgroup namespace of its own (a container) a process sees its own group as the root, and
    BPF does not.
    """
    return len(path.relative_to(find_cgroup2()).parts)


def path_of(cgroup_id: int) -> str | None:
    """The path from the hierarchy's root ("/shop.slice"); None when the group is gone."""
    mount = _find()
    try:
        mount_fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with bpf.cgroup_open(mount_fd, cgroup_id) as fd:
                # The kernel names it as the mount's own namespace does, also when that is not ours.
                real = Path(f"/proc/self/fd/{fd}").readlink()
        finally:
            os.close(mount_fd)
    except PermissionError as error:
        raise PrivilegeError(
            f"name the cgroup {cgroup_id}",
            why="the kernel wants CAP_DAC_READ_SEARCH",
            hint=run_as_root(),
        ) from error
    except OSError:
        return None
    if not real.is_relative_to(mount.point):
        return None
    relative = real.relative_to(mount.point)
    return "/" if relative == Path() else f"/{relative}"


def own() -> str | None:
    """The directory of this process's cgroup; None: it cannot be reached
    from here (cgroup_namespaces(7)).
    """
    for line in (
        Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    ):
        if line.startswith("0::"):
            path = find_cgroup2() / line[len("0::") :].lstrip("/")
            return str(path) if ".." not in path.parts and path.is_dir() else None
    return None


def dissolve(path: Path, home: str | None = None) -> list[str]:
    """Removes a cgroup and those below it; what runs there goes on in home, or where that takes no
    processes (it is gone, or controllers are handed on below it) one level above. Says what went;
    nothing: it was not there. DmmError when it cannot be emptied.
    """
    if not path.is_dir():
        return []
    for _ in range(_TRIES):
        try:
            below = sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True)
            for group in (*below, path):
                _move(group, Path(home) if home else path.parent, path.parent)
                group.rmdir()
        except FileNotFoundError:
            if not path.is_dir():
                return []
            continue
        except OSError as error:
            # Something was forked into it since it was looked at.
            if error.errno != errno.EBUSY:
                raise DmmError(f"remove the cgroup {path}", why=str(error.strerror)) from error
            continue
        return [f"cgroup {path}"]
    raise DmmError(f"remove the cgroup {path}", why="processes are forked into it without end")


def _move(group: Path, to: Path, otherwise: Path) -> None:
    for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
        with contextlib.suppress(ProcessLookupError):
            try:
                (to / "cgroup.procs").write_text(pid, encoding="ascii")
            except ProcessLookupError:
                raise
            except OSError:
                (otherwise / "cgroup.procs").write_text(pid, encoding="ascii")

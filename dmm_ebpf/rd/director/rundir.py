# SPDX-License-Identifier: Apache-2.0
"""The run directory of an instance, /run/dmm-ebpf/<instance>: its lock, its socket, and the state
that detach undoes.

Owns the directory (root's, mode 0700, or 0710 for a group that may ask) and state.json. state.json
is written before the thing it describes is made, so that whatever a killed Resource Director leaves
behind is named there. It is replaced by rename(2), never edited.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf import listing
from dmm_ebpf.errors import ConflictError, DmmError, PrivilegeError
from dmm_ebpf.hal import stackdevice
from dmm_ebpf.instancename import check_name, is_name
from dmm_ebpf.readers import name_of
from dmm_ebpf.userstack.spec import process_label

if TYPE_CHECKING:
    from dmm_ebpf.hal.netns import NetNS

ROOT = Path("/run/dmm-ebpf")
log = logging.getLogger("dmm-ebpf")


@dataclass
class StackState:
    """What a process of a user stack has made on the host: enough to find it again, or
    to remove it.
    """

    name: str
    stack_id: int
    k: int  # among all processes of the namespace
    nics: list[str] = field(default_factory=list)
    pid: int = 0
    # Of pid, field 22 of proc(5) /proc/pid/stat, so that a recycled pid is told apart
    start_time: int = 0
    process: int = 0  # its number among the stack's processes

    @property
    def label(self) -> str:
        """The process as listings and logs name it, "wan" or "wan@1"."""
        return process_label(self.name, self.process)

    @property
    def device(self) -> str:
        """What the names of its devices begin with."""
        return stackdevice.name_of(self.k)

    @property
    def seat(self) -> int:
        """Of its flows in xdp_flows, see struct dmm_xdp_flow."""
        return self.k + 1


@dataclass
class PolicyText:
    """A policy as it was read, and the generations in which it was in force."""

    text: str
    path: str | None  # of its file; routes files are relative to it
    files: dict[str, list[int] | None]  # routes files, with what stamp_of() said of them
    generations: list[int]


@dataclass
class State:
    """An instance as its Resource Director left it."""

    instance: str
    pid: int
    cgroup: str
    netns_inode: int
    # Tells the namespace from a later one of that inode; 0: an older version wrote this
    netns_cookie: int = 0
    netns: str | None = None  # as the user named it
    policy: str | None = None  # path of the policy file, if there is one
    policy_text: str | None = None  # the policy in force
    policy_files: dict[str, list[int] | None] = field(default_factory=dict)  # see PolicyText
    generation: int = 0
    hosts: dict[str, list[str]] = field(default_factory=dict)  # the addresses of its hostnames
    # Of those that nobody answers for, when the last answer came, by CLOCK_MONOTONIC
    unanswered: dict[str, float] = field(default_factory=dict)
    # Those that open flows were decided by, which are not in force any more
    earlier: list[PolicyText] = field(default_factory=list)
    ids: dict[str, Any] = field(default_factory=dict)
    stacks: list[StackState] = field(default_factory=list)
    nics: dict[str, int] = field(default_factory=dict)  # name -> slot in xsks and outer_devs
    # By slot, ifindex and name of the device that was chosen, where another stands for it
    below: dict[int, tuple[int, str]] = field(default_factory=dict)
    # The same by what the policy calls them, or by what they were called when they were chosen
    nic_words: dict[str, int] = field(default_factory=dict)
    tc_nics: dict[str, bool] = field(
        default_factory=dict
    )  # with our tc programs; whether we made clsact there
    tc_inside: dict[str, bool] = field(
        default_factory=dict
    )  # likewise, of devices by which others' packets come
    containers: bool = False  # sockets of other network namespaces are meant, too
    own_cgroup: bool = False  # made by `run`, to be removed
    home: str | None = None  # the directory of the cgroup to which goes what runs there then
    whole: bool = False  # every hook is in place: what is missing of them has been taken away since

    def is_in(self, namespace: NetNS) -> bool:
        """True if that is the network namespace that the instance works in."""
        return self.netns_inode == namespace.inode and self.netns_cookie in {0, namespace.cookie}

    @classmethod
    def from_json(cls, text: str) -> State:
        raw = json.loads(text)
        raw["stacks"] = [StackState(**_known(StackState, s)) for s in raw.get("stacks", [])]
        below = raw.get("below", {}).items()
        raw["below"] = {int(slot): (index, name) for slot, (index, name) in below}
        raw["earlier"] = [PolicyText(**_known(PolicyText, s)) for s in raw.get("earlier", [])]
        return cls(**_known(cls, raw))


def why_not_for(state: State | None, cgroup: Path | None, netns: NetNS) -> str:
    """Why what is attached cannot be taken over for this cgroup (None: for one of its own);
    empty: it can.
    """
    if state is None:
        return "its programs are attached, but its state.json, which says by whom, is lost"
    if state.cgroup != str(cgroup):
        return f"it is attached to {state.cgroup}, not to {cgroup or 'a cgroup of its own'}"
    return "" if state.is_in(netns) else "it is attached in another network namespace"


def _known(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    """Without what another version wrote besides."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}


class RunDir:
    """Paths and files of one instance."""

    def __init__(self, instance: str) -> None:
        self.instance = check_name(instance)
        self.path = ROOT / instance
        self.socket = self.path / "rd.sock"
        self.log = self.path / "rd.log"
        self._state = self.path / "state.json"
        self.readers: int | None = None  # gid of the group that may ask; claim() heeds it
        self.unsaved = ""  # why state.json is not what keep() was given last
        self._saving = threading.Lock()
        self._lock_fd = -1

    @property
    def group(self) -> str:
        """Whose members may ask; empty: root alone may."""
        return "" if self.readers is None else name_of(self.readers)

    def claim(self) -> None:
        """Make the directory, root's alone, and take the instance for this process and its forks
        until they end; ConflictError if a living process has it.
        """
        if not self.try_claim():
            raise ConflictError(
                f"attach instance {self.instance}",
                why=f"a Resource Director with pid {self.holder() or 'unknown'} serves it already",
                hint="choose another --instance, or detach that one first",
            )

    def try_claim(self) -> bool:
        """claim(), but False if a living process has the instance (flock(2))."""
        if self._lock_fd >= 0:
            return True
        try:
            # All under the host's lock, or remove() could take the directory away in between.
            with host_lock():
                self.path.mkdir(mode=0o700, exist_ok=True)
                self._let_in()
                fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if not _flock(fd):
                    os.close(fd)
                    return False
        except PermissionError as error:
            raise PrivilegeError(
                f"make {self.path}", why="not root", hint="run it with sudo"
            ) from error
        except OSError as error:
            raise unwritable(self.path / "lock", error) from error
        self._lock_fd = fd
        self.relock_pid()
        return True

    def _let_in(self) -> None:
        """Who may come by to the socket: readers, and with them anybody may read what instances
        are called. An earlier Resource Director may have let in others. The directory stays
        the user's who runs this: root's, but for a ROOT of somebody's own.
        """
        os.chown(self.path, os.geteuid(), os.getegid() if self.readers is None else self.readers)
        self.path.chmod(0o700 if self.readers is None else 0o710)
        if self.readers is not None:
            ROOT.chmod(0o755)

    def stands(self) -> bool:
        """True while the directory is there in which claim() has locked the instance."""
        return _is_file(self._lock_fd, self.path / "lock")

    def claim_again(self) -> None:
        """claim(), after somebody has removed the directory. ConflictError if another process
        has the instance now.
        """
        old, self._lock_fd = self._lock_fd, -1
        try:
            self.claim()
        except DmmError:
            self._lock_fd = old
            raise
        os.close(old)

    def holder(self) -> int:
        """The pid of the process that has the instance, as it says itself; 0 where
        nothing is said.
        """
        try:
            return int((self.path / "lock").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def relock_pid(self) -> None:
        """Write this process's pid into the lock, after a fork that kept the lock's descriptor."""
        text = f"{os.getpid()}\n".encode()
        try:
            # Over the old one, which needs no room, and only then cut.
            os.pwrite(self._lock_fd, text, 0)
            os.ftruncate(self._lock_fd, len(text))
        except OSError as error:
            raise unwritable(self.path / "lock", error) from error

    def is_locked(self) -> bool:
        """True if a live process holds the instance."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def load(self) -> State | None:
        """The state on disk; None if there is none. Raises PrivilegeError."""
        try:
            return State.from_json(self._state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except PermissionError:
            what = f"read the state of instance {self.instance}"
            raise PrivilegeError(what, why="only root may", hint="run it as root") from None
        except (ValueError, TypeError, KeyError, AttributeError, IsADirectoryError):
            # Half a file cannot happen (rename), a foreign one can: what it should name is
            # looked for (found.py).
            return None

    def save(self, state: State) -> None:
        """Replace state.json, before that is made which it describes. DmmError if it cannot be
        written; then the old one stands.
        """
        new = self._state.with_suffix(".new")
        with self._saving:
            try:
                fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "w", encoding="utf-8") as f:
                    json.dump(asdict(state), f)
                new.replace(self._state)
            except OSError as error:
                with contextlib.suppress(OSError):
                    new.unlink()  # half of it would take the room that others lack
                raise unwritable(self._state, error) from error
        self.unsaved = ""

    def keep(self, state: State) -> None:
        """save() of what has happened already. If it cannot be written, unsaved says why until
        it could be.
        """
        try:
            self.save(state)
        except DmmError as error:
            self.unsaved = str(error)
            log.warning("%s; it is tried again", error)

    def forget(self) -> None:
        """Remove state.json: all that it named is gone."""
        self._state.unlink(missing_ok=True)

    def is_bare(self) -> bool:
        """True while nothing says that the instance has made anything on the host."""
        return not self._state.exists()

    def is_husk(self) -> bool:
        """True where a process was killed right after it had made the directory: nothing but
        the lock is there.
        """
        try:
            return set(os.listdir(self.path)) <= {"lock"}  # noqa: PTH208 - names are wanted
        except FileNotFoundError:
            return False

    def had_stacks(self) -> bool:
        """True where files of stack processes are left."""
        return any(path.name.startswith("stack-") for path in listing.entries(self.path))

    def remove(self) -> bool:
        """Remove the directory and all in it; False if there was none, or if it is another
        process's by now.
        """
        with host_lock():
            found = self.path.exists() and (
                self._lock_fd < 0 or _is_file(self._lock_fd, self.path / "lock")
            )
            if found:
                _remove_tree(self.path)
            if all(path.name.startswith(".") for path in listing.entries(ROOT)):
                # The last instance takes the common directory along; whoever waits for the lock
                # makes it anew.
                (ROOT / ".lock").unlink(missing_ok=True)
                with contextlib.suppress(
                    OSError
                ):  # it may be a mount, as in a director's container (rmdir(2) EBUSY)
                    ROOT.rmdir()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        return found


def unwritable(path: Path, error: OSError) -> DmmError:
    """The sentence for a file of ours that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = (error.strerror or str(error)).lower()
    return DmmError(f"write {path}", why=why, hint=f"make room in {path.parent}" if full else "")


def all_states() -> list[State]:
    """The states of every instance on this host, as they look from the calling thread's network
    namespace: a state of a namespace that is gone, whose inode is this one's now, has inode 0.
    DmmError when that cannot be told.
    """
    loaded = (
        RunDir(folder.name).load() for folder in listing.folders(ROOT) if is_name(folder.name)
    )
    states = [state for state in loaded if state is not None]
    if any(state.netns_cookie for state in states):
        from dmm_ebpf.hal import netns  # the command line alone has no use for it

        inode, cookie = netns.identity()
        for state in states:
            if state.netns_inode == inode and state.netns_cookie not in {0, cookie}:
                state.netns_inode = 0
    return states


def marks() -> list[tuple[str, int, int]]:
    """What tells all_states() of now from those of another time, and costs little."""
    found = []
    for folder in listing.entries(ROOT):
        with contextlib.suppress(OSError):
            stat = (folder / "state.json").stat()
            found.append((folder.name, stat.st_ino, stat.st_mtime_ns))
    return found


def _remove_tree(folder: Path) -> None:
    """rmtree(), while a process that ends may take files of its own away."""

    def failed(_function: object, _path: str, error: tuple[type, BaseException, object]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            raise error[1]

    shutil.rmtree(folder, onerror=failed)


@contextmanager
def host_lock() -> Iterator[None]:
    """Held while numbers that all instances share are allotted or given back. DmmError where
    nothing can be written; PermissionError.
    """
    path = ROOT / ".lock"
    while True:
        try:
            fd = _open_host_lock(path)
        except PermissionError:
            raise
        except OSError as error:
            raise unwritable(path, error) from error
        if fd is None:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_file(fd, path):
            break
        os.close(fd)
    try:
        yield
    finally:
        os.close(fd)


def _open_host_lock(path: Path) -> int | None:
    """None: the last instance has just taken the directory along."""
    ROOT.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None


def _flock(fd: int) -> bool:
    """False if somebody else has it for longer than is_locked() takes to look."""
    for last in (False, False, True):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not last:
                time.sleep(0.01)
    return False


def _is_file(fd: int, path: Path) -> bool:
    """True if path still leads to the file that fd is."""
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False

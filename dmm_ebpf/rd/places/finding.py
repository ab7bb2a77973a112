# SPDX-License-Identifier: Apache-2.0
"""Containers, processes and units of systemd, as people name them: which cgroup and network
namespace they have.

A container is asked for from the engines that are on the host (docker, podman, nerdctl, crictl), by
their own programs; where none knows it, its id is looked for among the names of cgroups. Of an
engine's word only the id and the first process are taken; cgroup and namespace are that process's,
and only if it really is in a cgroup of that id: DOCKER_HOST may name another host, and a pid may be
somebody else's by now.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.asking import NoAnswerError, ask
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError, PrivilegeError, UsageError
from dmm_ebpf.hal import netns, procstatus
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.places import text as placetext
from dmm_ebpf.rd.places.place import Place
from dmm_ebpf.rd.places.text import Container

ENGINES = ("docker", "podman", "nerdctl", "crictl")


@dataclass(frozen=True)
class Person:
    """What rules look at in a process, beside its cgroup."""

    uid: int | None
    gid: int | None
    comm: str
    # What it executes, by a path of the host's; None: it is a thread of the kernel's
    executable: str | None = None


class _Process(Closing):
    """A process by its directory in /proc: when it has ended, nothing more is read, even if
    another has its pid now.
    """

    def __init__(self, pid: int, what: str) -> None:
        self.pid, self._what = pid, what
        try:
            self._fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, name: str) -> bytes:
        """One of its files in /proc. UsageError when it has ended."""
        try:
            with os.fdopen(
                os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd), "rb"
            ) as file:
                return file.read()
        except OSError as error:
            raise self._unreadable(error) from error

    def cgroup(self) -> str:
        """Its path in cgroup v2, from the hierarchy's root."""
        path = placetext.cgroup_of(self.read("cgroup"))
        if path is None:
            cgroups.find_cgroup2()  # says what to do where v2 is not mounted
            raise UsageError(self._what, why=f"process {self.pid} is in no cgroup of cgroup v2")
        if ".." in path.split("/"):
            raise UsageError(
                self._what,
                why=f"process {self.pid} is in a cgroup outside of this cgroup namespace",
                hint="run dmm-ebpf on the host, outside containers",
            )
        if path.endswith(" (deleted)"):
            raise UsageError(self._what, why=f"the cgroup of process {self.pid} has been removed")
        return path

    def netns(self) -> str:
        """A path to its network namespace: its name if it has one, since that
        outlives the process.
        """
        try:
            inode = os.stat("ns/net", dir_fd=self._fd).st_ino
        except OSError as error:
            raise self._unreadable(error) from error
        return str(netns.name_of(inode) or f"/proc/{self.pid}/ns/net")

    def executable(self) -> str | None:
        """What it executes, by its path in /proc/PID/root where the process has another root, as in
        a container. None: nothing, or it is not to be told.
        """
        try:
            path = os.readlink("exe", dir_fd=self._fd)
            there, here = os.stat("root", dir_fd=self._fd), Path("/").stat()
        except OSError:
            return None
        same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        return path if same else f"/proc/{self.pid}/root{path}"

    def _unreadable(self, error: OSError) -> DmmError:
        if error.errno in {errno.ENOENT, errno.ESRCH}:
            return UsageError(self._what, why=f"there is no process {self.pid}")
        if error.errno in {errno.EACCES, errno.EPERM}:
            hint = "run it as root" if os.geteuid() else "CAP_SYS_PTRACE is needed"
            return PrivilegeError(
                self._what, why=f"process {self.pid} may not be looked into", hint=hint
            )
        return UsageError(self._what, why=f"process {self.pid}: {os.strerror(error.errno or 0)}")


# -- processes --


def of_pid(pid: int) -> Place:
    """Where a process is, by its pid as we see it. UsageError."""
    with _Process(pid, f"find where process {pid} is") as process:
        return Place(f"process {pid}", process.cgroup(), process.netns())


def person(pid: int) -> Person:
    """Who a process is. UsageError when it has ended."""
    with _Process(pid, f"find who process {pid} is") as process:
        comm = process.read("comm").removesuffix(b"\n")
        status = process.read("status")
        return Person(
            procstatus.real_uid(status),
            procstatus.real_gid(status),
            comm.decode("utf-8", "replace"),
            process.executable(),
        )


# -- containers --


def of_container(text: str) -> Place:
    """Where a container is, by its name, its id or the beginning of its id. UsageError."""
    what = f"find the container {text!r}"
    if not placetext.is_name(text):
        raise UsageError(
            what,
            why="a container is called by letters, digits, '_', '.' and '-', or by its id in hexadecimal",
        )
    known, told = _asked(text)
    running = {container.id: container for container in known if container.pid}
    if len(running) > 1:
        raise UsageError(what, why=f"several match: {_listed(running)}", hint="name one by its id")
    for container in running.values():
        return _of_known(container, what)
    for container in known:
        raise UsageError(
            what, why=f"it does not run (it is {container.state})", hint="start it first"
        )
    return _of_group(text, what, told)


def _asked(text: str) -> tuple[list[Container], list[str]]:
    """What the engines of this host know of a container, and what those say that know nothing."""
    known: list[Container] = []
    told: list[str] = []
    for engine in ENGINES:
        if shutil.which(engine) is None:
            continue
        try:
            known += _crictl(text) if engine == "crictl" else _inspect(engine, text)
        except LookupError as error:
            told.append(f'{engine} says "{error}"')
        except NoAnswerError as error:
            told.append(f"{engine} cannot be asked ({error.why})")
        except ValueError as error:
            told.append(f"{engine} answers what cannot be read ({error})")
    return known, told


def _inspect(engine: str, text: str) -> list[Container]:
    """docker, podman and nerdctl. LookupError with its own words: it knows no such container."""
    answer = ask([engine, "inspect", "--type", "container", text])
    if answer.code:
        raise LookupError(placetext.last_words(answer.err) or f"exit code {answer.code}")
    return placetext.containers(answer.out)


def _crictl(text: str) -> list[Container]:
    """crictl inspects by id only; names, which are patterns to it, are those of containers
    in their pods.
    """
    numbers: list[str] = []
    names = ["--name", f"^{text.replace('.', '[.]')}$"]
    for by in (names, ["--id", text]) if placetext.is_id(text) else (names,):
        answer = ask(["crictl", "ps", "--quiet", "--no-trunc", *by])
        if answer.code:
            raise LookupError(placetext.last_words(answer.err) or f"exit code {answer.code}")
        numbers += [n for n in answer.out.decode("ascii", "replace").split() if n not in numbers]
    found: list[Container] = []
    for number in numbers:
        answer = ask(["crictl", "inspect", "--output", "json", number])
        if answer.code == 0:  # else it has just ended
            found += placetext.containers(answer.out)
    if not found:
        raise LookupError("no such container runs")
    return found


def _listed(found: dict[str, Container], most: int = 5) -> str:
    some = [
        f"{number[:12]} ({container.name})" for number, container in sorted(found.items())[:most]
    ]
    return ", ".join(some) + (" and others" if len(found) > most else "")


def _of_known(container: Container, what: str) -> Place:
    with _Process(container.pid, what) as process:
        path = placetext.down_to_container(process.cgroup(), container.id)
        if path is None:
            raise UsageError(
                what,
                why=f"its first process, {container.pid}, is in no cgroup v2 that has the id of the container: it runs"
                " on another host, without cgroups (rootless), or in cgroup v1 only",
                hint="name its cgroup and namespace by --cgroup and --netns",
            )
        return Place(f"container {container.name}", path, process.netns())


def _of_group(text: str, what: str, told: list[str]) -> Place:
    """By the name of its cgroup alone, as containers of other users and of other
    engines are found.
    """
    found = dict(_groups(text)) if placetext.is_id(text) else {}
    if len(found) > 1:
        some = ", ".join(sorted(number[:12] for number in found)[:5])
        raise UsageError(what, why=f"several match: {some}", hint="give more of its id")
    for number, folder in found.items():
        pid = next(_pids(folder), None)
        if pid is None:
            raise UsageError(what, why="no process is in its cgroup", hint="start it first")
        with _Process(pid, what) as process:
            return Place(f"container {number[:12]}", cgroups.name_of(folder), process.netns())
    if not told:
        told = [f"none of {', '.join(ENGINES)} is on this host"]
    raise UsageError(
        what,
        why=f"{', '.join(told)}, and no cgroup has such an id",
        hint="a rootless container is found by its id",
    )


def _groups(beginning: str) -> Iterator[tuple[str, Path]]:
    """Ids of containers that begin so, and their cgroups."""
    for folder, below, _ in os.walk(cgroups.find_cgroup2()):
        for name in below:
            number = placetext.container_of(name)
            if number is not None and number.startswith(beginning):
                yield number, Path(folder) / name


def _pids(folder: Path) -> Iterator[int]:
    """Processes in a cgroup and below it; 0 is one that this PID namespace does not have."""
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            for word in (Path(path) / "cgroup.procs").read_text(encoding="ascii").split():
                if word != "0":
                    yield int(word)


# -- units --


def of_unit(text: str, *, pending: bool = False) -> Place:
    """Where a unit of the system's systemd is: a service, a scope, a slice. Without a suffix it
    is a service.

    pending: or where it will be when it is started. UsageError.
    """
    what = f"find the unit {text!r}"
    if not placetext.is_unit(text):
        raise UsageError(
            what, why="a unit is called by letters, digits and any of : _ . @ - and backslash"
        )
    wanted = "--property=Id,LoadState,ActiveState,ControlGroup,MainPID,Slice"
    try:
        answer = ask(["systemctl", "show", wanted, "--", text])
    except NoAnswerError as error:
        raise UsageError(what, why=f"systemctl cannot be asked ({error.why})") from error
    if answer.code:
        raise UsageError(
            what,
            why=f'systemctl says "{placetext.last_words(answer.err) or f"exit code {answer.code}"}"',
        )
    said = placetext.properties(answer.out)
    unit, group = said.get("Id", text), said.get("ControlGroup", "")
    if not group:
        if pending and said.get("ActiveState") in {"inactive", "failed"} and said.get("Slice"):
            # systemd's own root, which is the hierarchy's but in a container.
            root = placetext.properties(ask(["systemctl", "show", wanted, "--", "-.slice"]).out)
            above = root.get("ControlGroup", "").rstrip("/")
            return Place(f"unit {unit}", above + placetext.group_to_be(unit, said["Slice"]), None)
        raise UsageError(what, **_why_no_group(said))
    path = cgroups.name_of(cgroups.resolve(group))
    pid = said.get("MainPID", "0")
    if not pid.isdecimal() or pid == "0":
        return Place(f"unit {unit}", path, None)
    with _Process(int(pid), what) as process:
        return Place(f"unit {unit}", path, process.netns())


def _why_no_group(said: dict[str, str]) -> dict[str, str]:
    if said.get("LoadState", "loaded") != "loaded":
        return {
            "why": f"systemd has no such unit ({said['LoadState']})",
            "hint": "see systemctl list-units",
        }
    if said.get("ActiveState") in {"active", "activating", "reloading"}:
        return {
            "why": "a unit of this kind has no cgroup",
            "hint": "name a service, a scope or a slice",
        }
    state = said.get("ActiveState") or "in no known state"
    return {"why": f"it does not run (it is {state})", "hint": "start it first"}

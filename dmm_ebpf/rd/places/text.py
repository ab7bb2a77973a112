# SPDX-License-Identifier: Apache-2.0
"""What container engines, systemd and /proc say of who runs where, taken apart.

Pure: bytes in, facts out; places.py asks. What the system says may be any bytes: paths keep theirs
(os.fsdecode), and what is only shown loses what is not UTF-8. ValueError: it does not have the form
that its maker gives it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

# A container's id as all engines make it, and the names that docker, podman, nerdctl, containerd's
# CRI and CRI-O give
# its cgroup: DRIVER-ID.scope by systemd, ID or libpod-ID by cgroupfs. conmon, a container's
# guardian, is not in it.
_GROUP = re.compile(
    r"(?:(?:docker|libpod|nerdctl|cri-containerd|crio)-)?([0-9a-f]{64})(?:\.scope)?"
)
_ID_PART = re.compile(r"[0-9a-f]{4,64}")
# What docker, podman and nerdctl take as a name; Kubernetes' names are narrower. None begins
# like an option.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,253}")
_OF_THE_KERNEL = re.compile(
    r"[_.]|(?:cgroup|cpu|cpuacct|cpuset|io|blkio|memory|devices|pids)[.]|(?:tasks|notify_on_release|release_agent)$"
)
_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\@-]{1,255}"
)  # systemd.unit(5); systemctl would take more as a pattern


@dataclass(frozen=True)
class Container:
    """What an engine says of a container. pid: its first process, as the host numbers it; 0
    when it does not run.
    """

    id: str
    name: str
    state: str
    pid: int


def is_name(text: str) -> bool:
    """Whether a container may be called so."""
    return _NAME.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether text may be a container's id, or its beginning."""
    return _ID_PART.fullmatch(text) is not None


def is_unit(text: str) -> bool:
    """Whether a unit of systemd may be called so."""
    return _UNIT.fullmatch(text) is not None


def containers(answer: bytes) -> list[Container]:
    """From `inspect` of docker, podman and nerdctl (a list), or of crictl (an object, or a
    list of them).
    """
    try:
        said = json.loads(answer.decode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return [_container(each) for each in (said if isinstance(said, list) else [said])]


def _container(said: Any) -> Container:
    try:
        if "status" in said and "info" in said:
            status = said["status"]
            return _checked(
                status["id"], status["metadata"]["name"], status["state"], said["info"]["pid"]
            )
        return _checked(said["Id"], said["Name"], said["State"]["Status"], said["State"]["Pid"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"it does not say {error}") from error


def _checked(number: Any, name: Any, state: Any, pid: Any) -> Container:
    if not (isinstance(number, str) and isinstance(name, str) and isinstance(state, str)):
        raise ValueError("its id, name or state is no text")
    if type(pid) is not int or not 0 <= pid < 2**31:
        raise ValueError("its pid is no number")
    return Container(number, name.removeprefix("/"), state.removeprefix("CONTAINER_").lower(), pid)


def container_of(group: str) -> str | None:
    """The id of the container whose cgroup's last name is group; None: it is no container's."""
    match = _GROUP.fullmatch(group)
    return match[1] if match else None


def down_to_container(path: str, number: str) -> str | None:
    """path down to the cgroup of the container of that id, whatever is made below it; None: it
    is not on the way.
    """
    parts = path.split("/")
    for depth, part in enumerate(parts):
        if container_of(part) == number:
            return "/".join(parts[: depth + 1])
    return None


def cgroup_of(proc_cgroup: bytes) -> str | None:
    """The cgroup v2 path in /proc/PID/cgroup (cgroups(7): "0::/path"); None where the host
    has v1 only.

    A path with ".." leads out of what this process sees of the hierarchy; " (deleted)" follows one
    that was removed.
    """
    for line in proc_cgroup.splitlines():
        if line.startswith(b"0::"):
            return os.fsdecode(line[3:])
    return None


def properties(answer: bytes) -> dict[str, str]:
    """From `systemctl show`: KEY=VALUE lines."""
    pairs = (line.partition(b"=") for line in answer.split(b"\n"))
    return {
        key.decode("ascii", "replace"): os.fsdecode(value) for key, equals, value in pairs if equals
    }


def group_to_be(unit: str, within: str) -> str:
    """The path of the cgroup that systemd will make for a unit in the
    slice within (systemd.slice(5)).

    Names that the kernel could take for a file of its own get a "_" before them.
    """
    slices: list[str] = []
    if within != "-.slice":
        words = within.removesuffix(".slice").split("-")
        slices = ["-".join(words[: depth + 1]) + ".slice" for depth in range(len(words))]
    return "".join(
        f"/{'_' if _OF_THE_KERNEL.match(name) else ''}{name}" for name in (*slices, unit)
    )


def last_words(said: bytes, most: int = 200) -> str:
    """The last line of what a program has said, to be quoted in a sentence; empty:
    it said nothing.
    """
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    words = next((line for line in reversed(lines) if line), "")
    return words if len(words) <= most else words[:most] + "…"

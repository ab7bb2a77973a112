# SPDX-License-Identifier: Apache-2.0
"""What somebody took away of an attached instance, made again from the descriptors that its
Resource Director holds: pins that were removed, and hooks whose links were detached.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf, bpffs
from dmm_ebpf.loader.attach import Attached, link_hook, open_cgroup, pin_fd
from dmm_ebpf.loader.spec import hooks


def removed(attached: Attached) -> list[str]:
    """The pins that somebody removed, as FOLDER/NAME. Those of XDP programs are not looked for."""
    loose = set(attached.loose)  # before the look, and after it
    gone = _unpinned(attached)
    return [pin for pin in gone if pin.removeprefix("links/") not in loose | attached.loose]


def _unpinned(attached: Attached) -> list[str]:
    there = {f"{name}/{pin}" for name in bpffs.FOLDERS for pin in _names(attached.folder / name)}
    return [pin for pin in _pins(attached) if pin not in there]


def is_unmounted() -> bool:
    """Whether there is no bpffs any more where pins are: with it went all that only pins held, such
    as the links on devices.
    """
    return bpffs.mounted() is None


def unhooked(attached: Attached) -> list[str]:
    """The hooks that are not on the cgroup any more, by the names of their pins."""
    pins = [spec.pin for spec in hooks(attached.asked)]
    if not attached.cgroup_id:
        return pins
    links = dict(attached.links)
    return [
        pin
        for pin in pins
        if pin not in links or bpf.link_info(links[pin]).cgroup_id != attached.cgroup_id
    ]


def hook(attached: Attached, cgroup: Path) -> None:
    """Put the hooks on a cgroup's directory, all that are not there. It may be another than the one
    they were on.

    Takes less than a millisecond; the new links have no pins yet: pin().
    """
    cgroup_fd = open_cgroup(cgroup)
    try:
        number = os.fstat(cgroup_fd).st_ino
        # Each question costs the lock of all cgroups, which the service manager has while it
        # moves a process.
        off = set(unhooked(attached)) if number == attached.cgroup_id else None
        old: dict[str, int] = {}
        try:
            for spec in hooks(attached.asked):
                if off is not None and spec.pin not in off:
                    continue
                attached.loose.add(spec.pin)
                link = link_hook(spec, attached.progs[spec.name], cgroup_fd, cgroup)
                if spec.pin in attached.links:
                    old[spec.pin] = attached.links[spec.pin]
                attached.links[spec.pin] = link
        finally:
            for name, link in old.items():
                os.close(link)
                (attached.folder / "links" / name).unlink(missing_ok=True)
        attached.cgroup_id = number
    finally:
        os.close(cgroup_fd)


def pin(attached: Attached) -> None:
    """Put the pins that are gone back, in a bpffs that is mounted anew if somebody unmounted it."""
    descriptors = _pins(attached)
    bpffs.ensure()
    try:
        for folder in (
            attached.folder.parent,
            attached.folder,
            *map(attached.folder.joinpath, bpffs.FOLDERS),
        ):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DmmError(f"make {error.filename}", why=str(error.strerror)) from error
    for path in _unpinned(attached):
        pin_fd(descriptors[path], attached.folder / path)
    # A hook that was put on another cgroup meanwhile has no pin again.
    attached.loose -= {
        name for name in attached.loose if descriptors.get(f"links/{name}") == attached.links[name]
    }


def _pins(attached: Attached) -> dict[str, int]:
    """What is pinned, as FOLDER/NAME, and its descriptor."""
    return (
        {f"maps/{name}": one.fd for name, one in attached.maps.items()}
        | {f"progs/{name.removeprefix('dmm_')}": fd for name, fd in attached.progs.items()}
        | {f"links/{name}": fd for name, fd in dict(attached.links).items()}
    )


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from os.listdir(folder)  # noqa: PTH208 - names are wanted
    except FileNotFoundError:
        return

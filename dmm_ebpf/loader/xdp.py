# SPDX-License-Identifier: Apache-2.0
"""The XDP program on a NIC: native if the driver can, in the form for several frames if it takes no
other, generic if it cannot, and never in place of somebody else's.

A link is made in the network namespace that the caller is in, because that is where the kernel
looks the ifindex up.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError, NotAttachedError
from dmm_ebpf.loader import bpf, explain

Mode = Literal["native", "generic"]

# What drivers answer when they cannot run this program natively: no XDP at all, MTU, queues,
# offloads in the way.
_NOT_NATIVE = (
    errno.EOPNOTSUPP,
    bpf.ENOTSUPP,
    errno.EINVAL,
    errno.ERANGE,
    errno.ENOSPC,
    errno.E2BIG,
)


def pin_path(folder: Path, ifindex: int) -> Path:
    """links/xdp-<ifindex>."""
    return folder / "links" / f"xdp-{ifindex}"


def _mode(ifindex: int) -> Mode:
    return "generic" if bpf.xdp_query(ifindex).generic else "native"


def _existing(path: Path, ifindex: int) -> bool:
    """Whether our link is on the device; a pin whose device went away is removed."""
    if not path.exists():
        return False
    fd = bpf.obj_get(str(path))
    try:
        if bpf.link_info(fd).ifindex == ifindex:
            return True
    finally:
        os.close(fd)
    path.unlink()
    return False


def _conflict(ifindex: int, ifname: str, what: str) -> ConflictError | None:
    ids = bpf.xdp_query(ifindex).prog_ids
    if not ids:
        return None
    named = ", ".join(f"{i} ({bpf.prog_name(i) or 'no name'})" for i in ids)
    return ConflictError(
        what,
        why=f"the XDP program {named} is on {ifname}",
        hint='take it off, or use io = "tap", which needs no XDP',
    )


def _link_frags(frags: Callable[[], int], ifindex: int, flags: int) -> int:
    fd = frags()
    try:
        return bpf.link_create(fd, ifindex, bpf.AttachType.XDP, flags)
    finally:
        os.close(fd)


def _create(prog_fd: int, ifindex: int, ifname: str, frags: Callable[[], int] | None) -> int:
    what = f"attach XDP to {ifname}"
    native, generic = bpf.XDP_FLAGS_DRV_MODE, bpf.XDP_FLAGS_SKB_MODE
    plain = partial(bpf.link_create, prog_fd, ifindex, bpf.AttachType.XDP)
    ways = [partial(plain, native), partial(plain, generic)]
    if frags is not None:
        ways.insert(1, partial(_link_frags, frags, ifindex, native))
    refusal: OSError | None = None
    for way in ways:
        try:
            return way()
        except OSError as error:
            refusal = error
            if error.errno not in _NOT_NATIVE:
                break
    if refusal is None:
        raise AssertionError("a mode was tried")
    if refusal.errno in (errno.EBUSY, errno.EEXIST):
        conflict = _conflict(ifindex, ifname, what)
        if conflict is not None:
            raise conflict from refusal
    if refusal.errno == errno.EEXIST:  # dev_xdp_attach(): "an upper device already has a program"
        raise ConflictError(
            what,
            why=f"a device that stands on {ifname}, as a macvlan does, has an XDP program, and the "
            "kernel takes none below one",
            hint='use one of both, or io = "tap", which needs no XDP',
        ) from refusal
    if refusal.errno == errno.EINVAL and bpf.has_links() is False:
        raise explain.link_refused(what, refusal) from refusal
    if refusal.errno in _NOT_NATIVE:
        raise KernelFeatureError(
            what, why=f"neither native nor generic mode is possible there: {refusal.strerror}"
        ) from refusal
    raise explain.refused(what, refusal) from refusal


def native_refusal(prog_fd: int, ifindex: int) -> int:
    """The errno with which the device's driver refuses the program; 0 if it takes it.
    Nothing stays attached.
    """
    try:
        os.close(bpf.link_create(prog_fd, ifindex, bpf.AttachType.XDP, bpf.XDP_FLAGS_DRV_MODE))
    except OSError as error:
        return error.errno or 0
    return 0


def attach(
    folder: Path, prog_fd: int, ifindex: int, ifname: str, frags: Callable[[], int] | None = None
) -> Mode:
    """Links and pins; if it is ours already, nothing changes. folder: the instance's pins.
    frags: loads the program anew, so that it takes packets in several frames, for a driver that
    takes it so alone.
    """
    what = f"attach XDP to {ifname}"
    path = pin_path(folder, ifindex)
    if _existing(path, ifindex):
        return _mode(ifindex)
    try:
        socket.if_indextoname(ifindex)
    except OSError as error:
        raise DmmError(
            what, why=f"no device has the index {ifindex} in this network namespace"
        ) from error
    conflict = _conflict(ifindex, ifname, what)
    if conflict is not None:
        raise conflict
    fd = _create(prog_fd, ifindex, ifname, frags)
    try:
        bpf.obj_pin(fd, str(path))
        return _mode(ifindex)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def detach(folder: Path, ifindex: int) -> bool:
    """Takes our program off; False if it was not there. Works from any network namespace."""
    path = pin_path(folder, ifindex)
    try:
        fd = bpf.obj_get(str(path))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise NotAttachedError(
            f"detach XDP from device {ifindex}", why=str(error.strerror)
        ) from error
    try:
        bpf.link_detach(fd)
    except OSError as error:
        if error.errno not in (errno.ENOLINK, errno.EINVAL):  # its device went away first
            raise DmmError(f"detach XDP from device {ifindex}", why=str(error.strerror)) from error
    finally:
        os.close(fd)
    path.unlink()
    return True

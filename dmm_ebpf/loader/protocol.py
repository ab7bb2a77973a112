# SPDX-License-Identifier: Apache-2.0
"""The program of bpf/protocol.h, on the kernel's function and off it again.

Its pinned link is all that is kept of it. Whose sockets it turns is said by the instance's maps, so
it does nothing for a policy that asks for nothing. A director that takes an instance over puts a
program of its own in the place of the one that it finds.
"""

from __future__ import annotations

import os

from dmm_ebpf.errors import KernelFeatureError
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import bpf, pinnedlink, programs, protocolprobe
from dmm_ebpf.loader.attach import Attached
from dmm_ebpf.loader.compile import code
from dmm_ebpf.loader.spec import PROTOCOL

_WHAT = "turn sockets into MPTCP's"


def put(attached: Attached) -> None:
    """Have the kernel ask the instance's program for each socket; if it does already,
    nothing changes.

    Asks about the thread's network namespace. KernelFeatureError: it cannot be.
    """
    if PROTOCOL.pin in attached.links:
        return
    why = protocolprobe.why_not()
    if why:
        raise KernelFeatureError(_WHAT, why=why.why if isinstance(why, Unknown) else why)
    fd, _ = programs.load_protocol(code(), attached.maps)
    pinnedlink.put(
        attached, PROTOCOL, fd, lambda fd: bpf.link_create(fd, 0, PROTOCOL.attach_type), _WHAT
    )


def take_off(attached: Attached) -> None:
    """Have it asked no more; also one that was there before this process."""
    (attached.folder / "links" / PROTOCOL.pin).unlink(missing_ok=True)
    link = attached.links.pop(PROTOCOL.pin, None)
    if link is not None:
        os.close(link)

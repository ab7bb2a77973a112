# SPDX-License-Identifier: Apache-2.0
"""A program of the kernel's own functions and tracepoints, of which its pinned link is all that is
kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dmm_ebpf.loader import explain
from dmm_ebpf.loader.attach import Attached, pin_fd
from dmm_ebpf.loader.spec import ProgSpec


def put(attached: Attached, spec: ProgSpec, fd: int, link: Callable[[int], int], what: str) -> None:
    """Links a loaded program, and pins the link, in the place of one that is there already. link:
    gives the new link of a program's descriptor, or raises OSError. what: of errors. fd is closed.
    DmmError: it cannot be.
    """
    try:
        made = link(fd)
    except OSError as error:
        raise explain.refused(what, error) from error
    finally:
        os.close(fd)
    path = attached.folder / "links" / spec.pin
    try:
        path.unlink(missing_ok=True)
        pin_fd(made, path)
    except BaseException:
        os.close(made)
        raise
    old = attached.links.get(spec.pin)
    attached.links[spec.pin] = made
    if old is not None:
        os.close(old)

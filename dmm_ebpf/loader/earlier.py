# SPDX-License-Identifier: Apache-2.0
"""Running the TCP iterator of bpf/earlier.h: what earlier[] names is put in listeners[].

The program is loaded for that alone, and gone afterwards: nothing of it is pinned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from dmm_ebpf.errors import KernelFeatureError
from dmm_ebpf.loader import bpf, explain, programs
from dmm_ebpf.loader.compile import code, features
from dmm_ebpf.loader.maps import Map
from dmm_ebpf.loader.spec import EARLIER

_WHAT = "find listeners from before the attach"


def adopt_listeners(maps: Mapping[str, Map]) -> None:
    """Have the listeners that earlier[] names, of the current network namespace,
    put in listeners[].

    KernelFeatureError: the kernel has no BTF, or no TCP iterator.
    """
    iterator = programs.iterator_id(features())
    if iterator is None:
        raise KernelFeatureError(
            _WHAT,
            why="this kernel has no BPF iterator of TCP sockets, or no BTF (CONFIG_DEBUG_INFO_BTF)",
            hint="restart the server, so that it listens anew",
        )
    fd, _ = programs.load_earlier(code(), maps, iterator)
    try:
        link = bpf.link_create(fd, 0, EARLIER.attach_type)
        try:
            bpf.iterate(link)
        finally:
            os.close(link)
    except OSError as error:
        raise explain.refused(_WHAT, error) from error
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""Flow records put together with their sockets in the instance's network namespace, one
after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dmm_ebpf.abi import Struct
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.sockdiag import TcpSocket


def with_sockets(records: dict[int, Struct]) -> Iterator[tuple[Struct, TcpSocket | None]]:
    """Each flow's record, and its socket if there is one. Empties records."""
    with contextlib.closing(sockdiag.iter_tcp(records)) as sockets:
        for live in sockets:
            record = records.pop(live.cookie, None)
            if record is not None:
                yield record, live
    while records:
        yield records.popitem()[1], None

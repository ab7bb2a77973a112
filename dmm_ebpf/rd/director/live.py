# SPDX-License-Identifier: Apache-2.0
"""Flow records put together with their sockets in the instance's network namespace, one
after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from dmm_ebpf.abi import Struct
from dmm_ebpf.hal import sockdiag


def with_sockets(records: dict[int, Struct]) -> Iterator[tuple[Struct, dict[str, Any] | None]]:
    """Each flow's record, and its socket if there is one. Empties records."""
    with contextlib.closing(sockdiag.iter_tcp(records)) as sockets:
        for live in sockets:
            record = records.pop(live.cookie, None)
            if record is not None:
                yield record, vars(live)
    while records:
        yield records.popitem()[1], None

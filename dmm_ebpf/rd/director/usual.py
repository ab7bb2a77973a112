# SPDX-License-Identifier: Apache-2.0
"""What TCP sockets of the thread's network namespace have from its sysctls, read for the policy."""

from __future__ import annotations

from dmm_ebpf.hal import tuning
from dmm_ebpf.rd.policy.usual import Usual


def read_usual() -> Usual:
    """The settings as they are now. DmmError as tuning.read()."""
    times = (
        int(tuning.read(f"net/ipv4/tcp_keepalive_{name}")) for name in ("time", "intvl", "probes")
    )
    return Usual(tuning.read("net/ipv4/tcp_congestion_control"), *times)

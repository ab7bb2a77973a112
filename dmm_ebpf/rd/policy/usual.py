# SPDX-License-Identifier: Apache-2.0
"""What a TCP socket of a network namespace has while its program has set nothing: by it a
program's choice shows.
"""

from __future__ import annotations

from typing import NamedTuple


class Usual(NamedTuple):
    """The namespace's sysctls of net.ipv4; the defaults are Linux's
    (Documentation/networking/ip-sysctl.rst).

    congestion: tcp_congestion_control; empty: not known, so no socket is taken to have
    chosen another. keepalive_time_s, keepalive_intvl_s: tcp_keepalive_time and
    tcp_keepalive_intvl, in seconds.
    keepalive_probes: tcp_keepalive_probes.
    """

    congestion: str = ""
    keepalive_time_s: int = 7200
    keepalive_intvl_s: int = 75
    keepalive_probes: int = 9


LINUX = Usual()

# SPDX-License-Identifier: Apache-2.0
"""connect() that an app gives up before its peer has answered, by close() or by its end: nothing is
sent that would tell, and the stack forgets it soon, since nothing more of it comes.
"""

from __future__ import annotations

import pytest
from sitefixtures import TAP, XDP, Site

from lab import wait_for

BY = {"tap": TAP, "af_xdp": XDP}
MANY = 500
SILENT = """
add table inet t
add chain inet t c { type filter hook input priority 0; }
add rule inet t c tcp dport 7000 drop
"""
ASKS = """
import os, socket, sys
kept = []
for number in range(int(sys.argv[3])):
    s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
    s.setblocking(False)
    s.connect_ex((sys.argv[1], int(sys.argv[2])))
    kept.append(s)
    if number % 2:
        s.close()
print("asked", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", BY)
def test_what_was_given_up_is_forgotten(wired: Site, python, io: str, family: str) -> None:
    routed = wired.attach_client(BY[io])
    wired.server.run(["nft", SILENT])
    to = getattr(wired.server, family)
    assert python(wired.client, wired.client_cgroup, ASKS, to, "7000", str(MANY)) == "asked"
    assert routed.stack("wan")["counters"]["active_open"] == MANY
    # A SYN of the kernel's would come again after a second; the path's own ones took two minutes.
    wait_for(lambda: routed.ask_stack("wan")["connections"] == 0, 30, "the stack to forget them")
    assert not routed.flows()

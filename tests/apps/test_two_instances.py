# SPDX-License-Identifier: Apache-2.0
"""Two instances with user stacks on one NIC: each carries its own flows, whichever
was attached first.
"""

from __future__ import annotations

import pytest
from sitefixtures import by

from lab import curl_fetch, nginx
from lab.routed import Routed

PORTS = [("tap", "tap"), ("af_xdp", "tap"), ("tap", "af_xdp")]


def _fetch(host, url, cgroup, sha256):
    got = curl_fetch(host, url, cgroup=cgroup, timeout=20)
    assert got.sha256 == sha256, got.stderr


@pytest.mark.parametrize("ports", PORTS, ids="+".join)
def test_both_carry_what_their_cgroups_open_and_serve(wired, make_cgroup, payload, ports):
    path, sha256 = payload(2_000_000)
    groups = [wired.client_cgroup, make_cgroup()]
    routed = [
        wired.stack.enter_context(Routed(wired.client, group, by(port), wired.directory))
        for group, port in zip(groups, ports, strict=True)
    ]
    far = nginx(wired.server, path.parent, wired.directory / "far", port=80)
    near = [
        nginx(wired.client, path.parent, wired.directory / f"near{n}", port=8000 + n, cgroup=group)
        for n, group in enumerate(groups)
    ]
    for group, service in zip(groups, near, strict=True):
        _fetch(wired.client, far.url(path.name), group, sha256)
        _fetch(wired.server, service.url(path.name), None, sha256)
    for one in routed:
        counted = one.stack("wan")["counters"]
        assert (counted["active_open"], counted["passive_open"]) == (1, 1)

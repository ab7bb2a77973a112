# SPDX-License-Identifier: Apache-2.0
"""Somebody takes our XDP program off a NIC and puts his own there, while flows run by AF_XDP: they
go on by tap, listings say why, and AF_XDP comes back when he has gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autoport import BACK_WITHIN_S, WITHIN_S, Stream, ZeroCopy, xdp_on
from sitefixtures import AUTO, XDP, Site
from talking import Talker, echo

from dmm_ebpf.loader import bpf, bpffs
from dmm_ebpf.rd.api.client import Client
from lab import Host, wait_for
from lab.routed import Routed

ECHO_PORT = 7310
PASS = bytes.fromhex("b700000002000000 9500000000000000")  # r0 = XDP_PASS; exit


@contextlib.contextmanager
def somebodys_xdp(host: Host, ours: Path) -> Iterator[None]:
    """His native program in place of ours, whose link is pinned there. He tries until he is the
    faster one.
    """
    pin = Path(bpffs.ensure()) / f"foreign-{os.getpid()}"
    fd = bpf.prog_load("foreign", bpf.ProgType.XDP, PASS)
    try:
        bpf.obj_pin(fd, str(pin))
    finally:
        os.close(fd)
    dev = ("dev", host.nic.name)

    def put() -> bool:
        host.run(["bpftool", "link", "detach", "pinned", ours], check=False)
        words = ["bpftool", "net", "attach", "xdpdrv", "pinned", pin, *dev]
        return host.run(words, check=False).returncode == 0

    try:
        wait_for(put, WITHIN_S, "his program to be there")
        yield
        host.run(["bpftool", "net", "detach", "xdpdrv", *dev])
    finally:
        pin.unlink()


def status(routed: Routed) -> dict[str, Any]:
    with Client(routed.instance) as client:
        return dict(client.call("status"))


@pytest.mark.parametrize("policy", [pytest.param(XDP, id="af_xdp"), pytest.param(AUTO, id="auto")])
def test_flows_go_on_by_tap_while_he_is_there(wired: Site, policy: str):
    client = wired.client
    echo(wired.server, wired.server_cgroup, ECHO_PORT)
    routed = wired.attach_client(policy, ZeroCopy)
    assert routed.port()["port"] == "af_xdp"
    before = routed.stack("wan")
    stream = Stream(wired)
    stream.goes_on()
    (nic,) = status(routed)["nics"]
    ours = Path(f"/sys/fs/bpf/dmm-ebpf/{routed.instance}/links/xdp-{nic['ifindex']}")
    with somebodys_xdp(client, ours):
        routed.wait_for_port("tap", "foreign", WITHIN_S)
        stream.goes_on()
        talker = Talker(client, wired.client_cgroup, wired.server.ip4, ECHO_PORT)
        assert talker.says("hello") == "hello"
        assert talker.flow(routed)["stack"] == "wan"
        assert not [n for n in status(routed)["nics"] if n["mode"] != "tc"]
        if policy == XDP:
            wait_for(
                lambda: any("foreign" in m["why"] for m in status(routed)["missing"]),
                WITHIN_S,
                "status to tell",
            )
    routed.wait_for_port("af_xdp", "", BACK_WITHIN_S)
    wait_for(lambda: xdp_on(client), WITHIN_S, "our program to be back")
    wait_for(lambda: status(routed)["missing"] == [], WITHIN_S, "nothing to be missing")
    stream.goes_on()
    stream.end()
    after = routed.stack("wan")
    assert (after["pid"], after["restarts"]) == (before["pid"], 0)

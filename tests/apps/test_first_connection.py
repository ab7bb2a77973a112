# SPDX-License-Identifier: Apache-2.0
"""A cgroup that is made again is routed from its first connection, with nobody awake to see to it;
what else is where the hooks are stays as if they were not.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager

import pytest
from remade import REFUSE, RESTARTS, SERVICE, Pending
from talking import server

from dmm_ebpf.loader import bpf, bpffs
from lab import wait_for
from lab.routed import Routed

WITHIN_S = 10.0

# Says what became of the first connection after each restart; and last, of one from outside.
FIRST = f"""{SERVICE}
told = []
for _ in range(restarts):
    remake(base, path)
    join(path)
    told.append(outcome())
    join(base)
print(json.dumps([told, outcome()]))
"""

# Listens, accepts a connection of its own, sends a datagram and binds, then says so.
BUSY = """
import socket, sys
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
open_ = socket.create_connection(listening.getsockname())
accepted, _ = listening.accept()
bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.bind((sys.argv[1], int(sys.argv[2])))
bound.sendto(b"x", bound.getsockname())
print("ready", flush=True)
sys.stdin.read()
"""


def _refused(site, base, path, restarts=RESTARTS):
    """Every first connection in a cgroup that is made again is, and none beside it."""
    arguments = [str(base), str(path), str(restarts)]
    done = site.client.run(["/usr/bin/python3", "-c", FIRST, *arguments])
    told, beside = json.loads(done.stdout)
    assert told == ["PermissionError"] * restarts
    assert beside == "ConnectionRefusedError"


@contextmanager
def _stopped(routed):
    routed.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        routed.process.send_signal(signal.SIGCONT)


def _missing(routed):
    return routed.ask("status")[0]["missing"]


def _attach(site, name):
    """An instance whose cgroup is not there, and the one in which that would be."""
    base = site.client_cgroup
    site.client_cgroup = base.child(name)
    site.client_cgroup.path.rmdir()
    return site.attach_client(REFUSE % "{cgroup}", kind=Pending), base.path


def test_by_a_rule(site):
    routed = site.attach_client(REFUSE % "{cgroup}/svc/web.service")
    base = site.client_cgroup.path
    with _stopped(routed):
        _refused(site, base, base / "svc/web.service")
        _refused(site, base, base / "svc/web.service/below")
        (base / "svc/web.service/below").rmdir()
    # In force by then is what the other half of the kernel's tables has, at another place there.
    first = REFUSE.replace("shop", "nobody") % "/nowhere"
    routed.apply(first + REFUSE.partition("[[tables")[0] % "{cgroup}/svc/web.service")
    with _stopped(routed):
        _refused(site, base, base / "svc/web.service")
    routed.kill_director()
    _refused(site, base, base / "svc/web.service")
    status = routed.ask("status")[0]
    assert [one["cgroup"] for one in status["pending"]] == ["/nowhere"]


def test_of_the_attached_cgroup(site):
    routed, base = _attach(site, "web.service")
    group = site.client_cgroup
    with _stopped(routed):
        _refused(site, base, group.path)
    wait_for(lambda: not _missing(routed), WITHIN_S, "nothing to be missing")
    assert routed.ask("status")[0]["cgroup"] == str(group.path)
    routed.kill_director()
    _refused(site, base, group.path)
    routed.restart()
    assert not _missing(routed)
    with _stopped(routed):
        _refused(site, base, group.path)
    folder = bpffs.instance_dir(routed.instance)
    link = bpf.obj_get(str(folder / "links" / "connect4"))
    bpf.link_detach(link)
    os.close(link)
    wait_for(lambda: "connect4" in routed.log.read_text(), WITHIN_S, "the hook to be put back")
    wait_for(lambda: not _missing(routed), WITHIN_S, "nothing to be missing")
    with _stopped(routed):
        _refused(site, base, group.path)
    group.path.rmdir()
    (told,) = wait_for(lambda: _missing(routed), WITHIN_S, "status to tell of the cgroup")
    assert told["what"] == f"cgroup {group.path}"


def test_of_one_whose_parent_goes_too(site):
    base = site.client_cgroup
    parent = base.child("shop.slice")
    site.client_cgroup = parent
    routed, _ = _attach(site, "web.service")
    with _stopped(routed):
        _refused(site, parent.path, site.client_cgroup.path)
    site.client_cgroup.path.rmdir()
    parent.path.rmdir()
    wait_for(
        lambda: "does not exist" in str(_missing(routed)), WITHIN_S, "the director to have seen it"
    )
    wait_for(lambda: _hooked(routed) == base.path.stat().st_ino, WITHIN_S, "the hooks to go up")
    with _stopped(routed):
        _refused(site, base.path, site.client_cgroup.path)
    wait_for(lambda: not _missing(routed), WITHIN_S, "nothing to be missing")


@pytest.mark.parametrize("name", ["web.service", "docker-1.scope"])
def test_of_a_unit_that_is_named_by_its_cgroup(site, name):
    """It will go, as its name says: no --pending is needed."""
    base = site.client_cgroup
    site.client_cgroup = group = base.child(name)
    routed = site.attach_client(REFUSE % "{cgroup}")
    assert _hooked(routed) == base.path.stat().st_ino
    with _stopped(routed):
        _refused(site, base.path, group.path)
    wait_for(lambda: not _missing(routed), WITHIN_S, "nothing to be missing")


@pytest.mark.parametrize(("kind", "name"), [(Routed, "web"), (Pending, "shop.slice")])
def test_of_one_that_was_thought_to_stay(site, kind, name):
    """The hooks are on it, and go above it when it first goes."""
    base = site.client_cgroup
    site.client_cgroup = group = base.child(name)
    routed = site.attach_client(REFUSE % "{cgroup}", kind=kind)
    assert _hooked(routed) == group.path.stat().st_ino
    group.path.rmdir()
    wait_for(lambda: _hooked(routed) == base.path.stat().st_ino, WITHIN_S, "the hooks to go up")
    with _stopped(routed):
        _refused(site, base.path, group.path)
    routed.kill_director()
    routed.options = ("--pending",)
    routed.restart()
    with _stopped(routed):
        _refused(site, base.path, group.path)
    wait_for(lambda: not _missing(routed), WITHIN_S, "nothing to be missing")


def test_of_one_right_below_another_instance(site):
    """Of hooks on one cgroup the first come would be asked first: the inner's stay on its own."""
    base = site.client_cgroup
    outer = site.attach_client(None)
    site.client_cgroup = group = base.child("web.service")
    inner = site.attach_client(REFUSE % "{cgroup}", kind=Pending)
    assert _hooked(outer) == base.path.stat().st_ino
    assert _hooked(inner) == group.path.stat().st_ino
    assert f"the hooks of instance {outer.instance} are on {base.path}, so" in inner.log.read_text()
    group.path.rmdir()
    wait_for(lambda: _missing(inner), WITHIN_S, "status to tell of the cgroup")
    group.path.mkdir()
    wait_for(lambda: _hooked(inner) == group.path.stat().st_ino, WITHIN_S, "its hooks")
    wait_for(lambda: not _missing(inner), WITHIN_S, "status to tell of nothing")


def _hooked(routed):
    """The id of the cgroup that a hook is on; 0: it has no pin just now."""
    folder = bpffs.instance_dir(routed.instance)
    try:
        link = bpf.obj_get(str(folder / "links" / "connect4"))
    except FileNotFoundError:
        return 0
    try:
        return bpf.link_info(link).cgroup_id
    finally:
        os.close(link)


@pytest.mark.parametrize("when", ["before", "after"])
def test_others_there_are_passed_over(site, when):
    """They are in no listing and no count, whether they are older than the hooks or not."""
    base, group = site.client_cgroup, site.client_cgroup.child("web.service")
    site.client_cgroup = group
    beside = base.child("beside")
    if when == "before":
        server(site.client, beside, BUSY, "127.0.0.2", "81")
        server(site.client, group, BUSY, "127.0.0.3", "81")
    routed = site.attach_client(None, kind=Pending)
    assert _hooked(routed) == base.path.stat().st_ino
    if when == "after":
        server(site.client, beside, BUSY, "127.0.0.2", "81")
        server(site.client, group, BUSY, "127.0.0.3", "81")
    flows, listeners = routed.ask("flows"), routed.ask("listeners")
    assert {one["cgroup"] for one in [*flows, *listeners]} == {group.relative}
    assert sorted(one["direction"] for one in flows) == ["connect", "listen"]
    ports = sorted((one["proto"], one["addr"]) for one in listeners)
    assert ports[0] == ("tcp", "127.0.0.3")
    assert (("udp", "127.0.0.3") in ports) == (when == "after")
    counted = routed.ask("status")[0]["counters"]["connect"]
    assert counted == (1 if when == "after" else 0)

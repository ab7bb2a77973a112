# SPDX-License-Identifier: Apache-2.0
"""A fleet under hands that cross: two operators at once, hosts whose labels change, an etcd that is
in two minds while routes come and go.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from typing import Any

import pytest
from fleetsite import await_state, central, stack_of, standing

from dmm_ebpf.central import place as places
from dmm_ebpf.central import pushtext
from dmm_ebpf.central.client import Put, connect
from dmm_ebpf.central.controller import Controller, Order
from dmm_ebpf.central.fleet import Fleet as Keys
from dmm_ebpf.central.layout import Bundle, Rollout
from dmm_ebpf.errors import ConflictError
from lab import wait_for
from lab.routed import CLI

pytestmark = pytest.mark.root

POLICY = """
[stacks.lan]
kind = "kernel"
congestion = "cubic"
[stacks.far]
kind = "kernel"
congestion = "reno"
[[rules]]
table = "all"
[[tables.all.routes]]
to = "10.0.0.0/8"
stack = "lan"
"""
SECOND = POLICY.replace('stack = "lan"', 'stack = "far"')


@pytest.fixture
def site(lab, make_cgroup, tmp_path, monkeypatch):
    with standing(lab, make_cgroup, tmp_path, monkeypatch) as made:
        yield made


async def _at_once(place: str, texts: list[str]) -> list[Rollout | BaseException]:
    """Operators who all look what there is before anybody has pushed."""
    clients = [await connect(places.parse(place)) for _ in texts]
    try:
        pushes = [
            Controller(Keys(etcd)).push(Order(Bundle(text), f"{number}.toml", 1, 1))
            for number, (etcd, text) in enumerate(zip(clients, texts, strict=True))
        ]
        return await asyncio.gather(*pushes, return_exceptions=True)
    finally:
        for etcd in clients:
            await etcd.close()


def test_of_two_who_push_at_once_one_is_first_and_the_other_is_told(site) -> None:
    site.serve(members=1)
    following = site.follow(0)
    for turn in range(3):
        # Of another size, so that a part of one beside parts of the other would be neither.
        texts = [f"{text}# {turn} {number}\n" for number, text in enumerate((POLICY, SECOND))]
        found = site.hosts[0].call(lambda texts=texts: asyncio.run(_at_once(site.place, texts)))
        (first,) = [one for one in found if isinstance(one, Rollout)]
        (other,) = [one for one in found if isinstance(one, BaseException)]
        assert isinstance(other, ConflictError), other
        assert f"push {first.push}, by {first.by}, came first" in str(other)
        await_state(following, "applied", push=first.push)
        assert following.ask("policy", "show")["text"].startswith(texts[found.index(first)])
    keys = site.etcd.ctl("get", "--keys-only", "--prefix", "/dmm/text/").split()
    pushes = site.etcd.ctl("get", "--keys-only", "--prefix", "/dmm/pushes/").split()
    assert len(keys) == len(pushes) == 3, "what came to nothing is gone"


async def _beside_an_older_one(place: str, text: str, *, before: bool) -> Any:
    """A push, while an older dmm-ebpf writes below the same number, before the rollout names it, or
    right behind that.
    """
    etcd = await connect(places.parse(place))
    controller = Controller(Keys(etcd))
    real = pushtext.write

    async def crossed(keys: Keys, number: int, parts: Any) -> pushtext.Written:
        made = await real(keys, number, parts)
        if before:
            await keys.commit([], [Put(f"{made.key}0000", b"another push")])
        return made

    pushtext.write = crossed
    try:
        made = await controller.push(Order(Bundle(text), "p.toml", 1, 1))
        key = f"/dmm/text/{made.push:08}/0000"
        await etcd.commit([], [Put(key, b"another push")])
        return await controller.roll(60, lambda _: None)
    except ConflictError as error:
        return error
    finally:
        pushtext.write = real
        await etcd.close()


def test_an_older_dmm_ebpf_that_overwrites_a_push_is_noticed(site, caplog) -> None:
    """It does not look whether there is another one."""
    site.serve(members=1)
    following = site.follow(0)
    site.push(POLICY)

    def push(*, before: bool) -> Any:
        asked = asyncio.run, _beside_an_older_one(site.place, SECOND, before=before)
        return site.hosts[0].call(*asked)

    refused = push(before=True)
    assert isinstance(refused, ConflictError)
    assert "its text was overwritten by a push at the same time, of an older dmm-ebpf" in str(
        refused
    )
    assert "/dmm/text/00000002/0000" in site.etcd.ctl("get", "--keys-only", "--prefix", "/dmm/text")
    assert await_state(following, "applied", push=1)
    done = push(before=False)
    assert done.done, done.why
    assert "it is put back; push by one version of dmm-ebpf alone" in caplog.text
    assert await_state(following, "applied", push=done.push)
    assert following.ask("policy", "show")["text"].startswith(SECOND)


def test_what_a_push_that_was_killed_has_left_is_in_nobodys_way(site) -> None:
    site.serve(members=1)
    following = site.follow(0)
    site.push(POLICY)
    site.etcd.put("/dmm/text/00000002/0000", "half a push")
    done = site.push(SECOND)
    assert done["push"] == 3
    assert await_state(following, "applied", push=3)
    keys = site.etcd.ctl("get", "--keys-only", "--prefix", "/dmm/text/").split()
    assert keys == ["/dmm/text/00000001/0000", "/dmm/text/00000003/0000"]


def test_a_host_that_is_no_canary_any_more_halts_the_push(site) -> None:
    """And takes what all others have: it is told by its labels of now."""
    site.serve(members=1)
    canary, rest = site.follow(0, "role=canary"), site.follow(1)
    site.await_listed(2)
    site.push(POLICY)
    canary.process.send_signal(signal.SIGSTOP)
    file = site.directory / "second.toml"
    file.write_text(SECOND)
    argv = [*CLI, "controller", "push", str(file), "--canary", "role=canary", "--within", "90"]
    pushing = site.hosts[0].popen(
        [*argv, "--etcd", site.place, "--json"], stdout=subprocess.PIPE, text=True
    )

    def rollout() -> dict[str, Any]:
        return dict(site.controller("hosts")["rollout"])

    wait_for(lambda: rollout()["state"] == "rolling", 30, "the push to begin")
    canary.kill_director()
    canary.relabel("role=edge")
    canary.restart()
    said, _ = pushing.communicate(timeout=120)
    assert pushing.returncode == 1
    done = json.loads(said)
    assert done["state"] == "halted"
    assert f"a, instance {canary.instance} has other labels now, which no step" in done["why"]
    assert await_state(canary, "applied", push=1)
    assert [stack_of(one) for one in (canary, rest)] == ["lan", "lan"]


def test_no_quorum_while_routes_come_and_go(site) -> None:
    """A host's own routes need no etcd; the fleet's come as soon as a majority is there again."""
    site.serve()
    following = site.follow(2)
    site.push(POLICY)
    site.etcd.put("/dmm/want/routes/all/x", "192.0.2.0/24,,,far")
    await_state(following, "applied", routes=1)
    for member in site.etcd.members[:2]:
        member.kill()
    wait_for(lambda: not central(following)["reached"], 60, "the loss to be said")
    own = ("10.9.9.9", "stack", "far", "table", "all")
    following.cli("route", "add", *own, "--instance", following.instance)
    assert stack_of(following) == "far"
    done = site.controller("push", str(site.directory / "fleet.toml"), code=75)
    assert "etcd" in done["error"]["message"]
    following.cli("route", "del", *own[:1], "table", "all", "--instance", following.instance)
    assert stack_of(following) == "lan"
    site.etcd.start()
    site.etcd.put("/dmm/want/routes/all/x", "192.0.2.0/24,,,far\n10.9.0.0/16,,,far")
    await_state(following, "applied", routes=2)
    assert stack_of(following) == "far"
    wait_for(lambda: central(following)["reached"], 60, "etcd to be reached again")


def test_a_value_of_2_mb_of_routes_leaves_what_there_was(site) -> None:
    site.serve(members=1, options=["--max-request-bytes", "8388608"])
    following = site.follow(0)
    site.push(POLICY)
    many = "".join(f"192.0.{n >> 8 & 255}.{n & 255},,,far\n" for n in range(110_000))
    site.etcd.ctl("put", "/dmm/want/routes/all/x", input_text=many)
    wait_for(lambda: central(following)["why"], 30, "why it is not in force")
    told = central(following)
    assert "want/routes/all/x" in told["why"] and "KiB, and may have 1024" in told["why"]
    assert (told["push"], stack_of(following)) == (1, "lan")
    site.etcd.ctl("del", "/dmm/want/routes/all/x")
    assert await_state(following, "applied", push=1)


def test_a_push_that_etcd_finds_too_large_is_one_sentence(site) -> None:
    """An etcd that takes less than a part of a push."""
    site.serve(members=1, options=["--max-request-bytes", "65536"])
    following = site.follow(0)
    site.push(POLICY)
    (site.directory / "many.csv").write_text(
        "".join(f"10.{n * 7919 % 251}.{n * 104729 % 241}.{n % 239},,{n % 65535 + 1},far\n"
                for n in range(60_000))
    )  # fmt: skip
    text = POLICY.partition("[[tables")[0] + '[tables.all]\nroutes_from = "many.csv"\n'
    error = site.push(text, code=1)["error"]
    assert "request is too large" in str(error) and "max-request-bytes" in str(error)
    assert await_state(following, "applied", push=1)

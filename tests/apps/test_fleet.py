# SPDX-License-Identifier: Apache-2.0
"""A fleet's policy in a real etcd of three members: pushed, rolled out step by step, refused,
rolled back, and kept while etcd is whatever etcd can be.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from fleetsite import await_state, central, stack_of, standing
from jsonpage import wrong_with

from lab import wait_for
from lab.commandline import CLI
from lab.waiting import wait_readable

pytestmark = pytest.mark.root

POLICY = """
[hosts]
edge = "role=edge"

[stacks.lan]
kind = "kernel"
congestion = "cubic"
[stacks.far]
kind = "kernel"
congestion = "reno"

[[rules]]
name = "edges"
hosts = "edge"
table = "edge"
[[rules]]
name = "rest"
table = "all"

[[tables.edge.routes]]
to = "10.0.0.0/8"
stack = "far"
[[tables.all.routes]]
to = "10.0.0.0/8"
stack = "lan"
"""
SECOND = POLICY.replace('to = "10.0.0.0/8"\nstack = "lan"', 'to = "10.0.0.0/8"\nstack = "far"')
# Right as far as anybody can tell who is not the host.
REFUSED = POLICY.replace('"cubic"', '"nosuch"')


@pytest.fixture
def site(lab, make_cgroup, tmp_path, monkeypatch):
    with standing(lab, make_cgroup, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def one(site):
    """The fleet with one member of etcd, which is quicker."""
    site.serve(members=1, options=["--max-request-bytes", "8388608"])
    return site


def test_a_push_goes_by_canaries_and_is_refused_and_rolled_back(site) -> None:
    site.serve()
    canary = site.follow(0, "role=canary")
    edge = site.follow(1, "role=edge")
    rest = site.follow(2)
    assert central(rest)["state"] == "waiting"
    site.await_listed(3)
    assert {row["state"] for row in site.rows().values()} == {"waiting"}

    done = site.push(POLICY, "--canary", "role=canary", "--note", "first")
    assert (done["push"], done["state"], done["done"], len(done["hosts"])) == (
        1,
        "everywhere",
        True,
        3,
    )
    assert [stack_of(one) for one in (canary, edge, rest)] == ["lan", "far", "lan"]

    done = site.push(REFUSED, "--canary", "role=canary", code=1)
    assert (done["state"], done["done"]) == ("halted", False)
    assert 'the congestion control "nosuch" is not loaded' in done["why"]
    rows = site.rows()
    assert (rows["a"]["state"], rows["a"]["push"], rows["a"]["wanted"]) == ("refused", 1, 2)
    assert "nosuch" in rows["a"]["why"]
    assert {rows[name]["wanted"] for name in "bc"} == {1}, "no other host was told"
    assert [stack_of(one) for one in (canary, edge, rest)] == ["lan", "far", "lan"]
    refused = canary.ask("status")[0]["policy_refused"]
    assert refused["path"] == site.place and "nosuch" in refused["reason"]

    assert site.controller("diff", code=1)["changes"], "what was halted differs"
    done = site.controller("rollback", "--note", "nosuch is not there")
    assert (done["push"], done["state"], done["done"]) == (3, "everywhere", True)
    rollout = site.controller("hosts")["rollout"]
    assert (rollout["of"], rollout["stable"], rollout["note"]) == (1, 1, "nosuch is not there")
    assert rollout["by"] and rollout["at"]
    assert await_state(canary, "applied")["push"] == 3
    assert canary.ask("status")[0]["policy_refused"] is None


def test_json_is_as_its_page_says(one) -> None:
    following = one.follow(0, "role=canary")
    one.await_listed(1)
    done = one.push(POLICY, "--canary", "role=canary")
    answers = [
        ("rolled", done),
        ("fleet", one.controller("hosts")),
        ("fleet_diff", one.controller("diff", str(one.directory / "fleet.toml"))),
        ("central", central(following)),
        ("status[]", following.ask("status")),
    ]
    assert one.rows()["a"]["stacks"]
    for kind, answer in answers:
        assert wrong_with(answer, kind, kind) == []


def test_a_policy_that_is_wrong_is_not_pushed(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    error = one.push(POLICY.replace('"lan"\n', '"lam"\n'), code=2)["error"]
    assert "lam" in error["message"]
    error = one.push(POLICY + '[labels]\nrole = "edge"\n', code=2)["error"]
    assert "one host's" in error["message"]
    error = one.push(POLICY, "--canary", "role=none", code=2)["error"]
    assert "no host that is listed has role=none" in error["message"]
    one.etcd.put("/dmm/want/routes/all/x", "192.0.2.0/24,,,far")
    error = one.push(POLICY.replace('"far"', '"away"').replace("stacks.far", "stacks.away"), code=2)
    assert "want" in str(error) or "far" in error["error"]["message"]
    assert await_state(following, "applied", routes=1)["push"] == 1


def test_a_canary_that_dies_halts_the_push(one) -> None:
    canary, rest = one.follow(0, "role=canary"), one.follow(1)
    one.await_listed(2)
    one.push(POLICY)
    canary.kill_director()
    done = one.push(SECOND, "--canary", "role=canary", "--within", "60", code=1)
    assert done["state"] == "halted"
    assert f"a, instance {canary.instance} is not listed any more" in done["why"]
    assert stack_of(rest) == "lan"
    error = one.controller("push", "--resume", code=1)
    assert "no host that is listed has role=canary" in error["why"]
    canary.restart()
    one.await_listed(2)
    assert one.controller("push", "--resume")["done"]
    assert [stack_of(each) for each in (canary, rest)] == ["far", "far"]


def test_members_die_and_hosts_go_on(site) -> None:
    cluster = site.serve()
    following = [site.follow(number) for number in range(3)]
    site.push(POLICY)
    cluster.members[0].kill()
    assert site.push(SECOND)["done"], "two of three are a quorum"
    assert [stack_of(one) for one in following] == ["far"] * 3

    cluster.members[1].kill()
    told = wait_for(lambda: central(following[2])["lost"], 30, "the quorum to be missed")
    assert "cannot reach etcd://" in told
    assert [stack_of(one) for one in following] == ["far"] * 3
    assert not central(following[2])["reached"]
    error = site.push(POLICY, code=75)["error"]
    assert "cannot reach etcd://" in error["message"]

    cluster.start()
    for one in following:
        wait_for(lambda one=one: central(one)["reached"], 30, "etcd to be reached again")
    assert site.push(POLICY)["done"]
    assert [stack_of(one) for one in following] == ["lan"] * 3


def test_a_member_that_hangs_is_left_for_another(site) -> None:
    cluster = site.serve()
    following = site.follow(0)
    site.push(POLICY)
    cluster.members[0].signal(signal.SIGSTOP)
    try:
        done = site.push(SECOND, "--within", "60")
        assert done["done"]
        assert stack_of(following) == "far"
    finally:
        cluster.members[0].signal(signal.SIGCONT)


def test_a_host_boots_without_etcd_and_has_the_last_good_policy(one) -> None:
    following = one.follow(0, "role=edge")
    one.push(POLICY)
    following.close()
    one.etcd.members[0].kill()
    following.restart()
    now = central(following)
    assert (now["state"], now["push"], stack_of(following)) == ("applied", 1, "far")
    assert wait_for(lambda: central(following)["lost"], 30, "etcd to be missed")
    one.etcd.start()
    one.push(SECOND)
    assert await_state(following, "applied", push=2)


def test_a_host_that_never_had_one_boots_without_etcd(one) -> None:
    one.etcd.members[0].kill()
    following = one.follow(0)
    assert central(following)["push"] == 0
    one.etcd.start()
    one.push(POLICY)
    assert await_state(following, "applied", push=1)


def test_a_director_that_was_killed_takes_over_what_it_had(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    following.kill_director()
    one.push(SECOND, "--within", "1", code=1)
    following.restart()
    assert await_state(following, "applied", push=2)
    assert stack_of(following) == "far"


def test_an_older_backup_is_not_followed_and_a_new_push_is(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    one.etcd.save(one.directory / "backup.db")
    one.push(SECOND)
    one.etcd.restore(one.directory / "backup.db")
    held = await_state(following, "held")
    assert "push 1 after push 2: it was restored from an older backup; push again" in held["why"]
    assert (held["push"], stack_of(following)) == (2, "far")
    wait_for(lambda: one.rows()["a"]["newest"] == 2, 30, "the host to be listed again")
    done = one.push(POLICY)
    assert done["push"] == 3, "numbers go on where hosts are"
    assert await_state(following, "applied", push=3)
    assert stack_of(following) == "lan"


def test_a_compacted_store_is_read_anew(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    following.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(20):
            one.etcd.put(f"/dmm/want/routes/all/r{number}", f"10.{number}.0.0/16,tcp,443,far")
        one.etcd.ctl("compact", str(one.etcd.revision()))
    finally:
        following.process.send_signal(signal.SIGCONT)
    assert await_state(following, "applied", routes=20)
    one.etcd.ctl("del", "--prefix", "/dmm/want/routes/")
    assert await_state(following, "applied", routes=0)


def _stack(following, address: str) -> tuple[str, str | None]:
    words = ("route", "get", f"{address}:443", "--cgroup", str(following.cgroup.path))
    said = following.ask(*words)
    return said["stack"], said["route"]


def test_single_routes_leave_the_policy_as_it_is(one) -> None:
    """Beside it, on every host, over a take-over, a boot and another push; what contradicts the
    policy is refused as a policy is.
    """
    first, second = one.follow(0, "role=edge"), one.follow(1)
    one.push(POLICY)
    await_state(first, "applied", push=1)
    await_state(second, "applied", push=1)
    before = second.ask("status")[0]["generation"]
    one.etcd.put("/dmm/want/routes/all/x", "192.0.2.0/24,tcp,443,far\n10.1.0.0/16,,,far")
    one.etcd.put("/dmm/want/routes/edge/e", "198.51.100.0/24,,,far")
    await_state(second, "applied", routes=3)
    await_state(first, "applied", routes=3)
    assert _stack(second, "192.0.2.1") == ("far", "192.0.2.0/24 tcp 443")
    assert _stack(second, "10.1.0.1") == ("far", "10.1.0.0/16")
    assert _stack(first, "198.51.100.1") == ("far", "198.51.100.0/24")
    assert _stack(second, "198.51.100.1") == ("kernel", None), "it has no such table"
    one.etcd.ctl("del", "/dmm/want/routes/edge/e")
    await_state(second, "applied", routes=2)
    await_state(first, "applied", routes=2)
    assert (second.ask("status")[0]["generation"] - before) % 2 == 0, "it was compiled anew"
    shown = second.cli("route", "show", "-i", second.instance).stdout
    assert "192.0.2.0/24 proto tcp port 443 stack far table all\n" in shown
    gone = ("route", "del", "192.0.2.0/24", "proto", "tcp", "port", "443", "table", "all")
    refused = second.cli(*gone, "-i", second.instance, check=False)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(
        "it is the fleet's, want/routes/all/x:1 in etcd, and no live one; change it there for all "
        "hosts, or route replace it on this one"
    )
    told = second.ask("policy", "explain", "192.0.2.1:443", "--cgroup", str(second.cgroup.path))
    assert told["rules"][-1]["routes"][0]["where"] == "want/routes/all/x:1"

    second.cli("route", "add", "192.0.2.0/24", "proto", "tcp", "port", "443", "stack", "lan",
               "table", "all", "-i", second.instance)  # fmt: skip
    assert _stack(second, "192.0.2.1")[0] == "lan", "this host's own counts first"
    second.cli("route", "flush", "-i", second.instance)
    assert _stack(second, "192.0.2.1")[0] == "far"

    second.kill_director()
    second.restart()
    await_state(second, "applied", routes=2)
    assert _stack(second, "10.1.0.1")[0] == "far"
    one.etcd.put("/dmm/want/routes/all/x", "10.1.0.0/16,,,lan")
    await_state(second, "applied", routes=1)
    assert [_stack(second, one)[0] for one in ("192.0.2.1", "10.1.0.1")] == ["kernel", "lan"]

    one.etcd.put("/dmm/want/routes/all/y", "10.0.0.0/8,,,far")
    why = await_state(second, "refused")["why"]
    assert "10.0.0.0/8 every port" in why and "lan" in why
    assert _stack(second, "10.1.0.1")[0] == "lan"
    one.etcd.ctl("del", "/dmm/want/routes/all/y")
    await_state(second, "applied", routes=1)
    done = one.push(SECOND)
    assert done["state"] == "everywhere"
    assert [_stack(second, one)[0] for one in ("10.2.0.1", "10.1.0.1")] == ["far", "lan"]
    one.etcd.put("/dmm/want/routes/all/z", "192.0.2.7,,,blackhole")
    await_state(second, "applied", routes=2)
    assert _stack(second, "192.0.2.7")[0] == "blackhole"

    one.etcd.members[0].kill()
    second.close()
    second.restart()
    assert [_stack(second, to)[0] for to in ("10.1.0.1", "192.0.2.7")] == ["lan", "blackhole"]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("want/rollout", "garbage", "it is not JSON"),
        ("want/rollout", '{"format": 9}', "of format 9, and this dmm-ebpf reads 1"),
        ("want/routes/all/x", "10.0.0.0/8", "expected to,proto,ports,stack"),
        ("want/routes/all/x", "10.0.0.0/8,,,nosuch", 'no stack is called "nosuch"'),
        ("want/routes/all", "10.0.0.0/8,,,far", "it is not called TABLE/NAME"),
    ],
)
def test_wrong_data_leaves_the_last_good_policy(key: str, value: str, why: str, one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    before = one.etcd.ctl("get", "--print-value-only", "/dmm/want/rollout").removesuffix("\n")
    one.etcd.put(f"/dmm/{key}", value)
    wait_for(lambda: why in central(following)["why"], 20, why)
    told = central(following)
    assert told["state"] in {"held", "refused"}
    assert "\n" not in told["why"]
    assert (told["push"], stack_of(following)) == (1, "lan")
    if key == "want/rollout":
        one.etcd.put("/dmm/want/rollout", before)
    else:
        one.etcd.ctl("del", f"/dmm/{key}")
    assert await_state(following, "applied", push=1)


def test_a_value_of_2_mb_and_what_was_deleted(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    one.etcd.ctl("put", "/dmm/want/rollout", input_text="x" * 2_000_000)
    assert "1953 KiB, and may have 256" in await_state(following, "held")["why"]
    one.etcd.ctl("del", "--prefix", "/dmm/want/")
    wait_for(lambda: "no want/rollout any more" in central(following)["why"], 20, "that to be said")
    assert (central(following)["push"], stack_of(following)) == (1, "lan")


def test_what_was_pushed_and_then_changed_is_not_applied(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    one.etcd.put("/dmm/text/00000002/0000", "tampered")
    push = json.loads(one.etcd.ctl("get", "--print-value-only", "/dmm/pushes/00000001"))
    rollout = json.loads(one.etcd.ctl("get", "--print-value-only", "/dmm/want/rollout"))
    one.etcd.put("/dmm/pushes/00000002", json.dumps(push | {"push": 2}))
    one.etcd.put("/dmm/want/rollout", json.dumps(rollout | {"push": 2}))
    assert "not what was pushed" in await_state(following, "held")["why"]
    assert stack_of(following) == "lan"


def test_a_name_that_two_hosts_have(one) -> None:
    first = one.follow(0)
    one.push(POLICY)
    second = one.follow(1, name="a", instance=f"{first.instance}b")
    assert await_state(second, "applied", push=1), "another instance's name is no other host's"
    second.close()
    # Two machines with one name, each with the instance "default" as it were.
    argv = [*CLI, "status", "--instance", first.instance, "--json"]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    key = f"/dmm/hosts/c/{first.instance}c"
    one.etcd.put(
        key, json.dumps({"format": 1, "who": "other elsewhere, pid 1", "state": "applied"})
    )
    third = one.follow(2, instance=f"{first.instance}c")
    told = await_state(third, "held")
    assert "elsewhere, pid 1 is called so, too" in told["why"]
    assert told["push"] == 0
    assert [row["state"] for row in one.controller("hosts")["hosts"] if row["host"] == "c"] == [
        "applied",
        "twice",
    ]
    one.etcd.ctl("del", key)
    assert await_state(third, "applied", push=1)
    states = [row["state"] for row in one.controller("hosts")["hosts"] if row["host"] == "c"]
    assert states == ["applied"], "the name is its own now, and nothing says otherwise"


def test_a_host_that_tells_of_the_last_push_there_can_be_ends_no_fleet(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    said = {"format": 1, "state": "waiting", "newest": 99_999_999}
    one.etcd.put("/dmm/hosts/z/x", json.dumps(said))
    one.push(SECOND, "--within", "1", code=1)
    assert await_state(following, "applied", push=2)


def test_a_policy_applied_by_hand_is_said(one) -> None:
    following = one.follow(0)
    one.push(POLICY)
    file = one.directory / "mine.toml"
    file.write_text("# nothing")
    following.cli("policy", "apply", str(file), "--instance", following.instance)
    assert "mine.toml was applied by hand" in await_state(following, "overridden")["why"]
    one.push(SECOND)
    assert await_state(following, "applied", push=2)


def test_routes_files_go_with_the_push(one) -> None:
    following = one.follow(0)
    (one.directory / "far.csv").write_text("10.9.0.0/16,,,far\n" * 1)
    text = POLICY + '[tables.more]\nroutes_from = "far.csv"\n'
    one.push(text.replace('name = "rest"\ntable = "all"', 'name = "rest"\ntable = "more"'))
    assert stack_of(following) == "far"
    following.kill_director()
    following.restart()
    assert stack_of(following) == "far"


@pytest.mark.parametrize("missing", ["", "ca", "password"])
def test_etcd_by_tls_with_a_user(missing: str, site) -> None:
    keys = site.directory / "tls"
    keys.mkdir()
    make_certificates(keys, site.hosts[0].ip4)
    cluster = site.serve(members=1, tls=(keys / "ca.pem", keys / "cert.pem", keys / "key.pem"))
    for words in (
        ("user", "add", "root:geheim"),
        ("user", "grant-role", "root", "root"),
        ("auth", "enable"),
    ):
        cluster.ctl(*words)
    password = site.directory / "password"
    password.write_text("falsch\n" if missing == "password" else "geheim\n")
    place = f"{cluster.place()}&user=root&password_file={password}"
    if missing == "ca":
        place = place.replace(f"ca={keys / 'ca.pem'}&", "")
    site.place = place
    following = site.follow(0)
    if not missing:
        assert site.push(POLICY)["done"]
        assert stack_of(following) == "lan"
        return
    error = site.push(POLICY, code=77 if missing == "password" else 75)["error"]
    words = {"ca": "certificate verify failed", "password": "authentication failed"}[missing]
    assert words in error["message"]
    assert words in wait_for(lambda: central(following)["lost"], 20, "why it is not reached")
    assert "geheim" not in json.dumps(error)


def make_certificates(directory, address: str) -> None:
    """A CA, and a certificate of it for server and client at address."""
    (directory / "ext").write_text(f"subjectAltName=IP:{address}\n")
    lines = """
req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca
req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out req.pem -subj /O=host
x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile ext
"""
    for line in lines.strip().splitlines():
        subprocess.run(["openssl", *line.split()], cwd=directory, check=True, capture_output=True)


def test_without_aiohttp_it_says_what_to_install(one) -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from dmm_ebpf.cli.main import main\n"
        f"main(['controller', 'hosts', '--etcd', {one.place!r}])"
    )
    done = one.hosts[0].run([sys.executable, "-c", code], check=False)
    assert done.returncode == 69
    assert "pip install 'dmm-ebpf[etcd]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_watch_tells_what_hosts_say(one) -> None:
    following = one.follow(0)
    argv = [*CLI, "controller", "watch", "--etcd", one.place, "--json"]
    watching = one.hosts[0].popen(argv, stdout=subprocess.PIPE, text=True)
    events: list[dict[str, Any]] = []

    def tells() -> bool:
        """Of a route that is put: a watch knows nothing of what was before it began."""
        one.etcd.put("/dmm/want/routes/all/a", "192.0.2.0/24,,,far")
        return wait_readable(watching.stdout.fileno(), 0.2)

    try:
        wait_for(tells, 30, "the watch to begin")
        one.push(POLICY)
        for line in watching.stdout:
            events.append(json.loads(line))
            if events[-1]["type"] == "host" and events[-1]["host"]["push"] == 1:
                break
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()
    assert any(event["type"] == "rollout" and event["push"] == 1 for event in events)
    assert events[-1]["host"]["host"] == following.host.name
    assert [wrong_with(event, "fleet_event", "watch") for event in events] == [[]] * len(events)

# SPDX-License-Identifier: Apache-2.0
"""cgroups that come and go under an attached instance, as services' do with each restart."""

from __future__ import annotations

import json

import pytest
from remade import REFUSE, RESTARTS, SERVICE, Pending
from talking import server

from dmm_ebpf.rd.api.client import Client
from lab import wait_for
from lab.commandline import CLI

WITHIN_S = 10.0
ROUTED_WITHIN_MS = 50.0  # in most cases: others have the processors, too

# Prints for how many milliseconds after it joined its cgroup the service's connections were not
# yet refused, for each restart.
TIMED = f"""{SERVICE}
took = []
for _ in range(restarts):
    remake(base, path)
    began = time.monotonic()
    join(path)
    until = began + 5
    while outcome() != "PermissionError" and time.monotonic() < until:
        pass
    took.append((time.monotonic() - began) * 1000)
    join(sys.argv[4])
print(took)
"""


def _status(routed):
    with Client(routed.instance) as client:
        return client.call("status")


def _restarts(site, base, path, restarts=RESTARTS):
    """Milliseconds for which a service was not routed after each of its restarts."""
    out = site.client.run(
        ["/usr/bin/python3", "-c", TIMED, str(base), str(path), str(restarts), str(base.parent)]
    ).stdout
    took = json.loads(out)
    print([round(one, 2) for one in took])
    return took


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_rule_matches_its_cgroup_from_the_moment_it_is_made(site, below):
    routed = site.attach_client(None)
    base = site.client_cgroup.path
    said = routed.apply(REFUSE % "{cgroup}/svc/web.service")
    group = f"{site.client_cgroup.relative}/svc/web.service"
    assert f"rule shop: waits for the cgroup {group}, which does not exist" in said.stderr
    assert _status(routed)["pending"] == [
        {"rule": "shop", "number": 1, "cgroup": group, "executable": None}
    ]
    assert (
        f"rule shop: waits for the cgroup {group}"
        in routed.cli("status", "-i", routed.instance).stdout
    )
    took = _restarts(site, base, base / f"svc/web.service{below}")
    assert sorted(took)[RESTARTS // 4] < ROUTED_WITHIN_MS, took
    assert max(took) < 5000
    assert _status(routed)["pending"] == []
    for path in sorted(base.rglob("*/"), reverse=True):
        path.rmdir()
    wait_for(lambda: _status(routed)["pending"], WITHIN_S, "the rule to wait again")


def test_the_attached_cgroup_is_hooked_again_when_it_is_made_again(site):
    group = site.client_cgroup.child("web.service")
    site.client_cgroup, base = group, site.client_cgroup
    routed = site.attach_client(REFUSE % "{cgroup}")
    took = _restarts(site, base.path, group.path)
    assert sorted(took)[RESTARTS // 4] < ROUTED_WITHIN_MS, took
    assert max(took) < 5000

    group.path.rmdir()
    told = wait_for(lambda: _status(routed)["missing"], WITHIN_S, "status to tell of the cgroup")
    (told,) = told
    assert told["what"] == f"cgroup {group.path}"
    assert "does not exist" in told["why"]
    assert "MISSING" in routed.cli("status", "-i", routed.instance).stdout
    routed.kill_director()
    assert routed.ask("status")[0]["cgroup"] == str(group.path)
    routed.options = ("--pending",)
    routed.restart()
    _restarts(site, base.path, group.path, 1)
    wait_for(lambda: _status(routed)["missing"] == [], WITHIN_S, "nothing to be missing")


def test_an_instance_waits_for_a_cgroup_that_was_never_there(site):
    base, name = site.client_cgroup, "web.service"
    site.client_cgroup = group = base.child(name)
    group.path.rmdir()
    with pytest.raises(Exception, match=r"there is no such cgroup .* or attach with --pending"):
        site.attach_client(REFUSE % "{cgroup}")
    routed = site.attach_client(REFUSE % "{cgroup}", kind=Pending)
    wait_for(lambda: _status(routed)["missing"], WITHIN_S, "status to tell that it is not there")
    routed.kill_director()
    routed.restart()
    took = _restarts(site, base.path, group.path)
    assert sorted(took)[RESTARTS // 4] < ROUTED_WITHIN_MS, took
    routed.close()
    group.path.rmdir()


def test_route_get_answers_for_what_is_routed(site):
    group = site.client_cgroup.child("shop")
    site.client_cgroup, base = group, site.client_cgroup
    routed = site.attach_client(REFUSE % "{cgroup}")

    def get(*words, code=0):
        done = routed.cli("route", "get", *words, "-i", routed.instance, "--json", check=False)
        assert done.returncode == code, done
        return json.loads(done.stdout)

    inside = get("192.0.2.1:80", "--cgroup", group.relative)
    assert (inside["stack"], inside["why"], inside["assumed"]) == ("reject", None, {})
    unsaid = get("192.0.2.1:80")
    assert (unsaid["stack"], unsaid["assumed"]) == ("reject", {"cgroup": group.relative})
    outside = get("192.0.2.1:80", "--cgroup", base.relative)
    assert (outside["stack"], outside["why"], outside["attached"]) == (
        "kernel",
        "outside",
        group.relative,
    )
    assert (
        "there is no cgroup /shpo.slice"
        in get("192.0.2.1", "--cgroup", "/shpo.slice", code=2)["error"]["why"]
    )
    below = get("192.0.2.1", "--cgroup", f"{group.relative}/not-yet")
    assert below["stack"] == "reject"


def test_run_tells_of_rules_that_are_for_another_cgroup(site):
    policy = site.directory / "other.toml"
    script = "import socket; socket.create_connection(('127.0.0.1', 9))"
    command = [*CLI, "run", "--policy", str(policy), "--", "/usr/bin/python3", "-c", script]
    for cgroup, error in (
        (site.client_cgroup.relative, "ConnectionRefusedError"),
        ("/", "PermissionError"),
    ):
        policy.write_text((REFUSE % "{cgroup}").replace("{cgroup}", cgroup))
        done = site.client.run(command, check=False)
        assert error in done.stderr
        told = (
            f"rule shop is for the cgroup {cgroup}, and the command runs in one of its own"
            in done.stderr
        )
        assert told == (cgroup != "/")


FAILED = """
import socket, sys
failed = socket.socket()
assert failed.connect_ex((sys.argv[1], 9))
listening = socket.create_server(("127.0.0.1", 0))
open_ = socket.create_connection(listening.getsockname())
print("ready", flush=True)
sys.stdin.read()
"""


def test_status_counts_what_flows_lists(wired):
    routed = wired.attach_client(None)
    process = server(wired.client, wired.client_cgroup, FAILED, wired.server.ip4)
    assert routed.flows(pid=process.pid)
    status = _status(routed)
    assert (
        status["flows"] == len(routed.flows()) == sum(stack["flows"] for stack in status["stacks"])
    )
    process.stdin.close()

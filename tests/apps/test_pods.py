# SPDX-License-Identifier: Apache-2.0
"""Rules for cgroups by a pattern, as for the pods of a node, which come and go."""

from __future__ import annotations

import json

from remade import REFUSE, RESTARTS, SERVICE
from talking import server

from lab import wait_for

WITHIN_S = 10.0
ROUTED_WITHIN_MS = 50.0  # in most cases: others have the processors, too
PATTERN = "{cgroup}/pods.slice/*/web-?[0-9].scope"

# For how many milliseconds after it was made each pod's connections were not yet refused; None: not
# within the time that is given. Each is named anew, with a slice of its own.
PODS = f"""{SERVICE}
names = sys.argv[4].split(",")
within = float(sys.argv[5])
took = []
for number in range(restarts):
    for name in names:
        pod = os.path.join(path, f"pod{{number}}.slice", name)
        began = time.monotonic()
        os.makedirs(pod)
        join(pod)
        while (said := outcome()) != "PermissionError" and time.monotonic() < began + within:
            pass
        took.append((time.monotonic() - began) * 1000 if said == "PermissionError" else None)
        join(base)
        while pod != path:
            os.rmdir(pod)
            pod = os.path.dirname(pod)
print(json.dumps(took))
"""
LISTEN = """
import socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read()
"""
SERVE = """
[stacks.near]
kind = "kernel"

[[rules]]
name = "pods"
cgroup = "{pattern}"
direction = "listen"
table = "clients"

[[tables.clients.routes]]
to = "default"
stack = "near"
"""


def _pods(site, names, within_s=5.0, times=1):
    """Milliseconds until each pod's connections were refused."""
    base = site.client_cgroup.path
    words = [base, base / "pods.slice", times, ",".join(names), within_s]
    out = site.client.run(["/usr/bin/python3", "-c", PODS, *map(str, words)]).stdout
    print(out)
    return json.loads(out)


def _status(routed):
    return routed.ask("status")[0]


def _none_matched(routed):
    return {one["cgroup"] for one in _status(routed)["pending"]}


def test_pods_are_routed_while_they_are_there(site):
    routed = site.attach_client(None)
    pattern = PATTERN.replace("{cgroup}", site.client_cgroup.relative)
    said = routed.apply(REFUSE % PATTERN)
    assert f"rule shop: waits for the cgroup {pattern}, which does not exist" in said.stderr
    assert _none_matched(routed) == {pattern}
    took = _pods(site, ["web-a1.scope", "web-b2.scope/app/worker"], times=RESTARTS)
    assert None not in took
    assert sorted(took)[len(took) // 2] < ROUTED_WITHIN_MS, took
    assert _pods(site, ["db-a1.scope", "web-ab.scope", "web-a1.scope2"], 0.3) == [None] * 3
    wait_for(lambda: _none_matched(routed) == {pattern}, WITHIN_S, "nothing to be matched")


def test_a_slice_that_is_made_last_and_one_that_was_there(site):
    """Also by a policy that comes when they are there, and by the next director."""
    base = site.client_cgroup
    routed = site.attach_client(None)
    pod = base.child("pods.slice").child("a.slice").child("web-a1.scope")
    routed.apply(REFUSE % PATTERN)
    assert _none_matched(routed) == set()

    def outcome(group):
        words = ["/usr/bin/python3", "-c", f"{SERVICE}\nprint(outcome())", "-", "-", "0"]
        return group.run(words, host=site.client).stdout.strip()

    assert outcome(pod) == "PermissionError"
    assert outcome(base) == "ConnectionRefusedError"
    routed.kill_director()
    assert routed.ask("status")[0]["pending"] == []
    assert outcome(pod) == "PermissionError"
    other = base.path / "pods.slice/b.slice/web-b1.scope"
    other.mkdir(parents=True)
    pod.close()
    routed.restart()
    assert None not in _pods(site, ["web-c3.scope"])
    assert _none_matched(routed) == set()
    other.rmdir()
    wait_for(lambda: _none_matched(routed), WITHIN_S, "nothing to be matched")


def test_each_rule_has_its_pattern_and_what_it_excepts(site):
    base = site.client_cgroup
    routed = site.attach_client(None)
    refuse = REFUSE % "{cgroup}/pods.slice/*"
    first, _, tables = refuse.partition("[[tables")
    other = first.replace("shop", "till")
    kept = 'not = { cgroup = "{cgroup}/*/keep*" }\n'
    routed.apply(f"{first.rstrip()}\n{kept}{other.replace('pods', 'tills')}[[tables{tables}")
    names = [base.path / one for one in ("pods.slice/a", "pods.slice/keep1", "tills.slice/b/c")]
    for name in names:
        name.mkdir(parents=True)

    def rule(name):
        words = ("route", "get", "192.0.2.1:80", "--cgroup", f"{base.relative}/{name}")
        return routed.ask(*words)["rule"]

    asked = ("pods.slice/a/b", "pods.slice/keep1", "tills.slice/b", "pods.slice")
    assert [rule(name) for name in asked] == ["shop", None, "till", None]
    program = f"{SERVICE}\nfor path in sys.argv[4:]:\n    join(path)\n    print(outcome())"

    def outcomes():
        words = ["/usr/bin/python3", "-c", program, "-", "-", "0", *map(str, names)]
        return base.run(words, host=site.client).stdout.split()

    refused, free = "PermissionError", "ConnectionRefusedError"
    wait_for(lambda: outcomes() == [refused, free, refused], WITHIN_S, "all to be followed")


def test_a_listener_of_a_pod_has_its_table(site):
    """Whether it listens when the rule comes, or later."""
    base = site.client_cgroup
    routed = site.attach_client(None)
    pod = base.child("pods.slice").child("a.slice").child("web-a1.scope")
    server(site.client, pod, LISTEN, "7401")
    server(site.client, base, LISTEN, "7402")
    routed.apply(SERVE.replace("{pattern}", PATTERN))
    server(site.client, pod, LISTEN, "7403")
    found = {one["port"]: one["rule"] for one in routed.ask("listeners")}
    assert {port: found[port] for port in (7401, 7402, 7403)} == {
        7401: "pods", 7402: None, 7403: "pods",
    }  # fmt: skip

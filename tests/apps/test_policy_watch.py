# SPDX-License-Identifier: Apache-2.0
"""A whole instance follows its policy file, and tells what it refuses. Each way
by itself: tests/unit/test_watch.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dmm_ebpf.rd.api.client import Client
from lab import wait_for
from lab.commandline import CLI
from lab.waiting import wait_readable

WITHIN_S = 20.0


def _policy(name):
    return (
        f'# {name}\n[stacks.s]\nkind = "kernel"\n[[rules]]\ntable = "t"\n'
        '[[tables.t.routes]]\nto = "default"\nstack = "s"\n'
    )


def _ask(routed, method):
    with Client(routed.instance) as client:
        return client.call(method)


def _expect(routed, text, way):
    wait_for(
        lambda: _ask(routed, "policy_show")["text"] == text,
        WITHIN_S,
        f"the policy to be applied: {way}",
    )
    wait_for(
        lambda: _ask(routed, "status")["policy_refused"] is None, WITHIN_S, f"all to be well: {way}"
    )


def test_a_policy_file_as_kubernetes_mounts_it_is_followed(site):
    """policy.toml -> ..data/policy.toml, and ..data -> a directory, turned at each change."""
    routed = site.attach_client(_policy("first"))
    folder, file = routed.policy_file.parent, routed.policy_file
    for name in ("2026_1", "2026_2", "2026_3"):
        (folder / name).mkdir()
        (folder / name / "policy.toml").write_text(text := _policy(name))
        (folder / "..tmp").symlink_to(name)
        (folder / "..tmp").rename(folder / "..data")
        if not file.is_symlink():
            (folder / "link").symlink_to("..data/policy.toml")
            (folder / "link").rename(file)
        _expect(routed, text, f"..data turned to {name}")


def test_an_emptied_file_is_refused_and_told_until_it_is_mended(site):
    routed = site.attach_client(text := _policy("first"))
    generation = _ask(routed, "status")["generation"]
    routed.policy_file.write_text("")
    told = wait_for(
        lambda: _ask(routed, "status")["policy_refused"], WITHIN_S, "the refusal in status"
    )
    assert told["path"] == str(routed.policy_file)
    assert "it is empty" in told["reason"]
    assert "it is empty" in routed.log.read_text()
    shown = routed.cli("status", "--instance", routed.instance).stdout
    assert any("REFUSED" in line and "it is empty" in line for line in shown.splitlines()), shown
    assert _ask(routed, "policy_show")["text"] == text
    assert _ask(routed, "status")["generation"] == generation
    routed.write_policy(nothing := "# routes nothing\n")
    _expect(routed, nothing, "a comment is a policy")


def test_a_refusal_reaches_followers(site):
    routed = site.attach_client(_policy("first"))
    words = ["flows", "--follow", "--json", "--instance", routed.instance]
    with subprocess.Popen([*CLI, *words], stdout=subprocess.PIPE, text=True) as follower:
        try:
            # Nothing tells from when on it follows: another reason each time, until one
            # has come through.
            for number in range(20):
                routed.policy_file.write_text(f"wrong{number} = 1\n")
                if wait_readable(follower.stdout.fileno(), 1):
                    break
            event = json.loads(follower.stdout.readline())
        finally:
            follower.kill()
    assert (event["type"], event["path"]) == ("policy_refused", str(routed.policy_file))
    assert "wrong" in event["reason"]


LINES = b"".join(b"@.%d.%d,tcp,443,s\n" % (n >> 8, n & 255) for n in range(1 << 16))
MEMORY_KIB = 700 << 10  # eight million routes are read before the file is given up


@pytest.mark.timeout(600)
def test_ten_million_routes_are_refused_and_the_last_policy_stays(site, tmp_path):
    """From a client, and from the file that is followed; meanwhile the director answers."""
    routed = site.attach_client(text := _policy("first"))
    routes = tmp_path / "many.csv"
    with routes.open("wb") as file:
        file.write(b"to,proto,ports,stack\n")
        for number in range(10_000_000 // (1 << 16) + 1):
            prefix = b"%d.%d" % (11 + (number >> 8), number & 255)
            file.write(LINES.replace(b"@", prefix))
    many = tmp_path / "many.toml"
    begun = _policy("many").partition("[[tables.t.routes]]")[0]
    many.write_text(f'{begun}[tables.t]\nroutes_from = "{routes}"\n')
    why = f"{routes}:8000002: the table has more than 8000000 routes"
    argv = [*CLI, "policy", "apply", str(many), "--instance", routed.instance]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as applying:
        answers = 0
        while applying.poll() is None:
            assert _ask(routed, "policy_show")["text"] == text
            answers += 1
        assert applying.stderr
        said = applying.stderr.read()
    assert (applying.returncode, answers > 0) == (2, True)
    assert why in said and len(said.splitlines()) == 1
    many.replace(routed.policy_file)
    wait_for(lambda: _ask(routed, "status")["policy_refused"], 300, "the file to be refused")
    told = _ask(routed, "status")
    assert why in told["policy_refused"]["reason"]
    assert (told["generation"], _ask(routed, "policy_show")["text"]) == (1, text)
    lines = Path(f"/proc/{routed.process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert peak < MEMORY_KIB
    routes.unlink()


def test_an_old_name_is_warned_of_wherever_a_policy_comes_in_force(site):
    """In the log of `attach`, and when the file has changed; what applies it says it, too."""
    stack = '[stacks.wan]\nkind = "user"\nio = "tap"\n{} = 1\n'
    routed = site.attach_client(stack.format("instances"))
    told = "stack wan: instances is an old name of the key processes, which does the same"
    here = f"{routed.policy_file}:4: {told}"
    assert here in routed.log.read_text()
    assert f"dmm-ebpf: warning: {here}" in routed.apply().stderr
    assert routed.log.read_text().count(here) == 2
    routed.write_policy("\n" + stack.format("instances"))
    below = here.replace(":4:", ":5:")
    wait_for(lambda: below in routed.log.read_text(), WITHIN_S, "the warning")

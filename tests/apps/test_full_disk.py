# SPDX-License-Identifier: Apache-2.0
"""No room in the run directory: what runs goes on, what dies comes back, and what cannot be
written is said.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

from sitefixtures import TAP
from talking import Talker, browser, echo, holder

from lab import curl_fetch, nginx, wait_for
from lab.commandline import CLI
from lab.routed import Routed
from lab.waiting import wait_pid_gone

WITHIN_S = 20.0
SIZE = "size=256k"


class Cramped(Routed):
    """An instance whose /run is a small file system of its own."""

    home = 0  # a process that has it, when the Resource Director is gone

    def _command(self):
        if self.home:
            return ("nsenter", "--mount", "--target", str(self.home), *CLI)
        mounted = f'mount -t tmpfs -o {SIZE} none /run && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", mounted, "sh", *CLI)

    def inside(self, *words, check=False):
        """A command that sees the instance's /run."""
        argv = ["nsenter", "--mount", "--target", str(self.home or self.process.pid), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=check, timeout=60)

    def cli(self, *words, check=True):
        return self.inside(*CLI, *words, check=check)

    def fill(self):
        """Every page: dd(1) ends when there is none left."""
        done = self.inside("dd", "if=/dev/zero", "of=/run/filler", "bs=4096")
        assert "No space left" in done.stderr

    def make_room(self):
        self.inside("rm", "/run/filler", check=True)

    def detach(self):
        if self.process.poll() is None or self.home:
            super().detach()


def test_a_full_run_directory_stops_nothing_and_is_told(wired, payload):
    path, sha256 = payload(1_000_000)
    server = nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    before = wired.client.run(["sh", "-c", "ip rule; ip -6 rule; ip -br link"]).stdout
    routed = wired.attach_client(kind=Cramped)
    stack = routed.stack("wan")
    held = holder(wired.client, wired.client_cgroup, wired.server.ip4)
    routed.fill()

    shown = routed.ask("policy", "show")
    applied = routed.apply(shown["text"] + "# changed\n", check=False)
    assert applied.returncode == 1
    assert (
        f"cannot write /run/dmm-ebpf/{routed.instance}/state.json: no space left" in applied.stderr
    )
    assert len(applied.stderr.strip().splitlines()) == 1
    assert routed.ask("policy", "show") == shown

    os.kill(stack["pid"], signal.SIGKILL)
    assert held.communicate(timeout=WITHIN_S)[0] in ("ECONNABORTED\n", "ECONNRESET\n")
    wait_for(
        lambda: (s := routed.stack("wan"))["state"] == "up" and s["pid"] != stack["pid"],
        WITHIN_S,
        "the stack",
    )
    assert (
        curl_fetch(wired.client, server.url(path.name), cgroup=wired.client_cgroup).sha256 == sha256
    )
    told = routed.ask("status")[0]["missing"]
    assert [entry["what"] for entry in told] == [f"state of instance {routed.instance}"]
    assert "no space left" in told[0]["why"]

    routed.make_room()
    wait_for(lambda: routed.ask("status")[0]["missing"] == [], WITHIN_S, "the state to be written")
    state = json.loads(routed.inside("cat", f"/run/dmm-ebpf/{routed.instance}/state.json").stdout)
    assert [s["pid"] for s in state["stacks"]] == [routed.stack("wan")["pid"]]
    wait_for(
        lambda: routed.ask("policy", "show")["text"].endswith("# changed\n"),
        WITHIN_S,
        "the changed file",
    )

    routed.fill()
    stack = routed.stack("wan")
    routed.process.send_signal(signal.SIGINT)
    assert routed.process.wait(WITHIN_S) == 0, routed.log.read_text()
    assert wait_pid_gone(stack["pid"], 1)
    assert wired.client.run(["sh", "-c", "ip rule; ip -6 rule; ip -br link"]).stdout == before


def test_a_director_takes_over_what_no_state_tells_of(wired, payload):
    """The stack was started again while nothing could be written; then the Resource
    Director was killed.
    """
    path, _ = payload(1000)
    nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    routed = wired.attach_client(kind=Cramped)
    first = routed.stack("wan")["pid"]
    routed.fill()
    os.kill(first, signal.SIGKILL)
    second = wait_for(
        lambda: (s := routed.stack("wan"))["state"] == "up" and s["pid"] != first and s["pid"],
        WITHIN_S,
        "the stack",
    )
    talker = browser(wired.client, wired.client_cgroup, wired.server.ip4)
    assert [flow["stack"] for flow in routed.flows(pid=talker.pid)] == ["wan"]
    routed.home = second
    routed.kill_director()
    routed.make_room()
    routed.restart()
    assert routed.stack("wan")["pid"] == second, "the stack process was replaced"
    assert talker.communicate("go\n", WITHIN_S)[0] == "HTTP\n", "an open flow did not survive"


def test_a_director_that_takes_over_with_another_policy_without_room_keeps_the_one_there(wired):
    """It says why, and comes to the other once there is room."""
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(TAP, kind=Cramped)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    stack = routed.home = routed.stack("wan")["pid"]
    before = routed.ask("policy", "show")["text"]
    routed.fill()
    routed.kill_director()
    routed.write_policy(TAP.replace('name = "shop"', 'name = "other"'))
    routed.restart()
    assert routed.stack("wan")["pid"] == stack, "the stack process was replaced"
    assert talker.says("send 100000") == "True"
    assert routed.ask("policy", "show")["text"] == before
    refused = routed.ask("status")[0]["policy_refused"]
    assert refused["path"] == str(routed.policy_file) and "no space left" in refused["reason"]
    routed.make_room()
    other = routed.policy_file.read_text()
    wait_for(lambda: routed.ask("policy", "show")["text"] == other, WITHIN_S, "the other policy")
    assert routed.ask("status")[0]["policy_refused"] is None
    assert talker.says("send 100000") == "True"


def test_a_director_takes_over_without_room(wired):
    """Killed while nothing can be written: the next one goes on, and writes once there is room."""
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(TAP, kind=Cramped)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    stack = routed.home = routed.stack("wan")["pid"]
    routed.fill()
    for _ in range(2):
        routed.kill_director()
        routed.restart()
        assert routed.stack("wan")["pid"] == stack, "the stack process was replaced"
        assert talker.says("send 100000") == "True"
        assert talker.flow(routed)["stack"] == "wan"
    (told,) = routed.ask("status")[0]["missing"]
    assert "no space left" in told["why"]
    refused = routed.apply(TAP.replace('name = "shop"', 'name = "other"'), check=False)
    assert refused.returncode == 1 and "no space left" in refused.stderr
    routed.make_room()
    wait_for(lambda: routed.ask("status")[0]["missing"] == [], WITHIN_S, "the state to be written")
    state = json.loads(routed.inside("cat", f"/run/dmm-ebpf/{routed.instance}/state.json").stdout)
    assert state["pid"] == routed.process.pid
    assert talker.says("send 100000") == "True"

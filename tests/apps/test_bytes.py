# SPDX-License-Identifier: Apache-2.0
"""Names that are no UTF-8, in everything that the system lets be any bytes: no command
breaks on them.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from sitefixtures import TAP, XDP
from talking import Talker, echo

from lab import wait_for
from lab.commandline import CLI
from lab.routed import Routed

NAME = b"n\xff\xfe"
SHOWN = "n\\xff\\xfe"
SHELL = "'n\\377\\376'"  # as printf(1) takes it

TALK = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"n\\xff\\xfe", 0, 0, 0)
listening = socket.create_server(("", 0))
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def beside_a_mount(tmp_path):
    """The beginning of a command that runs where a mount point's name is no UTF-8."""
    point = tmp_path / os.fsdecode(NAME)
    point.mkdir()
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    return ("unshare", "-m", "--propagation", "private", "sh", "-c", script, str(point))


def test_no_command_breaks_on_a_name_that_is_no_utf8(wired, beside_a_mount):
    class Beside(Routed):
        def _command(self):
            return (*beside_a_mount, *CLI)

    wired.client.run(
        ["sh", "-c", f"ip link set {wired.client.nic.name} alias \"$(printf 'n\\377\\376')\""]
    )
    group = wired.client_cgroup.path / os.fsdecode(NAME)
    group.mkdir()
    routed = wired.attach_client(kind=Beside)
    with wired.server.call(lambda: __import__("socket").create_server(("", 0))) as far:
        join = 'echo $$ >"$0" && exec "$@"'
        argv = ["/usr/bin/python3", "-c", TALK, wired.server.ip4, str(far.getsockname()[1])]
        program = wired.client.popen(
            ["/bin/sh", "-c", join, str(group / "cgroup.procs"), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert program.stdout.readline() == b"open\n"

        def cli(*words):
            done = subprocess.run([*beside_a_mount, *CLI, *words], capture_output=True, check=False)
            assert done.returncode == 0, done
            assert b"Traceback" not in done.stderr
            return done.stdout

        named = ("--instance", routed.instance)
        inside = f"{wired.client_cgroup.relative}/{SHOWN}"
        (flow,) = json.loads(cli("flows", *named, "--json"))
        assert (flow["comm"], flow["cgroup"]) == (SHOWN, inside)
        flow["comm"].encode()
        assert SHOWN.encode() in cli("flows", *named)
        rows = json.loads(cli("listeners", *named, "--json"))
        assert {row["comm"] for row in rows} == {SHOWN}
        assert SHOWN.encode() in cli("listeners", *named)
        for words in (("status",), ("stacks",), ("policy", "show")):
            json.loads(cli(*words, *named, "--json"))
            cli(*words, *named)
        asked = cli("route", "get", "192.0.2.1:80", *named, "--cgroup", str(group), "--json")
        assert json.loads(asked)["wanted"] == "wan"
        nic = wired.client.run([*CLI, "hal", wired.client.nic.name, "--json"]).stdout
        assert json.loads(nic)
        program.stdin.close()
        program.wait()
    wait_for(lambda: json.loads(cli("flows", *named, "--json")) == [], 10, "the flow to end")
    cli("detach", *named)
    assert routed.process.wait() == 0
    group.rmdir()


@pytest.mark.parametrize("policy", [TAP, XDP], ids=["tap", "af_xdp"])
def test_a_stack_serves_a_device_whose_name_is_no_utf8(wired, policy):
    host = wired.client
    rename = (
        f'ip link set {host.nic.name} down; ip link set {host.nic.name} name "$(printf {SHELL})";'
        f' ip link set "$(printf {SHELL})" up; ip route replace default via {wired.server.ip4}'
    )
    host.run(["sh", "-ec", rename])
    routed = wired.attach_client(policy)
    echo(wired.server, wired.server_cgroup)
    talker = Talker(host, wired.client_cgroup, wired.server.ip4)
    assert talker.says("send 100000") == "True"
    assert talker.flow(routed)["stack"] == "wan"
    assert routed.stack("wan")["nics"] == [SHOWN]
    assert routed.ask("status")[0]["nics"][0]["ifname"] == SHOWN
    assert SHOWN in routed.cli("stacks", "--instance", routed.instance).stdout
    told = json.loads(host.run([*CLI, "hal", os.fsdecode(NAME), "--json"]).stdout)
    assert told[0]["name"] == SHOWN

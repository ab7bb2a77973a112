# SPDX-License-Identifier: Apache-2.0
"""Programs choose their stack by setsockopt() alone: the samples of docs/examples/choose, as they
stand there, and what listings say of their flows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign import program_on
from sitefixtures import Site
from talking import PORT, Talker, echo

from dmm_ebpf import abi
from dmm_ebpf.abi import C

SAMPLES = Path(__file__).resolve().parents[2] / "docs/examples/choose"
POLICY = """
[stacks.wan]
kind = "user"
io = "tap"
congestion = "wan"

[stacks.lan]
kind = "kernel"
dscp = "af21"

[[rules]]
name = "may"
cgroup = "{cgroup}"
choose = ["wan"]
"""
BYTES = 3_000_000

Payload = tuple[int, str]  # the port, and the hash of what comes from there


@pytest.fixture
def payload(wired: Site) -> Iterator[Payload]:
    """A server that sends the same to everybody, and closes."""
    data = os.urandom(BYTES)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(data)

    listener = wired.server.call(lambda: socket.create_server(("", 0)))
    thread = threading.Thread(target=serve, args=(listener,))
    thread.start()
    yield listener.getsockname()[1], hashlib.sha256(data).hexdigest()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """choose.c, compiled with the header as it is installed."""
    program = tmp_path_factory.mktemp("built") / "choose"
    command = ["cc", "-Wall", "-Wextra", "-Werror", f"-I{abi.bpf_dir()}", "-o", str(program)]
    subprocess.run([*command, str(SAMPLES / "choose.c")], check=True)
    return program


def _comes(site: Site, command: list[str], stack: str, payload: Payload) -> str:
    """What the program says of who serves; its output is the payload."""
    words = list(command)
    at = words.index("WHERE")
    words[at : at + 1] = [stack, site.server.ip4, str(payload[0])]
    done = site.client_cgroup.run(words, host=site.client, timeout=60, text=False)
    assert hashlib.sha256(done.stdout).hexdigest() == payload[1]
    return done.stderr.decode()


def _go_program(folder: Path) -> Path:
    """choose.go, compiled by Go's own compiler, or by GCC's, which tools/bootstrap installs where
    there is none.
    """
    program = folder / "choose-go"
    compiler = ["go", "build"] if shutil.which("go") else ["gccgo-12"]
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod"}
    command = [*compiler, "-o", str(program), str(SAMPLES / "choose.go")]
    subprocess.run(command, check=True, env=environment)
    return program


@pytest.mark.parametrize("language", ["c", "python", "go", "node"])
def test_a_sample_has_the_stack_that_it_chooses(
    wired: Site, payload: Payload, built: Path, language: str, tmp_path: Path
) -> None:
    wired.attach_client(POLICY)
    if language == "c":
        command = [str(built), "WHERE"]
    elif language == "python":
        command = [sys.executable, str(SAMPLES / "choose.py"), "WHERE"]
    elif language == "node":
        command = [str(built), "WHERE", "node", str(SAMPLES / "inherited.js")]
    else:
        command = [str(_go_program(tmp_path)), "WHERE"]
    assert _comes(wired, command, "wan", payload) == "served by wan\n"
    said = _comes(wired, command, "lan", payload)
    assert "the stack lan" in said and "not permitted" in said and "served by kernel" in said


def test_without_an_instance_the_connection_is_the_kernel_s(
    wired: Site, payload: Payload, built: Path
) -> None:
    said = _comes(wired, [str(built), "WHERE"], "wan", payload)
    assert said == "choose: the stack wan: Protocol not available\n"


CHOOSING = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from dmm_stack import choose, serving
stack, address, port = sys.argv[2:]
sock = socket.socket()
try:
    choose(sock, stack)
except OSError as error:
    print(error.errno, end=" ")
sock.connect((address, int(port)))
print(*serving(sock), flush=True)
sys.stdin.readline()
"""


def test_flows_tell_of_a_choice_and_of_a_refused_one(wired: Site) -> None:
    routed = wired.attach_client(POLICY)
    echo(wired.server, wired.server_cgroup)
    seen = {}
    for stack in ("wan", "lan"):
        words = [sys.executable, "-c", CHOOSING, str(SAMPLES), stack, wired.server.ip4, str(PORT)]
        program = wired.client_cgroup.spawn(
            words, host=wired.client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert program.stdout and program.stdin
        said = program.stdout.readline()
        (flow,) = routed.flows(pid=program.pid)
        seen[stack] = (said, flow["stack"], flow["rule"], flow["chosen"], flow["choice"])
        if stack == "lan":
            table = routed.cli("flows", "--instance", routed.instance).stdout
            assert "kernel (choice of lan refused)" in table
        program.stdin.close()
        program.wait()
    assert seen["wan"] == ("wan wan 0 1\n", "wan", "may", "wan", "taken")
    assert seen["lan"] == ("1 kernel kernel 0 2\n", "kernel", None, "lan", "refused")


def test_a_listener_chooses_for_those_that_it_accepts(wired: Site) -> None:
    """The other side is routed: it accepts by the stack of its program's choice."""
    policy = POLICY.replace('io = "tap"', 'io = "tap"\nsyn_cookies = "off"')
    routed = wired.attach_server(policy)
    script = f"""
import socket, sys
sys.path.insert(0, sys.argv[1])
from dmm_stack import choose, serving
listener = socket.socket()
choose(listener, "wan")
listener.bind(("", {PORT}))
listener.listen()
print("ready", flush=True)
sock = listener.accept()[0]
sock.sendall(b"hello\\n")
print(*serving(sock), flush=True)
while data := sock.recv(65536):
    sock.sendall(data)
"""
    server = wired.server_cgroup.spawn(
        [sys.executable, "-c", script, str(SAMPLES)],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout and server.stdout.readline() == "ready\n"
    (listener,) = routed.ask("listeners")
    assert (listener["chosen"], listener["rule"], listener["table"]) == ("wan", "may", None)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert server.stdout.readline() == "wan wan 0 1\n"
    assert talker.says("send 1000000") == "True"
    (flow,) = routed.flows(pid=server.pid)
    assert (flow["stack"], flow["chosen"], flow["choice"]) == ("wan", "wan", "taken")
    # While the policy does not let it, the listener is the kernel's.
    routed.apply(POLICY.replace('choose = ["wan"]', 'choose = ["lan"]'))
    assert "chosen" not in routed.ask("listeners")[0]
    routed.apply(policy)
    assert routed.ask("listeners")[0]["chosen"] == "wan"


NOBODY = POLICY.partition("[[rules]]")[0]


def _sockopt_programs(site: Site) -> int:
    path = str(site.client_cgroup.path)
    shown = subprocess.run(
        ["bpftool", "-j", "cgroup", "show", path], check=True, capture_output=True, text=True
    )
    hooks = [one["attach_type"] for one in json.loads(shown.stdout.strip() or "[]")]
    return sum(hook in {"cgroup_setsockopt", "cgroup_getsockopt"} for hook in hooks)


def test_programs_for_socket_options_are_there_once_somebody_may_choose(
    wired: Site, payload: Payload, built: Path
) -> None:
    """Each makes every setsockopt() and getsockopt() of the cgroup longer."""
    routed = wired.attach_client(NOBODY)
    assert _sockopt_programs(wired) == 0
    said = _comes(wired, [str(built), "WHERE"], "wan", payload)
    assert said == "choose: the stack wan: Protocol not available\n"
    routed.apply(POLICY)
    assert _sockopt_programs(wired) == 2
    assert _comes(wired, [str(built), "WHERE"], "wan", payload) == "served by wan\n"
    routed.apply(NOBODY)
    assert "not permitted" in _comes(wired, [str(built), "WHERE"], "wan", payload)
    routed.kill_director()
    routed.restart()
    assert _sockopt_programs(wired) == 2
    routed.apply(POLICY)
    assert _comes(wired, [str(built), "WHERE"], "wan", payload) == "served by wan\n"
    routed.detach()
    assert _sockopt_programs(wired) == 0


def test_where_somebody_keeps_socket_options_for_himself_the_policy_is_refused(
    wired: Site, payload: Payload, built: Path
) -> None:
    routed = wired.attach_client(NOBODY)
    with program_on(wired.client_cgroup, "cgroup_setsockopt"):
        routed.write_policy(POLICY)
        said = routed.cli(
            "policy", "apply", str(routed.policy_file), "-i", routed.instance, check=False
        )
        assert said.returncode
        (line,) = said.stderr.splitlines()[:1]
        assert "exclusively" in line and "Traceback" not in said.stderr
        assert routed.ask("status")[0]["generation"] == 1
    routed.apply(POLICY)
    assert _comes(wired, [str(built), "WHERE"], "wan", payload) == "served by wan\n"


def test_the_samples_have_the_header_s_numbers() -> None:
    python = (SAMPLES / "dmm_stack.py").read_text(encoding="utf-8")
    numbers = re.findall(r"= (0x\w+), (\d+), (\d+)$", python, re.MULTILINE)
    level, stack, serving = (int(text, 0) for text in numbers[0])
    assert (level, stack, serving) == (C.SOL_DMM, C.DMM_STACK, C.DMM_SERVING)
    assert (
        f'"32s32sII", sock.getsockopt(SOL_DMM, DMM_SERVING, {abi.sizeof("dmm_serving")})' in python
    )
    go = (SAMPLES / "choose.go").read_text(encoding="utf-8")
    assert f"solDMM   = {level:#x}\n" in go and f"dmmStack = {stack}\n" in go

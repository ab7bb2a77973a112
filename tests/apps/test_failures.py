# SPDX-License-Identifier: Apache-2.0
"""What is killed, refused or wrong: new connections work at once, what ran goes on, and
detach leaves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from labfixtures import instance_name
from sitefixtures import AUTO
from talking import browser, holder

from dmm_ebpf import abi, loader
from dmm_ebpf.errors import DmmError
from dmm_ebpf.tui.source import RdSource
from lab import curl_fetch, nginx, wait_for
from lab.build import bpf_object
from lab.commandline import CLI
from lab.waiting import stop

BEGIN = """
import socket, sys, time
sys.stdin.readline()
end = time.monotonic() + 0.1
while True:
    try:
        s = socket.socket()
        s.settimeout(0.03)  # a SYN that the dying process took along is sent again only after a second
        s.connect((sys.argv[1], 80))
        s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        s.settimeout(5)
        assert s.recv(4) == b"HTTP"
        print("answered")
        break
    except OSError as error:
        if time.monotonic() > end:
            print("no answer within 100 ms:", error)
            break
"""


def _client(wired):
    """A program that is ready to connect, and does it when told: starting Python is not
    what is measured.
    """
    return wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", BEGIN, wired.server.ip4],
        host=wired.client,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _rules_and_links(host):
    text = host.run(
        [
            "sh",
            "-c",
            "ip rule; ip -6 rule; ip -br link; ip route show table all | grep -c dmm || true",
        ]
    )
    sysctl = host.run(
        [
            "cat",
            *(
                f"/proc/sys/net/{name}"
                for name in ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect")
            ),
        ]
    )
    return text.stdout + sysctl.stdout


@pytest.fixture
def served(wired, payload):
    path, sha256 = payload(1_000_000)
    server = nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    return server.url(path.name), sha256


@pytest.mark.alone("100 ms are the clock's")
@pytest.mark.parametrize("victims", ["stack", "director", "both"])
def test_after_a_kill_new_connections_are_made_within_100_ms(wired, served, victims):
    before = _rules_and_links(wired.client)
    routed = wired.attach_client()
    url, sha256 = served
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    client = _client(wired)
    stack_pid = routed.stack("wan")["pid"]
    if victims in ("director", "both"):
        routed.kill_director()
    if victims in ("stack", "both"):
        os.kill(stack_pid, signal.SIGKILL)
    assert client.communicate("go\n", 20)[0] == "answered\n"
    if victims == "stack":
        wait_for(lambda: routed.stack("wan")["state"] == "up", 10, "the stack to be started again")
        assert routed.stack("wan")["pid"] != stack_pid
        assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
        assert routed.stack("wan")["restarts"] == 1
    routed.close()
    assert _rules_and_links(wired.client) == before
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256


def test_a_stack_that_does_not_run_gets_no_new_flow_until_it_runs_again(wired, served):
    routed = wired.attach_client()
    url, sha256 = served
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    pid = routed.stack("wan")["pid"]
    before = routed.ask("status")[0]["counters"]["connect_full"]
    stop(pid)
    try:
        wait_for(lambda: routed.stack("wan")["state"] == "hung", 5, "the stack to be missed")
        asked = routed.ask("route", "get", f"{wired.server.ip4}:80")
        assert (asked["stack"], asked["why"]) == ("kernel", "full")  # and not down
        assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
        assert routed.ask("status")[0]["counters"]["connect_full"] > before
        wait_for(lambda: "hangs" in routed.log.read_text(), 5, "a line in the log")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: routed.stack("wan")["state"] == "up", 5, "the stack to run again")
    full = routed.ask("status")[0]["counters"]["connect_full"]
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    assert routed.ask("status")[0]["counters"]["connect_full"] == full
    assert routed.stack("wan")["pid"] == pid


def test_a_dying_stack_resets_its_flows_instead_of_leaving_them_hanging(wired, served, python):
    routed = wired.attach_client()
    held = holder(wired.client, wired.client_cgroup, wired.server.ip4)
    os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
    assert held.communicate(timeout=10)[0] in ("ECONNABORTED\n", "ECONNRESET\n")


def test_a_take_over_resets_what_a_stack_carried_that_died_meanwhile(wired, served):
    """Nobody saw it die: its flows would hang, and a later connection of their 5-tuples would
    be given to the stack.
    """
    routed = wired.attach_client()
    held = [holder(wired.client, wired.client_cgroup, wired.server.ip4) for _ in range(3)]
    stack_pid = routed.stack("wan")["pid"]
    routed.kill_director()
    os.kill(stack_pid, signal.SIGKILL)
    maps = loader.open_maps(routed.instance)
    try:
        assert maps.xdp_flows.count() == 3
        routed.restart()
        for one in held:
            assert one.communicate(timeout=10)[0] == "ECONNABORTED\n"
        assert maps.xdp_flows.count() == 0
    finally:
        for one in maps.values():
            one.close()


SYNS = """
import socket, sys
held = []
for _ in range(20):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex((sys.argv[1], 80))
    held.append(one)
"""


def test_frames_that_a_full_device_drops_are_counted(wired):
    """As many as the kernel says, in stacks and status."""
    routed = wired.attach_client()
    before = routed.stack("wan")
    device = f"{before['device']}.0.in"
    assert before["counters"]["tap_queue_dropped"] == 0
    stop(before["pid"])
    try:
        wired.client.run(["ip", "link", "set", device, "txqueuelen", "2"])
        argv = ["/usr/bin/python3", "-c", SYNS, wired.server.ip4]
        wired.client_cgroup.run(argv, host=wired.client)
    finally:
        os.kill(before["pid"], signal.SIGCONT)
    (link,) = json.loads(wired.client.run(["ip", "-s", "-j", "link", "show", device]).stdout)
    lost = link["stats64"]["tx"]["dropped"]
    assert lost > 5
    assert routed.stack("wan")["counters"]["tap_queue_dropped"] >= lost
    assert f"tap_queue_dropped {lost}" in routed.cli("status", "-i", routed.instance).stdout


def test_status_of_what_another_version_left_tells_what_is_known(wired):
    routed = wired.attach_client()
    stack = routed.stack("wan")
    routed.kill_director()
    maps = loader.open_maps(routed.instance)
    key = bytes(4)
    whole = maps["control"].lookup(key)
    control = abi.unpack("dmm_control", whole)
    control.abi_version += 1
    maps["control"].update(key, abi.pack(control))
    try:
        (row,) = routed.ask("status")
        known = (row["rd"], row["cgroup"], row["policy"], row["flows"])
        assert known == ("dead", str(wired.client_cgroup.path), str(routed.policy_file), None)
        assert f"its maps have ABI version {control.abi_version}, this is" in row["problem"]
        assert f"dmm-ebpf detach --instance {routed.instance}" in row["problem"]
        assert [(s["name"], s["state"], s["pid"]) for s in row["stacks"]] == [
            ("wan", "unknown", stack["pid"])
        ]
        assert (
            f"  PROBLEM   {row['problem']}\n" in routed.cli("status", "-i", routed.instance).stdout
        )
    finally:
        maps["control"].update(key, whole)
        for one in maps.values():
            one.close()


def test_a_director_that_is_stopped_is_told_of_soon(wired, served):
    """And its instance is listed from what is pinned, until it goes on."""
    routed = wired.attach_client()
    holder = browser(wired.client, wired.client_cgroup, wired.server.ip4)
    pid = routed.ask("status")[0]["pid"]
    silent = f"its Resource Director does not answer: its process {pid} is stopped"
    stop(pid)
    began = time.monotonic()
    try:
        flows, route, status = (
            routed.cli(*words, "-i", routed.instance, check=False)
            for words in (("flows", "--json"), ("route", "get", wired.server.ip4), ("status",))
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - began < 45, "flows alone took 60 s"
    assert [f["stack"] for f in json.loads(flows.stdout) if f["pid"] == holder.pid] == ["wan"]
    assert flows.returncode == status.returncode == 0
    assert f"{silent}; shown from what it left pinned" in flows.stderr
    assert "  director  does not answer\n" in status.stdout
    assert route.returncode == 75
    assert f"{silent}; kill -CONT {pid} lets it go on" in route.stderr
    assert routed.ask("status")[0]["rd"] == "up"


def test_a_killed_director_is_replaced_and_its_stack_goes_on(wired, served):
    routed = wired.attach_client()
    url, sha256 = served
    holder = browser(wired.client, wired.client_cgroup, wired.server.ip4)
    stack_pid = routed.stack("wan")["pid"]
    routed.kill_director()
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    offline = json.loads(routed.cli("flows", "--instance", routed.instance, "--json").stdout)
    assert [f["stack"] for f in offline if f["pid"] == holder.pid] == ["wan"]
    looked = RdSource(None).poll()
    mine = [flow.stack for flow in looked.flows if flow.pid == holder.pid]
    assert mine == ["wan"], "top shows it, too"
    stacks = [(one.name, one.state) for one in looked.stacks if one.instance == routed.instance]
    assert stacks == [("wan", "up")]
    assert (
        f"{routed.instance}: its Resource Director is not running; shown from what it left pinned"
        in looked.notes
    )
    routed.restart()
    assert routed.stack("wan")["pid"] == stack_pid, "the stack process was replaced"
    assert holder.communicate("go\n", 10)[0] == "HTTP\n", "an open flow did not survive"
    os.kill(stack_pid, signal.SIGKILL)
    wait_for(
        lambda: routed.stack("wan")["state"] == "up" and routed.stack("wan")["pid"] != stack_pid,
        10,
        "restart",
    )
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256


def test_a_wrong_policy_file_changes_nothing(wired, served):
    routed = wired.attach_client()
    good = routed.policy_file.read_text()
    generation = routed.ask("policy", "show")["generation"]
    routed.write_policy(good.replace('stack = "wan"', 'stack = "wam"'))
    wait_for(lambda: "wam" in routed.log.read_text(), 10, "the refusal in the log")
    done = routed.apply(check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "wam" in done.stderr
    assert "Traceback" not in done.stderr
    shown = routed.ask("policy", "show")
    assert (shown["generation"], shown["text"]) == (generation, good)
    url, sha256 = served
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256


def test_a_changed_policy_file_moves_the_next_connection_and_no_open_one(wired, served, python):
    routed = wired.attach_client()
    address = f"{wired.server.ip4}:80"
    holder = browser(wired.client, wired.client_cgroup, wired.server.ip4)
    text = routed.policy_file.read_text()
    routed.write_policy(text.replace('stack = "wan"', 'stack = "lan"'))
    where = ("route", "get", address, "--cgroup", wired.client_cgroup.relative)
    wait_for(lambda: routed.ask(*where)["stack"] == "lan", 10, "the new policy")
    said = json.loads(python(wired.client, wired.client_cgroup, OPTIONS, wired.server.ip4))
    assert said == ["cubic", 0x48]
    (flow,) = routed.flows(pid=holder.pid)
    assert flow["stack"] == "wan"
    assert holder.communicate("go\n", 10)[0] == "HTTP\n"
    wait_for(
        lambda: routed.stack("wan")["state"] == "off", 15, "the stack that nobody needs to end"
    )


OPTIONS = """
import json, socket, sys
s = socket.create_connection((sys.argv[1], 80))
cc = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\\0")[0].decode()
print(json.dumps([cc, s.getsockopt(socket.SOL_IP, socket.IP_TOS) & 0xfc]))
"""


def test_a_second_director_for_the_instance_is_refused(wired):
    routed = wired.attach_client()
    done = routed.cli(
        "attach",
        "--instance",
        routed.instance,
        "--cgroup",
        str(wired.client_cgroup.path),
        check=False,
    )
    assert done.returncode == 75
    assert f"pid {routed.process.pid} serves it already" in done.stderr
    assert routed.stack("wan")["state"] == "up"


def test_a_foreign_xdp_program_is_never_replaced(wired, tmp_path):
    built = bpf_object(
        '__attribute__((section("xdp"), used)) int pass(void *ctx) { return 2; }\n',
        tmp_path / "pass.o",
    )
    device = wired.client.nic.name
    wired.client.run(
        ["ip", "link", "set", "dev", device, "xdpdrv", "obj", str(built), "sec", "xdp"]
    )
    shown = wired.client.run(["ip", "-j", "link", "show", device]).stdout
    with pytest.raises(DmmError, match=rf"{device}.*XDP"):
        wired.attach_client()
    assert wired.client.run(["ip", "-j", "link", "show", device]).stdout == shown
    routed = wired.attach_client(AUTO)
    (port,) = routed.stack("wan")["ports"]
    assert (port["nic"], port["port"]) == (device, "tap") and "is on it" in port["why"]
    routed.close()
    assert wired.client.run(["ip", "-j", "link", "show", device]).stdout == shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["attach", "--cgroup", "/no/such/group"], 2, "/no/such/group"),
        (["attach", "--cgroup", "/", "--netns", "no-such-ns"], 2, "no-such-ns"),
        (["attach", "--cgroup", "/", "--policy", "/no/such.toml"], 2, "/no/such.toml"),
        (["attach", "--cgroup", "/", "--instance", "a/b"], 2, "a/b"),
        (["route", "get", "not-an-address", "--instance", "nobody"], 2, "not-an-address"),
        (["run", "--", "/no/such/command"], 127, "/no/such/command"),
        (["policy", "show", "--instance", "nobody"], 1, "nobody"),
    ],
)
def test_a_wrong_argument_is_one_sentence(words, code, said, no_leaks):
    done = subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=60, check=False)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.returncode == code


AS_NOBODY = """
import os, sys
import dmm_ebpf.cli.actions, dmm_ebpf.rd.life.attaching  # the checkout may be root's alone
from dmm_ebpf.cli.main import main
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.argv = ["dmm-ebpf", "attach", "--cgroup", "/"]
main()
"""


def test_without_root_nothing_is_tried(no_leaks):
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 77
    assert "not root" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_run_gives_the_commands_exit_code_and_leaves_nothing(wired, served):
    before = _rules_and_links(wired.client)
    policy = wired.directory / "run.toml"
    policy.write_text(
        '[stacks.wan]\nkind = "user"\nio = "af_xdp"\ncongestion = "wan"\n[[rules]]\ntable = "t"\n'
        '[[tables.t.routes]]\nto = "default"\nstack = "wan"\n'
    )
    url, sha256 = served
    show = f"{' '.join(CLI)} flows --json >&2; exit 7"
    script = f"curl -sS {url} | sha256sum; {show}"
    done = wired.client.run(
        [*CLI, "run", "--policy", str(policy), "--", "sh", "-c", script], check=False
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.split()[0] == sha256
    done = wired.client.run([*CLI, "run", "--", "sh", "-c", "kill -TERM $$"], check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert _rules_and_links(wired.client) == before


def test_a_daemon_detaches_from_another_namespace(wired, served):
    before = _rules_and_links(wired.client)
    policy = wired.directory / "daemon.toml"
    policy.write_text(
        '[stacks.wan]\nkind = "user"\n[[rules]]\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "wan"\n'
    )
    name = instance_name("9d")
    words = ["--instance", name]
    subprocess.run(
        [
            *(*CLI, "attach", "--daemon", *words, "--cgroup", str(wired.client_cgroup.path)),
            *("--policy", policy.name, "--netns", str(wired.client.netns_path)),
        ],
        cwd=policy.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=30,
        capture_output=True,
    )
    try:
        url, sha256 = served
        assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
        # Of all instances; one of somebody else that cannot be asked makes the exit code another.
        done = subprocess.run(
            [*CLI, "status", "--json"], capture_output=True, text=True, check=False
        )
        listed = json.loads(done.stdout)
        assert name in [i["instance"] for i in listed]
    finally:
        subprocess.run([*CLI, "detach", *words], check=True, timeout=30, capture_output=True)
    assert not Path(f"/run/dmm-ebpf/{name}").exists()
    assert _rules_and_links(wired.client) == before


def test_a_cgroup_that_is_made_again_is_routed_again(wired, served, make_cgroup, python):
    inner = wired.client_cgroup.child("inner")
    policy = (
        '[stacks.lan]\nkind = "kernel"\ncongestion = "cubic"\n[[rules]]\ncgroup = "{cgroup}/inner"\ntable = "t"\n'
        '[[tables.t.routes]]\nto = "default"\nstack = "lan"\n'
    )
    routed = wired.attach_client(policy)
    inner.path.rmdir()
    inner.path.mkdir()
    wait_for(
        lambda: json.loads(python(wired.client, inner, OPTIONS, wired.server.ip4))[0] == "cubic",
        10,
        "the new cgroup to be routed",
    )
    assert not routed.ask("status")[0]["pending"]


def test_a_device_without_link_header_is_refused_for_af_xdp_and_nothing_is_left(wired):
    wired.client.ip(
        "tuntap add dev tun9 mode tun", "link set tun9 up", "addr add 198.51.100.1/24 dev tun9"
    )
    before = _rules_and_links(wired.client)
    policy = (
        '[stacks.wan]\nkind = "user"\nio = "af_xdp"\ndevices = ["tun9"]\n[[rules]]\ntable = "t"\n'
        '[[tables.t.routes]]\nto = "default"\nstack = "wan"\n'
    )
    with pytest.raises(DmmError, match=r"tun9.*no Ethernet header"):
        wired.attach_client(policy)
    assert _rules_and_links(wired.client) == before


FORGETS = """
import socket, sys
TCP_REPAIR = 19
listening = socket.create_server(("::", 7004), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
c, _ = listening.accept()
assert c.recv(1) == b"x"
c.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
c.close()
print("forgotten", flush=True)
"""

FORGOTTEN = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7004), timeout=20)
s.sendall(b"x")
print("sent", flush=True)
sys.stdin.readline()
try:
    s.sendall(b"x")
    print("answered", s.recv(1))
except ConnectionResetError:
    print("reset")
"""


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_connection_that_the_kernel_has_forgotten_is_reset(wired, ipv6):
    """A socket under repair closes without a word; the RST to what comes then is for the
    stack to hear.
    """
    wired.attach_server()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", FORGETS], host=wired.server, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout.readline() == "ready\n"
    client = wired.client.popen(
        ["/usr/bin/python3", "-c", FORGOTTEN, wired.server.ip6 if ipv6 else wired.server.ip4],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout.readline() == "sent\n"
    assert server.stdout.readline() == "forgotten\n"
    assert client.communicate("go\n", 30)[0] == "reset\n"

# SPDX-License-Identifier: Apache-2.0
"""The laboratory itself: what it makes and removes, its command line, XDP on its
hosts, its helpers.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from labfixtures import assert_no_leaks, snapshot

from dmm_ebpf.errors import DmmError, UsageError
from lab import (
    Cgroup,
    Lab,
    busybox_fetch,
    busybox_httpd,
    cgroup2_mount,
    curl_fetch,
    nginx,
    random_file,
    redis_server,
    wait_for,
)
from lab.hosts import NETNS_PREFIX, STATE_DIR, labs
from lab.netns import NETNS_DIR
from lab.units import Queue, parse_probability, parse_queue, parse_rate, parse_time_ns

WANLAB = Path(__file__).resolve().parents[2] / "tools" / "wanlab"


def wanlab(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, WANLAB, *argv], capture_output=True, text=True, check=False, timeout=30
    )


@contextmanager
def wanlab_up(name: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, WANLAB, "up", "--quiet", "--name", name, *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert select.select([process.stdout], [], [], 15)[0]
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        wanlab("clean")


def test_closing_removes_everything(no_leaks: None) -> None:
    with Lab("closing") as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.wan(a, b, delay="1ms")
        lab.wire(a, b)
        # A daemon that left its parent, its group and its session is found by its mark.
        a.run(["setsid", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &"])
        wait_for(a.pids, 5)
        name = lab.name
    assert not list(NETNS_DIR.glob(f"{NETNS_PREFIX}{name}*"))
    assert not (STATE_DIR / name).exists()


def test_leak_check_sees_a_leak(no_leaks: None) -> None:
    before = snapshot()
    with Lab("leak") as lab:
        process = lab.host("a").popen(["sleep", "1000"])
        # Popen returns during exec, a moment before the new program's environment can be read.
        wait_for(Path(f"/proc/{process.pid}/environ").read_bytes, 5)
        with pytest.raises(pytest.fail.Exception, match=r"namespace left(.|\n)*sleep 1000"):
            assert_no_leaks(before, snapshot())


def test_an_exception_still_cleans_up(no_leaks: None) -> None:
    with pytest.raises(DmmError, match="cannot set up"), Lab("failing") as lab:
        lab.host("a").ip("link set no_such_link up")


def test_host_enters_only_the_network_namespace(lab: Lab) -> None:
    a = lab.host("a")
    own_mnt, own_net = (str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("mnt", "net"))
    host_net = str(a.call(Path("/proc/thread-self/ns/net").readlink))
    assert host_net != own_net
    seen = a.run(["readlink", "/proc/self/ns/mnt", "/proc/self/ns/net"]).stdout.split()
    assert seen == [own_mnt, host_net]
    assert a.run(["ls", cgroup2_mount() / "cgroup.procs"]).returncode == 0


def test_failing_command_says_where_and_why(lab: Lab) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        lab.host("a").run(["sh", "-c", "echo the reason >&2; exit 3"])
    assert caught.value.returncode == 3
    assert "on host a: the reason\n" in caught.value.__notes__


def test_cgroup_holds_what_is_spawned_in_it(lab: Lab, cgroup: Cgroup) -> None:
    a = lab.host("a")
    process = cgroup.spawn(["sleep", "1000"], host=a)
    wait_for(lambda: process.pid in cgroup.pids(), 5)
    assert wait_for(a.pids, 5) == [process.pid]
    where = cgroup.run(["cat", "/proc/self/cgroup"], host=a).stdout
    assert f"0::{cgroup.relative}\n" in where
    inner = cgroup.child("inner")
    assert inner.relative == f"{cgroup.relative}/inner"


def test_servers_answer_when_started(lab: Lab, cgroup: Cgroup, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    root = tmp_path / "root"
    root.mkdir()
    sha256 = random_file(root / "file", 100_000)
    assert random_file(root / "same", 100_000) == sha256
    for server in (
        nginx(b, root, tmp_path / "nginx", cgroup=cgroup),
        busybox_httpd(b, root, tmp_path / "httpd"),
    ):
        for ipv6 in (False, True):
            assert curl_fetch(a, server.url("file", ipv6=ipv6)).sha256 == sha256
            assert busybox_fetch(a, server.url("file", ipv6=ipv6)).sha256 == sha256
    redis_server(b, tmp_path / "redis")
    assert a.run(["redis-cli", "-h", b.ip4, "ping"]).stdout == "PONG\n"
    refused = curl_fetch(a, f"http://{b.ip4}:81/")
    assert (refused.exit_code, refused.size_bytes) == (7, 0)


def test_server_that_cannot_start_says_why(lab: Lab, tmp_path: Path) -> None:
    a = lab.host("a")
    redis_server(a, tmp_path / "one")
    with pytest.raises(DmmError, match=r"cannot start redis-server on a: .*in use"):
        redis_server(a, tmp_path / "two")


def test_command_line_from_up_to_down(no_leaks: None) -> None:
    name = f"cli.{os.getpid()}.0"
    with wanlab_up(name, "--rate", "20mbit/5mbit", "--delay", "5ms", "--loss", "0/3%") as process:
        ping = wanlab("enter", "--name", name, "left", "ping", "-c1", "198.18.0.2")
        assert "1 packets transmitted, " in ping.stdout
        stats = json.loads(wanlab("stats", "--json", "--name", name).stdout)
        assert stats["ab"]["rx_pkts"] > 0
        assert stats["ab"]["params"]["rate_bps"] == 20_000_000
        assert stats["ba"]["params"]["loss"] == 0.03
        assert wanlab("set", "--name", name, "--delay", "20ms").returncode == 0
        stats = json.loads(wanlab("stats", "--json", "--name", name).stdout)
        for direction, rate_bps in (("ab", 20_000_000), ("ba", 5_000_000)):
            assert stats[direction]["params"]["delay_ns"] == 20_000_000
            assert stats[direction]["params"]["rate_bps"] == rate_bps
        assert {"name": name, "owner_pid": process.pid} in json.loads(
            wanlab("list", "--json").stdout
        )
        assert wanlab("down", "--name", name).returncode == 0
        assert process.wait(10) == 0
    assert name not in labs()


def test_clean_removes_what_a_crash_left(no_leaks: None) -> None:
    name = f"crash.{os.getpid()}.0"
    with wanlab_up(name) as process:
        wanlab("enter", "--name", name, "left", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert name in labs()
        assert f"removed {name}\n" in wanlab("clean").stdout
    assert name not in labs()


KILLED = """
import json, os, signal, sys
from lab import Cgroup, Lab
from lab.engines import Docker, Podman
lab = Lab("engine")
cgroup = Cgroup()
engine = {"podman": Podman, "docker": Docker}[sys.argv[1]](lab.host("host"), cgroup)
engine.start("web")
print(json.dumps([lab.name, str(engine.directory), str(cgroup.path)]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_clean_removes_a_container_engine_and_what_runs_in_it(no_leaks: None, engine: str) -> None:
    """Nobody but the engine has marked the processes of containers and their network namespaces."""
    for program in ("docker", "dockerd", "containerd") if engine == "docker" else ("podman",):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    env = os.environ | {"PYTHONPATH": str(WANLAB.parents[1])}
    before = set(NETNS_DIR.glob("netns-*"))
    argv = [sys.executable, "-c", KILLED, engine]
    killed = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    name, directory, cgroup = json.loads(killed.stdout)
    assert any(path.read_text() for path in Path(cgroup).rglob("cgroup.procs")), "no container runs"
    assert f"removed {name}\n" in wanlab("clean").stdout
    assert not Path(directory).exists() and not Path(cgroup).exists()
    assert directory not in Path("/proc/self/mountinfo").read_text()
    assert set(NETNS_DIR.glob("netns-*")) <= before


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["up", "--rate", "fast"], 2, "rate"),
        (["up", "--loss", "101%"], 2, "probability"),
        (["up", "--delay", "1ms/2ms/3ms"], 2, "at most one slash"),
        (["up", "--name", "no/slash"], 2, "name a laboratory"),
        (["up", "--queue", "12 cows"], 2, "queue"),
        (["set", "--name", "no_such_lab", "--loss", "1%"], 1, "is not up"),
        (["stats", "--name", "no_such_lab"], 1, "is not up"),
        (["down", "--name", "no_such_lab"], 1, "is not up"),
        (["enter", "--name", "no_such_lab", "left"], 1, "no such host"),
    ],
)
def test_bad_usage_gets_one_sentence(
    no_leaks: None, argv: list[str], code: int, words: str
) -> None:
    done = wanlab(*argv)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.startswith("wanlab: cannot ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr + done.stdout


def test_units_as_people_write_them() -> None:
    assert parse_rate("100mbit") == 100_000_000
    assert parse_rate("1.5Gbit") == 1_500_000_000
    assert parse_rate(None) == parse_rate("unlimited") == 0
    assert parse_time_ns("50ms") == 50_000_000
    assert parse_time_ns("0.5us") == 500
    assert parse_probability("12%") == 0.12
    assert parse_probability(0.5) == 0.5
    assert parse_queue("100p") == Queue(pkts=100)
    assert parse_queue("64KiB") == Queue(size_bytes=65536)
    assert parse_queue("9000b") == Queue(size_bytes=9000)
    assert parse_queue("50ms") == Queue(time_ns=50_000_000)
    assert parse_queue(None).limits(100_000_000, 100_000_000)["queue_bytes"] == 1_250_000
    for parse, text in (
        (parse_rate, "100"),
        (parse_time_ns, "50"),
        (parse_probability, "-1"),
        (parse_queue, "7x"),
    ):
        if parse is parse_rate:
            assert parse(text) == 100
        else:
            with pytest.raises(UsageError):
                parse(text)


def test_wait_for_has_a_deadline() -> None:
    with pytest.raises(TimeoutError, match="the moon"):
        wait_for(lambda: False, 0.02, "the moon")
    assert wait_for(lambda: "value", 0) == "value"

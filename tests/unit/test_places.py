# SPDX-License-Identifier: Apache-2.0
"""Containers, processes and units by name. What engines and systemd say is as docker 20.10, podman
4.3 and systemd 252 have said it, shortened; crictl's is by its sources.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmm_ebpf.asking import Answer, NoAnswerError, ask
from dmm_ebpf.errors import PrivilegeError, UsageError
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.places import finding as places
from dmm_ebpf.rd.places import text as placetext
from dmm_ebpf.rd.places.place import Place
from dmm_ebpf.rd.places.text import Container

ID = "9eb153db7a78f74f88ff83531f4c33e5d44895cf054e73777da9bb985c303e05"
ID2 = "879882d85a45e40cb36a578e24a0e7d3044553f9351cdf64b9f7c58c5e8ab16f"
DOCKER = """[
    {
        "Id": "9eb153db7a78f74f88ff83531f4c33e5d44895cf054e73777da9bb985c303e05",
        "Created": "2026-11-28T18:14:18.767204402Z",
        "Path": "/bin/sleep",
        "State": {
            "Status": "running", "Running": true, "Paused": false, "Restarting": false, "OOMKilled": false,
            "Dead": false, "Pid": 2994, "ExitCode": 0, "Error": ""
        },
        "Name": "/dweb",
        "HostConfig": {"CgroupnsMode": "host", "CgroupParent": ""}
    }
]
"""
PODMAN = """[
     {
          "Id": "879882d85a45e40cb36a578e24a0e7d3044553f9351cdf64b9f7c58c5e8ab16f",
          "State": {
               "OciVersion": "1.0.2-dev", "Status": "created", "Running": false, "Paused": false, "Pid": 0,
               "ExitCode": 0, "Error": "",
               "Health": {"Status": "", "FailingStreak": 0, "Log": null}
          },
          "Name": "ctweb"
     }
]
"""
CRICTL = {
    "status": {"id": ID, "metadata": {"attempt": 0, "name": "web"}, "state": "CONTAINER_RUNNING"},
    "info": {"pid": 77, "sandboxID": "f" * 64},
}
# On a host with cgroup v1 beside v2.
HYBRID = f"""9:name=systemd:/docker/{ID}
8:pids:/docker/{ID}
4:memory:/docker/{ID}
0::/docker/{ID}
""".encode()
SHOWN = b"""MainPID=61
ControlGroup=/dmm.slice/dmmnet.service
Id=dmmnet.service
LoadState=loaded
ActiveState=active
"""
NOT_FOUND = (
    b"MainPID=0\nControlGroup=\nId=nope.service\nLoadState=not-found\nActiveState=inactive\n"
)
STOPPED = b"MainPID=0\nSlice=system.slice\nControlGroup=\nId=dmmtest.service\nLoadState=loaded\nActiveState=inactive\n"
TARGET = b"Id=sysinit.target\nLoadState=loaded\nActiveState=active\n"
SLICE = b"ControlGroup=/system.slice\nId=system.slice\nLoadState=loaded\nActiveState=active\n"


# -- what is said, taken apart --


def test_an_engine_tells_id_name_state_and_process():
    assert placetext.containers(DOCKER.encode()) == [Container(ID, "dweb", "running", 2994)]
    assert placetext.containers(PODMAN.encode()) == [Container(ID2, "ctweb", "created", 0)]
    web = Container(ID, "web", "running", 77)
    assert placetext.containers(json.dumps(CRICTL).encode()) == [web]
    assert placetext.containers(json.dumps([CRICTL, CRICTL]).encode()) == [web, web]
    assert placetext.containers(b"[]\n") == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"7",
        b"null",
        b'["x"]',
        b"[[]]",
        b'[{"Id": "x"}]',
        b'{"status": {}, "info": {}}',
        b"[" * 100_000,
        DOCKER.replace("2994", '"2994"').encode(),
        DOCKER.replace("2994", "true").encode(),
        DOCKER.replace("2994", "-1").encode(),
        DOCKER.replace("2994", "1e999").encode(),
        DOCKER.replace('"/dweb"', "[]").encode(),
        DOCKER.replace('"Pid": 2994, ', "").encode(),
    ],
)
def test_an_answer_of_another_form_is_refused(answer):
    with pytest.raises(ValueError, match=r"it|its|Expecting|Extra|int"):
        placetext.containers(answer)


def test_a_name_that_is_no_text_in_utf8_is_replaced():
    broken = DOCKER.encode().replace(b"dweb", b"d\xffweb")
    assert placetext.containers(broken)[0].name == "d\ufffdweb"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/docker/{ID}", f"/docker/{ID}"),
        (f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/system.slice/docker-{ID}.scope/init.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/libpod_parent/libpod-{ID}", f"/libpod_parent/libpod-{ID}"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"/machine.slice/libpod-{ID}.scope"),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/a/b", None),
        (f"/kubepods/besteffort/pod1-2/{ID}", f"/kubepods/besteffort/pod1-2/{ID}"),
        (
            f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
            f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
        ),
        (f"/kubepods.slice/crio-{ID}.scope", f"/kubepods.slice/crio-{ID}.scope"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),
        (f"/docker/{ID2}", ""),
        (f"/docker/{ID[:63]}", ""),
        ("/user.slice/session-3.scope", ""),
        ("/", ""),
    ],
)
def test_the_cgroup_of_a_container_is_the_one_that_has_its_id(path, expected):
    if expected is None:  # whatever is made below it
        expected = path.removesuffix("/a/b")
    assert (placetext.down_to_container(path, ID) or "") == expected


def test_the_cgroup_of_a_process():
    assert placetext.cgroup_of(HYBRID) == f"/docker/{ID}"
    assert placetext.cgroup_of(b"0::/system.slice/a:b.service\n") == "/system.slice/a:b.service"
    assert placetext.cgroup_of(b"0::/x\xff\n") == "/x\udcff"
    assert placetext.cgroup_of(b"2:cpu:/x\n1:name=systemd:/y\n") is None
    assert placetext.cgroup_of(b"") is None


def test_systemd_tells_properties():
    assert placetext.properties(SHOWN)["ControlGroup"] == "/dmm.slice/dmmnet.service"
    assert placetext.properties(b"A=b=c\nD=\nnothing\nE=\xff\n") == {
        "A": "b=c",
        "D": "",
        "E": "\udcff",
    }


def test_last_words_are_one_short_line():
    assert (
        placetext.last_words(b"warning\n Error: no such container x \n\n")
        == "Error: no such container x"
    )
    assert placetext.last_words(b"") == ""
    assert placetext.last_words(b"\xff") == "\ufffd"
    assert len(placetext.last_words(b"x" * 5000)) == 201


@pytest.mark.parametrize("name", ["", "-v", "a/b", "a b", "a\nb", "ä", "a" * 255, "$(x)"])
def test_what_no_container_is_called_asks_nobody(name, monkeypatch):
    monkeypatch.setattr(places, "ask", None)
    with pytest.raises(UsageError, match="a container is called by"):
        places.of_container(name)


# -- programs --


def test_a_program_is_asked():
    answer = ask(["/bin/sh", "-c", "echo out; echo err >&2; cat; exit 3"])
    assert answer == Answer(3, b"out\n", b"err\n")


def test_a_program_that_does_not_start():
    with pytest.raises(NoAnswerError, match="cannot ask /nonexistent: No such file"):
        ask(["/nonexistent"])


@pytest.mark.parametrize("script", ["sleep 60", "exec >&- 2>&-; sleep 60", "sleep 60 & wait"])
def test_a_program_that_does_not_answer_is_ended(script):
    since = time.monotonic()
    with pytest.raises(NoAnswerError, match=r"does not answer within 0.3 s"):
        ask(["/bin/sh", "-c", script], within_s=0.3)
    assert time.monotonic() - since < 30


def test_a_program_that_says_too_much_is_ended():
    with pytest.raises(NoAnswerError, match="more than 100000 bytes"):
        ask(
            ["/bin/sh", "-c", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"],
            most_bytes=100_000,
        )


# -- on a host --


@pytest.fixture
def sleeper():
    """Starts a process that has a cgroup of its own below the root of the hierarchy."""
    made = []

    def start(name):
        folder = cgroups.find_cgroup2() / name
        folder.mkdir(parents=True)
        process = subprocess.Popen(["/bin/sleep", "600"])
        made.append((folder, process))
        (folder / "cgroup.procs").write_text(str(process.pid))
        return process.pid

    yield start
    for folder, process in made:
        process.kill()
        process.wait()
        for path in (
            folder,
            *folder.parents[: len(folder.relative_to(cgroups.find_cgroup2()).parts) - 1],
        ):
            path.rmdir()


@pytest.fixture
def engines(monkeypatch):
    """Says which engines the host has, and what each answers to its first word."""

    def have(**answers):
        def asked(argv):
            said = answers[argv[0]]
            if callable(said):
                said = said(argv)
            if isinstance(said, Exception):
                raise said
            return said if isinstance(said, Answer) else Answer(0, said, b"")

        monkeypatch.setattr(places.shutil, "which", lambda name: name if name in answers else None)
        monkeypatch.setattr(places, "ask", asked)

    return have


def inspected(number, name, pid, state="running"):
    return json.dumps(
        [{"Id": number, "Name": name, "State": {"Status": state, "Pid": pid}}]
    ).encode()


def unique(start):
    """An id that no container has."""
    return f"{start}{os.getpid():08x}".ljust(64, "0")


def is_ours(place):
    return Path(place.netns).samefile("/proc/self/ns/net")


NO_SUCH = Answer(1, b"[]\n", b"Error: no such container web\n")


@pytest.mark.root
def test_a_container_by_its_engine(sleeper, engines):
    number = unique("ab")
    below = sleeper(f"docker-{number}.scope/inner")
    engines(docker=inspected(number, "/web", below), podman=NO_SUCH)
    found = places.of_container("web")
    assert (found.what, found.cgroup) == ("container web", f"/docker-{number}.scope")
    assert is_ours(found)


@pytest.mark.root
def test_a_process_that_is_in_no_cgroup_of_the_container(sleeper, engines):
    """DOCKER_HOST names another host, the container is in cgroup v1 only, or the pid is
    somebody else's by now.
    """
    pid = sleeper(f"docker-{unique('cd')}.scope")
    engines(docker=inspected(unique("ab"), "/web", pid))
    with pytest.raises(
        UsageError, match=f"its first process, {pid}, is in no cgroup v2 that has the id"
    ):
        places.of_container("web")


def test_a_container_whose_process_has_just_ended(engines):
    with subprocess.Popen(["/bin/true"]) as gone:
        pass
    engines(docker=inspected(ID, "/web", gone.pid))
    with pytest.raises(
        UsageError, match=f"find the container 'web': there is no process {gone.pid}"
    ):
        places.of_container("web")


def test_a_container_that_does_not_run(engines):
    engines(podman=PODMAN.encode())
    with pytest.raises(UsageError, match=r"it does not run \(it is created\); start it first"):
        places.of_container("ctweb")


@pytest.mark.root
def test_a_name_that_two_engines_have(engines, sleeper):
    one, two = unique("1"), unique("2")
    engines(docker=inspected(one, "/web", 1), podman=inspected(two, "web", 1))
    with pytest.raises(
        UsageError, match=rf"several match: {one[:12]} \(web\), {two[:12]} \(web\); name one"
    ):
        places.of_container("web")
    # One container by two names of one engine, and one that has stopped, are no doubt.
    pid = sleeper(f"libpod-{one}")
    same = inspected(one, "web", pid)
    engines(docker=same, podman=same, nerdctl=inspected(two, "web", 0, "exited"))
    assert places.of_container("web").cgroup == f"/libpod-{one}"


def test_engines_that_do_not_know_it_are_quoted(engines):
    engines(
        docker=Answer(
            1, b"[]\n", b"Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n"
        ),
        podman=NO_SUCH,
        nerdctl=NoAnswerError("ask nerdctl", why="it does not answer within 10 s"),
        crictl=Answer(0, b"", b""),
    )
    with pytest.raises(UsageError) as refused:
        places.of_container("web")
    assert str(refused.value) == (
        "cannot find the container 'web': docker says \"Cannot connect to the Docker daemon at "
        'unix:///var/run/docker.sock.", podman says "Error: no such container web", nerdctl cannot be asked (it does '
        'not answer within 10 s), crictl says "no such container runs", and no cgroup has such an id; a rootless '
        "container is found by its id"
    )


def test_an_engine_that_answers_nonsense_is_named(engines):
    engines(docker=b"<html>")
    with pytest.raises(UsageError, match="docker answers what cannot be read"):
        places.of_container("web")


@pytest.mark.root
def test_crictl_is_asked_for_names_and_ids(engines, sleeper):
    number = unique("e")
    pid = sleeper(f"cri-containerd-{number}.scope")
    asked = []

    def crictl(argv):
        asked.append(argv[1:])
        if argv[1] == "ps":
            return (number + "\n").encode()
        return json.dumps(
            {**CRICTL, "status": {**CRICTL["status"], "id": number}, "info": {"pid": pid}}
        ).encode()

    engines(crictl=crictl)
    assert places.of_container("web.1").cgroup == f"/cri-containerd-{number}.scope"
    assert asked == [
        ["ps", "--quiet", "--no-trunc", "--name", "^web[.]1$"],
        ["inspect", "--output", "json", number],
    ]
    assert places.of_container(number[:12]).cgroup == f"/cri-containerd-{number}.scope"
    assert ["ps", "--quiet", "--no-trunc", "--id", number[:12]] in asked


@pytest.mark.root
def test_a_container_by_its_id_where_no_engine_knows_it(engines, sleeper):
    """As of another user (rootless), or of an engine whose program is not there."""
    one, two = unique("fade0"), unique("fade1")
    sleeper(f"kubepods-pod1.slice/cri-containerd-{one}.scope")
    sleeper(f"dmmtest.slice/{two}")
    engines()
    found = places.of_container(one[:13])
    assert found.cgroup == f"/kubepods-pod1.slice/cri-containerd-{one}.scope"
    assert found.what == f"container {one[:12]}"
    assert places.of_container(two).cgroup == f"/dmmtest.slice/{two}"
    with pytest.raises(
        UsageError, match=f"several match: {one[:12]}, {two[:12]}; give more of its id"
    ):
        places.of_container("fade")
    with pytest.raises(UsageError, match="none of docker, podman, nerdctl, crictl is on this host"):
        places.of_container("fada")


@pytest.mark.root
def test_a_cgroup_of_a_container_without_processes(engines):
    number = unique("dead")
    folder = cgroups.find_cgroup2() / f"libpod-{number}"
    folder.mkdir()
    try:
        engines()
        with pytest.raises(UsageError, match="no process is in its cgroup; start it first"):
            places.of_container(number)
    finally:
        folder.rmdir()


@pytest.mark.root
def test_a_process(sleeper):
    pid = sleeper("dmmtest-p.slice")
    found = places.of_pid(pid)
    assert (found.what, found.cgroup) == (f"process {pid}", "/dmmtest-p.slice")
    assert is_ours(found)


@pytest.mark.root
def test_a_process_whose_cgroup_is_no_text(sleeper):
    pid = sleeper(os.fsdecode(b"dmmtest-\xff\xc3.slice"))
    assert os.fsencode(places.of_pid(pid).cgroup) == b"/dmmtest-\xff\xc3.slice"


def test_a_process_that_is_not_there():
    with subprocess.Popen(["/bin/true"]) as gone:
        pass
    with pytest.raises(
        UsageError, match=f"where process {gone.pid} is: there is no process {gone.pid}"
    ):
        places.of_pid(gone.pid)


@pytest.mark.root
def test_a_process_that_ends_while_it_is_looked_at(sleeper, monkeypatch):
    """Its directory in /proc is held open, so a stranger that gets its pid is not taken for it."""
    with subprocess.Popen(["/bin/sleep", "600"]) as going:
        real = placetext.cgroup_of

        def late(said):
            going.kill()
            going.wait()
            return real(said)

        monkeypatch.setattr(placetext, "cgroup_of", late)
        with pytest.raises(UsageError, match=f"there is no process {going.pid}"):
            places.of_pid(going.pid)


@pytest.mark.root
def test_who_a_process_is():
    code = "import pathlib; pathlib.Path('/proc/self/comm').write_bytes(b'caf\\xe9'); print(1); input()"
    command = [sys.executable, "-uc", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, user=65534, group=33, extra_groups=(), **pipes) as process:
        process.stdout.read(1)
        executed = str(Path(sys.executable).resolve())
        assert places.person(process.pid) == places.Person(65534, 33, "caf\ufffd", executed)
        process.communicate(b"\n")


# -- units --


@pytest.fixture
def systemd(monkeypatch):
    def says(answer):
        monkeypatch.setattr(places, "ask", lambda _argv: answer)

    return says


@pytest.mark.root
def test_a_unit(systemd, sleeper):
    pid = sleeper("dmmtest-u.slice/dmmnet.service")
    group = b"/dmmtest-u.slice/dmmnet.service"
    systemd(
        Answer(
            0,
            SHOWN.replace(b"/dmm.slice/dmmnet.service", group).replace(b"61", str(pid).encode()),
            b"",
        )
    )
    found = places.of_unit("dmmnet")
    assert (found.what, found.cgroup) == ("unit dmmnet.service", group.decode())
    assert is_ours(found)


@pytest.mark.root
def test_a_slice_has_no_namespace_of_its_own(systemd, sleeper):
    sleeper("dmmtest-s.slice")
    systemd(Answer(0, SLICE.replace(b"system.slice", b"dmmtest-s.slice"), b""))
    assert places.of_unit("dmmtest-s.slice") == Place(
        "unit dmmtest-s.slice", "/dmmtest-s.slice", None
    )


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (NOT_FOUND, r"systemd has no such unit \(not-found\); see systemctl list-units"),
        (STOPPED, r"it does not run \(it is inactive\); start it first"),
        (
            STOPPED.replace(b"=inactive", b"=failed"),
            r"it does not run \(it is failed\); start it first",
        ),
        (TARGET, "a unit of this kind has no cgroup; name a service, a scope or a slice"),
        (b"", r"it does not run \(it is in no known state\)"),
        (SHOWN.replace(b"/dmm.slice", b"/gone.slice"), "there is no such cgroup under"),
    ],
)
def test_a_unit_that_has_no_cgroup(systemd, answer, why):
    systemd(Answer(0, answer, b""))
    with pytest.raises(UsageError, match=why):
        places.of_unit("x")


@pytest.mark.parametrize(
    ("unit", "within", "expected"),
    [
        ("dmmtest.service", "system.slice", "/system.slice/dmmtest.service"),
        ("dmm-x-y.slice", "dmm-x.slice", "/dmm.slice/dmm-x.slice/dmm-x-y.slice"),
        ("dmm.slice", "-.slice", "/dmm.slice"),
        ("memory.service", "system.slice", "/system.slice/_memory.service"),
        ("_x.service", "system.slice", "/system.slice/__x.service"),
        ("memoryless.service", "io.slice", "/_io.slice/memoryless.service"),
    ],
)
def test_the_cgroup_that_a_unit_will_have(unit, within, expected):
    """As systemd 252 made them."""
    assert placetext.group_to_be(unit, within) == expected


@pytest.mark.parametrize("root", ["/", "/lxc"])
def test_a_unit_that_is_waited_for(systemd, monkeypatch, root):
    above = f"ControlGroup={root}\nId=-.slice\nLoadState=loaded\nActiveState=active\n".encode()
    answers = {"dmmtest": STOPPED, "-.slice": above}
    monkeypatch.setattr(places, "ask", lambda argv: Answer(0, answers[argv[-1]], b""))
    found = places.of_unit("dmmtest", pending=True)
    assert found == Place(
        "unit dmmtest.service", f"{root.rstrip('/')}/system.slice/dmmtest.service", None
    )
    for answer in (NOT_FOUND, TARGET):
        systemd(Answer(0, answer, b""))
        with pytest.raises(UsageError, match=r"no such unit|has no cgroup"):
            places.of_unit("x", pending=True)


def test_a_host_without_systemd(systemd, monkeypatch):
    systemd(Answer(1, b"", b"Failed to connect to bus: Host is down\n"))
    with pytest.raises(UsageError, match='systemctl says "Failed to connect to bus: Host is down"'):
        places.of_unit("x")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(
        UsageError, match=r"systemctl cannot be asked \(No such file or directory\)"
    ):
        places.of_unit("x")


@pytest.mark.parametrize("name", ["", "x*", "a b", "x/y", "ä", "x" * 256])
def test_what_no_unit_is_called(name, systemd):
    systemd(None)
    with pytest.raises(UsageError, match="a unit is called by"):
        places.of_unit(name)


# -- refused --


def test_what_may_not_be_looked_into(monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(places.os, "open", refuse)
    with pytest.raises(PrivilegeError, match="process 1 may not be looked into"):
        places.of_pid(1)


def test_a_cgroup_outside_of_this_namespace(monkeypatch):
    monkeypatch.setattr(placetext, "cgroup_of", lambda _said: "/../../x")
    with pytest.raises(
        UsageError, match="outside of this cgroup namespace; run dmm-ebpf on the host"
    ):
        places.of_pid(os.getpid())


def test_a_cgroup_that_was_removed(monkeypatch):
    monkeypatch.setattr(placetext, "cgroup_of", lambda _said: "/x (deleted)")
    with pytest.raises(UsageError, match="has been removed"):
        places.of_pid(os.getpid())

# SPDX-License-Identifier: Apache-2.0
"""Signals at every moment of attach, run, policy apply, take-over and detach: a signal that can be
caught leaves nothing at once, SIGKILL nothing that the next command does not clear away.

A moment is when something first shows on the host. DMM_SIGNALS=all tries every signal at every
moment, not one each.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from dying import CLI, ENVIRONMENT, LIFE_S, OnXdp, Reached, Subject, any_in, kill, placed

from dmm_ebpf import loader
from lab import Lab, wait_for

pytestmark = pytest.mark.alone("any command takes away what a killed one has left")
CATCHABLE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EVERY = os.environ.get("DMM_SIGNALS") == "all"

ON_THE_WAY_UP: dict[str, Reached] = {
    "the run directory": lambda s: s.run_dir.is_dir(),
    "state.json": lambda s: (s.run_dir / "state.json").exists(),
    "the pins": lambda s: s.pins.is_dir(),
    "maps": lambda s: any_in(s.pins / "maps"),
    "hooks": lambda s: any_in(s.pins / "links"),
    "XDP": lambda s: any_in(s.pins / "links", "xdp-*"),
    "a stack process": lambda s: (s.run_dir / "stack-wan.pid").exists(),
    "its socket": lambda s: (s.run_dir / "stack-wan.sock").exists(),
    "service": lambda s: s.serves(),
}


@pytest.fixture
def subject(lab: Lab, make_cgroup, instance, tmp_path: Path) -> Iterator[Subject]:
    yield from placed(OnXdp, lab, make_cgroup(), instance(), tmp_path)


def each(
    moments: dict[str, Reached], *numbers: signal.Signals
) -> Iterator[tuple[str, Reached, signal.Signals]]:
    """Every moment with one of the signals in turn, or with all of them."""
    turns = zip(moments.items(), itertools.cycle(numbers), strict=False)
    for (what, reached), number in itertools.product(moments.items(), numbers) if EVERY else turns:
        # Once it serves, SIGHUP has another meaning.
        hup = what == "service" and number == signal.SIGHUP
        yield what, reached, signal.SIGTERM if hup else number


def test_an_attach_that_is_told_to_end_leaves_nothing_at_once(subject: Subject):
    for what, reached, number in each(ON_THE_WAY_UP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        director = subject.attach()
        subject.wait(reached, director, what)
        code, said = director.end(number)
        subject.assert_nothing_left(f"{number.name} at {what}: {said}")
        assert "Traceback" not in said
        assert code in (0, 128 + number), said
        if code:
            assert f"cannot attach instance {subject.instance}: {number.name} came first" in said


@pytest.mark.skipif(not EVERY, reason="takes minutes: DMM_SIGNALS=all")
def test_an_attach_that_is_told_to_end_at_any_time_leaves_nothing_at_once(subject: Subject):
    for delay_ms, number in zip(range(0, 4000, 50), itertools.cycle(CATCHABLE[:2]), strict=False):
        director = subject.attach()
        with contextlib.suppress(subprocess.TimeoutExpired):
            director.wait(delay_ms / 1000)
        _, said = director.end(number)
        subject.assert_nothing_left(f"{number.name} after {delay_ms} ms: {said}")


def test_a_stack_process_that_is_killed_while_it_starts(subject: Subject):
    """The attach fails with a sentence; it is not half there."""
    director = subject.attach()
    assert subject.wait(ON_THE_WAY_UP["a stack process"], director, "a stack process")
    kill(subject.stack_pid())
    assert director.wait(LIFE_S) == 1
    last = director.said().splitlines()[-1]
    assert "cannot start stack wan: its process ended" in last
    subject.assert_nothing_left("SIGKILL of the stack")


def test_a_second_signal_does_not_break_the_way_down(subject: Subject):
    for what in ("hooks", "service"):
        director = subject.attach()
        subject.wait(ON_THE_WAY_UP[what], director, what)
        for number in CATCHABLE[:2]:
            director.send_signal(number)
        _, said = director.end(signal.SIGINT)
        subject.assert_nothing_left(f"three signals at {what}: {said}")
        assert "Traceback" not in said


def test_what_a_killed_attach_leaves_goes_with_the_next_command(subject: Subject):
    for turn, (what, reached) in enumerate(ON_THE_WAY_UP.items()):
        for again in (True, False) if EVERY else (bool(turn % 2),):
            director = subject.attach()
            subject.wait(reached, director, what)
            director.end(signal.SIGKILL)
            if again:
                code, said = subject.attached().end(signal.SIGTERM)
                assert code == 0, said
            else:
                subject.detach()
            subject.assert_nothing_left(f"SIGKILL at {what}")


def test_a_daemon_ends_with_the_command_that_waits_for_it(subject: Subject):
    moments = {
        name: ON_THE_WAY_UP[name] for name in ("the run directory", "hooks", "a stack process")
    }
    for what, reached, number in each(moments, *CATCHABLE):
        parent = subject.attach("--daemon")
        subject.wait(reached, parent, what)
        code, said = parent.end(number)
        subject.assert_nothing_left(f"{number.name} at {what}: {said}")
        assert code == 128 + number
        assert said.count("\n") == 1, said


def is_anothers(subject: Subject, pid: int) -> bool:
    return subject.director() != pid


def test_a_killed_daemon_is_told_and_goes_with_the_next_command(subject: Subject):
    for what, again in (("hooks", True), ("a stack process", False)):
        parent = subject.attach("--daemon")
        assert subject.wait(ON_THE_WAY_UP[what], parent, what)
        wait_for(partial(is_anothers, subject, parent.pid), 10, "the daemon's pid")
        kill(subject.director())
        parent.wait(LIFE_S)
        said = parent.said()
        assert parent.returncode == 1
        assert "its process was killed before it served" in said
        if again:
            subject.attached().end(signal.SIGTERM)
        else:
            subject.detach()
        subject.assert_nothing_left(f"the daemon's SIGKILL at {what}")


def test_a_daemon_serves_on_when_the_command_that_waits_for_it_is_killed(subject: Subject):
    parent = subject.attach("--daemon")
    assert subject.wait(lambda s: any_in(s.pins / "links"), parent, "hooks")
    parent.end(signal.SIGKILL)
    wait_for(subject.serves, LIFE_S, "the daemon to serve")
    subject.detach()
    subject.assert_nothing_left("the parent's SIGKILL")


def test_a_director_without_standard_streams_serves_and_detaches(subject: Subject):
    words = ["attach", "--instance", subject.instance, "--cgroup", str(subject.cgroup.path)]
    words += ["--netns", str(subject.host.netns_path), "--policy", str(subject.policy)]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *CLI, *words]
    director = subprocess.Popen(closed, env=ENVIRONMENT)
    wait_for(lambda: subject.serves() or director.poll() is not None, LIFE_S, "it to serve")
    director.terminate()
    assert director.wait(LIFE_S) == 0
    subject.assert_nothing_left("without standard streams")
    daemon = subprocess.run([*closed, "--daemon"], env=ENVIRONMENT, check=True)
    assert daemon.returncode == 0
    subject.detach()
    subject.assert_nothing_left("a daemon without standard streams")


def test_a_director_whose_log_nobody_reads_serves_and_detaches(subject: Subject):
    words = ["attach", "--instance", subject.instance, "--cgroup", str(subject.cgroup.path)]
    director = subprocess.Popen([*CLI, *words], env=ENVIRONMENT, stderr=subprocess.PIPE)
    director.stderr.close()
    wait_for(lambda: subject.serves() or director.poll() is not None, LIFE_S, "it to serve")
    director.terminate()
    assert director.wait(LIFE_S) == 0
    subject.assert_nothing_left("a broken pipe")


# -- run --

RUN_MOMENTS: dict[str, Reached] = {
    "the run directory": ON_THE_WAY_UP["the run directory"],
    "its cgroup": lambda s: s.own_cgroup.exists(),
    "hooks": ON_THE_WAY_UP["hooks"],
    "a stack process": ON_THE_WAY_UP["a stack process"],
    "the command": lambda s: (
        s.own_cgroup.exists() and bool((s.own_cgroup / "cgroup.procs").read_text())
    ),
}


def test_a_run_that_is_told_to_end_leaves_nothing_at_once(subject: Subject):
    for what, reached, number in each(RUN_MOMENTS, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        command = subject.run("sleep", "1000")
        subject.wait(reached, command, what)
        code, said = command.end(number)
        subject.assert_nothing_left(f"{number.name} at {what}: {said}")
        assert code == 128 + number, said


def test_what_a_killed_run_leaves_goes_by_itself_and_the_command_goes_on(subject: Subject):
    for what, reached in RUN_MOMENTS.items():
        command = subject.run("sleep", "1000")
        subject.wait(reached, command, what)
        inside = (
            (subject.own_cgroup / "cgroup.procs").read_text().split()
            if what == "the command"
            else []
        )
        command.end(signal.SIGKILL)
        if what == "the run directory":
            # The watcher may not have been there yet; nothing else was.
            other = subject.start("run", "--instance", f"{subject.instance}o", "--", "true")
            assert other.wait(LIFE_S) == 0, other.said()
        wait_for(
            lambda: subject.traces() == subject.before, LIFE_S, f"all to go after SIGKILL at {what}"
        )
        for pid in inside:
            assert "0::/\n" in Path(f"/proc/{pid}/cgroup").read_text()
            kill(int(pid))


def test_what_a_killed_run_leaves_goes_with_the_next_command_should_its_watcher_be_killed_too(
    subject: Subject,
):
    command = subject.run("sleep", "1000")
    assert subject.wait(RUN_MOMENTS["the command"], command, "the command")
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    watchers = [pid for pid in children if "watcher" in Path(f"/proc/{pid}/cmdline").read_text()]
    inside = (subject.own_cgroup / "cgroup.procs").read_text().split()
    assert len(watchers) == 1
    assert inside
    kill(int(watchers[0]))
    command.end(signal.SIGKILL)
    assert subject.pins.exists()
    other = subject.start("run", "--instance", f"{subject.instance}o", "--", "true")
    other.wait(LIFE_S)
    said = other.said()
    assert other.returncode == 0, said
    assert f"instance {subject.instance} was left by a `dmm-ebpf run` that was killed" in said
    subject.assert_nothing_left("SIGKILL of both")
    for pid in inside:
        kill(int(pid))


def test_a_command_that_is_detached_goes_on_by_itself(subject: Subject):
    command = subject.run("sh", "-c", "sleep 1000 & wait $!; exit 7")
    assert subject.wait(RUN_MOMENTS["the command"], command, "the command")
    wait_for(
        lambda: len((subject.own_cgroup / "cgroup.procs").read_text().split()) == 2, 10, "its child"
    )
    inside = (subject.own_cgroup / "cgroup.procs").read_text().split()
    subject.detach()
    assert command.poll() is None
    assert not subject.own_cgroup.exists()
    for pid in inside:
        assert "0::/\n" in Path(f"/proc/{pid}/cgroup").read_text()
    kill(int(inside[-1]))
    assert command.wait(LIFE_S) == 7
    subject.assert_nothing_left("detach and the command's end")


# -- swap, take-over, detach --


def test_a_policy_that_is_being_applied_when_the_director_ends(subject: Subject):
    moments: dict[str, Reached] = {
        "a second process": lambda s: (s.run_dir / "stack-wan@1.pid").exists(),
        "its socket": lambda s: (s.run_dir / "stack-wan@1.sock").exists(),
    }
    new = subject.policy.with_name("new.toml")
    subject.write(new, processes=2)
    for what, reached in moments.items():
        for number in (signal.SIGTERM, signal.SIGKILL):
            director = subject.attached()
            apply = subject.start("policy", "apply", new, "--instance", subject.instance)
            subject.wait(reached, apply, what)
            _, said = director.end(number)
            apply.wait(LIFE_S)
            told = apply.said()
            assert "Traceback" not in said + told
            assert apply.returncode in (0, 1), told
            if number == signal.SIGKILL:
                subject.detach()
            subject.assert_nothing_left(f"{number.name} at {what}: {said}")


TAKE_OVER: dict[str, Reached] = {
    "the lock": lambda s: s.director() != 0,
    "adoption": lambda s: f'"pid": {s.director()}, "cgroup"' in s.state(),
    "service": lambda s: s.serves(),
}


@pytest.mark.parametrize("stack_too", [False, True], ids=["director", "director and stack"])
def test_a_take_over_that_ends(subject: Subject, stack_too: bool):
    for what, reached, number in each(
        TAKE_OVER, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT
    ):
        director = subject.attached()
        director.end(signal.SIGKILL)
        if stack_too:
            kill(subject.stack_pid())
        (subject.run_dir / "lock").write_text("0")
        again = subject.attach()
        subject.wait(reached, again, what)
        _, said = again.end(number)
        assert "Traceback" not in said
        if number == signal.SIGKILL:
            subject.attached().end(signal.SIGTERM)
        subject.assert_nothing_left(f"{number.name} at {what}: {said}")


def test_a_detach_that_ends(subject: Subject):
    stack = 0
    moments: dict[str, Reached] = {
        "the first hook": lambda s: not (s.pins / "links" / "connect4").exists(),
        "the stack process": lambda s: not Path(f"/proc/{stack}").exists(),
        "the pins": lambda s: not any_in(s.pins),
    }
    for what, reached in moments.items():
        for number in (signal.SIGKILL, signal.SIGTERM):
            director = subject.attached()
            stack = subject.stack_pid()
            assert Path(f"/proc/{stack}/fd").exists()
            director.end(signal.SIGKILL)
            detach = subject.start("detach", "--instance", subject.instance)
            subject.wait(reached, detach, what)
            code, said = detach.end(number)
            if number == signal.SIGKILL:
                subject.detach()
            else:
                assert code == 0, (what, said)
            subject.assert_nothing_left(f"{number.name} at {what}")


def test_a_detach_meets_a_director_that_is_starting(subject: Subject):
    director = subject.attach()
    assert subject.wait(lambda s: any_in(s.pins / "maps"), director, "maps")
    subject.detach()
    # 0: it served before the detach was there.
    assert director.wait(LIFE_S) in (0, 128 + signal.SIGTERM), director.said()
    subject.assert_nothing_left("detach while starting")


# -- SIGHUP --


def test_sighup_reads_the_policy_again(subject: Subject):
    director = subject.attached()
    fixed = subject.policy.with_name("fixed.toml")
    subject.write(fixed, stack="kernel")
    subject.policy.unlink()
    subject.policy.symlink_to(fixed)
    director.send_signal(signal.SIGHUP)
    show = ("policy", "show", "--instance", subject.instance)

    def shown() -> str:
        return subprocess.run(
            [*CLI, *show], capture_output=True, text=True, env=ENVIRONMENT, check=True
        ).stdout

    wait_for(lambda: shown() == fixed.read_text(), 20, "the other policy")
    assert director.poll() is None
    director.end(signal.SIGTERM)
    subject.assert_nothing_left("SIGHUP and SIGTERM")


@pytest.mark.parametrize("nohup", [False, True], ids=["plain", "nohup"])
def test_a_terminal_that_hangs_up_detaches_unless_nohup(subject: Subject, nohup: bool):
    words = ["attach", "--instance", subject.instance, "--cgroup", str(subject.cgroup.path)]
    words += ["--netns", str(subject.host.netns_path), "--policy", str(subject.policy)]
    argv = [*(["nohup"] if nohup else []), *CLI, *words]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(subject.policy.parent)  # where nohup(1) may write
        os.execvpe(argv[0], argv, ENVIRONMENT)
    try:
        wait_for(subject.serves, LIFE_S, "it to serve")
    finally:
        os.close(terminal)
    if nohup:
        subject.detach()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    subject.assert_nothing_left("a hang-up")


# -- what was lost --


@pytest.mark.parametrize("lost", ["nothing", "garbage", "run directory"])
@pytest.mark.parametrize("alive", [True, False], ids=["director alive", "director dead"])
def test_a_lost_state_is_found_again(subject: Subject, alive: bool, lost: str):
    director = subject.attached()
    if not alive:
        director.end(signal.SIGKILL)
    if lost == "run directory":
        # A living director makes it anew, also while it is being emptied, and then rm fails
        # at the end.
        subprocess.run(["rm", "-r", subject.run_dir], check=False)
    elif lost == "garbage":
        (subject.run_dir / "state.json").write_text("{}")
    else:
        (subject.run_dir / "state.json").unlink()
    done = subject.start("detach", "--instance", subject.instance)
    done.wait(LIFE_S)
    said = done.said()
    assert done.returncode == 0, said
    if alive:
        director.wait(LIFE_S)
        said = director.said()
        assert director.returncode == 0, said
        subject.assert_nothing_left("detach")
        return
    subject.assert_nothing_left("detach")


@pytest.mark.parametrize("alive", [True, False], ids=["director alive", "director dead"])
def test_lost_pins_do_not_make_our_settings_somebody_elses(subject: Subject, alive: bool):
    director = subject.attached()
    if not alive:
        director.end(signal.SIGKILL)
    subprocess.run(["rm", "-r", subject.pins], check=True)
    if alive:
        assert director.end(signal.SIGTERM)[0] == 0
    else:
        subject.attached().end(signal.SIGTERM)
    subject.assert_nothing_left("detach")
    assert subject.instance not in loader.instances()

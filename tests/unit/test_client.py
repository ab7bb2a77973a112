# SPDX-License-Identifier: Apache-2.0
"""The blocking client, against a small server that speaks the protocol with answers as a Resource
Director gives them. The server is shared with the tests of the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmm_ebpf import frames
from dmm_ebpf.cli import gather
from dmm_ebpf.errors import DmmError, NotAttachedError, PolicyError, PrivilegeError, UsageError
from dmm_ebpf.frames import FrameError
from dmm_ebpf.loader import bpffs
from dmm_ebpf.rd.api import client, wire
from dmm_ebpf.rd.director import rundir
from lab import wait_for

HOST_ROOT = rundir.ROOT


class FakeRd:
    """Answers with what methods says: a value, or a DmmError to fail with. "follow" is a
    list of events; "routes" are none, if nothing is said of them. Only in a run_root: what it makes
    would stay in the host's own directory.

    hang: methods that are never answered. garbage: bytes sent in place of any answer. hang_up: the
    stream ends after its events.
    """

    def __init__(self, instance: str, methods: dict[str, Any], **manner: Any) -> None:
        assert rundir.ROOT != HOST_ROOT, "the test uses no run_root"
        self.path = rundir.ROOT / instance / "rd.sock"
        self.methods = {"routes": []} | methods
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.stream_closed = threading.Event()
        self._hang: set[str] = manner.get("hang", set())
        self._garbage: bytes | None = manner.get("garbage")
        self._hang_up: bool = manner.get("hang_up", False)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> FakeRd:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await self._talk(reader, writer)
            finally:
                writer.close()  # also after a question that the test gave no answer to

        server = await asyncio.start_unix_server(serve, str(self.path))
        self._ready.set()
        async with server:
            await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (message := await wire.REQUESTS.read(reader)) is not None:
            number, method, params = wire.REQUESTS.request_of(message)
            self.asked.append((method, params))
            if method in self._hang:
                await self._stop.wait()
                return
            if self._garbage is not None:
                await wire.write_frame(writer, self._garbage)
                return
            if method == "follow":
                for event in self.methods["follow"]:
                    await wire.write_frame(writer, wire.event(number, event))
                if not self._hang_up:
                    await reader.read()
                    self.stream_closed.set()
                return
            answer = self.methods[method]
            frame = (
                wire.failure(number, answer)
                if isinstance(answer, DmmError)
                else wire.reply(number, answer)
            )
            await wire.write_frame(writer, frame)


@pytest.fixture
def run_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory in the place of /run/dmm-ebpf, with a name short enough
    for sun_path (unix(7)).
    """
    root = Path(tempfile.mkdtemp(prefix="dmm-u-"))
    monkeypatch.setattr(rundir, "ROOT", root)
    monkeypatch.setattr(bpffs, "TOP", root.name)  # the host's instances are none of the test's
    yield root
    shutil.rmtree(root)


# -- client --


def test_call_gives_the_result_over_one_connection(run_root: Path) -> None:
    flows = [{"cookie": 2**64 - 1, "comm": "café"}]
    with (
        FakeRd("default", {"flows": flows, "status": {"pid": 1}}) as rd,
        client.Client("default") as c,
    ):
        assert c.call("flows") == flows
        assert c.call("status", detail=True) == {"pid": 1}
        assert rd.asked == [("flows", {}), ("status", {"detail": True})]


def test_an_answer_larger_than_one_read(run_root: Path) -> None:
    rows = [{"comm": "x" * 1000, "cookie": i} for i in range(2000)]
    with FakeRd("default", {"flows": rows}), client.Client("default") as c:
        assert c.call("flows") == rows


def test_errors_keep_their_kind_and_their_sentence(run_root: Path) -> None:
    error = PolicyError("apply p.toml", why="line 3: no such stack", hint="define it")
    with (
        FakeRd("default", {"policy_apply": error}),
        client.Client("default") as c,
        pytest.raises(PolicyError) as caught,
    ):
        c.call("policy_apply", text="")
    assert str(caught.value) == str(error)
    assert caught.value.exit_code == 2


def test_no_such_instance(run_root: Path) -> None:
    with pytest.raises(NotAttachedError, match="there is no such instance"):
        client.Client("nope").call("status")


def test_a_stale_socket(run_root: Path) -> None:
    (run_root / "old").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_root / "old" / "rd.sock"))
    listener.close()
    with pytest.raises(
        NotAttachedError, match="its Resource Director is not running; attach the instance again"
    ):
        client.Client("old").call("status")


def test_a_run_directory_without_a_socket(run_root: Path) -> None:
    (run_root / "old").mkdir()
    with pytest.raises(NotAttachedError, match="its Resource Director is not running"):
        client.Client("old").call("status")


MAY = "run it as root, or as a member of attach's --group"


@pytest.mark.root
def test_not_root(run_root: Path) -> None:
    """As another user, in a child: the directory is root's alone."""
    run_root.chmod(0o711)
    (run_root / "default").mkdir(mode=0o700)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            kinds = []
            for ask in (lambda: client.Client("default").call("status"), client.instances):
                try:
                    ask()
                except DmmError as error:
                    kinds.append((type(error), error.exit_code, error.hint))
            code = 0 if kinds == [(PrivilegeError, 77, MAY)] * 2 else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_rd_that_does_not_answer(run_root: Path) -> None:
    with (
        FakeRd("default", {}, hang={"status"}),
        client.Client("default", timeout_s=0.05) as c,
        pytest.raises(NotAttachedError, match="does not answer"),
    ):
        c.call("status")


# Listens at its argument, takes what comes and answers nothing; its first word tells that it does.
DEAF = """
import socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
taken = listener.accept()
if sys.argv[2] == "busy":
    while True:
        pass
threading.Event().wait()
"""


@contextlib.contextmanager
def deaf(instance: str, manner: str = "waits") -> Iterator[int]:
    """A process that serves instance and never answers; its pid."""
    path = rundir.ROOT / instance / "rd.sock"
    path.parent.mkdir(parents=True)
    argv = [sys.executable, "-c", DEAF, str(path), manner]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listens\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "hangs"])
def test_an_rd_that_stands_still_is_not_waited_for(run_root: Path, stopped: bool) -> None:
    """However long its answer might take."""
    with deaf("default") as pid:
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with client.Client("default", timeout_s=600) as c, pytest.raises(client.SilentError) as e:
            list(c.flows())
        assert time.monotonic() - began < 60
    assert e.value.exit_code == 75
    why = "its Resource Director does not answer"
    assert e.value.why == (f"{why}: its process {pid} is stopped" if stopped else why)
    assert (f"kill -CONT {pid}" in e.value.hint) == stopped


def test_a_long_request_to_an_rd_that_is_stopped_is_not_waited_for(run_root: Path) -> None:
    """One that does not fit into the socket."""
    with deaf("default") as pid:
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with client.Client("default", timeout_s=600) as c, pytest.raises(client.SilentError) as e:
            c.policy_apply("/etc/long.toml", "#" * (4 << 20))
        assert time.monotonic() - began < 60
    assert e.value.why.endswith(f"its process {pid} is stopped")


def test_a_long_request_to_an_rd_that_reads_slowly_comes_whole(run_root: Path) -> None:
    text = "#" * (4 << 20)
    with FakeRd("default", {"policy_apply": {}}) as rd, client.Client("default") as c:
        c.call("policy_apply", text=text)
        assert rd.asked == [("policy_apply", {"text": text})]


def test_a_stream_tells_whether_the_rd_stands_still(run_root: Path) -> None:
    with deaf("default") as pid, client.Client("default").stream("follow") as stream:
        assert stream.silence() is None
        os.kill(pid, signal.SIGSTOP)
        silence = wait_for(stream.silence, 60, "the stream to tell")
        assert silence is not None
        assert silence.why.endswith(f"its process {pid} is stopped")
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: stream.silence() is None, 60, "it to go on")


def test_who_follows_an_rd_that_stands_still_is_told(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(gather, "note", told.put)
    with deaf("default") as pid:
        os.kill(pid, signal.SIGSTOP)
        follower = gather.Follower("default")

        def follow() -> None:
            with contextlib.suppress(NotAttachedError):
                list(follower.events())

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            assert f"its process {pid} is stopped; kill -CONT {pid}" in told.get(timeout=60)
            os.kill(pid, signal.SIGCONT)
            assert "goes on" in told.get(timeout=60)
        finally:
            os.kill(pid, signal.SIGKILL)
            thread.join(60)
            follower.close()


def test_an_rd_that_is_busy_is_waited_for(run_root: Path) -> None:
    with deaf("default", "busy"):
        began = time.monotonic()
        with client.Client("default", timeout_s=4) as c, pytest.raises(client.SilentError):
            c.call("flows")
        assert time.monotonic() - began >= 4


def test_after_a_timeout_the_next_call_gets_its_own_answer(run_root: Path) -> None:
    with (
        FakeRd("default", {"stacks": []}, hang={"status"}),
        client.Client("default", timeout_s=0.05) as c,
        pytest.raises(NotAttachedError),
    ):
        c.call("status")
        assert c.call("stacks") == []


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"\xff\xff\xff\xff", "is announced, above the limit"),
        (b"\0\0\0\x01\xc1", "not one msgpack map"),
        (wire.reply(99, None), "an answer to request 99 arrived, expected one to 1"),
        (frames.encode({"id": 1}), "neither a result nor an error"),
        (b"\0\0", "ended inside a message"),
    ],
)
def test_an_rd_that_answers_garbage(run_root: Path, garbage: bytes, reason: str) -> None:
    with (
        FakeRd("default", {}, garbage=garbage),
        client.Client("default") as c,
        pytest.raises(FrameError, match=reason),
    ):
        c.call("status")


def test_an_rd_that_hangs_up(run_root: Path) -> None:
    with (
        FakeRd("default", {}, garbage=b""),
        client.Client("default") as c,
        pytest.raises(NotAttachedError, match="closed the connection"),
    ):
        c.call("status")


def test_abort_ends_a_call_in_another_thread(run_root: Path) -> None:
    with FakeRd("default", {}, hang={"flows"}) as rd:
        c = client.Client("default", timeout_s=60)
        caught: list[BaseException] = []

        def call() -> None:
            try:
                c.call("flows")
            except DmmError as error:
                caught.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        while not rd.asked:
            thread.join(0.001)
        c.abort()
        thread.join(10)
        assert isinstance(caught[0], NotAttachedError)


def test_stream_gives_events_until_closed(run_root: Path) -> None:
    events = [{"type": "connect", "dport": n} for n in range(100)]
    with FakeRd("default", {"follow": events}) as rd:
        got = []
        with client.Client("default").stream("follow") as stream:
            for event in stream:
                got.append(event)
                if len(got) == len(events):
                    break
        assert got == events
        assert rd.stream_closed.wait(10)


def test_a_stream_that_the_rd_ends(run_root: Path) -> None:
    with FakeRd("default", {"follow": [{"type": "close"}]}, hang_up=True):
        stream = iter(client.Client("default").stream("follow"))
        assert next(stream) == {"type": "close"}
        with pytest.raises(NotAttachedError, match="closed the connection"):
            next(stream)


def test_a_stream_that_is_refused(run_root: Path) -> None:
    refusal = wire.failure(1, UsageError("follow", why="it cannot be"))
    with FakeRd("default", {}, garbage=refusal), pytest.raises(UsageError, match="it cannot be"):
        next(iter(client.Client("default").stream("follow")))


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../x", "a b", "x" * 33, "ü", "-x"])
def test_instance_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        client.Client(name)


def test_instances_are_the_run_directories(run_root: Path) -> None:
    for name in ("red", "default", "ab_c-1"):
        (run_root / name).mkdir()
    (run_root / ".lock").touch()
    (run_root / "not a name").mkdir()
    assert client.instances() == ["ab_c-1", "default", "red"]


def test_no_run_directory_means_no_instances(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "ROOT", run_root / "none")
    assert client.instances() == []

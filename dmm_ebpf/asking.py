# SPDX-License-Identifier: Apache-2.0
"""A question to another program of the host: its answer has a bounded size and comes in a bounded
time, or it is none.

Nothing is inherited but the environment; a program that does not end in time, or says too
much, is killed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dmm_ebpf.errors import DmmError

MOST_BYTES = 4 << 20
WITHIN_S = 30.0  # an engine on a busy or emulated machine takes its time


@dataclass(frozen=True)
class Answer:
    """How a program ended, and what it said."""

    code: int
    out: bytes
    err: bytes


class NoAnswerError(DmmError):
    """The program could not be asked, or did not answer."""


def ask(argv: Sequence[str], *, within_s: float = WITHIN_S, most_bytes: int = MOST_BYTES) -> Answer:
    """Run argv to its end. NoAnswerError: it does not start, takes longer than within_s, or
    says too much.
    """
    what = f"ask {argv[0]}"
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise NoAnswerError(what, why=error.strerror or str(error)) from error
    with process:
        try:
            return _answer(process, time.monotonic() + within_s, most_bytes)
        except _TooMuchError:
            raise NoAnswerError(what, why=f"it says more than {most_bytes} bytes") from None
        except TimeoutError:
            raise NoAnswerError(what, why=f"it does not answer within {within_s:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)


class _TooMuchError(Exception):
    """More was said than is read."""


def _answer(process: subprocess.Popen[bytes], deadline: float, most_bytes: int) -> Answer:
    said = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as waiting:
        for stream in said:
            waiting.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
        while waiting.get_map():
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 65536)
                if not part:
                    waiting.unregister(key.fileobj)
                said[key.fileobj] += part  # type: ignore[index]
            if sum(map(len, said.values())) > most_bytes:
                raise _TooMuchError
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return Answer(code, bytes(said[process.stdout]), bytes(said[process.stderr]))

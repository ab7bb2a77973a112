# SPDX-License-Identifier: Apache-2.0
"""What every stack process of ours does for its director, whatever it does with packets: it reads
its spec, enters its namespace, says that it serves, and answers.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from dmm_ebpf import frames
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.frames import Message
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.userstack.spec import StackSpec

MOST_CONNECTIONS = 1024  # in one answer
READY = 0  # the number of what no request asked for


def read_spec(channel: socket.socket) -> StackSpec:
    """All that the director sends, up to the end of its direction."""
    parts = []
    while data := channel.recv(65536):
        parts.append(data)
    return StackSpec.from_json(b"".join(parts).decode())


def enter_namespace(spec: StackSpec) -> None:
    """The network namespace of the spec; its descriptor is closed. Raises DmmError."""
    namespace = NetNS.from_fd(spec.netns_fd)
    namespace.enter()
    namespace.close()
    os.close(spec.netns_fd)


def say_ready(channel: socket.socket, info: Mapping[str, Any]) -> None:
    """That the process serves, and what it is; answers.py has the form of info."""
    channel.sendall(json.dumps(frames.reply(READY, info)).encode())
    channel.close()


def say_refused(channel: socket.socket, error: DmmError) -> None:
    """Why it does not serve; it must then end."""
    channel.sendall(json.dumps(frames.failure(READY, error)).encode())


def answer(
    number: int, method: str, params: Message, call: Callable[[str, Message], Any]
) -> Message:
    """The message that answers request number: what call says of its method and params,
    or the DmmError that it raises.
    """
    try:
        return frames.reply(number, call(method, params))
    except DmmError as error:
        return frames.failure(number, error)


def unknown(spec: StackSpec, method: str) -> UsageError:
    """For a method that there is not."""
    return UsageError(f"ask stack {spec.label} for {method!r}", why="it knows no such request")


def part(params: Mapping[str, Any]) -> dict[str, int]:
    """Which connections are asked for, "first" and "most": so many that an answer holds, unless
    params say fewer. Raises UsageError.
    """
    asked = {"first": 0, "most": MOST_CONNECTIONS}
    asked |= {name: params[name] for name in asked if name in params}
    for name, value in asked.items():
        if not isinstance(value, int) or value < 0:
            raise UsageError(
                f"list connections with {name} {value!r}", why="it is not a whole number"
            )
    return asked | {"most": min(asked["most"], MOST_CONNECTIONS)}

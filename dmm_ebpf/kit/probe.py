# SPDX-License-Identifier: Apache-2.0
"""Tries a plug-in in a process of its own: `python -m dmm_ebpf.kit.probe`, a Plugin as
JSON on stdin.

To load it is to run it, and what it does then, be it to loop, to exit or to crash, must not be done
to who asks.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any

from dmm_ebpf.errors import DmmError, from_wire
from dmm_ebpf.kit import load
from dmm_ebpf.kit.names import CONGESTION, PYTHON, Plugin, Seam, is_plugin, locate

DEADLINE_S = 10.0
_COMMAND = (sys.executable, "-P", "-m", "dmm_ebpf.kit.probe")


def check(text: str, seam: Seam = CONGESTION, *, trusted_only: bool = True) -> None:
    """Raises DmmError, in one sentence, unless it is built in, or a plug-in that can be
    loaded.
    """
    if is_plugin(text, seam):
        try_out(locate(text, seam=seam), trusted_only=trusted_only)


def try_out(plugin: Plugin, *, trusted_only: bool = True) -> None:
    """The same for a plug-in that has been located."""
    load.check_file(plugin, trusted_only=trusted_only)
    asked = json.dumps({"plugin": asdict(plugin), "trusted_only": trusted_only})
    try:
        done = subprocess.run(
            _COMMAND,
            input=asked,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise load.plugin_error(plugin, f"loading it takes longer than {DEADLINE_S:g} s") from error
    if done.returncode < 0:
        raise load.plugin_error(
            plugin, f"loading it ends its process by {signal.Signals(-done.returncode).name}"
        )
    try:
        answer: Any = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise load.plugin_error(
            plugin, f"loading it ends its process with exit code {done.returncode}"
        ) from error
    if answer:
        raise from_wire(answer)


def _module(plugin: Plugin) -> tuple[Any, Any]:
    """ffi and lib: a transport calls functions of the core, which a congestion control does not."""
    module = "kit._sim" if plugin.seam is CONGESTION else "userstack._core"
    found = import_module(f"dmm_ebpf.{module}")
    return found.ffi, found.lib


def main() -> None:
    """Entry point: prints null, or the error as JSON, as the last line."""
    asked = json.load(sys.stdin)
    plugin = Plugin(**asked["plugin"])
    answer = None
    try:
        plugin = load.check_file(plugin, trusted_only=asked["trusted_only"])
        if plugin.kind == PYTHON:
            load.load_class(plugin)
        else:
            load.load_native(plugin, *_module(plugin))
    except DmmError as error:
        answer = error.to_wire()
    print()
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

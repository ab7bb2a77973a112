# SPDX-License-Identifier: Apache-2.0
"""The command line of the virtual machine: parse, call, exit with the command's code."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from dmm_ebpf.errors import DmmError
from lab.vm.bytecode import prepare
from lab.vm.machine import Options, run
from lab.vm.packages import find_kernel

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(no_args_is_help=True)
def kernelvm(  # noqa: PLR0917  (typer's way to say options)
    command: Annotated[
        list[str], typer.Argument(help="The command and its arguments, after --.", metavar="COMMAND…")
    ],
    kernel: Annotated[str, typer.Option(help="Debian's kernel to boot: 6.1, 6.12, 6.12.117.")],
    memory: Annotated[int, typer.Option(help="Memory of the guest in MB.", min=256)] = Options.memory_mb,
    timeout: Annotated[
        float, typer.Option(help="Seconds until it is ended, with 124.", min=1)
    ] = Options.timeout_s,
    compiled: Annotated[
        bool,
        typer.Option("--compiled", help="First compile dmm-ebpf's programs for this kernel, on the host."),
    ] = False,
    append: Annotated[str, typer.Option(help="More words for the kernel's command line.")] = Options.append,
    console: Annotated[
        bool, typer.Option("--console", help="Show the guest's console on stderr.")
    ] = Options.console,
) -> None:
    """Run a command as root under another kernel, in an emulated machine over this host's own files.

    The kernel is Debian's package, unpacked into a cache and never installed. What the command writes is gone when it
    ends; there is no network. Exit code: the command's.

    sudo tools/kernelvm --kernel 6.1 -- uname -r
    """
    options = Options(memory_mb=memory, timeout_s=timeout, append=append, console=console)
    found = find_kernel(kernel)
    if compiled:
        prepare(found)
    raise typer.Exit(run(found, command, options))


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Runs the command line; every failure is one sentence."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        app()
    except DmmError as error:
        print(f"kernelvm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

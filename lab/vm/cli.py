# SPDX-License-Identifier: Apache-2.0
"""The command line of the virtual machine: parse, call, exit with the command's code."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from dmm_ebpf.errors import DmmError, UsageError
from lab.vm.bytecode import prepare
from lab.vm.machine import Options, check_host, run
from lab.vm.packages import find_kernel

LONGEST_S = 86400
EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The base class of what is wrong with a command line: click's, or that of the copy that
# newer typers carry.
_ClickError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


@app.command()
def kernelvm(  # noqa: PLR0917  (typer's way to say options)
    command: Annotated[
        list[str],
        typer.Argument(help="The command and its arguments, after --.", metavar="COMMAND…"),
    ],
    kernel: Annotated[str, typer.Option(help="Debian's kernel to boot: 6.1, 6.12, 6.12.117.")],
    memory: Annotated[
        int, typer.Option(help="Memory of the guest in MB.", min=256)
    ] = Options.memory_mb,
    timeout: Annotated[
        int, typer.Option(help="Seconds until it is ended, with 124.", min=1, max=LONGEST_S)
    ] = Options.timeout_s,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled", help="First compile dmm-ebpf's programs for this kernel, on the host."
        ),
    ] = False,
    systemd: Annotated[
        bool,
        typer.Option(
            "--systemd", help="The guest's first process is systemd, with nothing to start."
        ),
    ] = Options.systemd,
    counted: Annotated[
        bool,
        typer.Option(
            "--counted",
            help="The guest's clocks go by the instructions it has executed, not by the host's.",
        ),
    ] = Options.counted,
    append: Annotated[
        str, typer.Option(help="More words for the kernel's command line.")
    ] = Options.append,
    console: Annotated[
        bool, typer.Option("--console", help="Show the guest's console on stderr.")
    ] = Options.console,
) -> None:
    """Run a command as root under another kernel, in an emulated machine over this
    host's own files.

    The kernel is Debian's package, unpacked into a cache and never installed. What the command
    writes is gone when it ends; there is no network. Exit code: the command's.

    sudo tools/kernelvm --kernel 6.1 -- uname -r
    """
    options = Options(
        memory_mb=memory,
        timeout_s=timeout,
        append=append,
        console=console,
        systemd=systemd,
        counted=counted,
    )
    if not command[0]:
        raise UsageError("run a command", why="its name is empty")
    # Before a kernel is downloaded for nothing.
    check_host()
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
        # What typer says by itself of a command line is a picture.
        code = app(standalone_mode=False)
    except Exception as error:
        code = _failed(error)
    sys.exit(code)


def _failed(error: Exception) -> int:
    if isinstance(error, DmmError):
        return _complain(str(error), error.exit_code)
    if isinstance(error, _ClickError):
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(
            f"cannot take this command line: {said.rstrip('.')}; see kernelvm --help", 2
        )
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"cannot go on: {error.strerror or error}{where}", 1)
    raise error


def _complain(sentence: str, code: int) -> int:
    line = " ".join(sentence.split())
    print("kernelvm: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return code

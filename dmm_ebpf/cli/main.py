# SPDX-License-Identifier: Apache-2.0
"""The entry point of dmm-ebpf: runs the command tree and turns every end into an exit code and at most one
sentence.

Exit codes: 0; a DmmError's own (2 usage and policy, 69 kernel feature, 75 conflict, 77 privilege, 1
others); what the command of `run` returned; 130 after Ctrl-C; 141 when the reader of the output went
away. A Python trace is only shown with DMM_DEBUG=1 in the environment.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import traceback
from typing import Any, NoReturn

import typer

from dmm_ebpf.cli.app import app
from dmm_ebpf.errors import DmmError

PROGRAM = "dmm-ebpf"
COMPLETE_VARIABLE = "_DMM_EBPF_COMPLETE"
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# The base class of what is wrong with a command line: click's, or that of the copy that newer typers carry.
# typer exports only this leaf of it.
_ClickError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(args: list[str] | None = None) -> None:
    """Run the command line args (None: this process's, which then ends at once) and exit with its code."""
    _open_standard_streams()
    code = _guarded(args)
    try:
        sys.stdout.flush()
    except OSError as exc:
        code = _output_failed(exc)
    if args is None:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End without taking the interpreter apart, which takes a tenth of a short command's time: all is written, undone
    and waited for by now, and what memory and descriptors are left is the kernel's to take back.
    """
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """What the caller has closed leads to /dev/null: whatever is opened next would else be read and written as it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def _guarded(args: list[str] | None) -> int:
    if COMPLETE_VARIABLE in os.environ:
        typer.main.get_command(app).main(args, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    words = list(sys.argv[1:] if args is None else args)
    command = _command_tree(words)
    try:
        # Not main(): that would end the process by itself on a broken pipe.
        with command.make_context(PROGRAM, words) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as exc:
        code = exc.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as exc:
        code = _failed(exc)
    return code


def _command_tree(words: list[str]) -> Any:
    """As far as words need it: building all of it takes longer than running some commands."""
    first = words[0] if words else ""
    named = [c for c in app.registered_commands if c.callback and first == (c.name or c.callback.__name__)]
    if not named:
        return typer.main.get_command(app)
    part = copy.copy(app)
    part.registered_commands, part.registered_groups = named, []
    return typer.main.get_command(part)


def _failed(exc: Exception) -> int:
    """Say what went wrong. Returns the exit code."""
    if isinstance(exc, DmmError):
        return _complain(str(exc), exc.exit_code)
    if isinstance(exc, _ClickError):
        return _usage(exc)
    if isinstance(exc, BrokenPipeError):
        return _output_failed(exc)
    if isinstance(exc, PermissionError):
        where = f" ({exc.filename})" if exc.filename else ""
        hint = "; run it as root" if os.geteuid() else ""
        return _complain(f"cannot do that: {exc.strerror}{where}{hint}", 77)
    hint = "DMM_DEBUG=1 in the environment shows the trace"
    if isinstance(exc, OSError) and exc.strerror:
        where = f" ({exc.filename})" if exc.filename else ""
        return _complain(f"cannot go on: {exc.strerror}{where}; {hint}", 1)
    return _complain(f"cannot go on: {type(exc).__name__}: {exc}; this is a bug, {hint}", 1)


def _complain(sentence: str, code: int) -> int:
    """One line on standard error, and the trace for who asked for it. Returns code."""
    if os.environ.get("DMM_DEBUG") == "1":
        traceback.print_exc()
    line = " ".join(sentence.split())
    print(f"{PROGRAM}: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return code


def _usage(exc: Exception) -> int:
    """What click says of a command line, as one of our sentences; the help when nothing was said."""
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help(), file=sys.stderr)
        return 2
    path = context.command_path if context is not None else PROGRAM
    reason = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    reason = " ".join(reason.split()).rstrip(".")
    return _complain(f"cannot take this command line: {reason}; see {path} --help", 2)


def _output_failed(exc: OSError) -> int:
    """Standard output cannot be written: quiet when the reader left, a sentence otherwise."""
    # What is still buffered would fail again at exit, with a trace of the interpreter's.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    if isinstance(exc, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    return _complain(f"cannot write to standard output: {exc.strerror}", 1)


if __name__ == "__main__":
    main()

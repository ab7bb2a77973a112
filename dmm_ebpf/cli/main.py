# SPDX-License-Identifier: Apache-2.0
"""The entry point of dmm-ebpf: runs the command tree and turns every end into an exit code and at
most one sentence.

Exit codes are in docs/operations.md. A Python trace is only shown with DMM_DEBUG=1
in the environment.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer

from dmm_ebpf.cli import output
from dmm_ebpf.cli.app import app
from dmm_ebpf.cli.start import EXIT_INTERRUPTED
from dmm_ebpf.errors import DmmError, PolicyError, PrivilegeError, UsageError
from dmm_ebpf.show import units

PROGRAM = "dmm-ebpf"
COMPLETE_VARIABLE = "_DMM_EBPF_COMPLETE"
EXIT_BROKEN_PIPE = 141
_JSON_FLAG = re.compile(r"-[adf]*j[adf]*")  # alone, or with others that take no value

# The base class of what is wrong with a command line: click's, or that of the copy that newer
# typers carry. typer exports only this leaf of it.
_ClickError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(args: list[str] | None = None) -> None:
    """Run the command line args (None: this process's, which then ends at once) and exit
    with its code.
    """
    _open_standard_streams()
    code = _guarded(args)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _output_failed(error)
    if args is None:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End without taking the interpreter apart, which takes a tenth of a short command's time: all
    is written, undone and waited for by now, and what memory and descriptors are left is the
    kernel's to take back.
    """
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """What the caller has closed leads to /dev/null: whatever is opened next would else be read
    and written as it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may be any bytes
            stream.reconfigure(errors="backslashreplace")


def _guarded(args: list[str] | None) -> int:
    if COMPLETE_VARIABLE in os.environ:
        typer.main.get_command(app).main(args, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    words = list(sys.argv[1:] if args is None else args)
    output.begin()
    command = _command_tree(words)
    try:
        # Not main(): that would end the process by itself on a broken pipe.
        with command.make_context(PROGRAM, words) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        code = _failed(error, as_json=_wants_json(words))
    return code


def _wants_json(words: list[str]) -> bool:
    """Also of a command line that is wrong. What follows the command of `run` is not ours."""
    if words[:1] == ["run"]:
        return False
    ours = words[: words.index("--")] if "--" in words else words
    return any(word == "--json" or _JSON_FLAG.fullmatch(word) for word in ours)


def _command_tree(words: list[str]) -> Any:
    """As far as words need it: building all of it takes longer than running some commands."""
    first = words[0] if words else ""
    named = [
        c
        for c in app.registered_commands
        if c.callback and first == (c.name or c.callback.__name__)
    ]
    if not named:
        return typer.main.get_command(app)
    part = copy.copy(app)
    part.registered_commands, part.registered_groups = named, []
    return typer.main.get_command(part)


def _failed(exc: Exception, *, as_json: bool) -> int:
    """Say what went wrong. Returns the exit code."""
    if isinstance(exc, BrokenPipeError) or (isinstance(exc, OSError) and _is_of_output(exc)):
        return _output_failed(exc)
    if (
        type(exc).__name__ == "NoArgsIsHelpError"
        and (context := getattr(exc, "ctx", None)) is not None
    ):
        print(context.get_help(), file=sys.stderr)
        return 2
    error = _as_ours(exc)
    if as_json and not output.json_was_printed():
        from dmm_ebpf.records.failed import Failed

        output.print_json({"error": Failed.of(error)})
    code = _complain(str(error), error.exit_code)
    if isinstance(error, PolicyError):
        for other in error.others:
            _say(str(other))
        if error.enough:
            output.note("no more than these were looked for: there may be others")
    return code


def _as_ours(exc: Exception) -> DmmError:
    """Any failure as one with a sentence and an exit code."""
    if isinstance(exc, DmmError):
        return exc
    if isinstance(exc, _ClickError):
        return _usage(exc)
    where = f" ({exc.filename})" if isinstance(exc, OSError) and exc.filename else ""
    if isinstance(exc, PermissionError):
        hint = "run it as root" if os.geteuid() else ""
        return PrivilegeError("do that", why=f"{exc.strerror}{where}", hint=hint)
    hint = "DMM_DEBUG=1 in the environment shows the trace"
    if isinstance(exc, OSError) and exc.strerror:
        return DmmError("go on", why=f"{exc.strerror}{where}", hint=hint)
    return DmmError("go on", why=f"{type(exc).__name__}: {exc}", hint=f"this is a bug, {hint}")


def _complain(sentence: str, code: int) -> int:
    """One line on standard error, and the trace for who asked for it. Returns code."""
    if os.environ.get("DMM_DEBUG") == "1":
        traceback.print_exc()
    _say(sentence)
    return code


def _say(sentence: str) -> None:
    output.note(units.clean(" ".join(sentence.split())))


def _usage(exc: Exception) -> UsageError:
    """What click says of a command line, as one of our sentences."""
    context = getattr(exc, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    reason = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    reason = " ".join(reason.split()).rstrip(".")
    return UsageError("take this command line", why=reason, hint=f"see {path} --help")


def _is_of_output(exc: OSError) -> bool:
    """Whether it was raised by print() in this folder, whose code writes nothing else that
    may be full.
    """
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or Path(frame.tb_frame.f_code.co_filename).parent != Path(__file__).parent:
        return False
    return exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


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

# SPDX-License-Identifier: Apache-2.0
"""Loads a plug-in into this process, and refuses in one sentence what is none.

Who loads it runs it. So a file must be root's or the user's who loads it, and nobody else
may be able to change or replace it. In a stack process this happens while it still may
open files (process.py).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

from dmm_ebpf.errors import DmmError, PrivilegeError
from dmm_ebpf.kit.names import CONGESTION, TRANSPORT, Plugin
from dmm_ebpf.owned import check_owner, real_path

ABI = 1  # CC_ABI of cc.h
TRANSPORT_ABI = 1  # END_ABI of end_export.h
METHODS = (
    "init",
    "on_ack",
    "on_enter_recovery",
    "on_exit_recovery",
    "on_rto",
    "on_restart",
    "on_undo",
)  # in the order of enum cc_call_type
TRANSPORT_METHODS = (
    "open",
    "input",
    "output",
    "timer",
    "room",
    "probe",
    "reset",
)  # in the order of enum end_question
# What a class is to have: which methods it may have and must have, and which ABI
_SHAPES = {
    CONGESTION.key: (METHODS, ("on_ack",), ABI),
    TRANSPORT.key: (TRANSPORT_METHODS, TRANSPORT_METHODS[:4], TRANSPORT_ABI),
}
_NO_FILES = (
    "a process that runs can open no file: if it lacks a module, give the stack another name"
)
_ELF_HEADER_BYTES = 20  # to the end of e_machine


def plugin_error(plugin: Plugin, why: str, hint: str = "") -> DmmError:
    """Why the plug-in cannot be used."""
    where = "" if plugin.file in plugin.text else f" ({plugin.file})"
    return DmmError(f"use {plugin.seam.noun} {plugin.text!r}{where}", why=why, hint=hint)


def check_file(plugin: Plugin, *, trusted_only: bool = True) -> Plugin:
    """The plug-in, with the file that its links lead to. Raises DmmError unless that is there and,
    with trusted_only, root's or ours and nobody else's to change or replace; PrivilegeError when we
    may not read it.
    """
    path = Path(plugin.file)
    try:
        path = real_path(path)
        is_file = stat.S_ISREG(path.stat().st_mode)
        if is_file:  # another's end of a pipe may be long in coming
            path.open("rb").close()
    except PermissionError as error:
        raise PrivilegeError(
            f"read {plugin.seam.noun} {plugin.text!r}", why=f"{plugin.file}: {error.strerror}"
        ) from error
    except OSError as error:
        raise plugin_error(plugin, f"{plugin.file}: {os.strerror(error.errno or 0)}") from error
    if not is_file:
        raise plugin_error(plugin, "it is no file")
    if trusted_only:
        check_owner(Path(plugin.file), partial(plugin_error, plugin))
    return replace(plugin, file=str(path))


def load_class(plugin: Plugin) -> type:
    """The class of a Python plug-in. Raises DmmError, whatever its module does."""
    return _class_of(plugin, partial(_import, plugin))


def class_of_source(plugin: Plugin, source: str) -> type:
    """The same of the text of its file, for who can open none: it may import what is imported
    already, or built in.
    """
    return _class_of(plugin, partial(_execute, plugin, source), hint=_NO_FILES)


def _class_of(plugin: Plugin, module_of: Callable[[], ModuleType], hint: str = "") -> type:
    try:
        found: Any = module_of()
        for part in plugin.attribute.split("."):
            found = getattr(found, part, None)
    except BaseException as error:  # SystemExit, too: it is no reason for us to end
        raise plugin_error(plugin, f"its module raised {described(error)}", hint) from error
    if not isinstance(found, type):
        raise plugin_error(plugin, f"it has no class {plugin.attribute}")
    methods, needed, ours = _SHAPES[plugin.fits]
    lacks = [name for name in needed if getattr(found, name, None) is None]
    if lacks:
        raise plugin_error(plugin, f"{plugin.attribute} has no method {lacks[0]}")
    wrong = [name for name in methods if not callable(getattr(found, name, methods.index))]
    if wrong:
        raise plugin_error(plugin, f"{plugin.attribute}.{wrong[0]} is no method")
    abi = getattr(found, "abi", ours)
    if abi != ours:
        raise plugin_error(plugin, f"it was written for ABI {abi!r}, and this is ABI {ours}")
    return found


def _execute(plugin: Plugin, source: str) -> ModuleType:
    name = f"dmm_ebpf_plugin_{Path(plugin.file).stem}"
    module = ModuleType(name)
    module.__file__ = plugin.file
    sys.modules[name] = module
    exec(compile(source, plugin.file, "exec"), module.__dict__)
    return module


def _import(plugin: Plugin) -> ModuleType:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if plugin.module:
            if plugin.search not in sys.path:
                sys.path.append(plugin.search)
            return import_module(plugin.module)
        name = f"dmm_ebpf_plugin_{Path(plugin.file).stem}"
        spec = util.spec_from_file_location(name, plugin.file)
        if spec is None or spec.loader is None:
            raise ImportError("it is no Python file")
        module = util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.dont_write_bytecode = before


def described(error: BaseException) -> str:
    """An exception of a plug-in's in a line: its type, what it says, and where it was raised."""
    try:
        said = " ".join(str(error).split())
    except BaseException:
        said = "(it cannot be printed)"
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = (
        f" ({Path(at.tb_frame.f_code.co_filename).name} line {at.tb_lineno})"
        if at is not None and not isinstance(error, SyntaxError)  # it says so itself
        else ""
    )
    return f"{type(error).__name__}{': ' if said else ''}{said[:100]}{where}"


def load_native(plugin: Plugin, ffi: Any, lib: Any) -> Any:
    """The struct cc_guard of a shared object, or the struct end_guard of a transport. Raises
    DmmError.
    """
    _check_elf(plugin)
    if plugin.seam is CONGESTION:
        opened, room = lib.cc_native_open, int(lib.CC_WHY_BYTES)
    else:
        opened, room = lib.end_native_open, int(lib.END_WHY_BYTES)
    why = ffi.new("char[]", room)
    guard = opened(plugin.file.encode(), why)
    if guard == ffi.NULL:
        raise plugin_error(plugin, ffi.string(why).decode("utf-8", "replace"))
    return guard


def _check_elf(plugin: Plugin) -> None:
    """The dynamic loader's own words for it are not for people."""
    try:
        with Path(plugin.file).open("rb") as file:
            theirs = file.read(_ELF_HEADER_BYTES)
    except OSError as error:
        raise plugin_error(plugin, os.strerror(error.errno or 0)) from error
    with Path("/proc/self/exe").open("rb") as file:
        ours = file.read(_ELF_HEADER_BYTES)
    if theirs[:4] != ours[:4] or len(theirs) < _ELF_HEADER_BYTES:
        raise plugin_error(plugin, "it is no shared object (ELF)")
    if theirs[4:6] != ours[4:6] or theirs[18:20] != ours[18:20]:
        raise plugin_error(
            plugin, f"it was built for another architecture than this, {os.uname().machine}"
        )

# SPDX-License-Identifier: Apache-2.0
"""Makes of a plug-in what connections have: one that is guarded, by its seam and its language."""

from __future__ import annotations

from typing import Any

from dmm_ebpf.kit.bridge import Asked, Bridge, Guarded, Native
from dmm_ebpf.kit.load import check_file, load_class, load_native
from dmm_ebpf.kit.names import CONGESTION, PYTHON, Plugin
from dmm_ebpf.kit.transport import NativeTransport, TransportBridge


def guarded(plugin: Plugin, ffi: Any, lib: Any, *, trusted_only: bool = True) -> Guarded:
    """A plug-in, loaded. ffi and lib: of the module whose connections it is for. DmmError."""
    plugin = check_file(plugin, trusted_only=trusted_only)
    if plugin.kind == PYTHON:
        return asked(plugin, load_class(plugin), ffi, lib)
    kind = Native if plugin.seam is CONGESTION else NativeTransport
    return kind(plugin, load_native(plugin, ffi, lib), ffi, lib)


def asked(plugin: Plugin, made: type, ffi: Any, lib: Any) -> Asked:
    """The same of a class that is loaded."""
    kind = Bridge if plugin.seam is CONGESTION else TransportBridge
    return kind(plugin, made, ffi, lib)

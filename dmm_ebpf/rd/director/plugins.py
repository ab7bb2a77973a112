# SPDX-License-Identifier: Apache-2.0
"""A plug-in for processes that run: its file is checked and read here, and they are given its
text, since they can open none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dmm_ebpf.kit import load
from dmm_ebpf.kit.names import PYTHON, Plugin, Seam, locate
from dmm_ebpf.rd.director.processes import Process
from dmm_ebpf.threads import in_thread

_PIECE_CHARS = 500  # a request has 4096 bytes


async def give(processes: Iterable[Process], seam: Seam, text: str) -> None:
    """Has each of the processes that is up load the plug-in of that name. Raises DmmError when one
    cannot; then none of their connections has it.
    """
    plugin, source = await in_thread(_read, seam, text)
    pieces = [source[at : at + _PIECE_CHARS] for at in range(0, len(source), _PIECE_CHARS)] or [""]
    for process in (p for p in processes if p.is_up and not p.hung):
        for number, piece in enumerate(pieces, 1):
            await process.supervisor.query(
                "plugin", plugin=asdict(plugin), source=piece, more=number < len(pieces)
            )


def _read(seam: Seam, text: str) -> tuple[Plugin, str]:
    """The plug-in, and the text of its file if that is one of Python's."""
    plugin = load.check_file(locate(text, seam=seam))
    if plugin.kind != PYTHON:
        return plugin, ""
    try:
        return plugin, Path(plugin.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise load.plugin_error(plugin, f"it cannot be read: {error}") from error

# SPDX-License-Identifier: Apache-2.0
"""How a demo is told: step by step, in a laboratory that goes with it; the first thing that is not
as told ends it.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dmm_ebpf.errors import DmmError
from lab import Lab

Story = TypeVar("Story")

console = Console(highlight=False, soft_wrap=True)


class DemoError(DmmError):
    """Something was not as the story says."""

    def __init__(self, why: str) -> None:
        super().__init__("go on with the demo", why=why)


def expect(condition: object, why: str) -> None:
    """DemoError unless condition."""
    if not condition:
        raise DemoError(why)


def tell(
    headline: str,
    begin: Callable[[Lab, Path, ExitStack, Progress], Story],
    steps: Sequence[tuple[str, Callable[[Story], None]]],
) -> int:
    """Begin a story and go through its steps; 0 if all was as told, else 1."""
    began = time.monotonic()
    console.rule(f"[bold]{headline}[/]")
    progress = Progress(
        TextColumn("[bold]{task.completed}/{task.total}[/] {task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    try:
        with (
            tempfile.TemporaryDirectory() as name,
            Lab("demo") as lab,
            ExitStack() as stack,
            progress,
        ):
            Path(name).chmod(0o755)
            task = progress.add_task("", total=len(steps))
            story = begin(lab, Path(name), stack, progress)
            for title, step in steps:
                progress.update(task, description=title)
                progress.console.print(f"\n[bold]{title}[/]")
                step(story)
                progress.advance(task)
            progress.update(task, description="done")
    except (DmmError, TimeoutError, subprocess.SubprocessError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    console.print(f"\n[green]Everything was as told[/], in {time.monotonic() - began:.0f} s.")
    return 0

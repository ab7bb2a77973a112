# SPDX-License-Identifier: Apache-2.0
"""Real programs, as they come: what they fetch is hashed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compat.case import CONNECT, IP4, OWN, Case
from compat.cell import Cell
from lab import (
    Cgroup,
    Fetched,
    Host,
    busybox_fetch,
    busybox_httpd,
    curl_fetch,
    iperf3,
    iperf3_server,
    nginx,
    random_file,
)
from lab.programs import Server

GROUP = "programs"
BULK = 10_000_000


def _ends(cell: Cell) -> tuple[tuple[Host, Cgroup | None], tuple[Host, Cgroup | None]]:
    """Host and cgroup of the client, and of the server; the cgroup is the end's that is on the
    host with dmm-ebpf.
    """
    own, far = (cell.site.client, cell.site.cgroup), (cell.site.peer, None)
    return (own, far) if cell.direction == CONNECT else (far, own)


def _served(cell: Cell) -> tuple[Path, str]:
    folder = cell.site.scratch / f"www{cell.port}"
    folder.mkdir()
    for directory in (folder, *folder.parents[:3]):
        directory.chmod(0o755)
    return folder, random_file(folder / "file", BULK, seed=cell.port)


def _fetched(cell: Cell, server: Server, got: Fetched, sha256: str) -> dict[str, Any]:
    server.stop()
    return {
        "outcome": "whole" if got.sha256 == sha256 else f"{got.exit_code}, {got.stderr.strip()}"
    }


def _url(cell: Cell) -> str:
    address = cell.words["target"]
    return f"http://{f'[{address}]' if ':' in address else address}:{cell.port}/file"


def _nginx_and_curl(cell: Cell) -> dict[str, Any]:
    (client, client_group), (server, server_group) = _ends(cell)
    folder, sha256 = _served(cell)
    started = nginx(
        server, folder, cell.site.scratch / f"nginx{cell.port}", port=cell.port, cgroup=server_group
    )
    cell.stack.callback(started.stop)
    return _fetched(
        cell, started, curl_fetch(client, _url(cell), cgroup=client_group, timeout=30), sha256
    )


def _busybox(cell: Cell) -> dict[str, Any]:
    (client, client_group), (server, server_group) = _ends(cell)
    folder, sha256 = _served(cell)
    log = cell.site.scratch / f"httpd{cell.port}"
    started = busybox_httpd(server, folder, log, port=cell.port, cgroup=server_group)
    cell.stack.callback(started.stop)
    return _fetched(
        cell, started, busybox_fetch(client, _url(cell), cgroup=client_group, timeout=30), sha256
    )


def _iperf3(cell: Cell) -> dict[str, Any]:
    (client, client_group), (server, server_group) = _ends(cell)
    started = iperf3_server(
        server, cell.site.scratch / f"iperf{cell.port}", port=cell.port, cgroup=server_group
    )
    cell.stack.callback(started.stop)
    said = {}
    for way, options in (("to the server", ()), ("from the server", ("-R",))):
        words = ("-t", "1", "-P", "4", *options)
        told = iperf3(
            client, cell.words["target"], *words, cgroup=client_group, port=cell.port, timeout=30
        )
        sums = (told["end"][side]["bytes"] for side in ("sum_sent", "sum_received"))
        said[way] = "done" if min(sums) > BULK / 10 else "not done"
    return said


CASES = (
    Case("nginx and curl", GROUP, OWN, program=_nginx_and_curl, quick=True),
    Case("busybox, static: httpd and wget", GROUP, OWN, families=(IP4,), program=_busybox),
    Case("iperf3, four connections each way", GROUP, OWN, program=_iperf3),
)

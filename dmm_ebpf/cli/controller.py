# SPDX-License-Identifier: Apache-2.0
"""The commands about a fleet's policy: `dmm-ebpf controller`. As in app.py: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmm_ebpf.cli.options import JsonOption, group

controller_app = group(help="Push a policy to a fleet by etcd, roll it out, and look.")

EtcdOption = Annotated[
    str | None,
    typer.Option(
        "--etcd",
        metavar="etcd://HOST/PREFIX",
        help="Where the fleet's policy is.  [default: $DMM_ETCD]",
    ),
]
CanaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--canary",
        metavar="SELECTOR",
        help="Hosts that take it first, as role=canary; again, for another step.",
    ),
]
NoteOption = Annotated[
    str, typer.Option("--note", "-m", metavar="TEXT", help="Why, for who looks later.")
]
WithinOption = Annotated[
    float,
    typer.Option(
        "--within", metavar="SECONDS", min=1, max=86400, help="How long a host may take in a step."
    ),
]
WatchOption = Annotated[
    float,
    typer.Option(
        "--watch",
        metavar="SECONDS",
        min=0,
        max=3600,
        help="Compare the paths of each step's hosts, for so long, with how they were before.",
    ),
]


@controller_app.command("push")
def push(  # noqa: PLR0917 - typer calls it, by keyword
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Policy file (TOML).")] = None,
    canary: CanaryOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the roll-out that was halted.")
    ] = False,
    note: NoteOption = "",
    within: WithinOption = 60.0,
    watch: WatchOption = 0.0,
    etcd: EtcdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Push a policy, and wait until hosts have taken it: those of a step first, then all others.

    It is checked here first. A host that refuses it in a step, or does not answer, halts the
    roll-out: no other host gets it. So does, with --watch, one whose paths are worse than before:
    more is sent again, more connect() calls fail, round trips take longer. Exit code: 0 all took
    it; 1 some did not; 2 refused here; 75 etcd cannot be reached, or somebody else pushes.

    \b
    Examples:
      export DMM_ETCD=etcd://10.0.0.1,10.0.0.2,10.0.0.3/dmm
      dmm-ebpf controller push policy.toml --canary role=canary --note "by wan"
      dmm-ebpf controller push policy.toml --canary role=canary --watch 60
      dmm-ebpf controller push --resume
    """
    from dmm_ebpf.cli import fleets
    from dmm_ebpf.cli.fleets import Pace
    from dmm_ebpf.errors import UsageError

    if watch and not (canary or resume):
        why = "--watch is for steps, and there are none"
        raise UsageError("push", why=why, hint="name hosts by --canary")
    if resume == (file is not None) or (resume and canary):
        raise UsageError("push", why="it takes a FILE, or --resume alone", hint="give one of them")
    if file is None:
        fleets.resume(etcd, Pace(within, watch), as_json=as_json)
    else:
        fleets.push(file, etcd, canary or [], note, Pace(within, watch), as_json=as_json)


@controller_app.command("diff")
def diff(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Policy file (TOML).")] = None,
    push_number: Annotated[
        int | None, typer.Option("--push", metavar="N", min=1, help="Compare with this push.")
    ] = None,
    etcd: EtcdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell in what a policy differs from the last push; without FILE, the last push from the one
    before.

    Exit code: 0 no difference; 1 there are some; 2 refused.

    \b
    Example:
      dmm-ebpf controller diff policy.toml || dmm-ebpf controller push policy.toml
    """
    from dmm_ebpf.cli import fleets

    fleets.diff(file, etcd, push_number, as_json=as_json)


@controller_app.command("rollback")
def rollback(  # noqa: PLR0917 - typer calls it, by keyword
    push_number: Annotated[
        int | None, typer.Argument(metavar="[PUSH]", min=1, help="The push to bring back.")
    ] = None,
    canary: CanaryOption = None,
    note: NoteOption = "",
    within: WithinOption = 60.0,
    watch: WatchOption = 0.0,
    etcd: EtcdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Push again what all hosts had before, or PUSH.

    \b
    Examples:
      dmm-ebpf controller rollback
      dmm-ebpf controller rollback 6 --note "8 was worse"
    """
    from dmm_ebpf.cli import fleets

    pace = fleets.Pace(within, watch)
    fleets.rollback(push_number, etcd, canary or [], note, pace, as_json=as_json)


@controller_app.command("hosts")
def hosts(
    selector: Annotated[
        str | None, typer.Argument(metavar="[SELECTOR]", help="Only these hosts, as site=fra.")
    ] = None,
    etcd: EtcdOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was pushed, and every instance: what it has, and what it refuses and why.

    \b
    Example:
      dmm-ebpf controller hosts role=edge
    """
    from dmm_ebpf.cli import fleets

    fleets.hosts(etcd, selector, as_json=as_json)


@controller_app.command("watch")
def watch(etcd: EtcdOption = None, as_json: JsonOption = False) -> None:
    """Print what changes in the fleet, until Ctrl-C.

    \b
    Example:
      dmm-ebpf controller watch --json
    """
    from dmm_ebpf.cli import fleets

    fleets.watch(etcd, as_json=as_json)

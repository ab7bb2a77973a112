# SPDX-License-Identifier: Apache-2.0
"""The commands about the packets of user stacks themselves: parse, call, print, as app.py."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from dmm_ebpf.cli.options import InstanceOption, JsonOption, Leg, group

frames_app = group()

StacksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STACK]...",
        help="User stacks, or single processes, as wan@1.  [default: all of the instance]",
    ),
]
LegOption = Annotated[
    Leg | None,
    typer.Option(
        help="outer: towards the network; inner: towards the app's kernel.  [default: both]"
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option("--count", "-c", metavar="N", min=1, help="End after so many frames."),
]
SecondsOption = Annotated[
    float | None, typer.Option("--seconds", metavar="S", min=0.1, help="End after so long.")
]


class Bound(enum.StrEnum):
    """Of a leg: towards the stack, or away from it."""

    IN = "in"
    OUT = "out"


@frames_app.command()
def capture(  # noqa: PLR0917 - typer calls it, by keyword
    stacks: StacksArgument = None,
    instance: InstanceOption = "default",
    write: Annotated[
        str,
        typer.Option("--write", "-w", metavar="FILE", help="pcapng file; - is standard output."),
    ] = "-",
    leg: LegOption = None,
    snaplen: Annotated[
        int,
        typer.Option(
            "--snaplen", "-s", metavar="BYTES", min=1, max=262144, help="Of each frame at most."
        ),
    ] = 262144,
    count: CountOption = None,
    seconds: SecondsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Capture what user stacks take and send, on both legs, whatever port it goes by.

    tcpdump on the NIC does not see frames of AF_XDP; this does. Open the file with
    tcpdump or Wireshark.

    \b
    Examples:
      dmm-ebpf capture wan -w wan.pcapng
      dmm-ebpf capture --leg outer | tcpdump -n -r -
      dmm-ebpf capture -c 1000 -s 128 -w head.pcapng
    """
    from dmm_ebpf.cli import capture as work
    from dmm_ebpf.instancename import check_name
    from dmm_ebpf.rd.director.capture import Wanted

    check_name(instance)
    wanted = Wanted(tuple(stacks or ()), _legs(leg), snaplen)
    work.capture(instance, wanted, write, count=count, seconds=seconds, as_json=as_json)


def _legs(leg: Leg | None) -> tuple[str, ...]:
    return (leg.value,) if leg is not None else ("inner", "outer")


@frames_app.command()
def trace(  # noqa: PLR0917 - typer calls it, by keyword
    stacks: StacksArgument = None,
    instance: InstanceOption = "default",
    leg: LegOption = None,
    count: CountOption = None,
    seconds: SecondsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one line for each segment that user stacks take or send, as it goes.

    Time, stack, leg, direction, addresses, flags, sequence and acknowledgement numbers, length,
    window, options. --json prints one object a line. What a port takes or gives as one, as tap
    does with up to 64 KiB, is one line.

    \b
    Examples:
      dmm-ebpf trace wan --leg outer
      dmm-ebpf trace -c 100 --json | jq -r .flags
    """
    from dmm_ebpf.cli import trace as work
    from dmm_ebpf.instancename import check_name

    check_name(instance)
    work.trace(
        instance, tuple(stacks or ()), _legs(leg), count=count, seconds=seconds, as_json=as_json
    )


_WHICH = "1% (at random), 1/100 (each hundredth) or 5 (the next five)."


@frames_app.command()
def faults(  # noqa: PLR0917 - typer calls it, by keyword
    stacks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STACK]...", help="User stacks.  [default: list those of all]"),
    ] = None,
    instance: InstanceOption = "default",
    leg: LegOption = None,
    direction: Annotated[
        Bound | None,
        typer.Option(help="in: what the stack takes; out: what it sends.  [default: both]"),
    ] = None,
    drop: Annotated[str | None, typer.Option(metavar="WHICH", help=f"Lose: {_WHICH}")] = None,
    corrupt: Annotated[
        str | None, typer.Option(metavar="WHICH", help="Turn over one bit behind the IP header.")
    ] = None,
    duplicate: Annotated[str | None, typer.Option(metavar="WHICH", help="Send twice.")] = None,
    reorder: Annotated[
        str | None, typer.Option(metavar="WHICH", help="Put behind the next three.")
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(metavar="TIME[,WHICH]", help="Hold for 20ms, or 20ms,5% for one in twenty."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=2**64 - 1, help="Of all that is random."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="End the faults.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Inject faults into the packets of user stacks, as a bad path would, or list those that are.

    Of the leg and direction that are named, or of both, they take the place of what was there.
    Until --off, or the end of the process: one that is started again has none.

    \b
    Examples:
      dmm-ebpf faults wan --leg outer --drop 1% --reorder 0.5% --seed 7
      dmm-ebpf faults wan --leg outer --direction in --delay 20ms
      dmm-ebpf faults
      dmm-ebpf faults wan --off
    """
    from dmm_ebpf.cli import faults as work
    from dmm_ebpf.instancename import check_name

    check_name(instance)
    named = {"drop": drop, "corrupt": corrupt, "duplicate": duplicate, "reorder": reorder}
    wanted = work.asked(
        {name: text for name, text in named.items() if text is not None},
        delay,
        leg=leg and leg.value,
        direction=direction and direction.value,
        seed=seed,
        off=off,
        on=stacks or (),
    )
    work.run(instance, stacks or (), wanted, as_json=as_json)

# SPDX-License-Identifier: Apache-2.0
"""The commands about what a policy says: `dmm-ebpf policy` and `dmm-ebpf route`. As in app.py:
parse, call, print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmm_ebpf.cli.options import (
    ContainerOption,
    Direction,
    InstanceOption,
    JsonOption,
    OneInstanceOption,
    PolicyArgument,
    Proto,
    UnitOption,
    group,
)

policy_app = group(help="Check, apply and show policies.")
route_app = group(help="Ask which stack a flow would get.")


@policy_app.command("check")
def policy_check(file: PolicyArgument, as_json: JsonOption = False) -> None:
    """Read a policy and say all that is wrong with it, or "ok"; nothing is attached or changed.

    What is right but does nothing, as a rule that is never reached, is warned of. Exit code: 0 ok,
    also with warnings; 2 refused.

    \b
    Example:
      dmm-ebpf policy check policy.toml && dmm-ebpf policy apply policy.toml
    """
    from dmm_ebpf.cli import actions

    actions.policy_check(file, as_json=as_json)


@policy_app.command("apply")
def policy_apply(
    file: PolicyArgument, instance: InstanceOption = "default", as_json: JsonOption = False
) -> None:
    """Put a policy in force, whole or not at all; established flows keep their stack.

    \b
    Example:
      dmm-ebpf policy apply policy.toml --instance red
    """
    from dmm_ebpf.cli import actions

    actions.policy_apply(file, instance, as_json=as_json)


@policy_app.command("show")
def policy_show(instance: OneInstanceOption = None, as_json: JsonOption = False) -> None:
    """Print the policy in force as it was written.

    \b
    Example:
      dmm-ebpf policy show > running.toml
    """
    from dmm_ebpf.cli import actions

    actions.policy_show(instance, as_json=as_json)


@route_app.command("get")
def route_get(  # noqa: PLR0917 - typer calls it, by keyword
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDR[:PORT]",
            help="The peer, an address; PORT is a number or a service's name; IPv6 with a port is [ADDR]:PORT.",
        ),
    ],
    proto: Annotated[Proto, typer.Option("--proto", help="Protocol of the flow.")] = Proto.TCP,
    cgroup: Annotated[
        str | None, typer.Option("--cgroup", metavar="PATH", help="cgroup of the process.")
    ] = None,
    container: ContainerOption = None,
    pid: Annotated[
        str | None,
        typer.Option("--pid", metavar="PID", help="Cgroup, user and name of this process."),
    ] = None,
    unit: UnitOption = None,
    uid: Annotated[
        str | None,
        typer.Option("--uid", metavar="UID", help="User of the process, number or name."),
    ] = None,
    comm: Annotated[
        str | None, typer.Option("--comm", metavar="NAME", help="Name of the process.")
    ] = None,
    mark: Annotated[
        str | None, typer.Option("--mark", metavar="MARK", help="SO_MARK of the socket, 0x is hex.")
    ] = None,
    direction: Annotated[
        Direction,
        typer.Option(
            "--direction",
            help="listen: ADDR is a client's, PORT the one listened on. forward: what the host only forwards.",
        ),
    ] = Direction.CONNECT,
    source: Annotated[
        str | None, typer.Option("--from", metavar="ADDR", help="forward: who opens the flow.")
    ] = None,
    in_interface: Annotated[
        str | None,
        typer.Option("--in-interface", metavar="DEVICE", help="forward: by which it comes in."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="Ask this policy file, not an instance."),
    ] = None,
    instance: OneInstanceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which stack a new flow would get, and the rule and the route that decide.

    \b
    Examples:
      dmm-ebpf route get 203.0.113.7:443 --cgroup /shop.slice
      dmm-ebpf route get 203.0.113.7:443 --container web
      dmm-ebpf route get [2001:db8::7]:443 --uid www-data --json
      dmm-ebpf route get 203.0.113.7:80 --policy new.toml
      dmm-ebpf route get 203.0.113.7 --direction forward --in-interface lan0
    """
    from dmm_ebpf.cli import actions

    query = actions.route_query(
        address,
        proto=proto.value,
        cgroup=cgroup,
        container=container,
        pid=pid,
        unit=unit,
        uid=uid,
        comm=comm,
        mark=mark,
        direction=direction.value,
        source=source,
        in_interface=in_interface,
    )
    actions.route_get(query, policy=policy, instance=instance, as_json=as_json)

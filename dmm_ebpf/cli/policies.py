# SPDX-License-Identifier: Apache-2.0
"""The commands about what a policy says: `dmm-ebpf policy` and `dmm-ebpf route`. As in app.py:
parse, call, print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmm_ebpf.cli.options import (
    AddressArgument,
    CgroupOption,
    ChoiceOption,
    CommOption,
    ContainerOption,
    Direction,
    DirectionOption,
    DscpOption,
    ExecutableOption,
    FileOption,
    GidOption,
    InInterfaceOption,
    InstanceOption,
    InterfaceOption,
    JsonOption,
    LocalPortOption,
    MarkOption,
    OneInstanceOption,
    PolicyArgument,
    ProcessOption,
    Proto,
    ProtoOption,
    SourceOption,
    UidOption,
    UnitOption,
    group,
)

policy_app = group(help="Check, test, explain, compare, apply and show policies.")
route_app = group(help="Ask which stack a flow would get; list, add and delete single routes.")


@policy_app.command("check")
def policy_check(
    file: PolicyArgument,
    host: Annotated[
        bool,
        typer.Option("--host", help="Also hold it against this host: devices, cgroups and others."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read a policy and say all that is wrong with it, or "ok"; nothing is attached or changed.

    What is right but does nothing, as a rule that is never reached, is warned of. With --host so is
    a cgroup or a device that rules name and this host does not have; a network namespace, a
    congestion control or a stack's device that is not there is refused. Exit code: 0 ok, also with
    warnings; 2 refused.

    \b
    Examples:
      dmm-ebpf policy check policy.toml && dmm-ebpf policy apply policy.toml
      dmm-ebpf policy check --host policy.toml --json
    """
    from dmm_ebpf.cli import actions

    actions.policy_check(file, host=host, as_json=as_json)


@policy_app.command("apply")
def policy_apply(
    file: PolicyArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and tell what would change.")
    ] = False,
    instance: InstanceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Put a policy in force, whole or not at all; established flows keep their stack.

    With --dry-run nothing is changed: the file is checked as far as it can be on this host, and
    told are the differences from the policy in force, and what only applying would show. Exit
    code: 0 it is, or would be, applied; 2 refused.

    \b
    Examples:
      dmm-ebpf policy apply policy.toml --instance red
      dmm-ebpf policy apply policy.toml --dry-run
    """
    if dry_run:
        from dmm_ebpf.cli import dryrun

        dryrun.policy_dry_run(file, instance, as_json=as_json)
        return
    from dmm_ebpf.cli import actions

    actions.policy_apply(file, instance, as_json=as_json)


@policy_app.command("test")
def policy_test(
    file: PolicyArgument,
    expect: Annotated[
        Path | None,
        typer.Option(
            "--expect",
            metavar="FILE",
            help="What is expected; without it POLICY's name with .expect.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a policy for the stacks of flows, and tell where it does not say what is expected.

    Expectations are lines: ADDR[:PORT] [tcp|udp] [connect|listen|forward] [from CGROUP] [uid N]
    [gid N] [comm NAME] [executable PATH] [mark N] [dscp N] [netns NAME] [local-port N]
    [interface DEVICE] [source ADDR] [in DEVICE] -> STACK. Nothing is attached or changed. Exit
    code: 0 all hold; 1 some do not; 2 refused.

    \b
    Example:
      echo '203.0.113.7:443 from /shop.slice -> wan' > policy.expect
      dmm-ebpf policy test policy.toml
    """
    from dmm_ebpf.cli import policytools

    policytools.policy_test(file, expect, as_json=as_json)


@policy_app.command("diff")
def policy_diff(
    file: PolicyArgument, instance: OneInstanceOption = None, as_json: JsonOption = False
) -> None:
    """Tell in what a policy differs from the one in force: stacks, rules, routes.

    What is compared is what they mean, not how they are written. Exit code: 0 no difference;
    1 there are some; 2 refused.

    \b
    Example:
      dmm-ebpf policy diff policy.toml || dmm-ebpf policy apply policy.toml
    """
    from dmm_ebpf.cli import policytools

    policytools.policy_diff(file, instance, as_json=as_json)


@policy_app.command("explain")
def policy_explain(  # noqa: PLR0917 - typer calls it, by keyword
    address: AddressArgument,
    proto: ProtoOption = Proto.TCP,
    cgroup: CgroupOption = None,
    container: ContainerOption = None,
    pid: ProcessOption = None,
    unit: UnitOption = None,
    uid: UidOption = None,
    gid: GidOption = None,
    comm: CommOption = None,
    executable: ExecutableOption = None,
    mark: MarkOption = None,
    dscp: DscpOption = None,
    choice: ChoiceOption = None,
    local_port: LocalPortOption = None,
    interface: InterfaceOption = None,
    direction: DirectionOption = Direction.CONNECT,
    source: SourceOption = None,
    in_interface: InInterfaceOption = None,
    policy: FileOption = None,
    instance: OneInstanceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how a policy comes to the stack of a new flow: rule by rule, and route by route.

    Each rule that is looked at is named, with what of it does not match; of its table, the routes
    whose prefix contains the address, the longest first, and why each does not decide. With
    --policy no instance is asked.

    \b
    Examples:
      dmm-ebpf policy explain 203.0.113.7:443 --cgroup /shop.slice
      dmm-ebpf policy explain 203.0.113.7:80 --policy new.toml
    """
    from dmm_ebpf.cli import actions, explaining

    query = actions.route_query(
        address,
        proto=proto.value,
        cgroup=cgroup,
        container=container,
        pid=pid,
        unit=unit,
        uid=uid,
        gid=gid,
        comm=comm,
        executable=executable,
        mark=mark,
        dscp=dscp,
        choice=choice,
        local_port=local_port,
        interface=interface,
        direction=direction.value,
        source=source,
        in_interface=in_interface,
    )
    explaining.policy_explain(query, policy=policy, instance=instance, as_json=as_json)


@policy_app.command("schema")
def policy_schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of policy files, by which editors complete and check them.

    It knows the plug-ins of packages that are installed on this host. `policy check` sees more:
    names that are nowhere defined, routes that contradict.

    \b
    Example:
      dmm-ebpf policy schema > policy.schema.json
    """
    from dmm_ebpf.cli import policytools

    policytools.policy_schema(as_json=as_json)


@policy_app.command("import")
def policy_import(  # noqa: PLR0917  (typer's way to say options)
    dmm: Annotated[
        Path | None,
        typer.Option("--dmm", metavar="FILE", help="rd_config.json of FD.io DMM."),
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option("--modules", metavar="FILE", help="module_config.json of FD.io DMM."),
    ] = None,
    libvma: Annotated[
        Path | None,
        typer.Option("--libvma", metavar="FILE", help="libvma.conf of Mellanox's libvma."),
    ] = None,
    onload: Annotated[
        Path | None,
        typer.Option(
            "--onload",
            metavar="FILE",
            help="A script, unit or profile that starts programs by Onload.",
        ),
    ] = None,
    mptcpize: Annotated[
        Path | None,
        typer.Option(
            "--mptcpize",
            metavar="FILE",
            help="A script or unit that starts programs by mptcpize.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the policy that another project's files mean, and what of them cannot be carried over.

    \b
    Examples:
      dmm-ebpf policy import --dmm rd_config.json > policy.toml
      dmm-ebpf policy import --libvma /etc/libvma.conf > policy.toml
      dmm-ebpf policy import --onload /opt/app/start.sh > policy.toml
      dmm-ebpf policy import --mptcpize /opt/app/start.sh > policy.toml
    """
    from dmm_ebpf.cli import policytools

    policytools.policy_import(dmm, modules, libvma, onload, mptcpize, as_json=as_json)


@policy_app.command("show")
def policy_show(instance: OneInstanceOption = None, as_json: JsonOption = False) -> None:
    """Print the policy in force as it was written.

    \b
    Example:
      dmm-ebpf policy show > running.toml
    """
    from dmm_ebpf.cli import policytools

    policytools.policy_show(instance, as_json=as_json)


@route_app.command("get")
def route_get(  # noqa: PLR0917 - typer calls it, by keyword
    address: AddressArgument,
    proto: ProtoOption = Proto.TCP,
    cgroup: CgroupOption = None,
    container: ContainerOption = None,
    pid: ProcessOption = None,
    unit: UnitOption = None,
    uid: UidOption = None,
    gid: GidOption = None,
    comm: CommOption = None,
    executable: ExecutableOption = None,
    mark: MarkOption = None,
    dscp: DscpOption = None,
    choice: ChoiceOption = None,
    local_port: LocalPortOption = None,
    interface: InterfaceOption = None,
    direction: DirectionOption = Direction.CONNECT,
    source: SourceOption = None,
    in_interface: InInterfaceOption = None,
    why: Annotated[
        bool,
        typer.Option("--why", help="Of an adaptive route, why that candidate serves now."),
    ] = False,
    policy: FileOption = None,
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
      dmm-ebpf route get 203.0.113.7:443 --why
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
        gid=gid,
        comm=comm,
        executable=executable,
        mark=mark,
        dscp=dscp,
        choice=choice,
        local_port=local_port,
        interface=interface,
        direction=direction.value,
        source=source,
        in_interface=in_interface,
    )
    actions.route_get(query, policy=policy, instance=instance, reasons=why, as_json=as_json)


RouteWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ROUTE",
        help="TO [proto tcp|udp] [port PORTS] stack STACK [table TABLE], as `route show` has it.",
        show_default=False,
    ),
]
BatchOption = Annotated[
    typer.FileText | None,
    typer.Option(
        "--batch",
        metavar="FILE",
        help='One route a line, all or none of them; "-" is standard input.',
    ),
]


@route_app.command("add")
def route_add(
    route: RouteWords = None,
    batch: BatchOption = None,
    instance: InstanceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Put a route beside the policy in force; the next connect() sees it. What exists is refused.

    The longest prefix wins as ever, whoever says it; of equal routes the live one counts. Live
    routes stay through reloads, other policies and take-overs, unless the policy's stack or table
    is gone. The table need not be said where the policy has one.

    \b
    Examples:
      dmm-ebpf route add 203.0.113.0/24 proto tcp port 443 stack wan table shop
      dmm-ebpf route add 2001:db8::/32 stack blackhole
      dmm-ebpf route add --batch routes.txt
    """
    from dmm_ebpf.cli import routes

    routes.change("add", route or (), batch, instance, as_json=as_json)


@route_app.command("replace")
def route_replace(
    route: RouteWords = None,
    batch: BatchOption = None,
    instance: InstanceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Like add, but what exists is changed: a live route, or, for as long as this one lives, what
    the policy says.

    \b
    Example:
      dmm-ebpf route replace 203.0.113.0/24 proto tcp port 443 stack kernel
    """
    from dmm_ebpf.cli import routes

    routes.change("replace", route or (), batch, instance, as_json=as_json)


@route_app.command("del")
def route_del(
    route: RouteWords = None,
    batch: BatchOption = None,
    instance: InstanceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Take a live route away; what is not there, or is the policy's own, is refused.

    \b
    Example:
      dmm-ebpf route del 203.0.113.0/24 proto tcp port 443
    """
    from dmm_ebpf.cli import routes

    routes.change("del", route or (), batch, instance, as_json=as_json)


@route_app.command("flush")
def route_flush(instance: InstanceOption = "default", as_json: JsonOption = False) -> None:
    """Take all live routes away; the policy's stay.

    \b
    Example:
      dmm-ebpf route flush
    """
    from dmm_ebpf.cli import routes

    routes.change("flush", (), None, instance, as_json=as_json)


@route_app.command("show")
def route_show(
    table: Annotated[
        str | None, typer.Option("--table", metavar="NAME", help="Only those of this table.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Only those beside the policy.")] = False,
    instance: OneInstanceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the routes of an instance in the words that add, replace and del take: live ones first.

    \b
    Examples:
      dmm-ebpf route show --live
      dmm-ebpf route show --table shop --json
    """
    from dmm_ebpf.cli import routes

    routes.show(instance, table, live=live, as_json=as_json)

# SPDX-License-Identifier: Apache-2.0
"""The command tree of dmm-ebpf: parse, call, print; nothing else.

Whatever a command needs beyond typer is imported when it runs, so that --help and completion stay
quick. Commands raise DmmError, or typer.Exit for an exit code of their own; main.py turns both into
what a shell sees.
"""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Annotated

import typer

from dmm_ebpf import __version__
from dmm_ebpf.cli.controller import controller_app
from dmm_ebpf.cli.frames import frames_app
from dmm_ebpf.cli.options import (
    INSTANCE_HELP,
    AnyInstanceOption,
    AttachPolicyOption,
    ContainerOption,
    GroupOption,
    HostOption,
    IecOption,
    InstanceOption,
    JsonOption,
    LabelOption,
    NetnsOfOption,
    NetnsOption,
    PidOption,
    PolicyOption,
    UnitOption,
    complete_devices,
    complete_instances,
    group,
)
from dmm_ebpf.cli.policies import policy_app, route_app
from dmm_ebpf.cli.simulation import sim_app

app = group()
app.add_typer(policy_app, name="policy")
app.add_typer(route_app, name="route")
app.add_typer(controller_app, name="controller")


def _service() -> ModuleType:
    """The Resource Director's half of the package. An import makes thousands of objects and no
    garbage; looking for some meanwhile takes a tenth of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        from dmm_ebpf.rd.life import attaching as service
    finally:
        if enabled:
            gc.enable()
    return service


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dmm-ebpf {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Commands may be abbreviated while only one is meant. DMM_DEBUG=1 shows where an error comes from."
)
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Route every TCP flow of unmodified programs to the transport stack that suits it.

    \b
    Examples:
      dmm-ebpf run --policy policy.toml -- curl https://203.0.113.7/
      dmm-ebpf attach --cgroup /shop.slice --policy policy.toml --daemon
      dmm-ebpf route get 203.0.113.7:443 --cgroup /shop.slice
      dmm-ebpf top
    """


@app.command()
def attach(  # noqa: PLR0917 - typer calls it, by keyword
    cgroup: Annotated[
        str | None,
        typer.Option(
            "--cgroup",
            "-c",
            metavar="PATH",
            help="cgroup v2 whose sockets are routed, e.g. /shop.slice.",
        ),
    ] = None,
    container: ContainerOption = None,
    pid: PidOption = None,
    unit: UnitOption = None,
    policy: AttachPolicyOption = None,
    netns: NetnsOption = None,
    daemon: Annotated[
        bool,
        typer.Option("--daemon", "-d", help="Return when it serves, and go on in the background."),
    ] = False,
    pending: Annotated[
        bool,
        typer.Option(
            "--pending",
            help="Also if the cgroup does not exist yet: it is routed from when it is made.",
        ),
    ] = False,
    instance: InstanceOption = "default",
    containers: Annotated[
        bool,
        typer.Option("--containers", help="Route what containers in the cgroup connect to, too."),
    ] = False,
    label: LabelOption = None,
    host: HostOption = None,
    readers: GroupOption = None,
) -> None:
    """Attach to a cgroup and serve until Ctrl-C. Without a policy it only observes.

    --container, --pid and --unit find the cgroup, and the network namespace too, unless --netns
    names one or --containers routes from outside.

    \b
    Examples:
      dmm-ebpf attach --cgroup /
      dmm-ebpf attach --container web --policy web.toml --daemon
      dmm-ebpf attach --cgroup / --containers --policy policy.toml --daemon
      dmm-ebpf attach --cgroup /shop.slice --policy policy.toml --daemon
      dmm-ebpf attach --cgroup /lab --netns red -i red --policy lab.toml -d
      dmm-ebpf attach -c / --policy etcd://10.0.0.1/dmm --label role=edge -d
      dmm-ebpf attach -c / --policy policy.toml --group netops -d
    """
    from dmm_ebpf import readers as allowed
    from dmm_ebpf.cli import follow as following
    from dmm_ebpf.cli.output import note
    from dmm_ebpf.cli.where import attachable
    from dmm_ebpf.instancename import check_name

    check_name(instance)
    file, follower = following.policy_of(policy, host, label or [])
    service = _service()
    where = attachable(
        f"attach instance {instance}",
        cgroup=cgroup,
        container=container,
        pid=pid,
        unit=unit,
        pending=pending,
    )
    options = service.AttachOptions(
        instance=instance,
        cgroup=where.cgroup,
        policy=file,
        netns=netns or (None if containers else where.netns),
        daemon=daemon,
        pending=pending or unit is not None,
        containers=containers,
        readers=None if readers is None else allowed.gid_of(readers),
    )
    code = service.attach(options, follower)
    if daemon and code == 0:
        note(f"instance {instance} is attached to {where}")
    raise typer.Exit(code)


@app.command()
def detach(
    instance: Annotated[
        str | None,
        typer.Option(
            "--instance",
            "-i",
            metavar="NAME",
            help=f"{INSTANCE_HELP}  [default: default]",
            autocompletion=complete_instances,
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            "-a",
            help="Every instance of this host, of services, containers and other network "
            "namespaces too; each is named.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove every trace of an instance.

    It works also when the Resource Director was killed.

    \b
    Examples:
      dmm-ebpf detach
      dmm-ebpf detach --instance red
      dmm-ebpf detach --all
    """
    from dmm_ebpf.cli import actions

    actions.detach(instance, everything=everything, as_json=as_json)


@app.command(context_settings={"allow_interspersed_args": False})
def run(  # noqa: PLR0917 - typer calls it, by keyword
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD...", help="The command and its arguments.")
    ],
    policy: PolicyOption = None,
    netns: NetnsOption = None,
    container: NetnsOfOption = None,
    instance: Annotated[
        str | None,
        typer.Option(
            "--instance", "-i", metavar="NAME", help="Name of the instance.  [default: its own]"
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            "-u",
            metavar="USER",
            help="Run it as this user, name or uid.  [default: root]",
        ),
    ] = None,
) -> None:
    """Run a command under a policy and return its exit code.

    The command gets a cgroup and an instance of its own, which live as long as it does.
    What it leaves running goes on unrouted, in the cgroup in which dmm-ebpf was called.

    \b
    Examples:
      dmm-ebpf run --policy policy.toml -- curl -O https://203.0.113.7/big
      dmm-ebpf run --netns red -- iperf3 -s
      dmm-ebpf run --user alice --policy policy.toml -- firefox
      dmm-ebpf run --container web --policy p.toml -- curl http://203.0.113.7/
    """
    from dmm_ebpf.cli import follow as following
    from dmm_ebpf.cli import where
    from dmm_ebpf.instancename import check_name

    if instance is not None:
        check_name(instance)
    following.refuse_place("run a command", policy)
    from dmm_ebpf.loader import ahead

    ahead.begin()
    service = _service()
    netns = where.netns("run a command", netns, container)
    raise typer.Exit(
        service.run(
            service.RunOptions(
                argv=command, instance=instance, policy=policy, netns=netns, user=user
            )
        )
    )


@app.command("compile")
def compile_programs() -> None:
    """Compile the BPF programs now, so that attach and run need no compiler.

    What is compiled is kept in /var/cache/dmm-ebpf: for this kernel, and in a form that suits
    any. Installing dmm-ebpf does this; without it the first attach or run does, and takes a
    few seconds longer.

    \b
    Example:
      dmm-ebpf compile
    """
    from dmm_ebpf.cli import actions

    actions.compile_programs()


@app.command()
def status(instance: AnyInstanceOption = None, as_json: JsonOption = False) -> None:
    """Show each instance: policy, stacks, flows, counters.

    \b
    Examples:
      dmm-ebpf status
      dmm-ebpf status --instance red --json
    """
    from dmm_ebpf.cli import gather, output, tables

    listing = gather.status(instance)
    if as_json:
        output.print_json(listing.rows)
    else:
        for row in listing.rows:
            tables.print_status(row)
    listing.finish()


@app.command()
def flows(  # noqa: PLR0917 - typer calls it, by keyword
    instance: AnyInstanceOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print events as they happen, until Ctrl-C.")
    ] = False,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            "--stack",
            metavar="NAME",
            help="Only flows on this stack; may be given again, for more.",
        ),
    ] = None,
    comm: Annotated[
        str | None,
        typer.Option(
            "--comm", metavar="PATTERN", help="Only of processes so named; * matches any."
        ),
    ] = None,
    pid: Annotated[
        str | None, typer.Option("--pid", metavar="PID", help="Only of this process.")
    ] = None,
    cgroup: Annotated[
        str | None,
        typer.Option("--cgroup", metavar="PATH", help="Only of this cgroup, and those below it."),
    ] = None,
    container: ContainerOption = None,
    unit: UnitOption = None,
    dst: Annotated[
        str | None,
        typer.Option(
            "--dst", metavar="PEER", help="Only to ADDR, PREFIX, either with :PORT, or :PORT."
        ),
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="Only in this TCP state.")
    ] = None,
    iec: IecOption = False,
    as_json: JsonOption = False,
) -> None:
    """List open flows, or follow what happens to them.

    Each flow is shown with the stack it got, and the table, rule and route that decided.

    \b
    Examples:
      dmm-ebpf flows --stack wan --state established
      dmm-ebpf flows --container web
      dmm-ebpf flows --dst 203.0.113.0/24:443 --json | jq '.[].srtt_us'
      dmm-ebpf flows --follow --comm 'nginx*'
    """
    from dmm_ebpf.cli import actions
    from dmm_ebpf.show.flowfilter import FlowFilter

    where = actions.group_of("list flows", cgroup, container=container, unit=unit)
    wanted = FlowFilter.of(
        stack=stack or (), comm=comm, pid=pid, cgroup=where, dst=dst, state=state
    )
    if follow:
        actions.follow(instance, wanted, iec=iec, as_json=as_json)
    else:
        actions.flows(instance, wanted, iec=iec, as_json=as_json)


@app.command()
def listeners(instance: AnyInstanceOption = None, as_json: JsonOption = False) -> None:
    """List listening addresses.

    The table is the one that their clients are looked up in.

    \b
    Example:
      dmm-ebpf listeners --json
    """
    from dmm_ebpf.cli import gather, output, tables

    listing = gather.listeners(instance)
    if as_json:
        output.print_json(listing.rows)
    else:
        tables.print_listeners(listing.rows)
    listing.finish()


@app.command()
def paths(
    instance: AnyInstanceOption = None,
    as_json: JsonOption = False,
    picture: Annotated[
        bool, typer.Option("--picture", help="Bars instead of a table, and why each serves.")
    ] = False,
) -> None:
    """List what is known of the paths of adaptive routes, and who serves them.

    "*" is the stack that new flows get, "?" the one that a share of them tries.

    \b
    Examples:
      dmm-ebpf paths
      dmm-ebpf paths --picture
    """
    from dmm_ebpf.cli import gather, output, pathtables

    listing = gather.paths(instance)
    if as_json:
        output.print_json(listing.rows)
    elif picture:
        pathtables.print_picture(listing.rows)
    else:
        pathtables.print_paths(listing.rows)
    listing.finish()


@app.command()
def stacks(
    instance: AnyInstanceOption = None,
    as_json: JsonOption = False,
    plugins: Annotated[
        bool,
        typer.Option(
            "--plugins", help="The congestion controls and transports that user stacks may have."
        ),
    ] = False,
    include: Annotated[
        bool,
        typer.Option("--include", help="The folder of cc.h, with which plug-ins in C are built."),
    ] = False,
) -> None:
    """List stacks and their state.

    \b
    Examples:
      dmm-ebpf stacks
      dmm-ebpf stacks --plugins
      cc -shared -fPIC -O2 -I"$(dmm-ebpf stacks --include)" -o ledbat.so ledbat.c
    """
    from dmm_ebpf.cli import gather, output, tables

    if include or plugins:
        from dmm_ebpf.cli import plugins as controls

        if include and as_json:
            output.print_json({"include": str(controls.include())})
        elif include:
            print(controls.include())
        elif as_json:
            output.print_json(controls.listing())
        else:
            controls.print_listing(controls.listing())
        return
    listing = gather.stacks(instance)
    if as_json:
        output.print_json(listing.rows)
    else:
        tables.print_stacks(listing.rows)
    listing.finish()


app.registered_commands += [*sim_app.registered_commands, *frames_app.registered_commands]


@app.command()
def hal(
    devices: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DEVICE]...",
            help="All about these.  [default: a table of all]",
            autocompletion=complete_devices,
        ),
    ] = None,
    host: Annotated[
        bool, typer.Option("--host", help="Only what has nothing to do with a device.")
    ] = False,
    netns: NetnsOption = None,
    container: NetnsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """List network devices: what each can, which port of user stacks it is fit for, and why. And
    whether the kernel lets a policy turn sockets into MPTCP's.

    Nothing is attached or changed. What could not be told is said, with the reason.

    \b
    Examples:
      dmm-ebpf hal
      dmm-ebpf hal eth0
      dmm-ebpf hal --netns red --json | jq '.[] | {name, fit_for}'
      dmm-ebpf hal --host --json
    """
    from dmm_ebpf.cli import hardware, output, where
    from dmm_ebpf.errors import UsageError

    if host and devices:
        raise UsageError(
            "tell of the host", why="devices are named besides", hint="give one of both"
        )
    name = where.netns("list devices", netns, container)
    rows = [] if host else hardware.listing(devices or (), name)
    about = hardware.host(name) if host or not (devices or as_json) else None
    if as_json:
        output.print_json(about if host else rows)
        return
    from dmm_ebpf.cli import hardwaretables

    if not devices and not host:
        hardwaretables.print_devices(rows)
    if about is not None:
        hardwaretables.print_host(about)
    for row in rows if devices else ():
        hardwaretables.print_device(row)


@app.command()
def top(
    instance: AnyInstanceOption = None,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", metavar="SECONDS", min=0.1, max=60, help="Time between two looks."
        ),
    ] = 1.0,
    filters: Annotated[
        str,
        typer.Option("--filter", metavar="TERMS", help="Filter to begin with, as typed after /."),
    ] = "",
    iec: IecOption = False,
) -> None:
    """Watch live flows; ? shows the keys, q quits.

    \b
    Examples:
      dmm-ebpf top
      dmm-ebpf top --instance red --filter 'stack=wan state=established'
    """
    from dmm_ebpf.cli import actions

    actions.top(instance, interval_s=interval, filters=filters, iec=iec)

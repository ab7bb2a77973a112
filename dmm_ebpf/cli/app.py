# SPDX-License-Identifier: Apache-2.0
"""The command tree of dmm-ebpf: parse, call, print; nothing else.

Whatever a command needs beyond typer is imported when it runs, so that --help and completion stay quick.
Commands raise DmmError, or typer.Exit for an exit code of their own; main.py turns both into what a shell
sees.
"""

from __future__ import annotations

import enum
import gc
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dmm_ebpf import __version__


class AbbreviatingGroup(TyperGroup):
    """Commands may be abbreviated while only one is meant, as in iproute2: `dmm-ebpf ro g 203.0.113.7`."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or the only one whose name begins so."""
        exact = super().get_command(ctx, cmd_name)
        if exact is not None:
            return exact
        found = [name for name in self.list_commands(ctx) if name.startswith(cmd_name)]
        if len(found) > 1:
            ctx.fail(f"{cmd_name!r} may mean {' or '.join(found)}")
        return super().get_command(ctx, found[0]) if found else None

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which they are written here."""
        return list(self.commands)


def _group(**options: Any) -> typer.Typer:
    return typer.Typer(
        cls=AbbreviatingGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


app = _group()
policy_app = _group(help="Check, apply and show policies.")
route_app = _group(help="Ask which stack a flow would get.")
app.add_typer(policy_app, name="policy")
app.add_typer(route_app, name="route")


def _instances(incomplete: str) -> list[str]:
    from dmm_ebpf.errors import DmmError
    from dmm_ebpf.rd import client

    try:
        return [name for name in client.instances() if name.startswith(incomplete)]
    except DmmError:
        return []


def _devices(incomplete: str) -> list[str]:
    import socket

    return [name for _, name in socket.if_nameindex() if name.startswith(incomplete)]


def _service() -> ModuleType:
    """The Resource Director's half of the package. An import makes thousands of objects and no garbage; looking for
    some meanwhile takes a tenth of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        from dmm_ebpf.rd import service
    finally:
        if enabled:
            gc.enable()
    return service


class Proto(enum.StrEnum):
    """Protocols that a policy can route."""

    TCP = "tcp"
    UDP = "udp"


class Direction(enum.StrEnum):
    """Who opens the flow."""

    CONNECT = "connect"
    LISTEN = "listen"


_INSTANCE_HELP = "Name of the instance."
InstanceOption = Annotated[
    str, typer.Option("--instance", "-i", metavar="NAME", help=_INSTANCE_HELP, autocompletion=_instances)
]
AnyInstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        "-i",
        metavar="NAME",
        help="Only this instance.  [default: all]",
        autocompletion=_instances,
    ),
]
OneInstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        "-i",
        metavar="NAME",
        help="Name of the instance.  [default: default, or the only one]",
        autocompletion=_instances,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", "-j", help="Print JSON, numbers raw.")]
IecOption = Annotated[bool, typer.Option("--iec", help="Count bytes by 1024 (Ki, Mi) rather than by 1000.")]
PolicyOption = Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="Policy file (TOML).")]
PolicyArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Policy file (TOML).")]
NetnsOption = Annotated[
    str | None,
    typer.Option(
        "--netns", "-n", metavar="NS", help="Network namespace: a name of ip-netns(8), a pid, or a path."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dmm-ebpf {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Commands may be abbreviated while only one is meant. DMM_DEBUG=1 shows where an error comes from."
)
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)
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
def attach(
    cgroup: Annotated[
        str,
        typer.Option(
            "--cgroup", "-c", metavar="PATH", help="cgroup v2 whose sockets are routed, e.g. /shop.slice."
        ),
    ],
    policy: PolicyOption = None,
    netns: NetnsOption = None,
    daemon: Annotated[
        bool, typer.Option("--daemon", "-d", help="Return when it serves, and go on in the background.")
    ] = False,
    instance: InstanceOption = "default",
) -> None:
    """Attach to a cgroup and serve until Ctrl-C. Without a policy it only observes.

    \b
    Examples:
      dmm-ebpf attach --cgroup /
      dmm-ebpf attach --cgroup /shop.slice --policy policy.toml --daemon
      dmm-ebpf attach --cgroup /lab --netns red -i red --policy lab.toml -d
    """
    from dmm_ebpf.cli.output import note
    from dmm_ebpf.instancename import check_name

    check_name(instance)
    service = _service()
    options = service.AttachOptions(
        instance=instance, cgroup=cgroup, policy=policy, netns=netns, daemon=daemon
    )
    code = service.attach(options)
    if daemon and code == 0:
        note(f"instance {instance} is attached to {cgroup}")
    raise typer.Exit(code)


@app.command()
def detach(
    instance: InstanceOption = "default",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Every instance of this host.")] = False,
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
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="The command and its arguments.")],
    policy: PolicyOption = None,
    netns: NetnsOption = None,
    instance: Annotated[
        str | None,
        typer.Option("--instance", "-i", metavar="NAME", help="Name of the instance.  [default: its own]"),
    ] = None,
) -> None:
    """Run a command under a policy and return its exit code.

    The command gets a cgroup and an instance of its own, which live as long as it does.

    \b
    Examples:
      dmm-ebpf run --policy policy.toml -- curl -O https://203.0.113.7/big
      dmm-ebpf run --netns red -- iperf3 -s
    """
    from dmm_ebpf.instancename import check_name

    if instance is not None:
        check_name(instance)
    from dmm_ebpf.loader import ahead

    ahead.begin()
    service = _service()
    raise typer.Exit(
        service.run(service.RunOptions(argv=command, instance=instance, policy=policy, netns=netns))
    )


@app.command("compile")
def compile_programs() -> None:
    """Compile the BPF programs now, so that attach and run need no compiler.

    What is compiled is kept in /var/cache/dmm-ebpf: for this kernel, and in a form that suits any. Installing
    dmm-ebpf does this; without it the first attach or run does, and takes a few seconds longer.

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


@policy_app.command("check")
def policy_check(file: PolicyArgument, as_json: JsonOption = False) -> None:
    """Read a policy and say what is wrong with it, or "ok"; nothing is attached or changed.

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
        str, typer.Argument(metavar="ADDR[:PORT]", help="The peer; with a port, IPv6 as [ADDR]:PORT.")
    ],
    proto: Annotated[Proto, typer.Option("--proto", help="Protocol of the flow.")] = Proto.TCP,
    cgroup: Annotated[
        str | None, typer.Option("--cgroup", metavar="PATH", help="cgroup of the process.")
    ] = None,
    uid: Annotated[
        str | None, typer.Option("--uid", metavar="UID", help="User of the process, number or name.")
    ] = None,
    comm: Annotated[str | None, typer.Option("--comm", metavar="NAME", help="Name of the process.")] = None,
    mark: Annotated[
        str | None, typer.Option("--mark", metavar="MARK", help="SO_MARK of the socket, 0x is hex.")
    ] = None,
    direction: Annotated[
        Direction, typer.Option("--direction", help="listen: ADDR is a client's, PORT the one listened on.")
    ] = Direction.CONNECT,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Ask this policy file, not an instance.")
    ] = None,
    instance: OneInstanceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which stack a new flow would get, and the rule and the route that decide.

    \b
    Examples:
      dmm-ebpf route get 203.0.113.7:443 --cgroup /shop.slice
      dmm-ebpf route get [2001:db8::7]:443 --uid www-data --json
      dmm-ebpf route get 203.0.113.7:80 --policy new.toml
    """
    from dmm_ebpf.cli import actions

    query = actions.route_query(
        address,
        proto=proto.value,
        cgroup=cgroup,
        uid=uid,
        comm=comm,
        mark=mark,
        direction=direction.value,
    )
    actions.route_get(query, policy=policy, instance=instance, as_json=as_json)


@app.command()
def flows(  # noqa: PLR0917 - typer calls it, by keyword
    instance: AnyInstanceOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print events as they happen, until Ctrl-C.")
    ] = False,
    stack: Annotated[
        str | None, typer.Option("--stack", metavar="NAME", help="Only flows on this stack.")
    ] = None,
    comm: Annotated[
        str | None,
        typer.Option("--comm", metavar="PATTERN", help="Only of processes so named; * matches any."),
    ] = None,
    pid: Annotated[str | None, typer.Option("--pid", metavar="PID", help="Only of this process.")] = None,
    dst: Annotated[
        str | None,
        typer.Option("--dst", metavar="PEER", help="Only to ADDR, PREFIX, either with :PORT, or :PORT."),
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
      dmm-ebpf flows --dst 203.0.113.0/24:443 --json | jq '.[].srtt_us'
      dmm-ebpf flows --follow --comm 'nginx*'
    """
    from dmm_ebpf.cli import actions
    from dmm_ebpf.tui.flowfilter import FlowFilter

    wanted = FlowFilter.of(stack=stack, comm=comm, pid=pid, dst=dst, state=state)
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

    listing = gather.listing("listeners", instance)
    if as_json:
        output.print_json(listing.rows)
    else:
        tables.print_listeners(listing.rows)
    listing.finish()


@app.command()
def stacks(instance: AnyInstanceOption = None, as_json: JsonOption = False) -> None:
    """List stacks and their state.

    \b
    Example:
      dmm-ebpf stacks
    """
    from dmm_ebpf.cli import gather, output, tables

    listing = gather.stacks(instance)
    if as_json:
        output.print_json(listing.rows)
    else:
        tables.print_stacks(listing.rows)
    listing.finish()


@app.command()
def hal(
    devices: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DEVICE]...", help="All about these.  [default: a table of all]", autocompletion=_devices
        ),
    ] = None,
    netns: NetnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """List network devices: what each can, which port of user stacks it is fit for, and why.

    Nothing is attached or changed. What could not be told is said, with the reason.

    \b
    Examples:
      dmm-ebpf hal
      dmm-ebpf hal eth0
      dmm-ebpf hal --netns red --json | jq '.[] | {name, fit_for}'
    """
    from dmm_ebpf.cli import hardware, output

    rows = hardware.listing(devices or (), netns)
    if as_json:
        output.print_json(rows)
        return
    from dmm_ebpf.cli import hardwaretables

    if not devices:
        hardwaretables.print_devices(rows)
    for row in rows if devices else ():
        hardwaretables.print_device(row)


@app.command()
def top(
    instance: AnyInstanceOption = None,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=60, help="Time between two looks.")
    ] = 1.0,
    filters: Annotated[
        str, typer.Option("--filter", metavar="TERMS", help="Filter to begin with, as typed after /.")
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

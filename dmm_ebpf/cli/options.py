# SPDX-License-Identifier: Apache-2.0
"""What commands are made of: how a group of them behaves, and the options that several have.

Imported at every start of the command line, so nothing but typer is imported here until
it is needed.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class AbbreviatingGroup(TyperGroup):
    """Commands may be abbreviated while only one is meant, as in iproute2: `dmm-ebpf
    ro g 203.0.113.7`.
    """

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
        """In the order in which they are written."""
        return list(self.commands)


def group(**options: Any) -> typer.Typer:
    """A group of commands without any. options: what typer.Typer() takes."""
    return typer.Typer(
        cls=AbbreviatingGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def complete_instances(incomplete: str) -> list[str]:
    """Names of instances that begin so, for the shell."""
    from dmm_ebpf.errors import DmmError
    from dmm_ebpf.rd.api import client

    try:
        return [name for name in client.instances() if name.startswith(incomplete)]
    except DmmError:
        return []


def complete_devices(incomplete: str) -> list[str]:
    """Names of network devices that begin so, for the shell."""
    import socket

    return [name for _, name in socket.if_nameindex() if name.startswith(incomplete)]


class Proto(enum.StrEnum):
    """Protocols that a policy can route."""

    TCP = "tcp"
    UDP = "udp"


class Direction(enum.StrEnum):
    """Who opens the flow."""

    CONNECT = "connect"
    LISTEN = "listen"
    FORWARD = "forward"


class Leg(enum.StrEnum):
    """Half of a connection that a user stack carries."""

    INNER = "inner"
    OUTER = "outer"


INSTANCE_HELP = "Name of the instance."
InstanceOption = Annotated[
    str,
    typer.Option(
        "--instance", "-i", metavar="NAME", help=INSTANCE_HELP, autocompletion=complete_instances
    ),
]
AnyInstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        "-i",
        metavar="NAME",
        help="Only this instance.  [default: all]",
        autocompletion=complete_instances,
    ),
]
OneInstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        "-i",
        metavar="NAME",
        help="Name of the instance.  [default: default, or the only one]",
        autocompletion=complete_instances,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", "-j", help="Print JSON, numbers raw.")]
IecOption = Annotated[
    bool, typer.Option("--iec", help="Count bytes by 1024 (Ki, Mi) rather than by 1000.")
]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Policy file (TOML).")
]
AttachPolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="FILE|etcd://HOST/PREFIX",
        help="Policy file (TOML), or the fleet's in etcd.",
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", help="A label of this host, for a fleet's policy; again."
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        "--host", metavar="NAME", help="This host's name in the fleet.  [default: hostname(1)]"
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group", "-g", metavar="NAME", help="A group whose members may ask, and change nothing."
    ),
]
PolicyArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Policy file (TOML).")]
NetnsOption = Annotated[
    str | None,
    typer.Option(
        "--netns",
        "-n",
        metavar="NS",
        help="Network namespace: a name of ip-netns(8), a pid, or a path.",
    ),
]
ContainerOption = Annotated[
    str | None,
    typer.Option(
        "--container",
        metavar="NAME",
        help="This container's: docker, podman, nerdctl, CRI; name or id.",
    ),
]
UnitOption = Annotated[
    str | None,
    typer.Option(
        "--unit", metavar="UNIT", help="This unit of systemd's: a service, scope or slice."
    ),
]
NetnsOfOption = Annotated[
    str | None,
    typer.Option(
        "--container",
        metavar="NAME",
        help="In the network namespace of this container, name or id.",
    ),
]
PidOption = Annotated[str | None, typer.Option("--pid", metavar="PID", help="This process's.")]

# Of a flow that is asked about
AddressArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADDR[:PORT]",
        help="The peer, an address; PORT is a number or a service's name; IPv6 with a port is [ADDR]:PORT.",
    ),
]
ProtoOption = Annotated[Proto, typer.Option("--proto", help="Protocol of the flow.")]
CgroupOption = Annotated[
    str | None, typer.Option("--cgroup", metavar="PATH", help="cgroup of the process.")
]
ProcessOption = Annotated[
    str | None,
    typer.Option(
        "--pid", metavar="PID", help="Cgroup, user, group, name and file of this process."
    ),
]
UidOption = Annotated[
    str | None,
    typer.Option("--uid", metavar="UID", help="User of the process, number or name."),
]
GidOption = Annotated[
    str | None,
    typer.Option("--gid", metavar="GID", help="Group of the process, number or name."),
]
CommOption = Annotated[
    str | None, typer.Option("--comm", metavar="NAME", help="Name of the process.")
]
ExecutableOption = Annotated[
    str | None,
    typer.Option("--executable", metavar="PATH", help="The file that the process executes."),
]
MarkOption = Annotated[
    str | None, typer.Option("--mark", metavar="MARK", help="SO_MARK of the socket, 0x is hex.")
]
DscpOption = Annotated[
    str | None,
    typer.Option("--dscp", metavar="DSCP", help="DSCP of the socket's own, af21 or a number."),
]
ChoiceOption = Annotated[
    str | None,
    typer.Option("--choice", metavar="STACK", help="What the program chooses by DMM_STACK."),
]
LocalPortOption = Annotated[
    int | None,
    typer.Option(
        "--local-port", metavar="PORT", help="connect: the port that the socket was bound to."
    ),
]
InterfaceOption = Annotated[
    str | None,
    typer.Option("--interface", metavar="DEVICE", help="connect: the socket's SO_BINDTODEVICE."),
]
DirectionOption = Annotated[
    Direction,
    typer.Option(
        "--direction",
        help="listen: ADDR is a client's, PORT the one listened on. forward: what the host only forwards.",
    ),
]
SourceOption = Annotated[
    str | None, typer.Option("--from", metavar="ADDR", help="forward: who opens the flow.")
]
InInterfaceOption = Annotated[
    str | None,
    typer.Option("--in-interface", metavar="DEVICE", help="forward: by which it comes in."),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="Ask this policy file, not an instance."),
]

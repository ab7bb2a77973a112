# SPDX-License-Identifier: Apache-2.0
"""What stands at a device: shapers, tc programs of others, nft's netdev hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compat.case import CONNECT, DIRECTIONS, LISTEN, OWN, Case, Step
from compat.cell import Cell
from compat.site import Untried
from compat.watch import hits, qdisc
from lab.build import bpf_object

IMPATIENT = {"patience": 2, "other": {"patience": 2}}  # what is lost is lost for good
GROUP = "at the device"
BULK = 3_000_000

# Of somebody else's: at `drop` it drops TCP segments above 200 bytes, at `pass` nothing.
PROGRAM = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#define SEC(name) __attribute__((section(name), used))
SEC("tc/drop") int drop_all(struct __sk_buff *skb) { return skb->len > 200 ? TC_ACT_SHOT : TC_ACT_OK; }
SEC("tc/pass") int pass_all(struct __sk_buff *skb) { return TC_ACT_OK; }
SEC("tc/mark") int mark_all(struct __sk_buff *skb) { skb->mark = 77; return TC_ACT_OK; }
char _license[] SEC("license") = "GPL";
"""


def compiled(cell: Cell, source: str, name: str) -> Path:
    """A BPF object, made once for a site. Untried when clang is not there."""
    made = cell.site.scratch / name
    try:
        return made if made.exists() else bpf_object(source, made)
    except FileNotFoundError as error:
        raise Untried("there is no clang") from error


def _tc(cell: Cell, words: str, undo: str = "") -> None:
    cell.run("tc", *words.split(), undo=("tc", *undo.split()) if undo else ())


def _tbf(cell: Cell) -> None:
    _tc(
        cell,
        "qdisc add dev {dev} root tbf rate 40mbit burst 32k limit 200k",
        "qdisc del dev {dev} root",
    )


def _htb(cell: Cell) -> None:
    _tc(cell, "qdisc add dev {dev} root handle 1: htb default 10", "qdisc del dev {dev} root")
    cell.run(
        "tc",
        *[
            "class",
            "add",
            "dev",
            "{dev}",
            "parent",
            "1:",
            "classid",
            "1:10",
            "htb",
            "rate",
            "40mbit",
            "burst",
            "16k",
        ],
    )


def _htb_two(cell: Cell) -> None:
    _tc(cell, "qdisc add dev {dev} root handle 1: htb default 20", "qdisc del dev {dev} root")
    for number, rate in (("10", "40mbit"), ("20", "900mbit")):
        cell.run(
            "tc",
            *f"class add dev {{dev}} parent 1: classid 1:{number} htb rate {rate} burst 16k".split(),
        )


def _htb_u32(cell: Cell) -> None:
    _htb_two(cell)
    way = "dport" if cell.direction == CONNECT else "sport"
    match = "ip" if cell.family == "ip4" else "ip6"
    protocol = "ip" if cell.family == "ip4" else "ipv6"
    match = f"u32 match {match} {way} {{port}} 0xffff"
    _tc(cell, f"filter add dev {{dev}} parent 1: protocol {protocol} {match} flowid 1:10")


def _police(cell: Cell) -> None:
    _tc(cell, "qdisc add dev {dev} ingress", "qdisc del dev {dev} ingress")
    protocol = "ip" if cell.family == "ip4" else "ipv6"
    police = "police rate 40mbit burst 200k drop"
    _tc(cell, f"filter add dev {{dev}} ingress protocol {protocol} u32 match u32 0 0 {police}")


def _program(where: str, section: str) -> Step:
    def prepare(cell: Cell) -> None:
        built = compiled(cell, PROGRAM, "compat-tc.o")
        cell.host.run(["tc", "qdisc", "add", "dev", cell.site.device, "clsact"], check=False)
        at = f"dev {{dev}} {where} pref 7"
        _tc(cell, f"filter add {at} bpf da obj {built} sec tc/{section}", f"filter del {at}")

    return prepare


def _netdev(cell: Cell, hook: str, rule: str) -> None:
    cell.nft(
        f"add table netdev n; add chain netdev n c {{ type filter hook {hook} device {{dev}} priority 0; }};"
        f"add rule netdev n c {rule}"
    )


_IN, _OUT = "{ip} saddr {peer} tcp {far} {port}", "{ip} daddr {peer} tcp {far} {port}"


def _hook(hook: str, verdict: str) -> Step:
    def prepare(cell: Cell) -> None:
        far_port = {"ingress": ("sport", "dport"), "egress": ("dport", "sport")}[hook][
            cell.direction != CONNECT
        ]
        match = (_IN if hook == "ingress" else _OUT).replace("{far}", far_port)
        _netdev(cell, hook, f"{match} counter {verdict}")

    return prepare


def netdev_hits(cell: Cell, got: object) -> bool:
    """Whether the rule of the netdev hook has seen the flow."""
    shown = cell.site.nft(cell.host).run("list table netdev n")
    return "counter packets 0 " not in shown


def _case(name: str, prepare: Step, directions: tuple[str, ...] = OWN, **more: Any) -> Case:
    return Case(name, GROUP, directions, prepare=prepare, **more)


CASES = (
    _case("tbf holds the rate", _tbf, DIRECTIONS[:3], size=BULK, mbit=40, during=(qdisc,), quick=True),
    _case("htb holds the rate", _htb, size=BULK, mbit=40, during=(qdisc,)),
    _case("htb, the class by the program's priority", _htb_two, (CONNECT,), size=BULK, mbit=40, during=(qdisc,),
          app={"options": [["SOL_SOCKET", "SO_PRIORITY", 0x10010]]}),
    _case("htb, the class by nft's meta priority", _htb_two, size=BULK, mbit=40, during=(qdisc,), quick=True,
          nft=("post {to} meta priority set 1:10",)),
    _case("htb, the class by a u32 filter on the port", _htb_u32, size=BULK, mbit=40, during=(qdisc,)),
    _case("policing at ingress", _police, size=BULK, mbit=-40),
    _case("another's clsact program at ingress drops", _program("ingress", "drop"), app=IMPATIENT, quick=True),
    _case("another's clsact program at egress drops", _program("egress", "drop"), app=IMPATIENT, quick=True),
    _case("another's clsact program at ingress marks", _program("ingress", "mark"), during=(hits,),
          nft=("from {from} meta mark 77 counter",)),
    _case("another's clsact program lets pass", _program("egress", "pass")),
    _case("nft netdev ingress, counted", _hook("ingress", ""), during=(netdev_hits,), quick=True),
    _case("nft netdev ingress, dropped", _hook("ingress", "drop"), during=(netdev_hits,)),
    _case("nft netdev egress, counted", _hook("egress", ""), during=(netdev_hits,), quick=True),
    _case("nft netdev egress, dropped", _hook("egress", "drop"), during=(netdev_hits,)),
    _case("nft netdev ingress, limited", _hook("ingress", "limit rate over 1 mbytes/second drop"),
          (CONNECT, LISTEN), size=BULK, mbit=-12),
)  # fmt: skip

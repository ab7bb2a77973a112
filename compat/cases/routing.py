# SPDX-License-Identifier: Apache-2.0
"""The kernel's routing: reverse paths, rules, several devices, several ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compat.case import CONNECT, DIRECTIONS, IP4, IP6, LISTEN, OWN, Case
from compat.cell import Cell
from compat.watch import hits, path

REVERSE, RULES, WAYS = "reverse path", "ip rules", "several ways"
USER_ID = 1234


def _second_way(cell: Cell) -> None:
    """Table 100 leads to the peer's service address by the second wire."""
    cell.ip("route add {service}/{len} via {peer2} dev eth1 table 100", "route flush table 100")


def _rule(words: str) -> tuple[tuple[str, str], ...]:
    return ((f"rule add {words} lookup 100 pref 900", f"rule del {words} lookup 100 pref 900"),)


def _vrf(cell: Cell) -> None:
    cell.run(
        "ip",
        "link",
        "add",
        "vrf9",
        "type",
        "vrf",
        "table",
        "100",
        undo=("ip", "link", "del", "vrf9"),
    )
    cell.run("ip", "link", "set", "vrf9", "up")
    cell.ip("route add {service}/{len} via {peer2} dev eth1 vrf vrf9")


def _strict_everywhere(cell: Cell) -> None:
    before = cell.host.call(_filters)
    cell.stack.callback(cell.host.call, _set_filters, before)
    cell.host.call(_set_filters, dict.fromkeys(before, "1"))


def _filters() -> dict[Path, str]:
    return {
        setting: setting.read_text()
        for setting in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter")
    }


def _set_filters(values: dict[Path, str]) -> None:
    for setting, value in values.items():
        setting.write_text(value)


def _two_defaults(cell: Cell) -> None:
    cell.ip(
        "route add default via {peer2} dev eth1 metric 5",
        "route del default via {peer2} dev eth1 metric 5",
    )
    if cell.family == IP4:  # a default without a metric is before all others
        cell.ip("route del default via {peer} dev eth0", "route add default via {peer} dev eth0")
        cell.ip(
            "route add default via {peer} dev eth0 metric 50",
            "route del default via {peer} dev eth0 metric 50",
        )


def _ecmp(cell: Cell) -> None:
    ways = "nexthop via {peer} dev eth0 nexthop via {peer2} dev eth1"
    cell.ip(f"route add {{service}}/{{len}} {ways}", "route del {service}/{len}")


def _by_the_second(cell: Cell) -> None:
    cell.words["target"] = cell.words["peer2" if cell.direction == CONNECT else "client2"]


def _answer_over_the_other(cell: Cell) -> None:
    cell.ip(
        "route add {client}/{len} via {client2}",
        "route del {client}/{len} via {client2}",
        host=cell.site.peer,
    )


def _rule_case(name: str, words: str, **more: Any) -> Case:
    fixed: dict[str, Any] = {"target": "service", "prepare": _second_way, "during": (path,)}
    return Case(name, RULES, (CONNECT,), ip=_rule(words), **fixed, **more)


CASES = (
    Case("rp_filter strict", REVERSE, DIRECTIONS, families=(IP4,), quick=True,
         sysctls=(("net.ipv4.conf.all.rp_filter", "1"), ("net.ipv4.conf.{dev}.rp_filter", "1"))),
    Case("rp_filter strict on every device", REVERSE, OWN, families=(IP4,),
         prepare=_strict_everywhere),
    Case("nft fib saddr . iif, missing dropped", REVERSE, DIRECTIONS, during=(hits,), quick=True,
         nft=("pre {from} fib saddr . iif oif missing counter drop",)),
    Case("nft fib daddr . iif type local", REVERSE, (CONNECT, LISTEN), during=(hits,),
         nft=("pre {from} fib daddr . iif type != local counter drop",)),
    _rule_case("from an address", "from {client}/{len}", app={"bind": "client"}, quick=True),
    _rule_case("fwmark of the program", "fwmark 5", app={"options": [["SOL_SOCKET", "SO_MARK", 5]]}, quick=True),
    _rule_case("fwmark under a mask", "fwmark 0x5/0xff", app={"options": [["SOL_SOCKET", "SO_MARK", 5]]}),
    _rule_case("not fwmark (as wg-quick has it)", "not fwmark 5", quick=True),
    _rule_case("uidrange", f"uidrange {USER_ID}-{USER_ID}", app={"uid": USER_ID}, quick=True),
    _rule_case("ipproto tcp", "ipproto tcp"),
    _rule_case("dport", "ipproto tcp dport {port}"),
    _rule_case("to a prefix", "to {service}/{len}"),
    _rule_case("iif lo", "iif lo"),
    _rule_case("oif of a bound socket", "oif eth1", app={"device": "eth1"}),
    Case("a packet's mark set in OUTPUT routes it", RULES, (CONNECT,), target="service", prepare=_second_way,
         ip=_rule("fwmark 6"), nft=("reroute {to} meta mark set 6",), app={"bind": "client"}, during=(path,)),
    Case("answers by the packet's mark, restored from conntrack", RULES, (LISTEN,), prepare=_second_way, during=(path,),
         nft=("pre {from} ct mark set 7", "reroute {to} meta mark set ct mark"),
         ip=(("route add {peer}/{len} via {peer2} dev eth1 table 100", ""), *_rule("fwmark 7"))),
    Case("a rule that prohibits", RULES, (CONNECT,), target="service",
         ip=(("rule add to {service}/{len} prohibit pref 900", "rule del to {service}/{len} prohibit pref 900"),)),
    Case("a route that is unreachable", RULES, (CONNECT,), target="service",
         ip=(("route add unreachable {service}/{len} metric 1", "route del unreachable {service}/{len} metric 1"),)),
    Case("a route that is a black hole", RULES, (CONNECT,), target="service",
         ip=(("route add blackhole {service}/{len} metric 1", "route del blackhole {service}/{len} metric 1"),)),
    Case("main below another rule (suppress_prefixlength 0)", RULES, (CONNECT,), target="service", prepare=_second_way,
         during=(path,), quick=True,
         ip=(("rule add lookup main suppress_prefixlength 0 pref 890",
              "rule del lookup main suppress_prefixlength 0 pref 890"), *_rule("from all"))),
    Case("a VRF", RULES, (CONNECT,), target="service", prepare=_vrf, app={"device": "vrf9"}, during=(path,)),
    Case("a route with a source address", WAYS, (CONNECT,), target="service",
         ip=(("route add {service}/{len} via {peer} dev eth0 src {extra}", "route del {service}/{len}"),)),
    Case("another device", WAYS, OWN, during=(path,), prepare=_by_the_second),
    Case("a socket bound to a device", WAYS, (CONNECT,), target="service", app={"device": "eth1"}, during=(path,),
         ip=(("route add {service}/{len} via {peer2} dev eth1 metric 2000",
              "route del {service}/{len} via {peer2} dev eth1 metric 2000"),)),
    Case("a socket bound to an address", WAYS, (CONNECT,), target="service", app={"bind": "extra"}, quick=True),
    Case("two defaults, the second before the first", WAYS, (CONNECT,), target="service", prepare=_two_defaults,
         during=(path,), quick=True),
    Case("a newer address, which the kernel prefers", WAYS, (CONNECT,), families=(IP6,),
         ip=(("addr add {fresh}/64 dev eth0 nodad", "addr del {fresh}/64 dev eth0"),)),
    Case("ECMP", WAYS, (CONNECT,), target="service", prepare=_ecmp, connections=6, size=100_000),
    Case("the host's own address", WAYS, (CONNECT,), target="client", server="bystander", quick=True),
    Case("a listener's other address, over the other wire", WAYS, (LISTEN,), target="client", during=(path,),
         prepare=_answer_over_the_other),
)  # fmt: skip

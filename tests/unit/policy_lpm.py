# SPDX-License-Identifier: Apache-2.0
"""A reader of compiled policies in Python: nodes, and tries as dictionaries, looked up as
bpf/decide.h looks them up.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath

from policy_texts import EXECUTABLES
from routenodes import Nodes

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.compile import Compiled
from dmm_ebpf.rd.policy.compile_routes import Entries
from dmm_ebpf.rd.policy.evaluate import Query, known_fact
from dmm_ebpf.rd.policy.values import parse_address


def entries(of: Entries, key: str, value: str) -> list[tuple[bytes, bytes]]:
    """The packed entries one by one."""
    keys, values = (_cut(of.keys, abi.sizeof(key)), _cut(of.values, abi.sizeof(value)))
    assert len(keys) == len(values) == of.count
    return list(zip(keys, values, strict=True))


def _cut(data: bytes, size: int) -> list[bytes]:
    assert not len(data) % size
    return [data[at : at + size] for at in range(0, len(data), size)]


class Trie:
    """An LPM trie (Documentation/bpf/map_lpm_trie.rst): prefixlen in host order, then the bits."""

    def __init__(self, of: Entries, key: str, value: str) -> None:
        self.entries: dict[tuple[int, int], bytes] = {}
        self.bits = 8 * (abi.sizeof(key) - 4)
        for packed, data in entries(of, key, value):
            length = struct.unpack_from("=I", packed)[0]
            prefix = int.from_bytes(packed[4:], "big") >> (self.bits - length)
            assert (length, prefix) not in self.entries, "one key twice"
            assert prefix << (self.bits - length) == int.from_bytes(packed[4:], "big"), (
                "bits set after the prefix"
            )
            self.entries[(length, prefix)] = data

    def lookup(self, key: bytes) -> bytes | None:
        """The value of the longest prefix of key."""
        bits = int.from_bytes(key[4:], "big")
        for length in range(self.bits, -1, -1):
            found = self.entries.get((length, bits >> (self.bits - length)))
            if found is not None:
                return found
        return None


DEVICES = {"eth0": 2, "wg0": 3}


@dataclass(frozen=True)
class Found:
    """What the maps say: numbers as in struct dmm_decision."""

    stack: int = 0
    table: int = 0
    rule: int = 0
    route: int = C.DMM_ROUTE_NONE


def nodes(compiled: Compiled) -> Nodes:
    """What routes[] has of a policy."""
    keys, values = compiled.routes.keys, compiled.routes.values
    assert len(keys) == 4 * compiled.routes.count
    packed = zip(_cut(keys, 4), _cut(values, abi.sizeof("dmm_route_node")), strict=True)
    return Nodes(dict(packed))


def port_key(portset: int, proto: int, port: int) -> bytes:
    """A look-up key of ports."""
    key = abi.new(
        "dmm_port_key", prefixlen=64, portset=portset, proto=proto, port_be=socket.htons(port)
    )
    return abi.pack(key)


class Reader:
    """The maps of one compiled policy."""

    def __init__(self, compiled: Compiled, cgroups: dict[str, tuple[int, int]]) -> None:
        self.routes = nodes(compiled)
        self.ports = Trie(compiled.ports, "dmm_port_key", "dmm_port_value")
        self.rules = list(compiled.rules)
        self.globs = compiled.globs
        self.cgroups = cgroups

    def find(self, query: Query) -> Found:
        """The decision for a flow."""
        index = 0
        while index < len(self.rules):
            rule, index = self.rules[index], index + 1
            if not self._matches(rule, query):
                continue
            if rule.skip:
                index += rule.skip
                continue
            number = rule.number
            found = self._route(rule.table, query)
            if found is not None:
                return Found(found[0], rule.table, number, found[1])
            if query.direction == C.DMM_DIR_LISTEN:
                return Found(0, rule.table, number)
        return Found()

    def _route(self, table: int, query: Query) -> tuple[int, int] | None:
        family, addr = parse_address(query.addr)
        value = self.routes.lookup(table, family, addr)
        if value is None:
            return None
        if not value.stack & C.DMM_NODE_PORTS:
            return self._seen(value.stack), value.route
        portset = socket.htonl(value.stack & ~C.DMM_NODE_PORTS)
        data = self.ports.lookup(port_key(portset, query.proto, query.port))
        if data is None:
            return None
        port = abi.unpack("dmm_port_value", data)
        if port.route == C.DMM_ROUTE_NONE:
            return None
        own = value.route if port.stack & C.DMM_PORT_OWN else 0
        return self._seen(port.stack & ~C.DMM_PORT_OWN), port.route + own

    def _seen(self, ranked: int) -> int:
        """The stack of what is found, without its rank."""
        return ranked & 0xFF

    def _matches(self, rule: object, query: Query) -> bool:
        flags = rule.flags
        ancestors = self._ancestors(query.cgroup)
        return bool(
            rule.directions & query.direction
            and (not flags & C.DMM_RULE_UID or rule.uid_first <= query.uid <= rule.uid_last)
            and (not flags & C.DMM_RULE_GID or rule.gid_first <= query.gid <= rule.gid_last)
            and (not flags & C.DMM_RULE_COMM or abi.text(rule.comm) == query.comm)
            and (not flags & C.DMM_RULE_MARK or query.mark & rule.mark_mask == rule.mark)
            and (not flags & C.DMM_RULE_DSCP or rule.dscp == query.dscp)
            and (
                not flags & C.DMM_RULE_LPORT
                or rule.lport_first <= known_fact(query, "local_port") <= rule.lport_last
            )
            and (not flags & C.DMM_RULE_DEVICE or rule.device == DEVICES.get(query.interface, 0))
            and (
                not flags & C.DMM_RULE_EXECUTABLE
                or EXECUTABLES.get(query.executable) == (rule.exe_device, rule.exe_inode)
            )
            and (
                not flags & C.DMM_RULE_CGROUP or ancestors.get(rule.cgroup_level) == rule.cgroup_id
            )
            and (
                not flags & C.DMM_RULE_GLOB
                or rule.cgroup_id & self._globs_of(ancestors.get(rule.cgroup_level))
            )
        )

    def _globs_of(self, cgroup_id: int | None) -> int:
        """The bits of the patterns that match a cgroup, as globbed[] has them."""
        names = [PurePosixPath(path) for path, (n, _) in self.cgroups.items() if n == cgroup_id]
        return sum(
            1 << bit for bit, one in enumerate(self.globs) if any(path.match(one) for path in names)
        )

    def _ancestors(self, path: str) -> dict[int, int]:
        parts = [part for part in path.split("/") if part]
        chain = ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))]
        return {self.cgroups[p][1]: self.cgroups[p][0] for p in chain}

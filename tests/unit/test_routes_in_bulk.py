# SPDX-License-Identifier: Apache-2.0
"""Many routes at once, which C reads and packs: nothing differs from what Python says of each."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest
from policy_lpm import nodes
from policy_parsing import U, parse, refusal

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import bulk, routes_file
from dmm_ebpf.rd.policy.compile import Compiled, compile_policy
from dmm_ebpf.rd.policy.difference import difference
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.routes import route_text

FROM = U + '[[rules]]\ntable = "t"\n[tables.t]\nroutes_from = "p.csv"\n'
PLAIN = ("", "# a comment", '# of "quotes"', "# é", "   ", "\t", "default,tcp,443,wan")
ODD = (
    *(" 10.0.0.0/8 , tcp , 443 , wan ", "10.0.0.0/08,,,wan", '10.0.0.0/8,,,"wan"', "#,,,"),
    *("junk", ",,,", "1.2.3.4/33,,,wan", "10.0.0.1/8,,,wan", "::ffff:1.2.3.0/120,,,wan"),
    *("01.2.3.4,,,wan", "1.2.3/8,,,wan", "1.2.3.4.5,,,wan", "1.2.3.4/,,,wan", "1.2.3.4/1x,,,wan"),
    *(":::1,,,wan", "::1/129,,,wan", "2001:db8::1/64,,,wan", "256.1.1.1,,,wan", "é,,,wan"),
    *('"10.0.0.0/8",,,wan', '10.0.0.0/8,tcp,"443,wan', "10.0.0.0/8,,,wna", "10.0.0.0/8,icmp,,wan"),
    *(
        "10.0.0.0/8,,9-8,wan",
        "10.0.0.0/8,,,wan\r11.0.0.0/8,,,wan",
        "\0",
        "a" * 5000,
        "::1%lo,,,wan",
    ),
)


def _prefix(rng: random.Random) -> str:
    if rng.random() < 0.4:
        length = rng.choice([48, 64, 65, 112, 127, 128])
        address = (
            0x20010DB8 << 96 | rng.randrange(3) << 80 | rng.randrange(3) << 48 | rng.randrange(4)
        )
        address = address >> (128 - length) << (128 - length)
        words = ":".join(f"{address >> bits & 0xFFFF:x}" for bits in range(112, -1, -16))
        return f"{words.upper() if rng.random() < 0.1 else words}/{length}"
    length = rng.choice([0, 8, 16, 24, 31, 32])
    address = (
        (10 << 24 | rng.randrange(3) << 16 | rng.randrange(3) << 8) >> 32 - length << 32 - length
    )
    text = ".".join(str(address >> bits & 255) for bits in (24, 16, 8, 0))
    return text if length == 32 else f"{text}/{length}"


def _file(rng: random.Random) -> bytes:
    """Some files are refused, most are not."""
    lines = ["to,proto,ports,stack"] * rng.randrange(2)
    has_odd = rng.random() < 0.4
    for _ in range(rng.choice([0, 1, 5, 40, 200])):
        at = rng.random()
        if at < 0.03:
            lines.append(rng.choice(PLAIN))
        elif at < 0.06 and has_odd:
            lines.append(rng.choice(ODD))
        else:
            ports = rng.choice(["", "443", "1-1023", "80 443", '"80, 8000-8100"'])
            proto = rng.choice(["", "tcp", "udp", "any", "TCP"])
            stack = "wan" if rng.random() < 0.99 or not has_odd else "kernel"
            lines.append(f"{_prefix(rng)},{proto},{ports},{stack}")
    end = rng.choice(["\n", "\n", "\n", "\r\n", "\r"])
    return end.join(lines).encode() + end.encode() * rng.randrange(2)


def _by_python(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bulk.Lines, "read", lambda *_: (0, 0))


def _said(base: Path) -> tuple[list[str], list[object]]:
    """Every error, and every route with its place."""
    try:
        table = parse(FROM, base).tables["t"]
    except PolicyError as refused:
        return [str(one) for one in (refused, *refused.others)], []
    groups = [] if table.links is None else list(bulk.groups(table.links))
    return [], [*table, *groups]


def _compiled(base: Path) -> Compiled:
    return compile_policy(parse(FROM, base), IdSpace(), lambda _: (0, 0))


def _bytes(compiled: Compiled) -> list[tuple[int, bytes, bytes]]:
    maps = (compiled.routes, compiled.ports)
    return [(one.count, one.keys, one.values) for one in maps]


def test_c_reads_as_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = 0
    for seed in range(150):
        (tmp_path / "p.csv").write_bytes(_file(random.Random(seed)))
        said = _said(tmp_path)
        with monkeypatch.context() as patch:
            _by_python(patch)
            assert said == _said(tmp_path), seed
        accepted += len(said[1]) > 10
    assert accepted > 30


@pytest.mark.parametrize("line", ODD)
def test_what_is_odd_is_said_in_the_same_words_behind_plain_lines(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = "11.0.0.0/8,,,wan\n12.0.0.0/8,,,wan\n"
    (tmp_path / "p.csv").write_text(f"{before}{line}\n13.0.0.0/8,,,wan\nnonsense\n")
    said = _said(tmp_path)
    _by_python(monkeypatch)
    assert said == _said(tmp_path)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_where_a_file_is_cut_changes_nothing(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(30):
        (tmp_path / "p.csv").write_bytes(_file(random.Random(seed)))
        said = _said(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(routes_file, "_CHUNK", chunk)
            patch.setattr(bulk, "_BLOCK", 3)
            assert _said(tmp_path) == said, seed


def test_a_file_of_one_long_line_is_read_no_further(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"10.0.0.0/8,,,wan\n" + b"\xc3\xa9" * (1 << 20))
    assert "p.csv:2: the line is longer than 4096 characters" in refusal(FROM, tmp_path)


@pytest.mark.parametrize("chunk", [5000, 1 << 18])
def test_lines_that_end_as_on_an_old_mac(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_file, "_CHUNK", chunk)
    lines = [f"10.{n >> 8}.{n & 255}.0/24,,,wan" for n in range(3000)]
    (tmp_path / "p.csv").write_text("\r".join(lines))
    table = parse(FROM, tmp_path).tables["t"]
    assert len(table) == 3000
    assert table.where(2999).endswith("p.csv:3000")


def test_more_kinds_of_lines_than_c_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (f"10.{n >> 8 & 255}.{n & 255}.{k}/32,tcp,{n % 33_000 + 1},wan\n"
             for k in range(2) for n in range(33_000))  # fmt: skip
    (tmp_path / "p.csv").write_text("".join(lines))
    said = _said(tmp_path)
    assert len(said[1]) == 66_000
    _by_python(monkeypatch)
    assert said == _said(tmp_path)


def test_more_routes_than_a_table_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_file, "MAX_ROUTES", 100)
    lines = [f"10.0.{n}.0/24,,,wan\n" for n in range(101)]
    (tmp_path / "p.csv").write_text("".join(lines[:100]))
    assert len(parse(FROM, tmp_path).tables["t"]) == 100
    (tmp_path / "p.csv").write_text("".join(lines))
    assert "p.csv:101: the table has more than 100 routes" in refusal(FROM, tmp_path)


def test_a_few_entries_at_a_time_are_the_same_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = 0
    for seed in range(60):
        (tmp_path / "p.csv").write_bytes(_file(random.Random(seed)))
        if _said(tmp_path)[0]:
            continue
        compiled = _compiled(tmp_path)
        whole = _bytes(compiled)
        for block in (1, 2, 5):
            monkeypatch.setattr(bulk, "_BLOCK", block)
            assert _bytes(compiled) == whole
            assert all(count <= block for _, _, count in compiled.ports.chunks())
        monkeypatch.undo()
        packed += sum(count for count, _, _ in whole)
    assert packed > 1000


def test_the_prefixes_around_an_address(tmp_path: Path) -> None:
    rng = random.Random(3)
    lines = [f"{_prefix(rng)},,,wan\n" for _ in range(300)]
    (tmp_path / "p.csv").write_text("default,,,wan\n" + "".join(lines))
    table = parse(FROM, tmp_path).tables["t"]
    networks = [ipaddress.ip_network(str(route.prefix)) for route in table]
    for network in networks:
        for address in (network.network_address, network.broadcast_address):
            around = [n for n, other in enumerate(networks) if address in other]
            assert list(bulk.containing(table, network.version, int(address))) == around


def test_what_two_tables_do_not_share(tmp_path: Path) -> None:
    compared = 0
    for seed in range(60):
        rng = random.Random(seed)
        tables = []
        for _ in range(2):
            ends = rng.sample(["tcp,443,wan", "udp,53,wan", ",,wan", "tcp,80 81,wan"], 3)
            lines = [f"10.{rng.randrange(9)}.0.0/16,{rng.choice(ends)}\n" for _ in range(20)]
            (tmp_path / "p.csv").write_text("".join(lines))
            tables.append(parse(FROM, tmp_path))
        old, new = ([route[:3] for route in one.tables["t"]] for one in tables)
        told = [
            f"{sign} route {route_text(prefix, match)} -> {stack} (table t)"
            for sign, mine, other in (("-", old, new), ("+", new, old))
            for prefix, match, stack in dict.fromkeys(mine)
            if (prefix, match, stack) not in other
        ]
        assert [str(change) for change in difference(*tables)] == told
        compared += len(told)
    assert compared > 500


def test_many_routes_of_one_prefix(tmp_path: Path) -> None:
    lines = "".join(f"10.0.0.0/8,tcp,{port},wan\n" for port in range(1, 201))
    (tmp_path / "p.csv").write_text(f"default,,,wan\n{lines}")
    compiled = _compiled(tmp_path)
    table = parse(FROM, tmp_path).tables["t"]
    assert [len(group) for group in table.groups()] == [200]
    assert len(nodes(compiled).said()) == 3
    assert compiled.ports.count > 200

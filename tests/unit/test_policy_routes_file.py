# SPDX-License-Identifier: Apache-2.0
"""Files of routes that a policy names: what is read, what is refused with its line, and how much
memory many routes take.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
from policy_parsing import U, parse, refusal

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.routes import RouteTable
from dmm_ebpf.rd.policy.routes_file import MAX_LINE
from dmm_ebpf.threads import in_thread

ROWS = "".join(f"11.{n >> 8}.{n & 255}.0/24,,,wan\n" for n in range(1000))
FROM = U + '[[rules]]\ntable = "t"\n[tables.t]\nroutes_from = "p.csv"\n'


def _csv(tmp_path: Path, content: str | bytes) -> Path:
    (tmp_path / "p.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def test_routes_file(tmp_path: Path) -> None:
    text = (
        "\ufeffto, proto, ports, stack\r\n"
        "# comment\r\n\r\n"
        '# "quoted"\n'
        "10.0.0.0/8,,,wan\r\n"
        '2001:db8::/32,tcp,"443, 8000-8100",kernel\n'
        "192.0.2.1,UDP,53 5300 - 5400,wan\n"
        "default,any,,kernel"
    )
    got = parse(FROM, _csv(tmp_path, text))
    assert list(got.files) == [tmp_path / "p.csv"]
    assert [(route.text(), route.stack) for route in got.tables["t"]] == [
        ("10.0.0.0/8", "wan"),
        ("2001:db8::/32 tcp 443,8000-8100", "kernel"),
        ("192.0.2.1/32 udp 53,5300-5400", "wan"),
        ("0.0.0.0/0", "kernel"),
        ("::/0", "kernel"),
    ]
    assert got.tables["t"].where(2).endswith("p.csv:7")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            "to,proto,ports,stack\n10.0.0.0/8,,,wan\n10.0.0.1/8,,,wan\n",
            ["p.csv:3:", "network is 10.0.0.0/8"],
        ),
        ("10.0.0.0/8,,wan\n", ["p.csv:1:", "3 columns, not 4"]),
        ("10.0.0.0/8,,,wna\n", ["p.csv:1:", '"wna"', 'did you mean "wan"?']),
        ("10.0.0.0/8,tcp,9-8,wan\n", ["p.csv:1:", "reversed"]),
        ("10.0.0.0/8,icmp,,wan\n", ["p.csv:1:", '"icmp" is not a protocol']),
        ('10.0.0.0/8,tcp,"443,wan\n', ["p.csv:1:", "not comma separated"]),
        ("junk\n" * 1_000_000, ["p.csv:1:", "1 columns"]),
        ("10.0.0.0/8,,,wan\n" + "x" * (2 * MAX_LINE), ["p.csv:2:", "longer than"]),
        (b"10.0.0.0/8,,,wan\n\xff\xfe\n", ["p.csv", "not UTF-8"]),
        ("10.0.0.0/8,,,wan\n10.0.0.0/8,,,kernel\n", ["p.csv:2:", "to kernel here", "p.csv:1"]),
        (b"\0" * 100, ["p.csv:1:", "columns"]),
        ("", ["p.csv: it is empty", "to,proto,ports,stack"]),
        (" \n\t\n", ["p.csv: it is empty"]),
    ],
)
def test_routes_file_refused(tmp_path: Path, content: str | bytes, parts: list[str]) -> None:
    sentence = refusal(FROM, _csv(tmp_path, content))
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("content", ["to,proto,ports,stack\n", "# none yet\n"])
def test_a_routes_file_says_that_it_has_no_routes(tmp_path: Path, content: str) -> None:
    assert not len(parse(FROM, _csv(tmp_path, content)).tables["t"])


def test_route_of_the_file_against_one_of_the_policy(tmp_path: Path) -> None:
    text = FROM + '[[tables.t.routes]]\nto = "10.0.0.0/8"\nstack = "kernel"\n'
    sentence = refusal(text, _csv(tmp_path, "10.0.0.0/8,,,wan\n"))
    assert "p.csv:1: table t sends 10.0.0.0/8 every port to wan here" in sentence
    assert "to kernel at policy.toml:7" in sentence


def test_routes_file_missing(tmp_path: Path) -> None:
    sentence = refusal(FROM, tmp_path)
    assert "policy.toml:6: table t, routes_from: routes file" in sentence
    assert "no such file" in sentence
    (tmp_path / "p.csv").mkdir()
    assert "it is a directory" in refusal(FROM, tmp_path)
    assert "not a file's name" in refusal(FROM.replace('"p.csv"', "3"), tmp_path)


def test_hundred_thousand_routes_take_little_memory(tmp_path: Path) -> None:
    lines = "".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32,,,wan\n" for n in range(100_000))
    table = parse(FROM, _csv(tmp_path, lines)).tables["t"]
    assert len(table) == 100_000
    columns = (
        table.families,
        table.lengths,
        table.addrs_hi,
        table.addrs_lo,
        table.match,
        table.stack,
        table.origin,
    )
    assert sum(memoryview(column).nbytes for column in columns) <= 30 * 100_000
    assert table.links is None


def test_routes_of_all_files_are_counted_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "MAX_ROUTES", 3)
    (tmp_path / "two.csv").write_text("10.0.0.0/8,,,kernel\n10.1.0.0/16,,,kernel\n")
    text = "".join(
        f'[tables.{name}]\nroutes_from = "{file}"\n'
        for name, file in zip("ab", ("two.csv",) * 2, strict=True)
    )
    assert "there are 4 routes" in refusal(
        text + '[tables.c]\nroutes_from = "missing.csv"\n', tmp_path
    )


@pytest.mark.parametrize("last", ["10.0.0.1/8,,,wan", "junk", "192.0.2.0/24,,,far"])
def test_what_is_refused_is_not_kept(last: str, tmp_path: Path) -> None:
    """A director that refuses millions of routes has their memory again at once: it makes so few
    objects that Python's collector does not come for long.
    """
    directory = _csv(tmp_path, f"{ROWS}{last}\n")
    gc.collect()
    gc.disable()
    try:
        before = _tables()
        with pytest.raises(PolicyError) as refused:
            parse(FROM, directory)
        assert "p.csv:1001" in str(refused.value)
        del refused
        assert _tables() == before
    finally:
        gc.enable()


HOST_BITS = '[[tables.t.routes]]\nto = "10.0.0.1/8"\nstack = "wan"\n'
CONTRARY = '[[tables.t.routes]]\nto = "11.0.0.0/24"\nstack = "kernel"\n'


@pytest.mark.parametrize(
    "more",
    [HOST_BITS, HOST_BITS * 2, HOST_BITS * 40, CONTRARY, HOST_BITS + CONTRARY, "[stacks.q]\nx=1\n"],
    ids=["one", "two", "more than are told", "contrary", "a key and a route", "a stack"],
)
@pytest.mark.parametrize("in_a_thread", [False, True])
def test_nor_is_it_of_a_policy_with_errors_beside_it(
    more: str, in_a_thread: bool, tmp_path: Path
) -> None:
    """However many they are, and whatever led to them; also where an event loop waits for it."""
    directory = _csv(tmp_path, ROWS)

    async def wait() -> None:
        await in_thread(parse, FROM + more, directory)

    def refuse() -> None:
        with pytest.raises(PolicyError):
            asyncio.run(wait()) if in_a_thread else parse(FROM + more, directory)

    refuse()
    gc.collect()
    gc.disable()
    try:
        before = _tables()
        refuse()
        assert _tables() == before
    finally:
        gc.enable()


def _tables() -> int:
    return sum(isinstance(one, RouteTable) for one in gc.get_objects())

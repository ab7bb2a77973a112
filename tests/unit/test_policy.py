# SPDX-License-Identifier: Apache-2.0
"""Policies: what is accepted becomes what, and what is refused gives one sentence
with the place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.model import KernelStack, UserStack
from dmm_ebpf.rd.policy.values import Prefix

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def parse(text: str, base: Path = Path("/")) -> policy.Policy:
    return policy.parse(text, source="policy.toml", base=base)


def refusal(text: str, base: Path = Path("/")) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text, base)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert caught.value.exit_code == 2
    return sentence


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_accepted(path: Path) -> None:
    assert policy.load(path).rules


def test_the_example_of_wan_reads_as_written() -> None:
    got = policy.load(EXAMPLES / "wan.toml")
    wan = got.stacks["wan"]
    assert isinstance(wan, UserStack)
    assert (wan.congestion, wan.fallback, wan.sndbuf_bytes, wan.memory_bytes) == (
        "wan",
        "careful",
        16 << 20,
        None,
    )
    assert got.rules[0].cgroup == "/shop.slice"
    assert got.rules[0].direction == C.DMM_DIR_CONNECT
    assert got.rule_text(0) == "shop"
    table = got.tables["shop"]
    assert [route.text() for route in table] == [
        "203.0.113.0/24 tcp 443,8000-8100",
        "2001:db8:113::/48 tcp 443,8000-8100",
    ]
    assert got.routed_stacks() == ["wan"]
    assert set(got.stacks) == {"kernel", "wan", "careful"}
    assert got.text.startswith("# Long")


def test_kernel_stack_options() -> None:
    got = parse("""
[stacks.x]
kind = "kernel"
congestion = "bbr"
dscp = "ef"
mark = "0x10/0xff"
pacing_rate = "80mbit"
priority = 6
""")
    stack = got.stacks["x"]
    assert isinstance(stack, KernelStack)
    assert (stack.congestion, stack.dscp, stack.pacing_rate_Bps, stack.priority) == (
        "bbr",
        46,
        10_000_000,
        6,
    )
    assert stack.options()["mark"] == "0x10/0xff"


@pytest.mark.parametrize(
    "text",
    ["python:my_cc:Ledbat", "python:/opt/cc/my_cc.py:Ledbat", "c:ledbat", "c:/opt/cc/ledbat.so"],
)
def test_a_plugin_may_be_named_though_it_is_not_there(text: str) -> None:
    stack = parse(f'{U}congestion = "{text}"\n').stacks["wan"]
    assert isinstance(stack, UserStack)
    assert stack.congestion == stack.options()["congestion"] == text


def test_empty_policy_is_a_policy() -> None:
    got = parse("")
    assert (got.rules, got.n_routes, list(got.stacks)) == ((), 0, ["kernel"])


def test_reject_is_there_when_named() -> None:
    got = parse('[[tables.t.routes]]\nto = "default"\nstack = "reject"\n')
    assert list(got.stacks) == ["kernel", "reject"]
    assert [route.prefix for route in got.tables["t"]] == [Prefix(4, 0, 0), Prefix(6, 0, 0)]


def test_policy_is_frozen() -> None:
    got = policy.load(EXAMPLES / "wan.toml")
    with pytest.raises(FrozenInstanceError):
        got.stacks["wan"].fallback = "x"  # type: ignore[misc]


U = '[stacks.wan]\nkind = "user"\n'
ROUTE = '[[tables.t.routes]]\nto = "10.0.0.0/8"\nstack = "kernel"\n'

REFUSED: list[tuple[str, str, list[str]]] = [
    ("syntax", "[stacks.wan\n", ["policy.toml:1:", "not TOML", "column 12"]),
    ("syntax at the end", 'a = """', ["policy.toml:1:", "not TOML"]),
    ("twice the same key", "[[rules]]\ntable = 1\ntable = 2\n", ["policy.toml:3:", "overwrite"]),
    ("unknown top key", U + "[[rule]]\n", ["policy.toml:3:", '"rule"', 'did you mean "rules"?']),
    (
        "unknown stack key",
        U + 'congestoin = "wan"\n',
        ["policy.toml:3:", "stack wan", 'did you mean "congestion"?'],
    ),
    (
        "unknown route key",
        ROUTE + "port = 3\n",
        ["policy.toml:4:", "route 1", 'did you mean "ports"?'],
    ),
    ("unknown table key", "[tables.t]\nroute = 1\n", ["policy.toml:2:", 'did you mean "routes"?']),
    (
        "unknown stack",
        U + ROUTE.replace("kernel", "wann"),
        ["policy.toml:5:", '"wann"', 'did you mean "wan"?'],
    ),
    (
        "unknown table",
        ROUTE + '[[rules]]\ntable = "tt"\n',
        ["policy.toml:5:", "rule 1", 'did you mean "t"?'],
    ),
    (
        "unknown fallback",
        U + 'fallback = "x"\n',
        ["policy.toml:3:", "fallback", "known are wan, kernel, reject"],
    ),
    ("fallback to itself", U + 'fallback = "wan"\n', ["policy.toml:3:", "falls back to itself"]),
    (
        "fallback to a user stack",
        U + 'fallback = "b"\n[stacks.b]\nkind = "user"\n',
        ["policy.toml:3:", "user stack"],
    ),
    (
        "kernel redefined",
        '[stacks.kernel]\nkind = "kernel"\n',
        ["policy.toml:1:", "cannot be redefined"],
    ),
    ("no kind", "[stacks.a]\ndscp = 1\n", ["policy.toml:1:", '"kind" is missing']),
    ("odd kind", '[stacks.a]\nkind = "lwip"\n', ["policy.toml:2:", '"lwip"', '"user"']),
    (
        "no process",
        U + "processes = 0\n",
        ["policy.toml:3:", '"0" is not a number of processes', "1 to 16"],
    ),
    ("too many processes", U + "processes = 17\n", ["policy.toml:3:", "expected 1 to 16"]),
    (
        "processes in words",
        U + 'processes = "two"\n',
        ["policy.toml:3:", '"two" is not a number of processes'],
    ),
    (
        "processes by truth",
        U + "processes = true\n",
        ["policy.toml:3:", "not a number of processes"],
    ),
    (
        "the old name, too",
        U + "processes = 2\ninstances = 2\n",
        ["policy.toml:4:", "old name of processes"],
    ),
    ("the old name, wrong", U + "instances = 17\n", ["policy.toml:3:", "expected 1 to 16"]),
    (
        "transport to come",
        U + 'transport = "quic"\n',
        ["policy.toml:3:", '"quic"', 'expected "tcp"'],
    ),
    (
        "congestion of user stacks",
        U + 'congestion = "vegas"\n',
        [
            "policy.toml:3:",
            'expected "cubic", "wan", "bbr" or "reno", or a plug-in: "python:FILE_OR_MODULE:CLASS"',
        ],
    ),
    (
        "a plug-in beside the policy",
        U + 'congestion = "python:./my_cc.py:Ledbat"\n',
        ["policy.toml:3:", '"python:./my_cc.py:Ledbat" is not a congestion control'],
    ),
    (
        "a plug-in without a class",
        U + 'congestion = "python:my_cc"\n',
        ["policy.toml:3:", '"python:my_cc" is not a congestion control'],
    ),
    (
        "busy polling",
        U + "busy_poll_us = -1\n",
        ["policy.toml:3:", '"-1" is not a time of busy polling', "expected 0 to 1000000"],
    ),
    (
        "no command",
        U + 'command = "/bin/my-stack --fast"\n',
        ["policy.toml:3:", '"/bin/my-stack --fast" is not a command', "expected a list"],
    ),
    (
        "a command that is looked for",
        U + 'command = ["python3", "my.py"]\n',
        ["policy.toml:3:", '"python3" is not a program', "an absolute path"],
    ),
    (
        "a command by AF_XDP",
        U + 'command = ["/bin/true"]\nio = "af_xdp"\n',
        ["policy.toml:4:", "by tap alone"],
    ),
    (
        "no connection",
        U + "max_connections = 0\n",
        ["policy.toml:3:", '"0" is not a number of connections', "expected 1 to 1048576"],
    ),
    (
        "connections by size",
        U + 'max_connections = "4K"\n',
        ["policy.toml:3:", "not a number of connections"],
    ),
    (
        "user time-out below any retransmission",
        U + "user_timeout_ms = 5\n",
        ["policy.toml:3:", '"5" is not a user time-out', "expected 200 to 2147483647 milliseconds"],
    ),
    (
        "user time-out by its unit",
        U + 'user_timeout_ms = "5s"\n',
        ["policy.toml:3:", "is not a user time-out"],
    ),
    (
        "keep-alive beyond Linux's",
        '[stacks.a]\nkind = "kernel"\nkeepalive_time_s = 40000\n',
        ["policy.toml:3:", "keepalive_time_s", "expected 1 to 32767 seconds"],
    ),
    ("no probe", U + "keepalive_probes = 0\n", ["policy.toml:3:", "expected 1 to 127"]),
    (
        "retries of a stack",
        U + "retries2 = 3\n",
        [
            "policy.toml:3:",
            'unknown key "retries2"',
            "sysctl net.ipv4.tcp_retries2",
            "user_timeout_ms",
        ],
    ),
    (
        "mode of SYN cookies",
        U + 'syn_cookies = "on"\n',
        ["policy.toml:3:", '"on"', 'expected "auto", "always" or "off"'],
    ),
    ("devices", U + 'devices = ["a/b"]\n', ["policy.toml:3:", "network device"]),
    (
        "buffer beyond a window",
        U + 'rcvbuf = "2G"\n',
        ["policy.toml:3:", "rcvbuf", "expected 1G at most"],
    ),
    ("size", U + 'sndbuf = "16X"\n', ["policy.toml:3:", "sndbuf", '"16X" is not a size']),
    (
        "dscp",
        '[stacks.a]\nkind = "kernel"\ndscp = "af99"\n',
        ["policy.toml:3:", '"af99" is not a DSCP'],
    ),
    (
        "mark outside mask",
        '[stacks.a]\nkind="kernel"\nmark="0x10/0xf"\n',
        ["policy.toml:3:", "outside the mask"],
    ),
    (
        "rate",
        '[stacks.a]\nkind = "kernel"\npacing_rate = "80"\n',
        ["policy.toml:3:", "not a rate", "80mbit"],
    ),
    (
        "rate too high",
        '[stacks.a]\nkind = "kernel"\npacing_rate = "80gbit"\n',
        ["policy.toml:3:", "4294967294"],
    ),
    (
        "host bits",
        ROUTE.replace("0.0.0/8", "0.0.1/8"),
        ["policy.toml:2:", "host bits", "network is 10.0.0.0/8"],
    ),
    (
        "bad prefix",
        ROUTE.replace("10.0.0.0/8", "10.0.0/8"),
        ["policy.toml:2:", '"10.0.0/8"', "prefix"],
    ),
    ("prefix too long", ROUTE.replace("/8", "/33"), ["policy.toml:2:", "above 32"]),
    (
        "host name",
        ROUTE.replace("10.0.0.0/8", "example.org"),
        ["policy.toml:2:", "not an IPv4 or IPv6 prefix"],
    ),
    (
        "mapped prefix",
        ROUTE.replace("10.0.0.0/8", "::ffff:a00:0/104"),
        ["policy.toml:2:", "as 10.0.0.0/8"],
    ),
    (
        "v6 host bits",
        ROUTE.replace("10.0.0.0/8", "2001:db8::1/64"),
        ["policy.toml:2:", "network is 2001:db8::/64"],
    ),
    (
        "reversed ports",
        ROUTE + 'ports = "9-8"\n',
        ["policy.toml:4:", "9-8 is reversed", "write 8-9"],
    ),
    ("overlapping ports", ROUTE + 'ports = "1-9, 5"\n', ["policy.toml:4:", "1-9 and 5 overlap"]),
    ("port 0", ROUTE + "ports = 0\n", ["policy.toml:4:", "1 to 65535"]),
    ("port 65536", ROUTE + 'ports = "65536"\n', ["policy.toml:4:", "1 to 65535"]),
    ("no ports", ROUTE + "ports = []\n", ["policy.toml:4:", "empty"]),
    ("ports of a wrong type", ROUTE + "ports = 4.5\n", ["policy.toml:4:", '"4.5" is not a port']),
    ("protocol", ROUTE + 'proto = "sctp"\n', ["policy.toml:4:", '"tcp" or "udp"']),
    (
        "no prefix",
        '[[tables.t.routes]]\nstack = "kernel"\n',
        ["policy.toml:1:", 'the key "to" is missing'],
    ),
    (
        "no table",
        "[[rules]]\nuid = 1\n",
        ["policy.toml:1:", "rule 1", 'the key "table" is missing'],
    ),
    (
        "cgroup",
        ROUTE + '[[rules]]\ntable = "t"\ncgroup = "shop"\n',
        ["policy.toml:6:", 'begins with "/"'],
    ),
    (
        "cgroup above",
        ROUTE + '[[rules]]\ntable = "t"\ncgroup = "/a/../b"\n',
        ["policy.toml:6:", "cgroup"],
    ),
    (
        "comm",
        ROUTE + '[[rules]]\ntable = "t"\ncomm = "sixteen-letters!"\n',
        ["policy.toml:6:", "1 to 15 bytes"],
    ),
    ("uid", ROUTE + '[[rules]]\ntable = "t"\nuid = "9-8"\n', ["policy.toml:6:", "write 8-9"]),
    (
        "user",
        ROUTE + '[[rules]]\ntable = "t"\nuid = "no-such-user"\n',
        ["policy.toml:6:", "no user"],
    ),
    (
        "direction",
        ROUTE + '[[rules]]\ntable = "t"\ndirection = "both"\n',
        ["policy.toml:6:", "leave it out"],
    ),
    (
        "one name twice",
        ROUTE + 2 * '[[rules]]\ntable = "t"\nname = "a"\n',
        ["policy.toml:9:", "rule 1 is called"],
    ),
    ("rules not tables", "rules = 3\n", ["policy.toml:1:", "[[rules]]"]),
    ("stack not a table", "[stacks]\nwan = 3\n", ["policy.toml:2:", "[stacks.wan]"]),
    ("routes not tables", "[tables.t]\nroutes = [1]\n", ["policy.toml:2:", "[[tables.t.routes]]"]),
    ("name", '[stacks."a b"]\nkind = "kernel"\n', ["policy.toml:1:", "cannot name a stack"]),
    ("deep nesting", "a = " + "[" * 20000 + "]" * 20000, ["policy.toml", "too deeply"]),
    ("a huge number", "a = " + "9" * 5000, ["policy.toml", "too many digits"]),
    ("a long line", "#" * 70000, ["policy.toml:1:", "longer than 65536"]),
    (
        "errno",
        '[stacks.no]\nkind = "reject"\nerrno = "ENOENT"\n',
        ["policy.toml:3:", "ECONNREFUSED"],
    ),
    ("a NUL", "a = 1\nb = '\0'\n", ["policy.toml:2:", "not TOML"]),
]


@pytest.mark.parametrize(
    ("text", "parts"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused_with_the_place(text: str, parts: list[str]) -> None:
    sentence = refusal(text)
    for part in parts:
        assert part in sentence


def test_contradiction_names_both_places() -> None:
    sentence = refusal(
        U
        + ROUTE
        + "ports = '80, 443-500'\n"
        + ROUTE.replace("kernel", "wan")
        + 'ports = "450-600"\n'
    )
    assert "policy.toml:7: table t sends 10.0.0.0/8 port 450-500 to wan here" in sentence
    assert "to kernel at policy.toml:3" in sentence


@pytest.mark.parametrize(
    "extra",
    [
        'ports = "450"\n',  # an exact port in a range
        'ports = "443-500"\nproto = "tcp"\n',  # the protocol named
        "",  # every port
    ],
)
def test_more_specific_is_no_contradiction(extra: str) -> None:
    assert (
        parse(U + ROUTE + "ports = '443-500'\n" + ROUTE.replace("kernel", "wan") + extra).n_routes
        == 2
    )


def test_contradiction_with_a_wide_range_behind_narrow_ones() -> None:
    route = ROUTE + 'ports = "{}"\n'
    text = (
        U
        + route.format("1-100")
        + route.format("2-3")
        + route.format("50-60").replace('"kernel"', '"wan"')
    )
    assert "port 50-60 to wan here, and to kernel at policy.toml:3" in refusal(text)


def test_first_toml_of_the_manual_is_accepted() -> None:
    manual = (EXAMPLES.parent / "policy.md").read_text()
    first = manual.split("```toml\n")[1].split("```")[0]
    assert parse(first).routed_stacks() == ["wan"]


def test_same_route_twice_is_no_contradiction() -> None:
    assert parse(ROUTE + ROUTE).n_routes == 2


def test_limits() -> None:
    stack = '[stacks.s{}]\nkind = "kernel"\n'
    assert len(parse("".join(stack.format(n) for n in range(63))).stacks) == 64
    assert "at most 63" in refusal("".join(stack.format(n) for n in range(64)))
    many = "".join(stack.format(n) for n in range(63)) + ROUTE.replace("kernel", "reject")
    assert "63 stacks" in refusal(many)
    rule = '[[rules]]\ntable = "t"\n'
    assert len(parse(ROUTE + 64 * rule).rules) == 64
    sentence = refusal(ROUTE + 65 * rule)
    assert "at most 64" in sentence
    assert f"policy.toml:{3 + 2 * 64 + 1}:" in sentence
    users = "".join(stack.format(n).replace("kernel", "user") for n in range(65))
    assert "at most 63" in refusal(users)
    few = "".join(f'[stacks.s{n}]\nkind = "user"\nprocesses = 13\n' for n in range(5))
    assert "5 user stacks have 65 processes together; a policy has at most 64" in refusal(few)


def test_too_large_and_junk(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("junk that is not TOML\n" * 1_000_000)
    with pytest.raises(PolicyError, match="larger than 4 MiB"):
        policy.load(path)
    path.write_text("x\n" * 1_000_000)
    with pytest.raises(PolicyError, match=r"policy\.toml:1: it is not TOML"):
        policy.load(path)


_PARTS = ".".join(["a"] * 30_000)
_MANY = 300_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(f"{_PARTS} = 1", "a key has more than 8 dotted parts", id="key"),
        pytest.param(f"[{_PARTS}]", "a key has more than 8 dotted parts", id="table"),
        pytest.param(f"[[ {_PARTS} ]]", "a key has more than 8 dotted parts", id="array of tables"),
        pytest.param(
            f"x = {{ y = 1, {_PARTS} = 1 }}",
            "a key has more than 8 dotted parts",
            id="inline table",
        ),
        pytest.param(
            '[ "a" . ' + ".".join(["'b'"] * 16_000) + " ]", "a key has more than 8", id="quoted"
        ),
        pytest.param(
            "\n".join(f"[a{n}.b]" for n in range(_MANY)), "more than 10000 different", id="tables"
        ),
        pytest.param(
            "\n".join(f"a{n}.b=1" for n in range(_MANY)), "more than 10000 different", id="keys"
        ),
        pytest.param(
            "\n".join(f"[['{n}'.b]]" for n in range(_MANY // 2)),
            "more than 10000 different",
            id="quoted tables",
        ),
        pytest.param("x = " + "{a=" * 21_000, "nested too deeply", id="inline depth"),
        pytest.param("x = " + "[" * 65_000, "nested too deeply", id="array depth"),
        pytest.param("x = " + "9" * 65_000, "too many digits", id="digits"),
        pytest.param(("a . " * 16_000 + "\n") * 60, "", id="dots that are no key"),
        pytest.param(("." * 65_000 + "\n") * 60, "", id="nothing but dots"),
        pytest.param(("a.b " * 16_000 + "\n") * 60, "", id="words"),
        pytest.param((""" "'" """ * 10_000 + "\n") * 60, "", id="quotes"),
    ],
)
def test_a_text_that_would_take_gigabytes_takes_a_sentence(
    tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "huge.toml"
    file.write_text(text)
    script = """
import resource, sys
from pathlib import Path
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.parse import load
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    load(Path(sys.argv[1]))
except PolicyError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, file], capture_output=True, text=True, check=True
    )
    assert why in done.stdout
    assert done.stdout.count("\n") == 1
    assert len(done.stdout) < 500


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        policy.load(tmp_path / "absent.toml")
    with pytest.raises(PolicyError, match="is a directory"):
        policy.load(tmp_path)
    with pytest.raises(PolicyError, match="not a regular file"):
        policy.load(Path("/dev/null"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PolicyError, match="not a regular file"):
        policy.load(tmp_path / "fifo")
    with pytest.raises(PolicyError, match="file name too long"):
        policy.load(tmp_path / ("n" * 300))
    with pytest.raises(PolicyError, match="not a directory"):
        policy.load(Path("/etc/passwd/x"))
    (tmp_path / "latin.toml").write_bytes(b"# one\n# caf\xe9\n")
    with pytest.raises(PolicyError, match=r"latin\.toml:2: it is not UTF-8"):
        policy.load(tmp_path / "latin.toml")


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (ROUTE + "port = 1\n").replace("\n", "\r\n").encode())
    with pytest.raises(PolicyError, match=r'windows\.toml:4: .*did you mean "ports"\?'):
        policy.load(path)


@pytest.mark.parametrize("old", ["af_packet", "tun"])
def test_an_old_name_of_a_port_goes_on_working_with_a_sentence(
    old: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = U + f'io = "{old}"\n'
    (stack,) = policy.parse(text, source="p", base=Path("/")).user_stacks().values()
    assert stack.io == "tap"
    assert f'io = "{old}" is an old name and means io = "tap" now' in caplog.text


def test_processes_were_called_instances(caplog: pytest.LogCaptureFixture) -> None:
    (stack,) = parse(U + "instances = 3\n").user_stacks().values()
    assert stack.processes == 3
    assert "instances is an old name of the key processes" in caplog.text

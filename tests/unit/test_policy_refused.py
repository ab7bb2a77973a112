# SPDX-License-Identifier: Apache-2.0
"""What a policy is refused for, each by a sentence with the place."""

from __future__ import annotations

import pytest
from policy_parsing import ROUTE, U, refusal

MULTI = '[stacks.multi]\nkind = "kernel"\nmptcp = true\n'

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
    ("word for UDP", U + 'udp = "yes"\n', ["policy.toml:3:", '"yes"', "expected true or false"]),
    (
        "UDP by a program that knows TCP alone",
        U + 'command = ["/bin/true"]\nudp = true\n',
        ["policy.toml:4:", "carries TCP alone", "leave udp out"],
    ),
    (
        "way to negotiate",
        U + 'negotiate = "yes"\n',
        ["policy.toml:3:", '"yes"', 'expected "forbid", "allow" or "demand"'],
    ),
    (
        "an agreement that cookies cannot carry",
        U + 'negotiate = "demand"\nsyn_cookies = "always"\n',
        ["policy.toml:3:", "no SYN cookie", 'syn_cookies = "auto"'],
    ),
    (
        "an agreement that a plug-in does not make",
        U + 'negotiate = "demand"\ntransport = "c:/x/gbn.so"\n',
        ["policy.toml:3:", 'transport "c:/x/gbn.so" is a plug-in', "leave negotiate out"],
    ),
    (
        "latency",
        U + 'latency = "high"\n',
        ["policy.toml:3:", '"high"', 'expected "auto", "low" or "normal"'],
    ),
    (
        "redundancy without its keys",
        U + 'redundancy = "5%"\n',
        ["policy.toml:3:", "redundancy", 'expected for example { budget = "5%"'],
    ),
    (
        "an unknown key of redundancy",
        U + 'redundancy = { budgte = "5%" }\n',
        ["policy.toml:3:", "redundancy", 'expected for example { budget = "5%"'],
    ),
    *(
        (
            f"a budget of {written}",
            U + f"redundancy = {{ budget = {written} }}\n",
            ["policy.toml:3:", "is not a budget of redundancy", 'such as "5%" or "0.2%"'],
        )
        for written in ("nan", "-1", "5", '"5"', '"-5%"', '"nan%"', "true", '"1e3%"')
    ),
    (
        "more than all",
        U + 'redundancy = { budget = "101%" }\n',
        ["policy.toml:3:", '"101%" is not a budget', "expected 0% to 100%"],
    ),
    (
        "no loss at all",
        U + 'redundancy = { residual = "0%" }\n',
        ["policy.toml:3:", '"0%" is not a residual', "expected 0.0001% to 100%"],
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
        "pattern of any depth",
        ROUTE + '[[rules]]\ntable = "t"\ncgroup = "/pods/**/web"\n',
        ["policy.toml:6:", "a pattern has one", 'a "*" for each name'],
    ),
    (
        "pattern with an open bracket",
        ROUTE + '[[rules]]\ntable = "t"\nnot = { cgroup = ["/a", "/pods/[!]/x]"] }\n',
        ["policy.toml:6:", 'has a "[" without its "]"'],
    ),
    (
        "patterns without end",
        ROUTE
        + f'[[rules]]\ntable = "t"\ncgroup = {[f"/pods/{n}*" for n in range(65)]}\n'.replace(
            "'", '"'
        ),
        ["policy.toml:", "more than 64 patterns of cgroups"],
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
    (
        "mptcp beside a user stack",
        f'{MULTI}[stacks.wan]\nkind = "user"\n[[tables.t.routes]]\nto = "default"\nstack = "multi"\n'
        '[[tables.t.routes]]\nto = "10.0.0.0/8"\nstack = "wan"\n',
        ["policy.toml:6:", "table t", "multi", "user stack wan", "socket(2)"],
    ),
    (
        "mptcp as a fallback",
        f'{MULTI}[stacks.wan]\nkind = "user"\nfallback = "multi"\n',
        ["policy.toml:6:", '"multi" has mptcp', "kernel stack without mptcp"],
    ),
    (
        "mptcp as a candidate",
        f'{MULTI}[[tables.t.routes]]\nto = "default"\nstack = "auto"\ncandidates = ["kernel", "multi"]\n',
        ["policy.toml:4:", '"multi" has mptcp', "before any is chosen"],
    ),
    (
        "mptcp to be chosen",
        f'{MULTI}[[rules]]\nchoose = ["multi"]\n',
        ["policy.toml:5:", '"multi" has mptcp', "IPPROTO_MPTCP"],
    ),
    (
        "mptcp by a mark",
        f'{MULTI}[[rules]]\nmark = 1\ntable = "t"\n'
        '[[tables.t.routes]]\nto = "default"\nstack = "multi"\n',
        ["policy.toml:5:", "rule 1, mark", "before it has any", "match by cgroup"],
    ),
    (
        "mptcp of a user stack",
        '[stacks.a]\nkind = "user"\nmptcp = true\n',
        ["policy.toml:3:", "mptcp"],
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

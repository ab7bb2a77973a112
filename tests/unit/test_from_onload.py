# SPDX-License-Identifier: Apache-2.0
"""`policy import --onload`: what starts programs by Onload, as its User Guide tells of it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_lab import Cli, one_sentence

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.from_onload import import_onload

SCRIPT = """\
#!/bin/sh
# onload old-program
export EF_TCP_SNDBUF=65536
cd /opt/orders
EF_POLL_USEC=-1 EF_INTERFACE_WHITELIST="enp1s0 enp2s0" taskset -c 4,5 \\
    onload --profile=latency -v ./order_sender -H 192.0.2.1
onload -p latency,/etc/own.opf --app order_taker ./wrap order_taker
LD_PRELOAD=/usr/lib64/libonload.so exec /usr/bin/a-program-of-a-long-name
EF_UDP=0 EF_LOG_VIA_IOCTL=1 onload web
logger all are started
"""


def made(text: str) -> tuple[dict[str, Any], list[str]]:
    """The policy, which the parser takes, as TOML; and what was left."""
    found = import_onload(text, "run.sh")
    parse.parse(found.text, source="p.toml", base=Path("/"))
    return tomllib.loads(found.text), found.left


def test_a_script_is_stacks_and_rules_by_names() -> None:
    policy, left = made(SCRIPT)
    sender, taker, plain, web = policy["stacks"].values()
    assert sender == {
        "kind": "user",
        "devices": ["enp1s0", "enp2s0"],
        "busy_poll_us": 1_000_000,
        "sndbuf": 131072,
        "udp": True,
    }
    assert taker == {"kind": "user", "busy_poll_us": 100_000, "sndbuf": 131072, "udp": True}
    assert plain == {"kind": "user", "sndbuf": 131072, "udp": True}
    assert web == {"kind": "user", "sndbuf": 131072}
    assert [rule["comm"] for rule in policy["rules"]] == [
        ["order_sender"],
        ["order_taker"],
        ["a-program-of-a-"],
        ["web"],
    ]
    polling, profile, option, who = left
    assert polling == "run.sh:5: EF_POLL_USEC=-1: a process polls 1000000 at a time"
    assert profile == "run.sh:7: the profile /etc/own.opf, another file"
    assert option == "run.sh:9: EF_LOG_VIA_IOCTL: a stack has no such option"
    assert "all of these names in the cgroup" in who


def test_programs_with_the_same_options_share_a_stack() -> None:
    policy, left = made("onload one\nonload --profile latency two\nonload /bin/one\nonload three\n")
    assert list(policy["stacks"]) == ["onload", "onload-2"]
    assert [rule["comm"] for rule in policy["rules"]] == [["one", "three"], ["two"]]
    assert left[0] == "run.sh:3: another start of one; what the first has counts"


def test_a_unit_of_systemd() -> None:
    policy, _ = made(
        "[Unit]\nDescription=onload\n[Service]\nEnvironment=EF_TCP=0 'EF_TCP_SYNCOOKIES=1'\n"
        "ExecStart=-/usr/bin/onload --profile=latency /usr/sbin/feed --fast\n"
    )
    assert policy["stacks"]["onload"]["syn_cookies"] == "auto"
    text = import_onload("EF_TCP=0 onload feed\n", "x").text
    parsed = parse.parse(text, source="p.toml", base=Path("/"))
    for proto, stack in ((17, "onload"), (6, "kernel")):
        assert route_get(parsed, Query("192.0.2.1", 9, proto, comm="feed")).wanted == stack
    assert route_get(parsed, Query("192.0.2.1", 9, 17, comm="sh")).wanted == "kernel"


def test_of_a_unit_only_what_it_starts_counts() -> None:
    policy, _ = made(
        "[Service]\nEnvironment=LD_PRELOAD=/usr/lib64/libonload.so\nType=simple\n"
        "ExecStartPre=/usr/bin/test -f /etc/feed\nExecStart=/usr/sbin/feed\n"
        "ExecReload=/bin/kill -HUP $MAINPID\n[Install]\nWantedBy=multi-user.target\n"
    )
    assert [rule["comm"] for rule in policy["rules"]] == [["feed"]]


def test_a_profile_alone_is_for_all() -> None:
    policy, left = made("onload_set EF_POLL_USEC 50\nonload_set EF_POLL_USEC=60\nonload_import x\n")
    assert policy["stacks"]["onload"]["busy_poll_us"] == 50  # as onload_set has it: the first
    assert "comm" not in policy["rules"][0]
    assert left[0] == "run.sh:3: the profile x, another file"
    assert "all programs" in left[1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("onload $APP", "which program is meant is not said there"),
        ("onload --version", "which program is meant is not said there"),
        ("EF_DONT_ACCELERATE=1 onload app", "app is not accelerated unless it asks for it"),
        ("EF_TCP=0 EF_UDP=0 onload app", "app is not accelerated unless it asks for it"),
        ("onload 'app", "it cannot be read (no closing quotation)"),
    ],
)
def test_what_cannot_be_carried_over_is_told(line: str, told: str) -> None:
    _, left = made(f"onload other\n{line}\n")
    assert left[0] == f"run.sh:2: {told}"


def test_forced_profiles_come_before_the_environment() -> None:
    policy, _ = made("EF_POLL_USEC=7 onload --force-profiles --profile=latency app\n")
    assert policy["stacks"]["onload"]["busy_poll_us"] == 100_000


def test_a_file_that_says_nothing_of_onload_is_refused() -> None:
    with pytest.raises(PolicyError, match="no program is started by Onload there"):
        import_onload("#!/bin/sh\necho hello\n", "run.sh")


def test_by_the_command_line(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text("onload app\n")
    said = cli("policy", "import", "--onload", str(file))
    assert said.code == 0
    assert tomllib.loads(said.out)["rules"][0]["comm"] == ["app"]
    assert "not carried over" in said.err
    both = cli("policy", "import", "--onload", str(file), "--libvma", str(file))
    one_sentence(both, 2, "name one of --dmm, --libvma, --onload and --mptcpize")

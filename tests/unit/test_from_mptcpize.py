# SPDX-License-Identifier: Apache-2.0
"""`policy import --mptcpize`: what starts programs by mptcpize(8)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_lab import Cli

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse
from dmm_ebpf.rd.policy.from_mptcpize import import_mptcpize

SCRIPT = """\
#!/bin/sh
mptcpize run iperf3 -s &
/usr/bin/mptcpize run -d \\
    /opt/bin/a-program-of-a-long-name --fast
LD_PRELOAD=/usr/lib/x86_64-linux-gnu/mptcpize/libmptcpwrap.so.0.0.1 exec curl -O $URL
mptcpize run iperf3 -c 192.0.2.1
mptcpize enable web.service
mptcpize disable old.service
logger all are started
"""
# As `mptcpize enable` leaves it
UNIT = """\
[Unit]
Description=the web server
[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/mptcpize/libmptcpwrap.so.0.0.1
Type=notify
ExecStart=!/usr/sbin/webd --listen 80
ExecReload=/bin/kill -HUP $MAINPID
[Install]
WantedBy=multi-user.target
"""


def made(text: str) -> tuple[dict[str, Any], list[str]]:
    """The policy, which the parser takes, as TOML; and what was left."""
    found = import_mptcpize(text, "run.sh")
    parse.parse(found.text, source="p.toml", base=Path("/"))
    return tomllib.loads(found.text), found.left


def test_a_script_is_one_stack_and_one_rule() -> None:
    policy, left = made(SCRIPT)
    assert policy["stacks"] == {"mptcp": {"kind": "kernel", "mptcp": True}}
    (rule,) = policy["rules"]
    assert rule["comm"] == ["iperf3", "a-program-of-a-", "curl"]
    assert policy["tables"][rule["table"]]["routes"] == [{"to": "default", "stack": "mptcp"}]
    unit, who = left
    assert unit == "run.sh:7: what the unit web.service starts; import the unit's own file"
    assert "all of these names in the cgroup" in who


def test_a_unit_as_it_was_enabled() -> None:
    policy, left = made(UNIT)
    assert policy["rules"][0]["comm"] == ["webd"]
    assert len(left) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("mptcpize run $APP", "which program is meant is not said there"),
        ("mptcpize run", "which program is meant is not said there"),
        ("mptcpize run 'app", "it cannot be read (no closing quotation)"),
    ],
)
def test_what_cannot_be_carried_over_is_told(line: str, told: str) -> None:
    _, left = made(f"mptcpize run other\n{line}\n")
    assert left[0] == f"run.sh:2: {told}"


def test_a_file_that_says_nothing_of_it_is_refused() -> None:
    with pytest.raises(PolicyError, match="no program is started by mptcpize there"):
        import_mptcpize("#!/bin/sh\necho hello\n", "run.sh")


def test_by_the_command_line(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text("mptcpize run app\n")
    said = cli("policy", "import", "--mptcpize", str(file))
    assert said.code == 0
    assert tomllib.loads(said.out)["rules"][0]["comm"] == ["app"]
    assert "not carried over" in said.err

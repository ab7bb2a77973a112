# SPDX-License-Identifier: Apache-2.0
"""`policy import --libvma`: libvma.conf, as libvma tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_lab import Cli, one_sentence

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.from_libvma import import_libvma

CONF = """\
# as it comes
application-id * *
log destination stderr min-level 9
use os  tcp_client 192.168.1.0/24:22
use vma tcp_client 192.168.0.0/16:*:*:*   # later, and wider
use os  tcp_client *:*:*:7000-7009
use os  tcp_server *:5001-5010
use os  udp_sender 10.1.2.3/8:53
"""


def stack_of(text: str, query: Query) -> str:
    return route_get(parse.parse(text, source="p.toml", base=Path("/")), query).wanted


@pytest.mark.parametrize(
    ("query", "stack"),
    [
        (Query("192.168.1.9", 22, local_port=0), "kernel"),
        (Query("192.168.1.9", 23, local_port=7001), "vma"),
        (Query("192.0.2.1", 22, local_port=7001), "kernel"),
        (Query("192.0.2.1", 22, local_port=0), "vma"),
        (Query("10.9.9.9", 53, 17, local_port=0), "kernel"),
        (Query("10.9.9.9", 53, local_port=0), "vma"),
        (Query("10.9.9.9", 54, 17, local_port=0), "vma"),
        (Query("192.0.2.1", 5001, direction=C.DMM_DIR_LISTEN), "kernel"),
        (Query("192.0.2.1", 5011, direction=C.DMM_DIR_LISTEN), "vma"),
        (Query("2001:db8::1", 443, local_port=0), "kernel"),
    ],
)
def test_the_first_match_wins_and_the_rest_is_vmas(query: Query, stack: str) -> None:
    found = import_libvma(CONF, "libvma.conf")
    assert stack_of(found.text, query) == stack
    log, programs = found.left
    assert log.startswith("libvma.conf:3: log") and "all of the cgroup" in programs


def test_what_is_for_programs_and_what_cannot_be_carried_over() -> None:
    text = (
        "application-id tcp_lat *\nuse os tcp_client *:80\n"
        "application-id a-program-of-a-long-name *\nuse vma udp_connect 10.0.0.0/8:*\n"
        "application-id db2* *\nuse os tcp_client *:*\n"
        "application-id x B1\nuse os tcp_client *:*\n"
        "application-id y *\nuse os tcp_server 10.0.0.1:*\nuse os udp_receiver *:*\n"
        "use os tcp_client *:*:10.0.0.1:*\n"
    )
    found = import_libvma(text, "c")
    left = [one.split(": ", 1) for one in found.left]
    assert [(place, why.split(",")[0].split(" ")[0]) for place, why in left] == [
        ("c:3", "all"),
        ("c:5", "what"),
        ("c:7", "what"),
        ("c:4", "that"),
        ("c:10", "no"),
        ("c:12", "no"),
    ]
    rule = {"port": 9, "comm": "y", "direction": C.DMM_DIR_LISTEN}
    assert stack_of(found.text, Query("192.0.2.1", proto=17, **rule)) == "kernel"
    assert stack_of(found.text, Query("192.0.2.1", **rule)) == "vma"
    facts = {"local_port": 0}
    assert stack_of(found.text, Query("192.0.2.1", 80, comm="tcp_lat", **facts)) == "kernel"
    assert stack_of(found.text, Query("192.0.2.1", 81, comm="tcp_lat", **facts)) == "vma"
    assert stack_of(found.text, Query("192.0.2.1", 81, comm="a-program-of-a-", **facts)) == "vma"
    assert stack_of(found.text, Query("192.0.2.1", 80, comm="curl", **facts)) == "kernel"


SERVERS = """\
use os  udp_receiver *:53
use os  tcp_server   *:1-1023
use vma udp_receiver *:1-1023
use os  tcp_server   *:2000-2009
use os  udp_receiver *:2005-2020
"""


@pytest.mark.parametrize(
    ("port", "proto", "stack"),
    [
        (53, 17, "kernel"),
        (53, 6, "kernel"),
        (54, 17, "vma"),
        (54, 6, "kernel"),
        (2001, 6, "kernel"),
        (2001, 17, "vma"),
        (2015, 17, "kernel"),
        (2015, 6, "vma"),
        (3000, 17, "vma"),
        (3000, 6, "vma"),
    ],
)
def test_servers_of_both_protocols(port: int, proto: int, stack: str) -> None:
    """A rule for those that peers come to asks for no protocol, and the first one decides."""
    found = import_libvma(SERVERS, "c")
    query = Query("192.0.2.1", port, proto, direction=C.DMM_DIR_LISTEN)
    assert stack_of(found.text, query) == stack
    assert [one.partition(": ")[0] for one in found.left[:-1]] == ["c:5"]
    assert "of its ports that line 4 names, too" in found.left[0]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("useless", "is no statement of libvma.conf"),
        ("use sdp tcp_client *:*", "is no use"),
        ("use os tcp_peer *:*", "is no use"),
        ("use os tcp_client *", "has no ports"),
        ("use os tcp_client host:80", '"host" is no IPv4 address'),
        ("use os tcp_client *:9-8", '"9-8" are no ports'),
        ("use os tcp_client *:0", '"0" are no ports'),
    ],
)
def test_lines_that_say_nothing(line: str, why: str) -> None:
    with pytest.raises(PolicyError, match="take c:2") as caught:
        import_libvma(f"\n{line}\n", "c")
    assert why in str(caught.value)


def test_the_command_prints_it(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "libvma.conf"
    file.write_text(CONF)
    said = cli("policy", "import", "--libvma", str(file))
    assert said.code == 0 and said.out == import_libvma(CONF, str(file)).text
    assert said.err.count("not carried over: ") == 2
    assert cli("policy", "import", "--libvma", str(file), "--json").json["policy"] == said.out
    both = cli("policy", "import", "--libvma", str(file), "--dmm", str(file))
    one_sentence(both, 2, "name one of --dmm, --libvma, --onload and --mptcpize")
    one_sentence(cli("policy", "import"), 2, "name one of --dmm, --libvma, --onload and --mptcpize")

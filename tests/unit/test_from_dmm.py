# SPDX-License-Identifier: Apache-2.0
"""`policy import --dmm`: the files of FD.io DMM, as people wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_lab import Cli, one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.from_dmm import Imported, import_dmm, lenient_json

ROUTES = """\
{
  // which stack a subnet has; the second has a comma too many
  "ip_route": [
    {"subnet": "192.165.1.1/24", "type": "nstack-kernel"},
    {"subnet": "172.16.0.0/16", "type": "lwip",},  /* the lab,
    in two lines */
    {"subnet": "172.16.9.1/24", "type": "kernel"},
    {"subnet": "172.16.0.0/16", "type": "nstack-dpdk"},
    {"subnet": "2001:db8::/32", "type": "a stack // with a name"}
  ],
  "prot_route": [
    {"proto_type": "17", "type": "nstack-kernel"},
    {"proto_type": 6, "type": "nstack-dpdk"},
    {"proto_type": "132", "type": "lwip"}
  ],
}
"""
MODULES = """\
{
  "default_stack_name": "lwip",
  "module_list": [
    {"stack_name": "kernel", "function_name": "kernel_stack_register", "priorty": "1"},
    {"stack_name": "lwip", "libname": "liblwip.so", "priorty": "2", "maxfd": "1024"},
  ],
}
"""


def imported(routes: str = ROUTES, modules: str = MODULES) -> Imported:
    return import_dmm(routes, modules, "rd_config.json", "module_config.json")


def stack_of(text: str, address: str, proto: int = 6) -> str:
    policy = parse.parse(text, source="p", base=Path())
    return route_get(policy, Query(address, 80, proto)).wanted


@pytest.mark.parametrize(
    ("address", "proto", "stack"),
    [
        ("192.165.1.9", 6, "kernel"),
        ("172.16.1.1", 6, "lwip"),
        ("172.16.9.9", 6, "kernel"),  # the longer prefix
        ("2001:db8::1", 6, "a-stack----with-a-name"),
        ("203.0.113.7", 6, "nstack-dpdk"),  # by protocol
        ("203.0.113.7", 17, "kernel"),
    ],
)
def test_each_flow_has_the_stack_that_dmm_meant(address: str, proto: int, stack: str) -> None:
    assert stack_of(imported().text, address, proto) == stack


def test_the_default_comes_last() -> None:
    text = imported(ROUTES.replace('"proto_type": 6', '"proto_type": 1')).text
    assert stack_of(text, "203.0.113.7") == "lwip"
    assert stack_of(text, "203.0.113.7", 17) == "kernel"
    assert stack_of(imported(modules="").text, "192.165.1.1") == "kernel"


def test_what_cannot_be_carried_over_is_named_with_its_place() -> None:
    left = imported().left
    assert [one.split(": ")[0] for one in left] == [
        *["module_config.json, module_list, entry 2 (lwip)"] * 3,
        "rd_config.json, prot_route, entry 3",
        "route to 172.16.0.0/16 by nstack-dpdk",
    ]
    assert any("priority" in one for one in left)


def test_a_subnet_of_length_0_comes_before_protocols() -> None:
    routes = {
        "ip_route": [{"subnet": "0.0.0.0/0", "type": "lwip"}],
        "prot_route": [{"proto_type": 6, "type": "kernel"}],
    }
    found = imported(json.dumps(routes), "")
    assert stack_of(found.text, "203.0.113.7") == "lwip"
    assert "never asked" in found.left[0]


def test_names_that_a_policy_may_not_have_stay_apart() -> None:
    names = ["a b", "a/b", "é" * 40, "", "reject", "x" * 40, "x" * 41]
    entries = [{"subnet": f"10.{i}.0.0/16", "type": name} for i, name in enumerate(names) if name]
    text = imported(json.dumps({"ip_route": entries}), "").text
    policy = parse.parse(text, source="p", base=Path())
    assert len(policy.user_stacks()) == len(entries)
    assert "reject" not in policy.user_stacks()


def test_nothing_to_route_is_an_empty_policy() -> None:
    assert imported("{}", "").text == ""


@pytest.mark.parametrize(
    ("routes", "why"),
    [
        ("", "rd_config.json:1: it is not JSON"),
        ('{"ip_route": [\n{"subnet": }]}', "rd_config.json:2"),
        ("[]", "not an object"),
        ('{"ip_route": 1}', "not a list of objects"),
        ('{"ip_route": [1]}', "not a list of objects"),
        ('{"ip_route": [{"type": "a"}]}', "entry 1: subnet is missing"),
        ('{"ip_route": [{"subnet": "a", "type": "a"}]}', "is no prefix"),
        ('{"ip_route": [{"subnet": "1.2.3.4", "type": ""}]}', "type is missing"),
        ('{"prot_route": [{"proto_type": true, "type": "a"}]}', "proto_type is missing"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_of_which_nothing_can_be_made(routes: str, why: str) -> None:
    with pytest.raises(PolicyError, match="cannot ") as refused:
        imported(routes, "")
    assert why in str(refused.value)


def test_comments_in_texts_are_none() -> None:
    said = lenient_json('{"a": "// no", "b": ", ]", /* c */ "c": [1, 2, ], }', "f")
    assert said == {"a": "// no", "b": ", ]", "c": [1, 2]}


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        imported(text, "")
    except PolicyError as refused:
        assert str(refused).startswith("cannot ")


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    routes, modules = tmp_path / "rd.json", tmp_path / "module.json"
    routes.write_text(ROUTES, encoding="utf-8")
    modules.write_text(MODULES, encoding="utf-8")
    said = cli("policy", "import", "--dmm", str(routes), "--modules", str(modules))
    assert said.code == 0
    assert stack_of(said.out, "172.16.1.1") == "lwip"
    assert said.err.count("not carried over: ") == 5
    told = json.loads(cli("policy", "import", "--dmm", str(routes), "--json").out)
    assert stack_of(told["policy"], "172.16.1.1") == "lwip"
    one_sentence(cli("policy", "import", "--dmm", str(tmp_path / "no")), 2, "read DMM's file")

# SPDX-License-Identifier: Apache-2.0
"""Pages of docs/develop, followed in a copy of the checkout, one after the other: what they say is
all that there is to do, and passes the checks that it meets.

A page that shows each line of something is followed by a twin of that, under another name: behind
each of these lines the same for the other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
from stranger import PAGES, Checkout, blocks, places

CORE = "dmm_ebpf/userstack/core"
NAMES = "dmm_ebpf/kit/names.py"
ENGINE = ("", "_calls", "_datagram", "_faults", "_io")
WARNINGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
# What is told to cffi, and what a policy may say.
KNOWN = """
from dmm_ebpf.rd.policy import model
from dmm_ebpf.userstack.build_core import declarations
assert "int dmm_plain_open(" in declarations()
assert model._io("plain") == "plain"
"""
# The words of a policy, and the member of C that has their name.
TOLD = """
from cffi import FFI
from dmm_ebpf.rd.policy.model import UserStack
from dmm_ebpf.rd.policy.schema import schema
from dmm_ebpf.userstack.build_core import declarations
ffi = FFI()
ffi.cdef(declarations())
assert "idle_poll_us" in dict(ffi.typeof("struct dmm_engine_config").fields)
options = UserStack.read({"kind": "user", "idle_poll_us": 7}).process_options()
assert options["idle_poll_us"] == 7
assert "idle_poll_us" in str(schema())
"""
ABI = """
from dmm_ebpf import build_abi
build_abi.ffibuilder.compile(verbose=False)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One for all pages: what they add does not meet."""
    return Checkout(tmp_path_factory.mktemp("checkout"))


def renaming(*pairs: tuple[str, str]) -> Callable[[str], str]:
    """What makes of each pattern what stands beside it."""

    def renamed(text: str) -> str:
        for pattern, by in pairs:
            text = re.sub(pattern, by, text)
        return text

    return renamed


def built_abi(checkout: Checkout) -> None:
    """What Python knows of abi.h."""
    checkout.run("clang-format", "-i", "bpf/abi.h")
    checkout.run(sys.executable, "-c", ABI)


def end_of(text: str, begin: str) -> str:
    """From begin to what closes its list."""
    found = re.search(rf"{re.escape(begin)}[^)}}]*?(?=,?\s*[)}}])", text)
    assert found, begin
    return found[0]


def test_a_congestion_control_is_four_places(checkout: Checkout) -> None:
    file, declared, listed, word = blocks("add-a-congestion-control.md")
    checkout.write(f"{CORE}/cc/cc_steady.c", file)
    checkout.put(f"{CORE}/cc/cc.h", declared, behind="extern const struct cc_ops cc_wan;\n")
    checkout.put(f"{CORE}/cc/cc.c", f"\t\t{listed}", behind="\t\t&cc_wan,\n")
    names = end_of(checkout.read(NAMES), "CONTROLS = (")
    checkout.put(NAMES, f", {word.strip().rstrip(',')}", behind=names)
    checkout.test(
        "tests/unit/test_congestion_names.py::test_a_policy_knows_the_congestion_controls_of_the_core"
    )


def test_a_transport_is_its_folder_and_four_places(checkout: Checkout) -> None:
    code = blocks("add-a-transport-in-c.md", "text")
    include, listed = (block for block in code if block.startswith(("#include", "&")))
    (room,) = (block for block in code if block.startswith("Room("))
    for name in ("gbn.c", "gbn.h"):
        text = checkout.read(f"lab/sim/gbn/{name}").replace("END_EXPORT(gbn);\n", "")
        text = text.replace('#include "end_export.h"\n', "")
        checkout.write(f"{CORE}/gbn/{name}", re.sub(r'"(end\.h|wire/)', r'"../\1', text))
    transports = f"{CORE}/relay/transports.c"
    checkout.put(transports, include, behind='#include "../tcp/tcp_end.h"\n')
    checkout.put(transports, f"\t{listed}", behind="\t&tcp_outer,\n")
    names = end_of(checkout.read(NAMES), "TRANSPORTS = (")
    checkout.put(NAMES, ' "gbn"', behind=f"{names},")
    rooms = checkout.read("tests/rooms.py")
    before, relay = re.split(r"(?=    Room\(\n        \"relay\")", rooms)
    relay = relay.replace('"tcp"),', '"tcp", "gbn"),', 1)
    checkout.write("tests/rooms.py", f"{before}    {room}{relay}")
    checkout.draw_map()


def test_a_port_is_two_files_and_five_places(checkout: Checkout) -> None:
    page = "add-a-port.md"
    header, file, _, enumerator, include, pointer, case = blocks(page, "c")
    declared, word, named = blocks(page, "text")
    checkout.write("dmm_ebpf/hal/plain.h", header)
    checkout.write("dmm_ebpf/hal/plain.c", file)
    tap = "\tDMM_PORT_TAP = 1, /* tapnic.h, functions dmm_tapnic_ */\n"
    checkout.put("dmm_ebpf/hal/portcaps.h", enumerator, behind=tap)
    port, engine = "dmm_ebpf/userstack/port.h", "dmm_ebpf/userstack/engine.py"
    checkout.put(port, include, behind='#include "../hal/afxdp.h"\n')
    checkout.put(port, pointer, behind="\t\tstruct dmm_tapnic *tap;\n")
    (tap,) = re.findall(r"\tcase DMM_PORT_TAP:.*?\\\n.*?\\\n", checkout.read(port))
    checkout.put(port, case, behind=tap)
    build = "dmm_ebpf/userstack/build_core.py"
    checkout.put(build, declared, behind='    _PACKAGE / "hal/portcaps.h",\n')
    checkout.put(engine, f", {word.strip()}", behind='"tap": lib.DMM_PORT_TAP')
    model = "dmm_ebpf/rd/policy/model.py"
    checkout.put(model, f", {named.strip()}", behind='USER_IO = ("auto", "af_xdp", "tap"')
    opened = "        self._open_outer(index, nic)\n"
    checkout.put(engine, opened.replace("outer", "plain"), behind=opened)
    before = "    def _have_queues("
    (method,) = blocks(page, "python")
    text = checkout.read(engine).replace(before, f"{method}\n{before}")
    checkout.write(engine, text)
    objects = ["dmm_ebpf/hal/plain.c", *(f"dmm_ebpf/userstack/engine{x}.c" for x in ENGINE)]
    checkout.run("gcc", *WARNINGS, "-r", "-o", "engine.o", *objects)
    checkout.run("sh", "-c", "! nm -u engine.o | grep dmm_plain_; rm engine.o")
    checkout.run(sys.executable, "-c", KNOWN)


def test_an_option_of_a_stack_touches_three_files(checkout: Checkout) -> None:
    page = "add-an-option.md"
    assert {file for file, _ in places(page)} == {
        "dmm_ebpf/rd/policy/model.py",
        "dmm_ebpf/userstack/engine.h",
        "dmm_ebpf/userstack/engine.c",
    }
    checkout.twin(page, renaming(("busy_poll_us", "idle_poll_us")))
    engine = "dmm_ebpf/userstack/engine.c"
    checkout.run("gcc", *WARNINGS, "-c", "-o", "/dev/null", engine)
    checkout.run(sys.executable, "-c", TOLD)


def with_a_map(checkout: Checkout) -> None:
    """`cards`, as `nics`; once."""
    page, abi = "add-a-map.md", "bpf/abi.h"
    if "struct dmm_card" in checkout.read(abi):
        return
    (struct,) = re.findall(r"^struct dmm_nic \{.*?^\};\n", checkout.read(abi), re.M | re.S)
    checkout.put(abi, f"\n{struct.replace('dmm_nic', 'dmm_card')}", behind=struct)
    names = renaming((r"\bnics\b", "cards"), (r"\bdmm_nic\b", "dmm_card"), (r"\*nic\b", "*card"))
    checkout.replace(abi, "DMM_MAX_DEVICES = ", "DMM_MAX_CARDS = 8,\n\tDMM_MAX_DEVICES = ")
    checkout.twin(page, names)
    read = "\tif (card)\n\t\tflow->away = card->slot;\n"
    checkout.put("bpf/away.h", read, behind="\tif (!nic)\n\t\tflow->away = 0;\n")
    built_abi(checkout)


def test_a_map_touches_four_files(checkout: Checkout) -> None:
    abi = "bpf/abi.h"
    assert {abi, *(file for file, _ in places("add-a-map.md"))} == {
        abi,
        "dmm_ebpf/loader/spec.py",
        "bpf/away.h",
        "dmm_ebpf/rd/director/nics.py",
    }
    with_a_map(checkout)
    checkout.test("tests/unit/test_loader_pure.py", "-k", "specified or holes")


def with_a_condition(checkout: Checkout) -> None:
    """A second name of the process, `nick`; once."""
    if "DMM_RULE_NICK" in checkout.read("bpf/abi.h"):
        return
    kept = r"(?<!facts->)(?<!listener\.)(?<!who\.)(?<![\w])"
    taken = re.findall(r"DMM_RULE_\w+ = (\d+),", checkout.read("bpf/abi.h"))
    free = 2 * max(map(int, taken))
    names = renaming(
        ("DMM_RULE_COMM = 4,", f"DMM_RULE_NICK = {free},"),
        (rf"{kept}comm\b", "nick"),
        (r"\bDMM_RULE_COMM\b", "DMM_RULE_NICK"),
        (r"\bCommOption\b", "NickOption"),
    )
    checkout.twin("add-a-policy-key.md", names)
    evaluate = "dmm_ebpf/rd/policy/evaluate.py"
    checkout.replace(evaluate, "nick=nick,", 'nick=_param(params, "nick", str),')
    (version,) = re.findall(r"DMM_ABI_VERSION = (\d+)", checkout.read("bpf/abi.h"))
    checkout.replace(
        "bpf/abi.h", f"DMM_ABI_VERSION = {version},", f"DMM_ABI_VERSION = {int(version) + 1},"
    )
    row = "| `netns` | the network namespace, by its name in `ip netns` |\n"
    checkout.put("docs/policy.md", "| `nick` | its other name |\n", behind=row)
    built_abi(checkout)


def test_a_condition_of_rules_is_each_line_of_its_page(checkout: Checkout) -> None:
    with_a_condition(checkout)
    agree = "tests/unit/test_compile_property.py"
    checkout.replace(agree, "max_examples=250", "max_examples=50")
    checkout.test("tests/unit/test_conditions.py", f"{agree}::test_compiled_is_evaluated")


def test_a_command_is_a_file_and_some_lines(checkout: Checkout) -> None:
    page, frames = "add-a-command.md", "dmm_ebpf/cli/frames.py"
    record, work, words, example, test = blocks(page, "python")
    (told,) = blocks(page, "markdown")
    rows, segment = "tests/unit/test_rows.py", "dmm_ebpf/records/segment.py"
    checkout.write(segment, f"{checkout.read(segment)}\n\n{record}")
    checkout.write("dmm_ebpf/cli/count.py", work)
    checkout.write(frames, f"{checkout.read(frames)}\n\n{words}")
    checkout.put(frames, "from pathlib import Path\n", behind="import enum\n")
    page_of_keys = checkout.read("docs/json.md")
    checkout.write("docs/json.md", f"{page_of_keys}\n{told}")
    checkout.put(rows, example, behind="PLAIN: dict[str, tuple[str, Record]] = {\n")
    checkout.put(rows, ", Counted", behind="from dmm_ebpf.records.segment import Captured")
    checkout.write("tests/unit/test_count.py", test)
    tests = ("rows", "count", "cli_commands", "lean")
    checkout.test(*(f"tests/unit/test_{name}.py" for name in tests))


def test_a_scenario_is_a_file(checkout: Checkout) -> None:
    """What the page shows is a scenario that is there; beside it one of a new topic."""
    page = "add-a-test.md"
    (name,) = re.findall(
        r"`(tests/scenario/\w+/\w+\.tcp)`", (PAGES / page).read_text(encoding="utf-8")
    )
    (text,) = (block for block in blocks(page, "text") if "open active" in block)
    assert text == checkout.read(name)
    checkout.write("tests/scenario/probes/first_flight.tcp", text)
    row = "| `wrap` |"
    checkout.replace("docs/conformance.md", row, f"| `probes` | probes of all kinds |\n{row}")
    checkout.test("tests/unit/test_docs.py::test_every_topic_of_scenarios_is_told")


def test_what_was_added_passes_a_review(checkout: Checkout) -> None:
    checkout.review()


@pytest.mark.root
def test_the_kernel_takes_what_was_added(checkout: Checkout) -> None:
    """The new map is made and pinned, and the new condition decides."""
    with_a_map(checkout)
    with_a_condition(checkout)
    rules, pinned = "tests/netns/test_bpf_rules.py", "tests/netns/test_loader_attach.py"
    choices = '    "comm": [\'"shop"\', \'"till"\'],\n'
    checkout.put(rules, choices.replace("comm", "nick"), behind=choices)
    both = '**dict.fromkeys(("comm", "nick"), chance.choice(COMMS)),'
    checkout.replace(rules, '"comm": chance.choice(COMMS),', both)
    checkout.test(
        f"{rules}::test_random_rules_are_evaluated[0]",
        f"{pinned}::test_adopt_finds_the_same_maps_and_programs",
    )


def test_a_test_with_real_programs_is_one_that_runs(checkout: Checkout) -> None:
    page = "add-a-test.md"
    (name,) = re.findall(r"`(tests/apps/test_a_\w+\.py)`", (PAGES / page).read_text("utf-8"))
    assert blocks(page, "python") == [checkout.read(name)]

# SPDX-License-Identifier: Apache-2.0
"""Pages of docs/develop, followed in a copy of the checkout: what they say is all that there is
to do, and passes the checks that it meets.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from stranger import Checkout, blocks

CORE = "dmm_ebpf/userstack/core"
NAMES = "dmm_ebpf/kit/names.py"
ENGINE = ("", "_calls", "_datagram", "_faults", "_io")
# What is told to cffi, and what a policy may say.
KNOWN = """
from dmm_ebpf.rd.policy import model
from dmm_ebpf.userstack.build_core import declarations
assert "int dmm_plain_open(" in declarations()
assert model._io("plain") == "plain"
"""


def end_of(text: str, begin: str) -> str:
    """From begin to what closes its list."""
    found = re.search(rf"{re.escape(begin)}[^)}}]*?(?=,?\s*[)}}])", text)
    assert found, begin
    return found[0]


def test_a_congestion_control_is_four_places(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    file, declared, listed, word = blocks("add-a-congestion-control.md")
    checkout.write(f"{CORE}/cc/cc_steady.c", file)
    checkout.put(f"{CORE}/cc/cc.h", declared, behind="extern const struct cc_ops cc_wan;\n")
    checkout.put(f"{CORE}/cc/cc.c", f"\t\t{listed}", behind="\t\t&cc_wan,\n")
    names = end_of(checkout.read(NAMES), "CONTROLS = (")
    checkout.put(NAMES, f", {word.strip().rstrip(',')}", behind=names)
    checkout.review(
        "tests/unit/test_congestion_names.py::test_a_policy_knows_the_congestion_controls_of_the_core"
    )


def test_a_transport_is_its_folder_and_four_places(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
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
    checkout.review()


def test_a_port_is_two_files_and_five_places(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
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
    checkout.review()
    objects = ["dmm_ebpf/hal/plain.c", *(f"dmm_ebpf/userstack/engine{x}.c" for x in ENGINE)]
    warnings = ("-Wall", "-Wextra", "-Werror")
    checkout.run("gcc", "-std=c11", "-D_GNU_SOURCE", *warnings, "-r", "-o", "engine.o", *objects)
    checkout.run("sh", "-c", "! nm -u engine.o | grep dmm_plain_")
    checkout.run(sys.executable, "-c", KNOWN)

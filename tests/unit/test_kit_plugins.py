# SPDX-License-Identifier: Apache-2.0
"""Congestion controls as plug-ins: good ones carry bytes in virtual time; of bad ones nobody dies,
and a sentence says what was wrong.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.kit import bench, guarding, load, names, probe
from dmm_ebpf.kit.bench import Course, Flow
from lab.waiting import wait_for

CC = Path(load.__file__).parents[1] / "userstack/core/cc"
COURSE = Course(rate_Bps=1.25e6, rtt_s=0.04, duration_s=8)
# Loses packets and times out, so that every method is called
ROUGH = Course(rate_Bps=2.5e5, rtt_s=0.04, loss=0.15, queue_bdp=2, duration_s=60)

GOOD = """
class Control:
    prr = True

    def on_ack(self, cc, s):
        if not cc.in_recovery:
            cc.cwnd_bytes += cc.mss * s.acked_bytes / cc.cwnd_bytes
"""
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a module and names its class Control as a policy would."""

    def one(text: str) -> str:
        path = tmp_path / "plugin.py"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        return f"python:{path}:Control"

    return one


@pytest.fixture
def built(tmp_path: Path) -> Write:
    """Compiles a C plug-in and names it."""

    def one(text: str) -> str:
        source, output = tmp_path / "plugin.c", tmp_path / "plugin.so"
        source.write_text(text, encoding="utf-8")
        flags = ["-std=c11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{CC}"]
        subprocess.run(["cc", *flags, "-o", output, source], check=True)
        output.chmod(0o755)
        return f"c:{output}"

    return one


def one(text: str, course: Course = COURSE) -> Flow:
    (flow,) = bench.run([text], course).flows
    return flow


def refused(text: str) -> str:
    with pytest.raises(DmmError) as caught:
        probe.check(text)
    return str(caught.value)


def test_a_control_of_one_method_carries_bytes_and_backs_off(write: Write) -> None:
    flow = one(write(GOOD), Course(rate_Bps=1.25e6, rtt_s=0.02, duration_s=20))
    assert flow.share > 0.7
    assert flow.retransmits > 0, "it fills the queue until that overflows"
    assert flow.queue_loss < 0.02, "and then what stands in for on_enter_recovery halves its window"
    assert flow.faults == (0, 0, "")


def test_the_same_seed_gives_the_same_run(write: Write) -> None:
    text, course = write(GOOD), Course(loss=0.01, rate_Bps=1.25e6, duration_s=5)
    assert one(text, course) == one(text, course)


METHODS = ("init", *load.METHODS[1:])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in {"on_restart", "on_undo"}])
def test_a_method_that_raises_costs_its_connection_the_plugin_alone(
    write: Write, method: str
) -> None:
    text = write(f"{GOOD}\n    def {method}(self, *_):\n        return 1 // 0\n")
    flow = one(text, ROUGH)
    assert flow.goodput_Bps > 0
    assert (flow.faults.faults, flow.faults.fallen) == (1, 1)
    assert flow.faults.sentence == (
        f"Control.{method} raised ZeroDivisionError: integer division or modulo by zero (plugin.py line 10); "
        "its connection goes on by cubic"
    )


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("cc.cwnd_bytes = float('nan')", "set cwnd_bytes to nan, which is no number of bytes"),
        ("cc.cwnd_bytes = float('inf')", "set cwnd_bytes to inf, which is no number of bytes"),
        ("cc.cwnd_bytes = -1", "set cwnd_bytes to -1, which is no number of bytes"),
        ("cc.cwnd_bytes = -0.5", "set cwnd_bytes to -0.5, which is no number of bytes"),
        ("cc.cwnd_bytes = None", "set cwnd_bytes to None, which is no number of bytes"),
        ("cc.cwnd_bytes = 'all'", "set cwnd_bytes to 'all', which is no number of bytes"),
        ("cc.cwnd_bytes = 10 ** 400", "which is no number of bytes"),
        ("cc.cwnd_bytes = 0", "set cwnd_bytes to 0, which is less than one segment"),
        ("cc.cwnd_bytes = 2 ** 62", "which is more than any path holds"),
        (
            "cc.pacing_Bps = 1",
            "set pacing_Bps to 1, which is neither 0 nor from one segment a second",
        ),
        ("cc.spare = 7", "set spare to 7, which is none of enum cc_spare"),
        ("del cc.cwnd_bytes", "raised AttributeError"),
        ("cc.window = 1", "raised AttributeError"),
        ("raise SystemExit", "raised SystemExit"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
        (
            "raise type('E', (Exception,), {'__str__': lambda s: 1 // 0})",
            "raised E: (it cannot be printed)",
        ),
        ("self.on_ack(cc, s)", "raised RecursionError"),
    ],
)
def test_what_is_no_answer_is_a_fault(write: Write, statement: str, told: str) -> None:
    flow = one(write(f"class Control:\n    def on_ack(self, cc, s):\n        {statement}\n"))
    assert flow.faults.faults == flow.faults.fallen == 1
    assert told in flow.faults.sentence
    assert flow.share > 0.8, "cubic goes on"


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import threading; threading.Event().wait(3)",  # for what never comes
        "\n        while True:\n            try: x = 1\n            except Exception: pass",
    ],
)
def test_a_call_that_does_not_return_is_the_last(write: Write, body: str) -> None:
    text = write(f"class Control:\n    def on_ack(self, cc, s):\n        {body}\n")
    flows = bench.run([text, text], COURSE).flows
    assert flows[0].faults.sentence == (
        "Control.on_ack did not return within 250 ms; it is not called any more, and connections go on by cubic"
    )
    assert flows[0].share + flows[1].share > 0.8
    wait_for(
        lambda: all(thread.name != "dmm-plugin" for thread in threading.enumerate()),
        what="the loop is left",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class Other: pass", "it has no class Control"),
        ("Control = 1", "it has no class Control"),
        ("class Control: pass", "Control has no method on_ack"),
        (f"{GOOD}\n    on_rto = 3", "Control.on_rto is no method"),
        (f"{GOOD}\n    abi = 99", "it was written for ABI 99, and this is ABI 1"),
        (
            "import no_such_module",
            "its module raised ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("def f(:", "its module raised SyntaxError: invalid syntax (plugin.py, line 1)"),
        ("raise SystemExit(0)", "its module raised SystemExit"),
        ("import os; os._exit(4)", "loading it ends its process with exit code 4"),
        ("import os; os.kill(os.getpid(), 11)", "loading it ends its process by SIGSEGV"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(write: Write, text: str, told: str) -> None:
    said = refused(write(text))
    assert told in said
    assert "frozen" not in said, "where Python reads a file is nothing to the reader"


def test_a_module_that_hangs_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "DEADLINE_S", 0.5)
    assert "longer than 0.5 s" in refused(write("while True: pass"))


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_file_that_others_may_write_is_refused(write: Write, tmp_path: Path, mode: int) -> None:
    text = write(GOOD)
    (tmp_path / "plugin.py").chmod(mode)
    assert (
        f"plugin.py may be written by others than its owner; run chmod go-w {tmp_path}"
        in refused(text)
    )


def test_a_folder_in_which_others_may_replace_it_is_refused(write: Write, tmp_path: Path) -> None:
    text = write(GOOD)
    tmp_path.chmod(0o777)
    assert f"{tmp_path} may be written by others" in refused(text)


@pytest.mark.root  # who alone can give a file away
def test_a_file_of_somebody_else_is_refused(write: Write, tmp_path: Path) -> None:
    text = write(GOOD)
    os.chown(tmp_path / "plugin.py", 12345, 12345)
    assert "belongs to uid 12345" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "python:",
        "python:a",
        "python:a:b:c d",
        "python:../x.py:C",
        "python:/x/../y.py:C",
        "c:",
        "c:x.so",
        "c:a b",
        "",
        "A B",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    assert not names.has_form(text)
    assert "it is no name of one" in refused(text)


def test_names_without_a_folder_are_those_of_etc() -> None:
    assert names.locate("python:my_cc:Ledbat").file == "/etc/dmm-ebpf/plugins/my_cc.py"
    assert names.locate("c:ledbat").file == "/etc/dmm-ebpf/plugins/ledbat.so"


def test_an_installed_package_offers_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, info = tmp_path / "some_package", tmp_path / "some_package-1.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cc.py").write_text(GOOD)
    (info / "METADATA").write_text("Name: some_package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[dmm_ebpf.congestion]\ngentle = some_package.cc:Control\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = names.locate("gentle")
    assert (plugin.file, plugin.attribute) == (str(package / "cc.py"), "Control")
    assert "gentle" in [one.text for one in names.offered(tmp_path)]
    probe.try_out(plugin)
    assert one("gentle").faults.faults == 0


# -- C --

C = """
#include "cc.h"
static void on_ack(struct cc *cc, const struct cc_sample *s)
{
	BODY
}
static const struct cc_ops ops = {.name = "mine", .prr = 1, .on_ack = on_ack};
CC_EXPORT(ops);
"""
GROWS = "if (!cc->in_recovery) cc->cwnd_bytes += cc->mss * s->acked_bytes / cc->cwnd_bytes + 1;"


def c_with(body: str) -> str:
    return C.replace("BODY", f"(void)cc; (void)s; {body}")


def test_a_shared_object_of_one_function_carries_bytes(built: Write) -> None:
    text = built(c_with(GROWS))
    probe.check(text)
    flow = one(text, Course(rate_Bps=1.25e6, rtt_s=0.02, duration_s=20))
    assert flow.share > 0.7
    assert flow.faults == (0, 0, "")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "cc->cwnd_bytes = 0;",
            "plugin.on_ack set cwnd_bytes to 0, which is less than one segment; its connection",
        ),
        ("cc->cwnd_bytes = (uint64_t)-5;", "which is more than any path holds"),
        (
            "*(volatile int *)0 = 1;",
            "plugin.on_ack was ended by SIGSEGV; it is not called any more",
        ),
        ("volatile int z = 0, y = 7; y = y / z;", "was ended by SIGFPE"),
        ("__builtin_trap();", "was ended by SIGILL"),
        ("for (volatile int i = 0;; i++) ;", "did not return; it is not called any more"),
        (
            "cc->ops = 0; cc->mss = 0; cc->inflight_bytes = 9; cc->cwnd_bytes = 1;",
            "less than one segment",
        ),
    ],
)
def test_a_shared_object_that_fails_is_left(built: Write, body: str, told: str) -> None:
    flow = one(built(c_with(body)))
    assert flow.faults.faults == flow.faults.fallen == 1
    assert told in flow.faults.sentence
    assert flow.share > 0.8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("CC_EXPORT(ops);", "const int dmm_other = 1;\nconst struct cc_ops *keep = &ops;"),
            "exports no dmm_cc_export",
        ),
        (
            ("CC_EXPORT(ops)", "const struct cc_export dmm_cc_export = {7, CC_EXPORT_SIZES, &ops}"),
            "built for ABI 7",
        ),
        (
            ("CC_EXPORT(ops)", "const struct cc_export dmm_cc_export = {CC_ABI, 1, 2, 3, &ops}"),
            "another size",
        ),
        ((", .on_ack = on_ack", ", .init = 0"), "it has no on_ack"),
        (('.name = "mine"', '.name = ""'), "it has no name"),
    ],
)
def test_a_shared_object_that_is_none_of_ours_is_refused(
    built: Write, change: tuple[str, str], told: str
) -> None:
    text = (
        c_with(GROWS)
        .replace(*change)
        .replace("static void on_ack", "__attribute__((unused)) static void on_ack")
    )
    assert told in refused(built(text))


def test_what_is_no_shared_object_or_of_another_machine_is_refused(
    built: Write, tmp_path: Path
) -> None:
    text = built(c_with(GROWS))
    file = tmp_path / "plugin.so"
    whole = file.read_bytes()
    file.write_bytes(whole[:18] + b"\xf3\x00" + whole[20:])  # EM_RISCV
    assert "built for another architecture" in refused(text)
    file.write_bytes(whole[:4] + b"\x01" + whole[5:])  # ELFCLASS32
    assert "built for another architecture" in refused(text)
    file.write_bytes(b"#!/bin/sh\n" * 9)
    assert "it is no shared object" in refused(text)
    file.write_bytes(whole[:100])
    assert str(file) in refused(text)


def test_the_header_and_python_have_one_abi() -> None:
    (number,) = re.findall(r"#define CC_ABI (\d+)", (CC / "cc.h").read_text(encoding="utf-8"))
    assert int(number) == load.ABI
    text = (CC.parent / "end_export.h").read_text(encoding="utf-8")
    assert re.findall(r"#define END_ABI (\d+)", text) == [str(load.TRANSPORT_ABI)]


@pytest.mark.parametrize("seam", names.SEAMS.values(), ids=names.SEAMS)
def test_headers_and_python_name_the_same_symbol(seam: names.Seam) -> None:
    texts = (CC / "cc.h", CC.parent / "end_export.h")
    found = [re.findall(r'_EXPORT_SYMBOL "(\w+)"', t.read_text(encoding="utf-8")) for t in texts]
    assert [seam.symbol] in found


def test_a_folder_s_shared_objects_fit_where_their_names_say(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"..dmm_end_export..")
    (tmp_path / "b.so").write_bytes(b"..dmm_cc_export..")
    (tmp_path / "c.so").write_bytes(b"..")
    found = {plugin.text: plugin.fits for plugin in names.offered(tmp_path)}
    assert {k: v for k, v in found.items() if k.startswith("c:")} == {
        "c:a": "transport",
        "c:b": "congestion",
        "c:c": "congestion",
    }


def test_a_transport_is_named_as_one_in_what_is_refused() -> None:
    with pytest.raises(DmmError, match=r"cannot use transport 'c:/nowhere/x.so'.*No such file"):
        probe.check("c:/nowhere/x.so", names.TRANSPORT)
    with pytest.raises(DmmError, match=r"offers it as dmm_ebpf\.transport.*built in are tcp"):
        probe.check("cubic", names.TRANSPORT)


def test_a_shared_object_without_end_of_stack_is_left(built: Write) -> None:
    text = c_with("deeper(cc->cwnd_bytes);").replace(
        "static void on_ack",
        "__attribute__((noinline)) static void deeper(uint64_t n)\n"
        "{ volatile char room[4096]; room[n % 4096] = 1; if (n) deeper(n + 1); room[0] = room[n % 7]; }\n"
        "static void on_ack",
    )
    flow = one(
        built(
            text.replace(
                "#include", '#pragma GCC diagnostic ignored "-Winfinite-recursion"\n#include', 1
            )
        )
    )
    assert "was ended by SIGSEGV" in flow.faults.sentence
    assert flow.share > 0.8


def test_links_lead_to_what_is_checked(write: Write, tmp_path: Path) -> None:
    write(GOOD)
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    (open_folder / "link.py").symlink_to(tmp_path / "plugin.py")
    assert f"{open_folder} may be written by others" in refused(
        f"python:{open_folder}/link.py:Control"
    )
    open_folder.chmod(0o755)
    probe.check(f"python:{open_folder}/link.py:Control")
    assert load.check_file(names.locate(f"python:{open_folder}/link.py:Control")).file == str(
        tmp_path / "plugin.py"
    )


@pytest.mark.parametrize("name", ["plugin.py", "plugin.so"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """A pipe that nobody writes to, and links that lead to each other."""
    text = f"python:{tmp_path}/{name}:X" if name.endswith(".py") else f"c:{tmp_path}/{name}"
    os.mkfifo(tmp_path / name)
    assert "it is no file" in refused(text)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / name)
    assert "Too many levels of symbolic links" in refused(text)
    done = sim(text)
    assert (done.returncode, "Too many levels of symbolic links" in done.stderr) == (1, True)


def test_connections_that_end_are_forgotten(write: Write) -> None:
    plugin = guarding.guarded(bench.named(write(GOOD)), bench.ffi, bench.lib)
    plugin.start()
    try:
        for _ in range(200):
            bench.run_built(plugin, Course(rate_Bps=1.25e6, duration_s=0.1))
        assert len(plugin._objects) <= bench.lib.CC_ASK_RELEASED + 1  # type: ignore[attr-defined]
    finally:
        plugin.close()


@given(
    st.text()
    | st.from_regex(r"(python|c|x)?:?[./A-Za-z_]*(\.py|\.so)?:?[A-Za-z.]*", fullmatch=True)
)
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        plugin = names.locate(text)
    except DmmError:
        return
    assert names.has_form(text)
    assert Path(plugin.file).is_absolute()
    assert ".." not in Path(plugin.file).parts


def sim(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "dmm-ebpf"
    return subprocess.run([program, "sim", *words], capture_output=True, text=True, check=False)


def test_the_command_says_what_went_wrong(write: Write) -> None:
    text = write("class Control:\n    def on_ack(self, cc, s):\n        cc.cwnd_bytes = -1\n")
    done = sim(text, "--duration", "3", "--json")
    assert done.returncode == 1
    (flow,) = json.loads(done.stdout)["flows"]
    assert flow["faults"] == 1
    assert flow["fault"] in done.stderr
    for words, told in (
        (("cubic", "--rate", "fast"), '"fast" is not a rate'),
        (("cubic", "--rate", "12500000"), '"12500000" is not a rate; expected a text'),
        (("cubic", "--loss", "100"), "100 is not a loss (percent); expected 0 to 90"),
        (("cubic", "--rtt", "-1"), "-1 is not a round trip (ms); expected 0.01 to 10000"),
        (("nope",), "it is not built in"),
        (("python:nope.py:X",), "No such file"),
        (("cubic",) * 17, "17 flows are not 1 to 16"),
    ):
        done = sim(*words)
        assert (done.returncode != 0, done.stdout) == (True, "")
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


def test_courses_that_cannot_be_run_are_refused() -> None:
    for course in (
        Course(rate_Bps=0),
        Course(loss=1),
        Course(rtt_s=float("nan")),
        Course(duration_s=1e9),
    ):
        with pytest.raises(UsageError):
            bench.run(["cubic"], course)
    with pytest.raises(UsageError):
        bench.run([], COURSE)


def test_a_run_is_drawn(tmp_path: Path) -> None:
    done = bench.run(["cubic", "wan"], COURSE)
    bench.plot(done, tmp_path / "run.svg")
    assert "<svg" in (tmp_path / "run.svg").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="names no format"):
        bench.plot(done, tmp_path / "run.what")
    with pytest.raises(DmmError, match="No such file"):
        bench.plot(done, tmp_path / "nowhere/run.svg")

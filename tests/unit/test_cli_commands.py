# SPDX-License-Identifier: Apache-2.0
"""The command line: what attaches, runs and detaches, what is refused, and help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_lab import Cli, one_sentence
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture
from typer.testing import CliRunner

from dmm_ebpf.cli import main
from dmm_ebpf.cli.app import app
from dmm_ebpf.errors import ConflictError, KernelFeatureError, PolicyError, PrivilegeError
from dmm_ebpf.rd.places import finding as places
from dmm_ebpf.rd.places.place import Place

pytestmark = pytest.mark.usefixtures("run_root")

# -- attach, run, detach --


def test_attach_passes_on_what_was_typed(cli: Cli, service: SimpleNamespace) -> None:
    got: list[Any] = []
    service.attach = lambda options, _follower: got.append(vars(options)) or 0
    said = cli(
        "attach",
        "--cgroup",
        "/shop.slice",
        "--policy",
        "p.toml",
        "--netns",
        "red",
        "-d",
        "--pending",
        "-i",
        "shop",
        "--group",
        "60",
    )
    assert said.code == 0
    assert got == [
        {
            "instance": "shop",
            "cgroup": "/shop.slice",
            "policy": Path("p.toml"),
            "netns": "red",
            "daemon": True,
            "pending": True,
            "containers": False,
            "readers": 60,
        }
    ]
    assert "instance shop is attached to /shop.slice" in said.err


WEB = Place("container web", "/docker/0", "/proc/7/ns/net")


@pytest.mark.parametrize(
    ("typed", "netns"),
    [
        ([], "/proc/7/ns/net"),
        (["--netns", "red"], "red"),
        (["-n", "1"], "1"),
        (["--containers"], None),
        (["--containers", "--netns", "red"], "red"),
    ],
)
def test_attach_to_a_container_finds_cgroup_and_namespace(
    cli: Cli,
    service: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    netns: str | None,
) -> None:
    got: list[Any] = []
    service.attach = lambda options, _follower: got.append((options.cgroup, options.netns)) or 0
    monkeypatch.setattr(places, "of_container", lambda name: WEB if name == "web" else None)
    said = cli("attach", "--container", "web", "-d", *typed)
    assert said.code == 0, said.err
    assert got == [("/docker/0", netns)]
    assert "instance default is attached to /docker/0 of container web" in said.err


def test_attach_to_a_process_of_the_root_cgroup_is_refused(
    cli: Cli, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "of_pid", lambda pid: Place(f"process {pid}", "/", None))
    one_sentence(cli("attach", "--pid", "7"), 2, "process 7 is in the root cgroup")


def test_run_in_the_namespace_of_a_container(
    cli: Cli, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []
    service.run = lambda options: got.append(options.netns) or 0
    monkeypatch.setattr(places, "of_container", lambda _name: WEB)
    assert cli("run", "--container", "web", "--", "true").code == 0
    assert got == ["/proc/7/ns/net"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PrivilegeError("attach", why="not root"), 77),
        (KernelFeatureError("attach", why="no BTF"), 69),
        (ConflictError("attach", why="another RD"), 75),
        (PolicyError("read p.toml", why="line 3"), 2),
        (PermissionError(1, "Operation not permitted"), 77),
        (OSError(28, "No space left on device"), 1),
        (RuntimeError("what\nnow\x1b"), 1),
    ],
)
def test_whatever_attach_meets_is_one_sentence(
    cli: Cli, service: SimpleNamespace, error: Exception, code: int
) -> None:
    def attach(_options: Any, _follower: object) -> int:
        raise error

    service.attach = attach
    one_sentence(cli("attach", "--cgroup", "/"), code, "")


def test_a_bug_is_traced_for_who_asks(
    cli: Cli, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(_options: Any, _follower: object) -> int:
        raise RuntimeError("surprise")

    service.attach = attach
    said = cli("attach", "--cgroup", "/")
    assert "RuntimeError: surprise; this is a bug, DMM_DEBUG=1" in said.err
    monkeypatch.setenv("DMM_DEBUG", "1")
    assert "Traceback" in cli("attach", "--cgroup", "/").err


def test_interrupted(cli: Cli, service: SimpleNamespace) -> None:
    def attach(_options: Any, _follower: object) -> int:
        raise KeyboardInterrupt

    service.attach = attach
    assert cli("attach", "--cgroup", "/").code == 130


@pytest.mark.parametrize("dashes", [["--"], []])
def test_run_returns_the_commands_code(
    cli: Cli, service: SimpleNamespace, dashes: list[str]
) -> None:
    got: list[Any] = []
    service.run = lambda options: got.append(options.argv) or 143
    assert cli("run", "--policy", "p.toml", *dashes, "curl", "-v", "--json", "x").code == 143
    assert got == [["curl", "-v", "--json", "x"]]


def test_detach(cli: Cli, service: SimpleNamespace) -> None:
    def detach(name: str, _told: ExitStack) -> SimpleNamespace:
        found = name == "default"
        return SimpleNamespace(
            removed=[f"links of {name}"] if found else [], unknown=["what x was"] if found else []
        )

    service.detach = detach
    said = cli("detach")
    assert said.out == "instance default: removed links of default\n"
    assert said.err == "dmm-ebpf: instance default: what x was\n"
    assert cli("detach", "--json").json == [
        {"instance": "default", "removed": ["links of default"], "unknown": ["what x was"]}
    ]
    service.instances = lambda: ["default"]
    one_sentence(
        cli("detach", "-i", "red"),
        1,
        "cannot detach instance red: there is none; there are default",
    )
    assert cli("detach", "-i", "red", "--json").json["error"]["kind"] == "NotAttachedError"


def test_where_headers_are_is_json_too(cli: Cli) -> None:
    folder = cli("stacks", "--include").out.strip()
    assert cli("stacks", "--include", "--json").json == {"include": folder}


def test_detach_of_one_and_of_all_is_refused(cli: Cli, service: SimpleNamespace) -> None:
    for args in (("-i", "a", "--all"), ("--all", "--instance", "default")):
        one_sentence(cli("detach", *args), 2, "--all means every instance of this host")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["policy", "check", "/nonexistent.toml", "--json"], 2),
        (["policy", "apply", "/nonexistent.toml", "-j"], 2),
        (["flows", "--nope", "--json"], 2),
        (["flows", "-fj", "--state", "nope"], 2),
        (["route", "get", "nonsense", "--json"], 2),
        (["detach", "-i", "a/b", "--json"], 2),
        (["detach", "-i", "", "--json"], 2),
        (["policy", "test", "/", "--json"], 2),
        (["hal", "--json", "no-such-device"], 2),
        (["nope", "--json"], 2),
    ],
)
def test_an_error_is_json_where_json_was_asked_for(cli: Cli, args: list[str], code: int) -> None:
    said = cli(*args)
    error = said.json["error"]
    assert said.code == error["exit_code"] == code
    assert set(error) == {"kind", "what", "why", "hint", "exit_code", "message"}
    assert said.err == f"dmm-ebpf: {error['message']}\n"


def test_sentences_show_bytes_as_tables_do(cli: Cli, service: SimpleNamespace) -> None:
    service.attach = lambda _options, _follower: 0
    said = cli("attach", "--daemon", "--cgroup", "/n\udcff")
    assert said.err == "dmm-ebpf: instance default is attached to /n\\xff\n"

    def refused(_options: Any, _follower: object) -> int:
        raise ConflictError("use the cgroup /n\udcff", why="it is \x1b another's")

    service.attach = refused
    one_sentence(
        cli("attach", "--cgroup", "/n\udcff"),
        75,
        "cannot use the cgroup /n\\xff: it is ? another's",
    )


def test_what_follows_a_command_asks_for_no_json(cli: Cli) -> None:
    assert cli("run", "--nope", "--", "curl", "--json").out == ""


def test_detach_all_tries_all_and_names_each(cli: Cli, service: SimpleNamespace) -> None:
    def detach(name: str, _told: ExitStack) -> SimpleNamespace:
        if name != "b":
            raise ConflictError(f"detach {name}", why="busy")
        return SimpleNamespace(removed=[name], unknown=[])

    service.instances = lambda: ["a", "b", "c"]
    service.detach = detach
    said = cli("detach", "--all")
    assert said.out == "instance b: removed b\n"
    assert said.err.splitlines() == [
        "dmm-ebpf: instance c: cannot detach c: busy",
        "dmm-ebpf: cannot detach a: busy",
    ]
    assert said.code == 75
    said = cli("detach", "--all", "--json")
    assert said.code == 75
    assert [one["instance"] for one in said.json] == ["a", "b", "c"]
    assert [one.get("error", {}).get("message") for one in said.json] == [
        "cannot detach a: busy",
        None,
        "cannot detach c: busy",
    ]
    service.instances = lambda: ["c"]
    assert cli("detach", "--all", "--json").json["error"]["message"] == "cannot detach c: busy"


# -- what is refused --


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["flows", "--nope"], 2, "No such option: --nope"),
        (["nope"], 2, "No such command 'nope'"),
        (["run"], 2, "Missing argument"),
        (["attach"], 2, "name it by --cgroup, --container, --pid or --unit"),
        (["attach", "--cgroup", "/x", "--pid", "7"], 2, "--cgroup and --pid exclude each other"),
        (["attach", "--pid", "x"], 2, "'x' is not a pid"),
        (["attach", "--container", "a/b"], 2, "a container is called by"),
        (["attach", "--unit", "a*"], 2, "a unit is called by"),
        (["attach", "--cgroup", "/", "--instance", "../x"], 2, "'../x'"),
        (["detach", "--instance", "a/b"], 2, "'a/b'"),
        (["flows", "--instance", "nope"], 1, "there is no such instance"),
        (["flows", "--instance", ""], 2, "instance name"),
        (["flows", "--follow", "--instance", "nope"], 1, "there is no such instance"),
        (["flows", "--state", "open"], 2, "a TCP state is one of established"),
        (["flows", "--dst", "10.0.0.300"], 2, "neither an address nor a prefix"),
        (["flows", "--dst", "10.0.0.1:0"], 2, "'0' is not a port from 1 to 65535"),
        (["flows", "--pid", "x"], 2, "a pid is a number"),
        (["flows", "--cgroup", "/x", "--unit", "y"], 2, "--cgroup and --unit exclude each other"),
        (["run", "--netns", "red", "--container", "x", "--", "true"], 2, "exclude each other"),
        (["hal", "--container", "a/b"], 2, "a container is called by"),
        (["hal", "--host", "eth0"], 2, "devices are named besides"),
        (["route", "get", "1.2.3.4", "--pid", "0"], 2, "'0' is not a pid"),
        (["route", "get", "1.2.3.4", "--container", "x", "--unit", "y"], 2, "exclude each other"),
        (["listeners", "--instance", "nope"], 1, "there is no such instance"),
        (["route", "get", "example.com"], 2, "is not an IPv4 or IPv6 address"),
        (
            ["route", "get", "example:https"],
            2,
            "'example' is not an IPv4 or IPv6 address, and names are not looked up",
        ),
        (
            ["route", "get", "1.2.3.4:no-such"],
            2,
            "'no-such' is not a port from 1 to 65535, nor a tcp service",
        ),
        (["route", "get", "1.2.3.4:99999"], 2, "'99999' is not a port"),
        (["route", "get", "1.2.3.4:"], 2, "'' is not a port"),
        (["route", "get", "1.2.3.4", "--proto", "icmp"], 2, "'icmp'"),
        (["route", "get", "1.2.3.4", "--uid", "no-such-user"], 2, "there is no such user"),
        (["route", "get", "1.2.3.4", "--mark", "0x1ffffffff"], 2, "32 bits"),
        (["route", "get", "1.2.3.4", "--mark", "-1"], 2, "32 bits"),
        (["route", "get", "1.2.3.4", "--policy", "x", "--instance", "y"], 2, "exclude each other"),
        (["policy", "apply", "/nonexistent"], 2, "there is no such file"),
        (["policy", "apply", "/"], 2, "it is a directory"),
        (["policy", "check", "/nonexistent"], 2, "/nonexistent"),
        (["policy", "show", "--instance", "nope"], 1, "there is no such instance"),
        (["top"], 2, "are not a terminal"),
        (["top", "--interval", "0"], 2, "--interval"),
        (["top", "--filter", "stack="], 2, "'stack='"),
        (["top", "--filter", "comm=a comm=b"], 2, "comm is given twice; only stack may be"),
    ],
)
def test_refusals_are_one_sentence(cli: Cli, args: list[str], code: int, text: str) -> None:
    one_sentence(cli(*args), code, text)


def test_a_policy_that_is_not_text(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_bytes(b"abc\xff")
    one_sentence(cli("policy", "apply", str(file)), 2, "p.toml:1: it is not UTF-8")


def test_a_refused_policy_keeps_its_sentence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.toml").touch()
    error = PolicyError("read policy p.toml", why="line 3: unknown key")
    with FakeRd("default", {"policy_apply": error}):
        one_sentence(cli("policy", "apply", str(tmp_path / "p.toml")), 2, "line 3: unknown key")


def test_a_policy_that_is_too_long_for_the_socket(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(b"#" * (64 * 1024 * 1024))
    one_sentence(cli("policy", "apply", str(tmp_path / "p.toml")), 2, "routes_from")


# -- help and completion --


def commands(tree: Any, *words: str) -> Iterator[str]:
    for name, one in tree.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, *words, name)
        else:
            yield " ".join((*words, name))


@pytest.mark.parametrize("command", [*commands(main._command_tree([]))])
def test_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"dmm-ebpf {command}" in result.output.split("Example", 1)[1]
    assert max(len(line) for line in result.output.splitlines()) <= 80


def test_a_group_without_a_command_shows_its_help(cli: Cli) -> None:
    for args in ([], ["policy"], ["route"]):
        said = cli(*args)
        assert said.code == 2
        assert "Commands:" in said.err


def test_of_the_command_tree_only_what_is_called_is_built() -> None:
    whole = main._command_tree([])
    assert {"run", "attach", "compile", "policy"} <= set(whole.commands)
    for name in ("run", "compile"):
        assert list(main._command_tree([name, "--", "true"]).commands) == [name]
    for words in (["policy", "check"], ["ru", "true"], ["--version"], ["nothing"]):
        assert main._command_tree(words).commands.keys() == whole.commands.keys()

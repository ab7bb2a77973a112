# SPDX-License-Identifier: Apache-2.0
"""What a host lacks is found by trying and told in one sentence; here it is hidden from the
command, or never was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmm_ebpf.errors import KernelFeatureError, PrivilegeError
from dmm_ebpf.loader import explain, link, programs
from dmm_ebpf.loader.bpf import AttachType, MapType, ProgType
from dmm_ebpf.loader.link import Linked
from dmm_ebpf.loader.spec import ProgSpec
from lab import Cgroup, Lab

CLI = (sys.executable, "-m", "dmm_ebpf.cli.main")
BIND = 64  # bpf_bind(), for cgroup programs alone
# Starts a command for which socket(2) knows no AF_XDP, as in a kernel without CONFIG_XDP_SOCKETS:
# seccomp(2) says so.
WITHOUT_AF_XDP = """
import ctypes, errno, os, sys

class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

EQUAL, ALLOW, ERRNO = 4, 0x7FFF0000, 0x00050000 | errno.EAFNOSUPPORT
lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(ALLOW)))
number = lib.seccomp_syscall_resolve_name(b"socket")
family = Compare(0, EQUAL, 44, 0)
assert not lib.seccomp_rule_add_array(context, ctypes.c_uint32(ERRNO), number, 1, ctypes.byref(family))
assert not lib.seccomp_load(context)
os.execv(sys.argv[1], sys.argv[1:])
"""
POLICY = """
[stacks.wan]
kind = "user"
{devices}
[[rules]]
cgroup = "{cgroup}"
table = "t"
[[tables.t.routes]]
to = "default"
stack = "wan"
"""


def calling(helper: int) -> Linked:
    return Linked(link.INSN.pack(0x85, 0, 0, helper) + link.INSN.pack(0x95, 0, 0, 0))


def in_own_mounts(script: str, *command: str) -> list[str]:
    """command, after script, in a mount namespace of its own, whose process 1 is in it too."""
    start = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]
    return [*start, f'{script}\nexec "$@"', "sh", *command]


@pytest.mark.parametrize(("helper", "name"), [(BIND, "bpf_bind"), (5000, "number 5000")])
def test_a_helper_that_the_kernel_has_not_is_named(helper: int, name: str) -> None:
    spec = ProgSpec("dmm_test", ProgType.XDP, AttachType.XDP)
    with pytest.raises(KernelFeatureError) as raised:
        programs.load(spec, calling(helper))
    assert str(raised.value) == (
        f"cannot load the BPF program dmm_test: this kernel has no {name} for programs of type xdp; "
        "Linux 6.1 and later have it"
    )


def test_what_the_verifier_refuses_for_another_cause_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "LOG_FILE", tmp_path / "log")
    spec = ProgSpec("dmm_test", ProgType.XDP, AttachType.XDP)
    with pytest.raises(KernelFeatureError, match=r"the verifier says: .*R0"):
        programs.load(spec, Linked(link.INSN.pack(0x95, 0, 0, 0)))


def test_an_errno_without_a_known_cause_is_not_explained() -> None:
    error = OSError(22, os.strerror(22))
    # This kernel has arrays, so EINVAL means something else.
    assert (
        str(explain.map_refused("make it", MapType.ARRAY, error))
        == "cannot make it: Invalid argument"
    )


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        (
            ["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"],
            "it needs CAP_BPF; root has it unless a unit",
        ),
        (["unshare", "--user", "--map-root-user"], "although this process has the capabilities"),
    ],
)
def test_a_refusal_of_bpf_names_what_is_missing(prefix: list[str], why: str) -> None:
    source = "from dmm_ebpf.loader import programs; programs.create_maps()"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert f"{PrivilegeError.__name__}: cannot create the BPF map control: " in done.stderr
    assert why in done.stderr


def test_without_btf_the_programs_load_and_read_the_task_by_helpers() -> None:
    source = (
        "from dmm_ebpf.loader import compile, programs\n"
        "found = programs.defines()\n"
        "maps = programs.create_maps()\n"
        "programs.close_all(programs.load_programs(compile.compile_programs(found), maps))\n"
        "print(found)"
    )
    hidden = in_own_mounts("mount -t tmpfs none /sys/kernel/btf", sys.executable, "-c", source)
    done = subprocess.run(hidden, capture_output=True, text=True, check=True, timeout=120)
    assert "DMM_TASK" not in done.stdout


def test_without_cgroup2_a_sentence_and_nothing_left(instance) -> None:
    name = instance()
    unmount = "for at in $(findmnt -nlo TARGET -t cgroup2); do umount -l $at; done"
    command = in_own_mounts(unmount, *CLI, "run", "--instance", name, "--", "true")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == KernelFeatureError.exit_code, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot find cgroup v2: no cgroup2 file system is mounted; mount it" in done.stderr
    assert not Path("/run/dmm-ebpf", name).exists()


def _attach_command(name: str, cgroup: Cgroup, directory: Path, options: str) -> list[str]:
    """What attaches an instance of that name with a user stack; options: more lines
    of the stack's.
    """
    policy = directory / "policy.toml"
    policy.write_text(POLICY.replace("{devices}", options).replace("{cgroup}", cgroup.relative))
    words = ["attach", "--instance", name, "--cgroup", str(cgroup.path), "--policy", str(policy)]
    return [*CLI, *words]


def test_without_tun_no_user_stack_but_a_sentence_and_nothing_left(
    lab: Lab, make_cgroup, instance, tmp_path: Path
) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.wire(host, other)
    name = instance()
    attach = _attach_command(name, make_cgroup(), tmp_path, 'devices = ["eth0"]')
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    done = host.run([*hide, *attach], check=False)
    assert done.returncode == KernelFeatureError.exit_code, done.stderr
    assert "cannot open /dev/net/tun for device" in done.stderr
    assert "CONFIG_TUN" in done.stderr and "modprobe tun" in done.stderr
    assert not Path("/sys/fs/bpf/dmm-ebpf", name).exists()
    assert not Path("/run/dmm-ebpf", name).exists()


def test_without_af_xdp_no_user_stack_on_a_device_but_a_sentence_and_nothing_left(
    lab: Lab, make_cgroup, instance, tmp_path: Path
) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.wire(host, other)
    name = instance()
    attach = _attach_command(
        name, make_cgroup(), tmp_path, f'io = "af_xdp"\ndevices = ["{host.nic.name}"]'
    )
    done = host.run([sys.executable, "-c", WITHOUT_AF_XDP, *attach], check=False)
    assert done.returncode == KernelFeatureError.exit_code, done.stderr
    sentence = f"cannot open an AF_XDP socket (receive queue 0) of {host.nic.name}: this kernel has no AF_XDP "
    assert done.stderr.endswith(
        f"{sentence}(CONFIG_XDP_SOCKETS); boot a kernel that is built with it\n"
    )
    assert "prog/xdp" not in host.run(["ip", "link", "show", host.nic.name]).stdout
    assert not Path("/sys/fs/bpf/dmm-ebpf", name).exists()
    assert not Path("/run/dmm-ebpf", name).exists()

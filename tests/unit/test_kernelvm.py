# SPDX-License-Identifier: Apache-2.0
"""What `tools/kernelvm` and `tools/test --kernel` cannot do: one sentence, an exit code, and
nothing left. No boot.

Packages come by the real apt from an archive of one package in a directory; the cache is
bound to another.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.vm.initramfs import MODULES
from lab.vm.machine import _script
from lab.vm.packages import Kernel

ROOT = Path(__file__).resolve().parents[2]
KERNELVM = [sys.executable, str(ROOT / "tools/kernelvm")]
RELEASE = "9.9.1-amd64"
PACKAGE = f"linux-image-{RELEASE}"
CACHE = "/var/cache/dmm-ebpf/kernels"
# A bzImage (Documentation/arch/x86/boot.rst) of one sector of set-up code, which is: cli; hlt;
# jmp to hlt.
IDLE_IMAGE = (
    bytes(0x1F1)
    + b"\x01"
    + bytes(14)
    + b"\xeb\x6a"
    + b"HdrS\x02\x02"
    + bytes(9)
    + b"\x01"
    + bytes(90)
).ljust(0x26C, b"\0") + b"\xfa\xf4\xeb\xfd".ljust(0x4000, b"\0")

# the machine is made by root, and what is there to see is put over /var and /usr in
# a mount namespace
pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Said:
    code: int
    text: str
    left: list[str]


class Vm:
    """The command with a cache and an archive of its own; size bounds the cache's file system."""

    def __init__(self, tmp_path: Path) -> None:
        self.cache = tmp_path / "cache"
        self.archive = tmp_path / "archive"
        self._state = tmp_path / "apt"
        for path in (self.cache, self.archive, self._state):
            path.mkdir()
        self._sources = tmp_path / "sources.list"
        self._sources.write_text(f"deb [trusted=yes] copy:{self.archive} ./\n")
        self._config = tmp_path / "apt.conf"
        self._config.write_text(
            f'Dir::State "{self._state}";\nDir::Cache "{self._state}";\nDir::Etc::SourceParts "/dev/null";\n'
            f'Dir::Etc::SourceList "{self._sources}";\nAPT::Sandbox::User "root";\n'
        )

    def publish(self, *, cut: int | None = None, files: dict[str, bytes] | None = None) -> None:
        """Makes the archive's one package of files, and cuts it after some bytes, with the hash
        of what is left.
        """
        tree = self._state / "tree"
        for name, data in {"DEBIAN/control": CONTROL, "boot/x": b"", **(files or {})}.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        (tree / f"lib/modules/{RELEASE}").mkdir(parents=True, exist_ok=True)
        deb = self.archive / f"{PACKAGE}.deb"
        subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
        data = deb.read_bytes()[:cut]
        deb.write_bytes(data)
        found = hashlib.sha256(data).hexdigest()
        index = f"{CONTROL.decode()}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {found}\n"
        (self.archive / "Packages").write_text(index)

    def put(self, files: dict[str, bytes]) -> None:
        """Puts a kernel of these files into the cache."""
        for name, data in files.items():
            path = self.cache / "dmm-ebpf/kernels" / PACKAGE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def __call__(self, *words: str, size: str = "", prefix: tuple[str, ...] = ()) -> Said:
        mount = f"mount -t tmpfs -o size={size} none" if size else f"mount --bind {self.cache}"
        script = f'{mount} /var/cache && "$@"; code=$?; echo; ls -A {CACHE} 2>/dev/null; exit $code'
        done = subprocess.run(
            [
                shutil.which("unshare") or "",
                "--mount",
                "/bin/sh",
                "-c",
                script,
                "sh",
                *prefix,
                *KERNELVM,
                *words,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "APT_CONFIG": str(self._config)},
        )
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("kernelvm: cannot "), done.stderr
        return Said(
            done.returncode, done.stderr.strip(), sorted(set(done.stdout.split()) - {".lock"})
        )


CONTROL = (
    f"Package: {PACKAGE}\nVersion: 9.9.1-1\nArchitecture: all\nMaintainer: A Test <test@example.com>\n"
    "Description: no kernel\n"
).encode()
WHOLE = {
    f"boot/vmlinuz-{RELEASE}": IDLE_IMAGE,
    f"lib/modules/{RELEASE}/modules.dep": b"kernel/none.ko.xz:\n",
    f"lib/modules/{RELEASE}/modules.builtin": "".join(
        f"kernel/{name}.ko\n" for name in MODULES
    ).encode(),
}


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return Vm(tmp_path)


def only(tmp_path: Path, **programs: str) -> tuple[str, ...]:
    """What to start a command with, so that its PATH has these programs alone."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, target in programs.items():
        (directory / name).symlink_to(shutil.which(target) or target)
    return ("/usr/bin/env", f"PATH={directory}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "Missing argument"),
        ("--kernel 6.1 --", "Missing argument 'COMMAND…'"),
        ("-- true", "Missing option '--kernel'"),
        ("--kernel abc -- true", "find a kernel 'abc': a version is two numbers"),
        ("--kernel 6.1/../.. -- true", "a version is two numbers"),
        ("--kernel 9.9 --memory 12 -- true", "'--memory': 12 is not in the range x>=256"),
        ("--kernel 9.9 --memory much -- true", "'--memory': 'much' is not a valid int"),
        ("--kernel 9.9 --timeout 0 -- true", "'--timeout': 0 is not in the range"),
        ("--kernel 9.9 --timeout inf -- true", "'--timeout': 'inf' is not a valid int"),
        ("--kernel 9.9 --timeout nan -- true", "'--timeout': 'nan' is not a valid int"),
        ("--kernel 9.9 --append", "'--append' requires an argument"),
        (f"--kernel 9.9 --append {'a' * 2048} -- true", "it is longer than 2047 bytes"),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_refused(vm: Vm, words: str, why: str) -> None:
    vm.put(WHOLE)
    said = vm(*words.split())
    assert (said.code, said.left) == (2, [PACKAGE])
    assert why in said.text


def test_a_command_without_a_name_is_refused(vm: Vm) -> None:
    said = vm("--kernel", "9.9", "--", "")
    assert (said.code, said.left) == (2, [])


def test_who_is_not_root_is_told_before_a_kernel_is_looked_for(vm: Vm) -> None:
    said = vm("--kernel", "9.9", "--", "true", prefix=("unshare", "--user"))
    assert (said.code, said.left) == (77, [])
    assert said.text.endswith("only root may read all of them; use sudo")


@pytest.mark.parametrize(
    ("programs", "why"),
    [
        (
            {"setpriv": "setpriv", "busybox": "busybox"},
            "qemu-system-x86_64 is not in PATH; run tools/bootstrap",
        ),
        (
            {"qemu-system-x86_64": "qemu-system-x86_64", "busybox": "busybox"},
            "setpriv is not in PATH",
        ),
        (
            {"qemu-system-x86_64": "qemu-system-x86_64", "setpriv": "setpriv"},
            "busybox is not in PATH",
        ),
        (
            {"qemu-system-x86_64": "qemu-system-x86_64", "setpriv": "setpriv", "busybox": "sh"},
            "it is not a program without libraries; install busybox-static",
        ),
    ],
)
def test_a_program_that_is_not_there_is_named(
    vm: Vm, tmp_path: Path, programs: dict[str, str], why: str
) -> None:
    said = vm("--kernel", "9.9", "--", "true", prefix=only(tmp_path, **programs))
    assert (said.code, said.left) == (1, [])
    assert why in said.text


def test_without_apt_there_is_no_package(vm: Vm, tmp_path: Path) -> None:
    found = {name: name for name in ("qemu-system-x86_64", "setpriv", "busybox")}
    said = vm("--kernel", "9.9", "--", "true", prefix=only(tmp_path, **found))
    assert (said.code, said.left) == (1, [])
    assert (
        "cannot search for kernel packages: apt-cache is not in PATH; kernels come as" in said.text
    )


def test_a_directory_that_is_gone_is_no_place_to_start(vm: Vm, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    enter = ("/bin/sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "sh")
    said = vm("--kernel", "9.9", "--", "true", prefix=enter)
    assert (said.code, said.left) == (1, [])
    assert said.text.endswith(
        "cannot start a command in the current directory: No such file or directory"
    )


def test_a_version_that_no_archive_has_is_told_with_those_that_are(vm: Vm) -> None:
    vm.publish()
    said = vm("--kernel", "9.8", "--", "true")
    assert (said.code, said.left) == (1, [])
    assert said.text.endswith(
        "cannot find a kernel 9.8: no package linux-image-9.8…-amd64 is in the archives that apt reads; they have 9.9"
    )


def test_an_archive_that_cannot_be_read_is_not_one_without_the_package(vm: Vm) -> None:
    shutil.rmtree(vm.archive)
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [])
    assert "cannot update the package lists: " in said.text and "No such file" in said.text


def test_a_package_that_is_gone_from_the_archive(vm: Vm) -> None:
    vm.publish()
    (vm.archive / f"{PACKAGE}.deb").unlink()
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [])
    assert (
        f"cannot download {PACKAGE}: Failed to fetch copy:" in said.text
        and "No such file" in said.text
    )


def test_a_package_that_is_cut_is_told_in_the_words_of_dpkg(vm: Vm) -> None:
    vm.publish(cut=400)
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [])
    assert f"cannot unpack {PACKAGE}" in said.text and ": dpkg-deb: error: " in said.text


def test_a_package_without_a_kernel_is_not_kept(vm: Vm) -> None:
    vm.publish()
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [])
    assert f"boot/vmlinuz-{RELEASE} is not in it" in said.text


@pytest.mark.parametrize(
    ("size", "what"), [("64k", f"cannot download {PACKAGE}: "), ("1m", f"cannot unpack {PACKAGE}")]
)
def test_a_full_cache_is_told_at_download_and_at_unpacking(vm: Vm, size: str, what: str) -> None:
    large = {"boot/noise": os.urandom(200_000), f"boot/vmlinuz-{RELEASE}": bytes(4_000_000)}
    vm.publish(files={**large, f"lib/modules/{RELEASE}/modules.builtin": bytes(100_000)})
    said = vm("--kernel", "9.9", "--", "true", size=size)
    assert (said.code, said.left) == (1, [])
    assert what in said.text and "No space left on device" in said.text


@pytest.mark.parametrize("lost", list(WHOLE))
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_cached_kernel_that_lacks_a_file_is_not_booted(vm: Vm, lost: str, is_empty: bool) -> None:
    vm.put(
        {name: data for name, data in WHOLE.items() if name != lost}
        | ({lost: b""} if is_empty else {})
    )
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [PACKAGE])
    assert (
        f"cannot use {CACHE}/{PACKAGE}: {lost} is not in it; remove the kernel from the cache"
        in said.text
    )


def test_a_cached_module_that_is_broken_is_named(vm: Vm) -> None:
    name = "kernel/drivers/virtio/virtio_pci.ko.xz"
    listed = {f"lib/modules/{RELEASE}/modules.dep": f"{name}:\n".encode()}
    vm.put(WHOLE | listed | {f"lib/modules/{RELEASE}/{name}": b"\xfd7zXZ\0cut"})
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [PACKAGE])
    assert f"cannot read the module {CACHE}/{PACKAGE}/lib/modules/{RELEASE}/{name}: " in said.text


def test_an_image_that_is_no_kernel_is_refused_in_the_words_of_qemu(vm: Vm) -> None:
    vm.put(WHOLE | {f"boot/vmlinuz-{RELEASE}": b"no kernel" * 2000})
    said = vm("--kernel", "9.9", "--", "true")
    assert (said.code, said.left) == (1, [PACKAGE])
    assert f"cannot run true under {RELEASE}: qemu" in said.text


def test_memory_that_the_host_has_not_is_refused_in_the_words_of_qemu(vm: Vm) -> None:
    vm.put(WHOLE)
    said = vm("--kernel", "9.9", "--memory", "999999999", "--", "true")
    assert (said.code, said.left) == (1, [PACKAGE])
    assert "memory" in said.text


def test_time_that_is_up_is_told_and_no_qemu_is_left(vm: Vm) -> None:
    vm.put(WHOLE)
    word = f"dmmtest{os.getpid()}"
    said = vm("--kernel", "9.9", "--timeout", "1", "--append", word, "--", "true")
    assert (said.code, said.left) == (124, [PACKAGE])
    assert said.text.endswith(
        f"cannot run true under {RELEASE}: the guest did not start within 1 s; --timeout gives it longer"
    )
    found = subprocess.run(
        ["pgrep", "-f", f"qemu.*{word}"], capture_output=True, text=True, check=False
    )
    assert not found.stdout


def as_guest(*command: str) -> subprocess.CompletedProcess[str]:
    """What the guest's shell makes of a command, here."""
    text = base64.b64decode(
        _script(command, Kernel(RELEASE, Path("image"), Path("modules")))
    ).decode()
    return subprocess.run(["/bin/sh"], input=text, capture_output=True, text=True, check=False)


def test_a_command_that_the_guest_has_not_is_127_and_a_sentence() -> None:
    done = as_guest("no-such-command", "word")
    assert done.returncode == 127
    assert done.stderr == (
        f"kernelvm: cannot run no-such-command under {RELEASE}: there is no such command; name one of PATH\n"
    )


def test_a_command_that_the_guest_has_is_run_with_its_words() -> None:
    done = as_guest("printf", "%s", "a b'c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a b'c", "")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--kernel", "--kernel needs a version, as in --kernel 6.1, and has none"),
        ("--kernel abc", "--kernel needs a version, as in --kernel 6.1, and has abc"),
        ("--kernel --all", "--kernel needs a version, as in --kernel 6.1, and has --all"),
        ("--kernel 6.1 --all", "--all names its kernels itself; give it, or --kernel"),
        ("--all --kernel 6.1", "--all names its kernels itself; give it, or --kernel"),
        (
            "--kernel 6.1 -k flow",
            "--kernel runs only tests/kernel and tests/systemd, and takes no -k",
        ),
    ],
)
def test_the_whole_test_refuses_kernels_that_cannot_be_meant(words: str, why: str) -> None:
    done = subprocess.run(
        [ROOT / "tools/test", *words.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"test: cannot take this command line: {why}\n"

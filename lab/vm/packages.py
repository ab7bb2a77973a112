# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel packages: found with apt, downloaded and unpacked into a
cache, never installed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.errors import DmmError, UsageError

CACHE_DIR = Path("/var/cache/dmm-ebpf/kernels")
FLAVOUR = "-amd64"
OTHER_FLAVOURS = ("-cloud-amd64", "-rt-amd64")
DOWNLOAD_TIMEOUT_S = 600
REMOVE = "remove the kernel from the cache, and it is downloaded again"
# Three quarters of a kernel's modules are for hardware that an emulated machine has not.
LEFT_OUT = (
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/staging",
    "drivers/net/wireless",
    "drivers/net/ethernet",
    "drivers/iio",
    "drivers/usb",
    "drivers/scsi",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/mtd",
    "drivers/input",
    "drivers/video",
    "drivers/platform",
)


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its release (as `uname -r` says it), its bzImage and its module tree."""

    release: str
    image: Path
    modules: Path


def find_kernel(version: str) -> Kernel:
    """The newest kernel of a version (a prefix such as "6.1" or "6.12.117"): from the cache, else
    from the archive.

    Raises UsageError for what is no version, DmmError when no package has it or the package
    cannot be had.
    """
    if not re.fullmatch(r"\d+\.\d+(\.[0-9a-z.+~-]+)?", version):
        raise UsageError(
            f"find a kernel {version!r}",
            why="a version is two numbers with a dot or more, as in 6.1",
        )
    found = _newest([path.name for path in _cached()], version)
    if not found:
        with _cache_lock():
            found = _newest([path.name for path in _cached()], version) or _fetch(
                _package_for(version)
            )
    return _whole(CACHE_DIR / found)


def _cached() -> list[Path]:
    return list(CACHE_DIR.glob("linux-image-*")) if CACHE_DIR.is_dir() else []


def _whole(directory: Path, hint: str = REMOVE) -> Kernel:
    """The kernel in a directory of the cache; DmmError when what was put there is not
    there, or another's.
    """
    kernel = _kernel_in(directory)
    for path in (kernel.image, kernel.modules / "modules.dep", kernel.modules / "modules.builtin"):
        if not (path.is_file() and path.stat().st_size):
            raise DmmError(
                f"use {directory}", why=f"{path.relative_to(directory)} is not in it", hint=hint
            )
    return kernel


def _kernel_in(directory: Path) -> Kernel:
    release = directory.name.removeprefix("linux-image-")
    return Kernel(
        release, directory / "boot" / f"vmlinuz-{release}", directory / "lib" / "modules" / release
    )


def _newest(packages: Sequence[str], version: str) -> str | None:
    """Of package names, the one of the plain flavour with the highest version that
    begins with version.
    """
    pattern = re.compile(
        rf"linux-image-{re.escape(version)}(?=[.+-]).*{FLAVOUR}|linux-image-{re.escape(version)}"
    )
    fitting = [
        name for name in packages if pattern.fullmatch(name) and not name.endswith(OTHER_FLAVOURS)
    ]
    # linux-image-6.12-amd64 is a package without files that depends on the newest of the others.
    real = [name for name in fitting if re.match(r"linux-image-\d+\.\d+\.\d", name)]
    return max(real, key=_version_order, default=None)


def _version_order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name.removesuffix(FLAVOUR))]


def _package_for(version: str) -> str:
    """The name of the archive's newest package of a version; the package lists are updated when
    they know none.
    """
    found = _newest(_known_packages(), version)
    if not found:
        # Without the option, lists that cannot be had are a warning, and a package in them would
        # not seem to exist.
        _apt("update the package lists", "apt-get", "update", "-q", "--error-on=any")
        known = _known_packages()
        found = _newest(known, version)
    if not found:
        others = sorted(
            {".".join(map(str, _version_order(name)[:2])) for name in known if _version_order(name)}
        )
        raise DmmError(
            f"find a kernel {version}",
            why=f"no package linux-image-{version}…{FLAVOUR} is in the archives that apt reads",
            hint=f"they have {', '.join(others) or 'none at all'}",
        )
    return found


def _known_packages() -> list[str]:
    listed = _apt("search for kernel packages", "apt-cache", "pkgnames", "linux-image-")
    return [name for name in listed.split() if re.fullmatch(rf"linux-image-\d.*{FLAVOUR}", name)]


def _apt(what: str, *argv: str | Path, cwd: Path | None = None) -> str:
    """Runs a command of apt or kmod; its output, or a DmmError with the cause that it names."""
    _need(what, str(argv[0]))
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=_plain(),
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DmmError(what, why=f"{argv[0]} took longer than {DOWNLOAD_TIMEOUT_S} s") from None
    if done.returncode:
        raise DmmError(what, why=_cause(str(argv[0]), done.returncode, done.stderr))
    return done.stdout


def _need(what: str, *programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            raise DmmError(
                what,
                why=f"{program} is not in PATH",
                hint="kernels come as Debian packages: run tools/bootstrap",
            )


def _plain() -> dict[str, str]:
    """The environment, with messages in the language that _cause reads."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _cause(program: str, code: int, stderr: str) -> str:
    """Of what a program said, its first error, which the later ones follow from."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E: |[a-z-]+: (error|ERROR|FATAL)|tar: ", line)]
    # tar calls the file at which the disk became full one of which it "wrote only" a part.
    full = [line for line in errors if os.strerror(errno.ENOSPC) in line]
    if full or errors or lines:
        return (full or errors or lines)[0].removeprefix("E: ")
    return f"{program} was ended by signal {-code}" if code < 0 else f"{program} exited with {code}"


@contextlib.contextmanager
def _cache_lock() -> Iterator[None]:
    """One process at a time fills the cache; what an earlier one left half done
    is removed first.
    """
    try:
        CACHE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(CACHE_DIR / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DmmError(
            f"keep kernels in {CACHE_DIR}", why=error.strerror or "the kernel refused"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in CACHE_DIR.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def _fetch(package: str) -> str:
    """Downloads and unpacks a package beside the cache, then moves it in: a kernel in the cache
    is a whole one.
    """
    new = CACHE_DIR / f".new-{package}"
    try:
        new.mkdir(mode=0o700)
        # apt gives up its rights for a download, and may then not write here.
        options = ("-q", "-o", "APT::Sandbox::User=root")
        _apt(f"download {package}", "apt-get", *options, "download", package, cwd=new)
        (archive,) = new.glob("*.deb")
        tree = new / package
        _unpack(archive, tree)
        tree.chmod(0o755)
        _apt(f"list the modules of {package}", "depmod", "-b", tree, _kernel_in(tree).release)
        _whole(tree, hint="")
        tree.rename(CACHE_DIR / package)
    except OSError as error:
        raise DmmError(
            f"keep {package} in {CACHE_DIR}", why=error.strerror or "the kernel refused"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return package


def _unpack(archive: Path, tree: Path) -> None:
    what = f"unpack {archive.name} in {CACHE_DIR}"
    _need(what, "dpkg-deb", "tar")
    tree.mkdir()
    excluded = [f"--exclude=./lib/modules/*/kernel/{part}" for part in LEFT_OUT]
    extract: list[str | Path] = ["tar", "-x", "-C", tree, *excluded, "./boot", "./lib"]
    # A file, not a pipe that nobody reads while tar runs.
    with archive.with_suffix(".said").open("w+", encoding="utf-8", errors="replace") as said:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", archive],
            stdout=subprocess.PIPE,
            stderr=said,
            env=_plain(),
        ) as unpacked:
            done = subprocess.run(
                extract,
                stdin=unpacked.stdout,
                capture_output=True,
                text=True,
                env=_plain(),
                check=False,
            )
        said.seek(0)
        spoken = said.read()
    # An archive that is cut makes tar fail too, a tar that is killed dpkg-deb: the first of them
    # names the cause.
    if done.returncode < 0 or (done.returncode and not unpacked.returncode):
        raise DmmError(what, why=_cause("tar", done.returncode, done.stderr))
    if unpacked.returncode:
        raise DmmError(what, why=_cause("dpkg-deb", unpacked.returncode, spoken))

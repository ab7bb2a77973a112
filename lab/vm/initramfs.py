# SPDX-License-Identifier: Apache-2.0
"""The guest's first file system: busybox, the modules that reach the host's files, and the script
that mounts them.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel): for
each file a header of text, the name and the data, each filled up to four bytes.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
from pathlib import Path

from dmm_ebpf.errors import DmmError
from lab.vm.packages import REMOVE, Kernel

GUEST = Path(__file__).parent / "guest"
# virtio_console carries control, stdout and stderr; 9p is the host's file system.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
SCRIPTS = ("init", "stage2", "systemd")
ELF64_HEADER_SIZE = 64
PT_INTERP = 3
DIRECTORIES = ("bin", "dev", "proc", "sys", "modules", "host", "over", "root")


def initramfs(kernel: Kernel) -> bytes:
    """The archive for a kernel; DmmError without a busybox that can be used, and for a kernel
    that is not whole.
    """
    archive = bytearray()
    for name in DIRECTORIES:
        archive += _entry(name, stat.S_IFDIR | 0o755)
    archive += _entry("bin/busybox", stat.S_IFREG | 0o755, busybox().read_bytes())
    for name in SCRIPTS:
        archive += _entry(name, stat.S_IFREG | 0o755, (GUEST / name).read_bytes())
    for number, path in enumerate(_modules(kernel)):
        archive += _entry(
            f"modules/{number:02}-{path.name.partition('.')[0]}.ko", 0o100644, _module_bytes(path)
        )
    return bytes(archive + _entry("TRAILER!!!", 0))


def busybox() -> Path:
    """The host's busybox; DmmError when there is none, or one that needs libraries, which a
    guest has not yet.
    """
    found = shutil.which("busybox")
    if not found:
        raise DmmError("boot a guest", why="busybox is not in PATH", hint="run tools/bootstrap")
    if not _is_static(Path(found).read_bytes()):
        raise DmmError(
            f"boot a guest with {found}",
            why="it is not a program without libraries",
            hint="install busybox-static",
        )
    return Path(found)


def _is_static(program: bytes) -> bool:
    """Whether an ELF64 file names no interpreter (elf(5): e_phoff,
    e_phentsize, e_phnum, p_type).
    """
    if program[:5] != b"\x7fELF\x02" or len(program) < ELF64_HEADER_SIZE:
        return False
    (start,) = struct.unpack_from("<Q", program, 32)
    size, number = struct.unpack_from("<HH", program, 54)
    types = [program[at : at + 4] for at in range(start, start + size * number, size or 1)]
    return struct.pack("<I", PT_INTERP) not in types


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _modules(kernel: Kernel) -> list[Path]:
    """Files of MODULES and of all that they need, each after what it needs; what is built in
    is left out.
    """
    needs: dict[str, tuple[Path, list[str]]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        needs[_module_name(file)] = (
            kernel.modules / file,
            [_module_name(other) for other in needed.split()],
        )
    built_in = {
        _module_name(line) for line in (kernel.modules / "modules.builtin").read_text().split()
    }
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in ordered or (name in built_in and name not in needs):
            return
        if name not in needs:
            raise DmmError(f"boot {kernel.release}", why=f"its package has no module {name}")
        path, needed = needs[name]
        # modules.dep lists what is needed with the deepest last.
        for other in reversed(needed):
            add(other)
        ordered[name] = path

    for name in MODULES:
        add(name)
    return list(ordered.values())


def _module_name(file: str) -> str:
    return Path(file).name.partition(".")[0].replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    """The module as ELF: busybox's insmod cannot be relied on to unpack one."""
    try:
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data
    except (OSError, EOFError, lzma.LZMAError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DmmError(f"read the module {path}", why=why or "it is broken", hint=REMOVE) from None

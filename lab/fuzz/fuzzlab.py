# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets: what they are built from, with libFuzzer, ASan and UBSan, and the inputs that
they start from.

Used by tools/fuzz (long runs) and by the tests (short ones).
"""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.fuzz.steps import program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORE = ROOT / "dmm_ebpf" / "userstack" / "core"
SIM = ROOT / "lab" / "sim"
POLICY = ROOT / "dmm_ebpf" / "rd" / "policy"
FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CORE}")
SANITIZE = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined")
SEED_FILES = 200


class BuildError(Exception):
    """A target does not build; the text is one sentence."""


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _wire_packet(rng: random.Random) -> bytes:
    """A TCP segment or an ICMP error over either family, options of every kind; fuzz_wire.c
    mends the checksums.
    """
    options = [
        b"\x02\x04\x05\xb4", b"\x03\x03\x07", b"\x04\x02", b"\x01", b"\x08\x0a" + rng.randbytes(8),
        b"\x05\x12" + rng.randbytes(16), b"\xfd\x06" + rng.randbytes(4), b"\x05\x0a" + rng.randbytes(8),
        b"\xfd\x08DMM1" + rng.randbytes(2), b"\xfd" + rng.randbytes(1) + b"DMM1" + rng.randbytes(2),
    ]  # fmt: skip
    chosen = b"".join(rng.sample(options, rng.randint(0, 3)))[:40]
    chosen += b"\0" * (-len(chosen) % 4)
    flags = rng.choice([2, 18, 16, 24, 17, 4, 20, 0x29])
    tcp = (
        rng.randbytes(12)
        + bytes([(5 + len(chosen) // 4) << 4, flags])
        + rng.randbytes(2)
        + bytes(4)
    )
    body = tcp + chosen + rng.randbytes(rng.choice([0, 0, 1, 17, 64]))
    v6 = rng.random() < 0.4

    def ip(proto: int, payload: bytes) -> bytes:
        if v6:
            addresses = b"\x20\x01" + rng.randbytes(14) + b"\xfd\x00" + rng.randbytes(14)
            return struct.pack(">IHBB", 6 << 28, len(payload), proto, 64) + addresses + payload
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, proto, 0)
        head += bytes([10, *rng.randbytes(3), 192, *rng.randbytes(3)])
        return head[:10] + struct.pack(">H", _checksum(head)) + head[12:] + payload

    if rng.random() < 0.7:
        return ip(6, body)
    kinds = [(1, 0), (1, 4), (2, 0), (3, 0)] if v6 else [(3, 1), (3, 3), (3, 4), (11, 0)]
    return ip(58 if v6 else 1, bytes([*rng.choice(kinds), 0, 0]) + rng.randbytes(4) + ip(6, body))


def _wire_seed(rng: random.Random) -> bytes:
    return bytes([rng.choice([7, 7, 3, 15, 0])]) + _wire_packet(rng)


def _fragment_seed(rng: random.Random) -> bytes:
    """A packet's fragments in some order, as fuzz_fragment.c reads them; some twice,
    bent or late.
    """
    name, marks = rng.randrange(4), rng.choice([0, 0x40, 0x41, 0x42, 0xFE])
    size, each = rng.randrange(9, 3000), rng.choice([1, 3, 60, 185])
    steps = []
    for at in range(0, size, each * 8):
        more = at + each * 8 < size
        what = name << 3 | (32 | 64 if more else 0)
        length = bytes([each]) if more else (size - at).to_bytes(2, "big")
        bent = rng.random() < 0.02
        place = (at // 8 | bent << 15).to_bytes(2, "big")
        steps.append(bytes([what]) + place + length + (b"\0\1" if bent else b"") + bytes([marks]))
    order = rng.choice(["mixed", "reversed", "kept"])
    if order == "mixed":
        rng.shuffle(steps)
    elif order == "reversed":
        steps.reverse()
    steps = [one * rng.choice([1, 1, 1, 2]) for one in steps]
    if rng.random() < 0.2:
        steps.insert(rng.randrange(len(steps)), bytes([7, rng.choice([2, 61, 130])]))
    raw = rng.randbytes(60)
    return b"".join(steps) + (bytes([6, 30]) + raw if rng.random() < 0.5 else b"")


def _fec_seed(rng: random.Random) -> bytes:
    """Repair symbols over a window that slides, and what comes late, as fuzz_fec.c reads them."""
    out = bytes([rng.randrange(70)]) + rng.randbytes(2)
    at = 0
    for _ in range(rng.randrange(5, 60)):
        kind = rng.random()
        if kind < 0.7:
            window = bytes([min(79, at + rng.randrange(10)), rng.choice([3, 8, 20, 40])])
            out += b"\x01" + window + bytes([rng.randrange(255)]) + rng.randbytes(1)
        elif kind < 0.9:
            out += b"\x02" + bytes([min(79, at + rng.randrange(40))])
        else:
            out += bytes([rng.randrange(8) << 2])
            at += out[-1] >> 2
    return out


def _datagram_seed(rng: random.Random) -> bytes:
    """What a device says, and a datagram over either family; some bent."""
    body = rng.randbytes(rng.choice([0, 1, 7, 40, 200]))
    udp = rng.randbytes(4) + struct.pack(">HH", 8 + len(body), rng.randrange(1 << 16)) + body
    if rng.random() < 0.4:
        packet = struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + rng.randbytes(32) + udp
    else:
        packet = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0x4000, 64, 17, 0)
        packet += rng.randbytes(8) + udp
    if rng.random() < 0.2:
        at = rng.randrange(len(packet))
        packet = packet[:at] + rng.randbytes(1) + packet[at + 1 :]
    flags, size = rng.choice([0x81, 0x80, 1]), rng.choice([0, 100, 1400])
    said = struct.pack("=BBHHHH", flags, 5 if size else 0, 28, size, 20, 6)
    return said + packet + rng.randbytes(rng.choice([0, 0, 9]))


def _routes_seed(rng: random.Random) -> bytes:
    """A routes file whose prefixes lie in one another, with the ends that fuzz_routes.c knows."""
    ends = [",,wan", "tcp,443,wan", "udp,53,lan", ',"1, 2",wan', "tcp,443,wan\r", "tcp,1,x"]
    out = []
    for _ in range(rng.randrange(40)):
        length = rng.choice([0, 8, 16, 24, 30, 32])
        v4 = (
            ((10 << 24) | rng.randrange(4) << 16 | rng.randrange(8)) >> (32 - length) << 32 - length
        )
        to = ".".join(str(v4 >> bits & 255) for bits in (24, 16, 8, 0)) + f"/{length}"
        if rng.random() < 0.4:
            to = f"2001:db8:{rng.randrange(3)}::/{rng.choice([48, 64, 127, 128])}"
        out.append(f"{to},{rng.choice(ends)}")
    for _ in range(rng.randrange(3)):
        odd = ["", "# x", "default,,,wan", "::ffff:1.2.3.4,,,wan", " 10.0.0.1 ,,,wan", "1.2.3.4/01"]
        out.insert(rng.randrange(len(out) + 1), rng.choice(odd))
    return "\n".join(out).encode() + b"\n" * rng.randrange(2)


def _udp_copies_seed(rng: random.Random) -> bytes:
    """An agreement, as fuzz_udp_copies.c reads it, and then datagrams of which some are lost."""
    out = b""
    for number in range(rng.randrange(20, 90)):
        out += bytes([0, rng.randrange(64), rng.randrange(3), 12])
        for kept in range(32):
            if rng.random() < 0.2 or number < 4:
                out += bytes([2, kept, 0, rng.randrange(3)])
        if rng.random() < 0.2:
            out += bytes([4, rng.randrange(32), rng.randrange(256), rng.randrange(256)])
        out += bytes([5 + 6 * 33, 0, 0, rng.choice([1, 13])])
    return out


@dataclass(frozen=True)
class Target:
    """One fuzz target. share: of the time of a run of all."""

    name: str
    main: Path
    only: tuple[str, ...] | None  # of the folder's sources; None: all
    max_len: int
    share: float
    seed: Callable[[random.Random], bytes]
    folder: Path = CORE

    def sources(self) -> list[Path]:
        """Its C files."""
        folder = self.folder
        tried = (
            sorted(folder.glob("*/*.c"))
            if self.only is None
            else [folder / name for name in self.only]
        )
        return [self.main, *tried]

    def digest(self) -> str:
        """Of everything that it is built from."""
        seen = hashlib.sha256(" ".join((*FLAGS, *SANITIZE)).encode())
        for path in (
            *self.sources(),
            *sorted(self.folder.rglob("*.h")),
            *sorted(self.main.parent.glob("*.h")),
        ):
            seen.update(path.name.encode() + b"\0" + path.read_bytes())
        return seen.hexdigest()[:16]

    def build(self, output: Path) -> Path:
        """Compiles it to output."""
        command = ["clang", *FLAGS, *SANITIZE, *map(str, self.sources()), "-o", str(output)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise BuildError(
                f"cannot build the target {self.name}: clang was not found; run tools/bootstrap"
            ) from None
        if done.returncode:
            first = next(
                (line for line in done.stderr.splitlines() if "error" in line),
                done.stderr.strip()[-300:],
            )
            raise BuildError(f"cannot build the target {self.name}: {first}")
        return output

    def write_seeds(self, directory: Path) -> None:
        """The first inputs, always the same."""
        directory.mkdir(parents=True, exist_ok=True)
        rng = random.Random(self.name)
        for number in range(SEED_FILES):
            (directory / f"seed-{number}").write_bytes(self.seed(rng)[: self.max_len])


TARGETS = {
    "wire": Target(
        "wire", HERE / "fuzz_wire.c", ("wire/wire.c", "base/csum.c"), 400, 0.15, _wire_seed
    ),
    "fragment": Target(
        "fragment",
        HERE / "fuzz_fragment.c",
        ("wire/fragment.c", "wire/chain.c", "base/csum.c", "base/mem.c"),
        1000,
        0.15,
        _fragment_seed,
    ),
    "fec": Target("fec", HERE / "fuzz_fec.c", ("fec/fec.c", "fec/gf256.c"), 400, 0.1, _fec_seed),
    "datagram": Target(
        "datagram",
        HERE / "fuzz_datagram.c",
        ("udp/datagram.c", "base/csum.c"),
        400,
        0.05,
        _datagram_seed,
    ),
    "routes": Target(
        "routes",
        HERE / "fuzz_routes.c",
        ("learnt.c", "routelines.c", "routeprefixes.c", "routeentries.c", "routenodes.c"),
        2000,
        0.1,
        _routes_seed,
        POLICY,
    ),
    "udp-copies": Target(
        "udp-copies",
        HERE / "fuzz_udp_copies.c",
        (
            *(
                f"udp/{name}.c"
                for name in ("datagram", "peers", "report", "seen", "udp_copies", "ways")
            ),
            "base/csum.c",
        ),
        4000,
        0.1,
        _udp_copies_seed,
    ),
    "core": Target("core", SIM / "fuzz_core.c", None, 2000, 0.35, program),
}
# With a fault that is found at once: tools/fuzz --self-test
SELF_TEST = Target(
    "self-test", HERE / "fuzz_self_test.c", (), 64, 1, lambda rng: b"D" + rng.randbytes(20)
)

# SPDX-License-Identifier: Apache-2.0
"""Transfers by unmodified programs, each with bytes of its own, and the check that they arrived.

Each transfer carries a stretch of one large file of noise. Which stretch, how long, and over
which IP version is a function of (seed, roles, program, number) alone, so any transfer can be
named and made again.
"""

from __future__ import annotations

import hashlib
import mmap
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmm_ebpf.errors import DmmError
from lab import (
    Cgroup,
    Host,
    Server,
    curl_fetch,
    iperf3,
    iperf3_server,
    nginx,
    random_file,
    redis_server,
)

MB = 1_000_000
# Of all bytes, by program.
SHARES = {"curl-download": 0.4, "curl-upload": 0.2, "iperf3": 0.2, "redis": 0.2}
MOST_BYTES = {"curl-download": 48 * MB, "curl-upload": 48 * MB, "iperf3": 64 * MB, "redis": 8 * MB}
NOISE_BYTES = 256 * MB
# iperf3 garbles a file when a send() takes only a part of its buffer (3.12: what is left over is
# read over), so the senders' kernels must have room for all of one from the start.
SEND_BUFFER_BYTES = 96 << 20
FIRST_IPERF3_PORT = 20_000
IPERF3_PORTS = 10_000
SMALL_VALUES = 300
SMALL_VALUE_BYTES = 16_384
PATIENCE_S = 60.0
SLOWEST_BPS = 2 * MB


class MismatchError(DmmError):
    """A transfer that failed, or whose bytes are not those that were sent."""

    def __init__(self, why: str) -> None:
        super().__init__("transfer it", why=why)


@dataclass(frozen=True)
class Job:
    """One transfer: size_bytes of the noise from offset on. down: from the server;
    for iperf3 alone.
    """

    roles: str
    program: str
    number: int
    size_bytes: int
    offset: int
    ipv6: bool
    down: bool
    many: bool

    @property
    def name(self) -> str:
        """As --only takes it."""
        return f"{self.program}:{self.number}"

    @property
    def kind(self) -> str:
        """What it is, for people."""
        direction = (
            (" from the server" if self.down else " to the server")
            if self.program == "iperf3"
            else ""
        )
        shape = f" in {SMALL_VALUES} values" if self.many else ""
        family = "IPv6" if self.ipv6 else "IPv4"
        return (
            f"{self.program}{direction}, {self.size_bytes} bytes at {self.offset}{shape}, {family}"
        )

    @property
    def timeout_s(self) -> float:
        """When a transfer hangs."""
        return PATIENCE_S + self.size_bytes / SLOWEST_BPS


def make_job(
    seed: int, roles: str, program: str, number: int, *, limit_bytes: int, noise_bytes: int
) -> Job:
    """The transfer of that number; small sizes as often as large ones, except by iperf3, whose
    are all large.
    """
    dice = random.Random(f"{seed} {roles} {program} {number}")
    most = min(MOST_BYTES[program], limit_bytes, noise_bytes)
    many = program == "redis" and number % 4 == 3
    if program == "iperf3":
        size = dice.randint(most // 4, most)
    elif many:
        size = min(SMALL_VALUES * SMALL_VALUE_BYTES // 4, noise_bytes)
    else:
        size = int(most ** dice.random())
    offset = dice.randint(0, noise_bytes - size)
    return Job(roles, program, number, size, offset, dice.random() < 0.5, dice.random() < 0.5, many)


class Noise:
    """The bytes that all transfers take theirs from."""

    def __init__(self, path: Path, size_bytes: int, seed: int) -> None:
        random_file(path, size_bytes, seed)
        self.path = path
        self.size_bytes = size_bytes
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def stretch(self, offset: int, size_bytes: int) -> memoryview:
        """Bytes of it, uncopied."""
        return memoryview(self._map)[offset : offset + size_bytes]

    def of(self, job: Job) -> memoryview:
        """What a transfer carries."""
        return self.stretch(job.offset, job.size_bytes)


class Programs:
    """The servers on one host, the clients on the other, and the transfers between them. Any
    number at a time.
    """

    def __init__(
        self,
        client: tuple[Host, Cgroup],
        server: tuple[Host, Cgroup],
        noise: Noise,
        directory: Path,
    ) -> None:
        self.client, self.client_cgroup = client
        self.server, self.server_cgroup = server
        self.noise = noise
        self.directory = directory
        self.web = nginx(
            self.server,
            noise.path.parent,
            directory / "nginx",
            workers=2,
            cgroup=self.server_cgroup,
        )
        self.redis = redis_server(self.server, directory / "redis", cgroup=self.server_cgroup)
        self._do: dict[str, Callable[[Job], int]] = {
            "curl-download": self._download,
            "curl-upload": self._upload,
            "iperf3": self._iperf3,
            "redis": self._redis,
        }

    def stop(self) -> None:
        """Ends the servers."""
        self.web.stop()
        self.redis.stop()

    def transfer(self, job: Job) -> int:
        """Does it; the bytes that arrived and were compared. Raises MismatchError, or
        DmmError or TimeoutError.
        """
        return self._do[job.program](job)

    def _address(self, job: Job) -> str:
        return self.server.ip6 if job.ipv6 else self.server.ip4

    def _download(self, job: Job) -> int:
        got = curl_fetch(
            self.client,
            self.web.url(self.noise.path.name, ipv6=job.ipv6),
            cgroup=self.client_cgroup,
            timeout=job.timeout_s,
            options=["--range", f"{job.offset}-{job.offset + job.size_bytes - 1}"],
        )
        if got.exit_code:
            raise MismatchError(f"curl ended with {got.exit_code}: {got.stderr.strip()}")
        compare(got.sha256, got.size_bytes, self.noise.of(job))
        return job.size_bytes

    def _upload(self, job: Job) -> int:
        name = f"{job.roles}-{job.number}"
        source = self.directory / f"upload-{name}"
        arrived = self.directory / "nginx" / "put" / name
        source.write_bytes(self.noise.of(job))
        try:
            got = curl_fetch(
                self.client,
                self.web.url(f"put/{name}", ipv6=job.ipv6),
                cgroup=self.client_cgroup,
                timeout=job.timeout_s,
                options=["--upload-file", str(source)],
            )
            if got.exit_code:
                raise MismatchError(f"curl ended with {got.exit_code}: {got.stderr.strip()}")
            compare(*hash_file(arrived), self.noise.of(job))
        finally:
            source.unlink()
            arrived.unlink(missing_ok=True)
        return job.size_bytes

    def _iperf3(self, job: Job) -> int:
        """The iperf3 server sends a file, the client keeps it. The other way round iperf3 ends a
        test by a word on its control connection, and leaves unread what is then still on its way.
        """
        ends = [(self.server, self.server_cgroup), (self.client, self.client_cgroup)]
        (sender, its_cgroup), (receiver, receivers_cgroup) = ends if job.down else reversed(ends)
        directory = self.directory / f"iperf3-{job.roles}-{job.number}"
        directory.mkdir()
        source, sink = directory / "source", directory / "sink"
        source.write_bytes(self.noise.of(job))
        port = FIRST_IPERF3_PORT + job.number % IPERF3_PORTS
        server: Server | None = None
        try:
            server = iperf3_server(
                sender, directory, "-1", "-F", str(source), port=port, cgroup=its_cgroup
            )
            iperf3(
                receiver,
                sender.ip6 if job.ipv6 else sender.ip4,
                *("-R", "-n", str(job.size_bytes), "-F", str(sink)),
                cgroup=receivers_cgroup,
                port=port,
                timeout=job.timeout_s,
            )
            compare(*hash_file(sink), self.noise.of(job))
            return job.size_bytes
        finally:
            if server:
                server.stop()
                sender.processes.remove(server.process)
                its_cgroup.processes.remove(server.process)
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()

    def _redis(self, job: Job) -> int:
        if job.many:
            return self._redis_many(job)
        key = f"{job.roles}-{job.number}"
        said = self._redis_cli(job, "-x", "SET", key, stdin=self.noise.of(job))
        if said != b"OK\n":
            raise MismatchError(f"redis answered {said[:80]!r} to SET")
        value = self._redis_cli(job, "--raw", "GETDEL", key)
        # redis-cli ends what it prints with a newline of its own.
        compare(hashlib.sha256(value[:-1]).hexdigest(), len(value) - 1, self.noise.of(job))
        return 2 * job.size_bytes

    def _redis_many(self, job: Job) -> int:
        """Many small values in one go (redis-cli --pipe), and back in one answer."""
        dice = random.Random(f"{job.roles} {job.number}")
        sizes = [int(SMALL_VALUE_BYTES ** dice.random()) for _ in range(SMALL_VALUES)]
        keys = [f"{job.roles}-{job.number}-{i}" for i in range(SMALL_VALUES)]
        values, at = [], job.offset
        for size in sizes:
            values.append(bytes(self.noise.stretch(at, size)))
            at = at + size if at + size + SMALL_VALUE_BYTES <= self.noise.size_bytes else job.offset
        said = self._redis_cli(
            job,
            *("--pipe", "--pipe-timeout", f"{PATIENCE_S:.0f}"),
            stdin=b"".join(
                b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n"
                % (len(key), key.encode(), len(value), value)
                for key, value in zip(keys, values, strict=True)
            ),
        )
        if f"errors: 0, replies: {SMALL_VALUES}" not in said.decode(errors="replace"):
            raise MismatchError(f"redis-cli --pipe said {said[-160:]!r}")
        expected = b"\n".join(values) + b"\n"
        got = self._redis_cli(job, "--raw", "MGET", *keys)
        compare(hashlib.sha256(got).hexdigest(), len(got), memoryview(expected))
        self._redis_cli(job, "DEL", *keys)
        return 2 * sum(sizes)

    def _redis_cli(self, job: Job, *words: str, stdin: bytes | memoryview | None = None) -> bytes:
        argv = ["redis-cli", "-e", "-h", self._address(job), "-p", str(self.redis.port), *words]
        done: subprocess.CompletedProcess[Any] = self.client_cgroup.run(
            argv, host=self.client, check=False, timeout=job.timeout_s, input=stdin, text=False
        )
        if done.returncode:
            told = (done.stderr or done.stdout)[-160:].decode(errors="replace").strip()
            raise MismatchError(f"redis-cli {words[0]} ended with {done.returncode}: {told}")
        return bytes(done.stdout)


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and length of a file; of nothing if there is none."""
    if not path.exists():
        return hashlib.sha256().hexdigest(), 0
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def compare(sha256: str, size_bytes: int, expected: memoryview) -> None:
    """Raises MismatchError unless what arrived is what was sent."""
    wanted = hashlib.sha256(expected).hexdigest()
    if (sha256, size_bytes) != (wanted, len(expected)):
        raise MismatchError(
            f"{size_bytes} bytes with SHA-256 {sha256} arrived instead of {len(expected)} with {wanted}"
        )

# SPDX-License-Identifier: Apache-2.0
"""Real, unmodified programs on lab hosts: servers that are ready when their function returns, and
clients whose payload is hashed.

A server is ready when its socket is in LISTEN, or one of UDP is bound, in its own namespace, read
from /proc: a connection made to find out would be one that a test has to explain.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dmm_ebpf.errors import DmmError
from lab.hosts import kill_group
from lab.waiting import patient, wait_for

if TYPE_CHECKING:
    from lab.cgroups import Cgroup
    from lab.hosts import Host

START_TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 20
# net/tcp_states.h, as /proc/net/tcp and udp print it: TCP_LISTEN, and TCP_CLOSE of no peer's
SERVING = {"tcp": "0A", "udp": "07"}


@dataclass
class Server:
    """A server process on a host."""

    host: Host
    process: subprocess.Popen[Any]
    port: int
    log: Path

    def url(self, path: str = "", *, ipv6: bool = False) -> str:
        """Its http address on the host's first interface."""
        address = f"[{self.host.ip6}]" if ipv6 else self.host.ip4
        return f"http://{address}:{self.port}/{path.lstrip('/')}"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left after 3 s; harmless when repeated."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        kill_group(self.process)


@dataclass(frozen=True)
class Fetched:
    """What a client got: the SHA-256 in hex and the length of the payload, and how
    the client ended.
    """

    sha256: str
    size_bytes: int
    seconds: float
    exit_code: int
    stderr: str


def random_file(path: Path, size_bytes: int, seed: int = 1) -> str:
    """Writes size_bytes of noise that the seed decides; its SHA-256 in hex."""
    noise = random.Random(seed)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for at in range(0, size_bytes, CHUNK_BYTES):
            chunk = noise.randbytes(min(CHUNK_BYTES, size_bytes - at))
            digest.update(chunk)
            file.write(chunk)
    path.chmod(0o644)
    return digest.hexdigest()


def _sockets_of(pid: int) -> set[str]:
    """Inode numbers of the sockets that a process has open."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def is_listening(pid: int, port: int, protocol: str = "tcp") -> bool:
    """Whether the process itself has a socket that listens on the port; protocol: "tcp", "udp"."""
    wanted = f"{port:04X}"
    own = _sockets_of(pid)
    for family in (protocol, f"{protocol}6"):
        try:
            lines = Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            is_wanted = words[3] == SERVING[protocol] and words[1].rpartition(":")[2] == wanted
            if is_wanted and words[9] in own:
                return True
    return False


def start_server(
    host: Host,
    argv: Sequence[str | Path],
    port: int,
    log: Path,
    *,
    cgroup: Cgroup | None = None,
    protocol: str = "tcp",
    **options: Any,
) -> Server:
    """Starts any server and waits until it listens by the protocol, "tcp" or "udp"; DmmError with
    the end of its log if it does not.
    """
    with log.open("ab") as output:
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output} | options
        process = (
            cgroup.spawn(argv, host=host, **options) if cgroup else host.popen(argv, **options)
        )
    server = Server(host, process, port, log)
    try:
        wait_for(
            lambda: process.poll() is not None or is_listening(process.pid, port, protocol),
            START_TIMEOUT_S,
            f"port {port} on {host.name}",
        )
    except TimeoutError as error:
        server.stop()
        raise DmmError(f"start {argv[0]} on {host.name}", why=str(error)) from error
    if process.poll() is not None:
        kill_group(process)
        tail = " ".join(log.read_text(errors="replace").split()[-60:])
        raise DmmError(
            f"start {argv[0]} on {host.name}", why=tail or f"it exited with {process.returncode}"
        )
    return server


_NGINX_CONF = """\
daemon off;
user root;
worker_processes {workers};
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    client_header_timeout 1h;
    keepalive_timeout 1h;
    send_timeout 1h;
    client_max_body_size 0;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 0.0.0.0:{port}{reuseport}{http2};
        listen [::]:{port} ipv6only=on{reuseport}{http2};
        root {root};
        location /put/ {{
            alias {dir}/put/;
            dav_methods PUT;
        }}
    }}
}}
"""


def nginx(
    host: Host,
    root: Path,
    directory: Path,
    *,
    port: int = 80,
    workers: int = 1,
    reuseport: bool = False,
    http2: bool = False,
    cgroup: Cgroup | None = None,
) -> Server:
    """nginx serving the files under root, IPv4 and IPv6; its own files are in directory, as is what
    is PUT to /put/.

    reuseport: each worker has listeners of its own. http2: HTTP/2 without TLS, and nothing else.
    """
    (directory / "put").mkdir(parents=True, exist_ok=True)
    conf = directory / "nginx.conf"
    conf.write_text(
        _NGINX_CONF.format(
            dir=directory,
            port=port,
            root=root,
            workers=workers,
            reuseport=" reuseport" if reuseport else "",
            http2=" http2" if http2 else "",
        )
    )
    argv: list[str | Path] = ["nginx", "-c", conf, "-p", directory, "-e", directory / "error.log"]
    return start_server(host, argv, port, directory / "error.log", cgroup=cgroup)


def redis_server(
    host: Host, directory: Path, *, port: int = 6379, cgroup: Cgroup | None = None
) -> Server:
    """redis-server with nothing saved, open to every address of the host."""
    directory.mkdir(parents=True, exist_ok=True)
    options = (
        f"--bind 0.0.0.0 :: --appendonly no --protected-mode no --daemonize no --dir {directory}"
    )
    argv = ["redis-server", "--port", str(port), "--save", "", *options.split()]
    return start_server(host, argv, port, directory / "redis.log", cgroup=cgroup)


def iperf3_server(
    host: Host, directory: Path, *options: str, port: int = 5201, cgroup: Cgroup | None = None
) -> Server:
    """iperf3 -s; it serves one test at a time. With "-J" a client's --get-server-output is
    JSON as well.
    """
    directory.mkdir(parents=True, exist_ok=True)
    argv = ["iperf3", "-s", "-p", str(port), "--forceflush", *options]
    return start_server(host, argv, port, directory / "iperf3.log", cgroup=cgroup)


def busybox_httpd(
    host: Host, root: Path, directory: Path, *, port: int = 8080, cgroup: Cgroup | None = None
) -> Server:
    """busybox httpd, a statically linked server, on IPv4 and IPv6."""
    directory.mkdir(parents=True, exist_ok=True)
    argv = ["busybox", "httpd", "-f", "-p", f"[::]:{port}", "-h", str(root)]
    return start_server(host, argv, port, directory / "httpd.log", cgroup=cgroup)


def _hash_stream(stream: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _fetch(host: Host, argv: list[str], cgroup: Cgroup | None, timeout: float) -> Fetched:
    """timeout(1) ends a client that hangs: a pipe can be read to its end without
    watching a clock.
    """
    argv = ["timeout", "--kill-after=1", f"{patient(timeout):g}", *argv]
    began = time.monotonic()
    process = host.popen(
        cgroup.argv(argv) if cgroup else argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout and process.stderr
        sha256, size_bytes = _hash_stream(process.stdout)
        stderr = process.stderr.read().decode(errors="replace")
        exit_code = process.wait()
    finally:
        kill_group(process)
        host.processes.remove(process)
    return Fetched(sha256, size_bytes, time.monotonic() - began, exit_code, stderr)


def curl_fetch(
    host: Host,
    url: str,
    *,
    cgroup: Cgroup | None = None,
    timeout: float = 120,
    options: Sequence[str] = (),
) -> Fetched:
    """Fetches with curl; exit_code is curl's (7: could not connect), 124 when timeout seconds
    were not enough.
    """
    return _fetch(host, ["curl", "-sS", "--fail", "--globoff", *options, url], cgroup, timeout)


def busybox_fetch(
    host: Host, url: str, *, cgroup: Cgroup | None = None, timeout: float = 120
) -> Fetched:
    """Fetches with a statically linked wget."""
    return _fetch(host, ["busybox", "wget", "-q", "-O", "-", url], cgroup, timeout)


def iperf3(
    host: Host,
    server: str,
    *options: str,
    cgroup: Cgroup | None = None,
    port: int = 5201,
    timeout: float = 120,
) -> dict[str, Any]:
    """One iperf3 test; its JSON."""
    argv = ["iperf3", "-J", "-p", str(port), "-c", server, *options]
    done = host.run(cgroup.argv(argv) if cgroup else argv, check=False, timeout=timeout)
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode or "error" in result:
        why = result.get("error") or done.stderr.strip() or f"it exited with {done.returncode}"
        raise DmmError(f"run iperf3 from {host.name} to {server}", why=why)
    return result

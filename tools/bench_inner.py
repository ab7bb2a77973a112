#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which device serves the inner leg better: TUN with segmentation offload, or veth with AF_XDP?

Two namespaces, iperf3 over the kernel's TCP (reno) between them, and in the middle a process that forwards
packets between a device of each namespace. Prints Gb/s, the CPU that a gigabit costs, and their ratio;
--json for machines. Needs root, gcc and iperf3. The cost of TCP itself at both ends is in both figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("tools/inner_bench.c", "dmm_ebpf/hal/afxdp.c", "dmm_ebpf/hal/tun.c")
TICKS = os.sysconf("SC_CLK_TCK")


def sh(*argv: str) -> str:
    """Runs a command; its output."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def build(directory: Path) -> Path:
    """Compiles the forwarder."""
    target = directory / "inner_bench"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    sh("gcc", *flags, f"-I{ROOT}/dmm_ebpf", "-o", str(target), *(str(ROOT / s) for s in SOURCES))
    return target


@contextmanager
def namespaces(*roles: str) -> Iterator[list[str]]:
    """Fresh ones, deleted afterwards."""
    names = [f"inner{os.getpid()}{role}" for role in roles]
    try:
        for name in names:
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A forwarder that has said "ready"."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("bench_inner: the forwarder did not start")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_s() -> float:
    """CPU seconds of the whole machine so far, softirqs included."""
    fields = [int(x) for x in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def measure(a: str, b: str, address: str, seconds: int, forwarder: int) -> dict[str, float]:
    """iperf3 from a to b."""
    server = subprocess.Popen(
        ["ip", "netns", "exec", b, "iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    while "listening" not in server.stdout.readline():
        pass
    own, all_before = cpu_s(forwarder), busy_s()
    out = sh("ip", "netns", "exec", a, "iperf3", "-J", "-C", "reno", "-t", str(seconds), "-c", address)
    own, everything = cpu_s(forwarder) - own, busy_s() - all_before
    server.wait(10)
    gbit = json.loads(out)["end"]["sum_received"]["bytes"] * 8 / 1e9
    return {
        "gbps": round(gbit / seconds, 3),
        "forwarder_cpu_s_per_gbit": round(own / gbit, 4),
        "machine_cpu_s_per_gbit": round(everything / gbit, 4),
    }


def bench_tun(program: Path, seconds: int) -> dict[str, float]:
    """TUN with vnet headers and TSO on both sides."""
    with namespaces("a", "b") as (a, b):
        arguments = [x for ns in (a, b) for x in (f"/run/netns/{ns}", "inner0")]
        with running(str(program), "tun", *arguments, "1500") as forwarder:
            for ns, last in ((a, 1), (b, 2)):
                sh("ip", "-n", ns, "addr", "add", f"10.98.0.{last}/24", "dev", "inner0")
            return measure(a, b, "10.98.0.2", seconds, forwarder.pid)


def bench_xdp(program: Path, seconds: int) -> dict[str, float]:
    """veth whose other ends have AF_XDP sockets."""
    with namespaces("a", "b", "f") as (a, b, f):
        macs = {}
        for ns, last, port in ((a, 1, "pa"), (b, 2, "pb")):
            sh("ip", "link", "add", "inner0", "netns", ns, "type", "veth", "peer", "name", port, "netns", f)
            sh("ip", "-n", ns, "addr", "add", f"10.98.0.{last}/24", "dev", "inner0")
            sh("ip", "-n", ns, "link", "set", "inner0", "up")
            sh("ip", "-n", f, "link", "set", port, "up")
            macs[last] = json.loads(sh("ip", "-n", ns, "-j", "link", "show", "inner0"))[0]["address"]
        for ns, other in ((a, 2), (b, 1)):
            sh("ip", "-n", ns, "neigh", "add", f"10.98.0.{other}", "lladdr", macs[other], "dev", "inner0")
        command = ["ip", "netns", "exec", f, str(program), "xdp", "pa", macs[1], "pb", macs[2], "1500"]
        with running(*command) as forwarder:
            return measure(a, b, "10.98.0.2", seconds, forwarder.pid)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench_inner: root is needed for namespaces and devices", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory() as directory:
        program = build(Path(directory))
        result: dict[str, Any] = {
            "tun_gso": bench_tun(program, options.seconds),
            "veth_afxdp": bench_xdp(program, options.seconds),
        }
    result["ratio_tun_to_veth"] = round(result["tun_gso"]["gbps"] / result["veth_afxdp"]["gbps"], 2)
    if options.json:
        print(json.dumps(result))
        return 0
    for name in ("tun_gso", "veth_afxdp"):
        row = result[name]
        print(
            f"{name:<12} {row['gbps']:8.2f} Gb/s   forwarder {row['forwarder_cpu_s_per_gbit'] * 1000:7.1f} ms/Gbit"
            f"   machine {row['machine_cpu_s_per_gbit'] * 1000:7.1f} ms/Gbit"
        )
    print(f"TUN with offload carries {result['ratio_tun_to_veth']} times what veth with AF_XDP does")
    return 0


if __name__ == "__main__":
    sys.exit(main())

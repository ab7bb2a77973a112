# SPDX-License-Identifier: Apache-2.0
"""tools/soak transfers: real programs over a line that is bad on both legs, and that what it
should find is found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab import random_file
from soak.jobs import SHARES, MismatchError, Noise, Programs, make_job

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000


def _soak(*words):
    command = [sys.executable, "-m", "soak", "transfers", *words, "--json"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )


def test_every_program_s_bytes_arrive_with_both_legs_bad_on_both_hosts(no_leaks):
    # More than the default on the inner leg, where few packets carry much: something must happen to
    # some each way.
    bad = ("--inner-loss", "1.5%", "--inner-reorder", "1.5%", "--inner-duplicate", "1.5%")
    done = _soak("--gigabytes", "0.03", "--role", "both", "--parallel", "8", *bad)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == []
    assert result["bytes_verified"] >= 30 * MB
    for name, share in SHARES.items():
        counts = result["programs"][name]
        assert counts["bytes"] >= share * 30 * MB
        assert counts["verified"] == counts["transfers"] > 0
    (phase,) = result["phases"]
    for way in phase["outer"].values():
        assert min(way["lost"], way["late"], way["doubled"]) > 0
    for host in ("client", "server"):
        for way in ("to_stack", "to_kernel"):
            assert min(phase["inner"][host][way].values()) > 0
        assert phase["stacks"][host]["retransmits"] > phase["stacks"][host]["inner_retransmits"] > 0


def test_a_run_in_which_no_packet_was_lost_proves_nothing(no_leaks):
    done = _soak("--gigabytes", "0.001", "--role", "client", "--inner-loss", "0.001%")
    assert done.returncode == 1
    found = [failure["what"] for failure in json.loads(done.stdout)["failures"]]
    assert "no packet was lost on the inner leg, to_kernel: nothing is proven" in found


def test_a_role_that_there_is_not_is_refused(no_leaks):
    done = _soak("--role", "nobody")
    assert done.returncode == 1
    assert done.stderr == "soak: cannot use the role 'nobody': there are client, server, both\n"


class FickleNoise(Noise):
    """Its last byte is another one each time that it is asked for: sent, and then compared with."""

    asked = 0

    def of(self, job):
        self.asked += 1
        changed = bytearray(super().of(job))
        changed[-1] = self.asked
        return memoryview(changed)


@pytest.mark.parametrize("program", ["curl-upload", "iperf3", "redis"])
def test_one_byte_that_is_not_as_sent_is_found(wired, program):
    path = wired.directory / "www" / "noise"
    path.parent.mkdir()
    noise = FickleNoise(path, 2 * MB, seed=1)
    hosts = ((wired.client, wired.client_cgroup), (wired.server, wired.server_cgroup))
    programs = Programs(*hosts, noise, wired.directory)
    job = make_job(1, "none", program, 0, limit_bytes=MB, noise_bytes=2 * MB)
    with pytest.raises(MismatchError, match="arrived instead of"):
        programs.transfer(job)
    assert noise.asked == 2


def test_a_download_of_another_file_is_found(wired):
    path = wired.directory / "www" / "noise"
    path.parent.mkdir()
    noise = Noise(path, 2 * MB, seed=1)
    hosts = ((wired.client, wired.client_cgroup), (wired.server, wired.server_cgroup))
    programs = Programs(*hosts, noise, wired.directory)
    job = make_job(1, "none", "curl-download", 0, limit_bytes=MB, noise_bytes=2 * MB)
    assert programs.transfer(job) == job.size_bytes
    random_file(path.with_name("other"), 2 * MB, seed=2)
    path.with_name("other").rename(path)
    with pytest.raises(MismatchError, match="arrived instead of"):
        programs.transfer(job)

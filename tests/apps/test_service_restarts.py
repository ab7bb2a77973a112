# SPDX-License-Identifier: Apache-2.0
"""The unit of the repository under a real systemd, restarted more often than systemd's own limit
allows.
"""

from __future__ import annotations

from pathlib import Path

from lab.systemd import UNITS, Systemd

ROOT = Path(__file__).resolve().parents[2]
RESTARTS = 7  # systemd's own limit are 5 starts in 10 s


def test_a_unit_may_be_restarted_as_often_as_somebody_likes(wired, tmp_path):
    """The program is one that is soon ready: how soon dmm-ebpf is, is not what is tried here."""
    text = (ROOT / "systemd" / "dmm-ebpf@.service").read_text()
    told = "/bin/sh -c 'systemd-notify --ready --pid=parent; exec sleep 1000' "
    text = text.replace("ExecStart=/usr/local/bin/dmm-ebpf ", f"ExecStart={told}")
    with Systemd(wired.client_cgroup, tmp_path / "systemd.log") as systemd:
        systemd.write(UNITS / "dmm-ebpf@.service", f"{text}\n[Service]\nNotifyAccess=all\n")
        systemd.ctl("daemon-reload")
        for _ in range(RESTARTS):
            systemd.ctl("restart", "dmm-ebpf@shop.service")
        assert systemd.show("dmm-ebpf@shop.service", "ActiveState") == "active"

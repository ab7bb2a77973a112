# SPDX-License-Identifier: Apache-2.0
"""A file comes whole through a user stack by tap."""

from __future__ import annotations

from sitefixtures import by

from lab import curl_fetch, nginx


def test_a_file_arrives(wired, payload, tmp_path):
    routed = wired.attach_client(by("tap"))
    path, sha = payload(1_000_000)
    url = nginx(wired.server, path.parent, tmp_path / "nginx").url(path.name)
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha
    assert routed.stack("wan")["restarts"] == 0

# SPDX-License-Identifier: Apache-2.0
"""The last good policy of an instance that follows etcd, on disk for the next boot.

    /var/lib/dmm-ebpf/INSTANCE/last.json           which one it is: Kept
    /var/lib/dmm-ebpf/INSTANCE/DIGEST/policy.toml  the policy, with its routes files beside it
    /var/lib/dmm-ebpf/INSTANCE/DIGEST/single.json  a fleet's single routes, where they stand beside

$STATE_DIRECTORY (systemd.exec(5), StateDirectory=) stands for /var/lib/dmm-ebpf where it is set. A
policy is on disk whole before last.json names it, and last.json is replaced by rename(2): a crash
leaves the one before. The directory is root's alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dmm_ebpf import listing
from dmm_ebpf.rd.director.liveroutes import from_json, to_json
from dmm_ebpf.rd.director.rundir import unwritable
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.sources.compose import Composed

ROOT = Path("/var/lib/dmm-ebpf")
_ROUTES = "single.json"
_DIGITS = 32  # of a digest, in a directory's name


@dataclass(frozen=True)
class Kept:
    """place: of the fleet. push: what is kept; routes: single ones in it. composed: the digest of
    the whole; empty: nothing is kept. newest, newest_digest: the highest push that etcd was seen
    to tell of.
    """

    place: str
    push: int = 0
    routes: int = 0
    composed: str = ""
    newest: int = 0
    newest_digest: str = ""


class LastGood:
    """What is kept for one instance. Another place's is not this one's: it is as if nothing were
    kept, until something is.
    """

    def __init__(self, instance: str, place: str) -> None:
        root = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        self.folder = (Path(root) if root else ROOT) / instance
        self._record = self.folder / "last.json"
        self.kept = self._load(place)

    @property
    def policy(self) -> Path | None:
        """The file of the policy that is kept; None: none is."""
        return self._file(self.kept.composed) if self.kept.composed else None

    def write(self, one: Composed) -> Path:
        """Put a policy beside the kept one; its file. Raises DmmError."""
        file = self._file(one.digest)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for name, text in [*one.files.items(), (file.name, one.text)]:
                _write(file.parent / name, text)
        except OSError as error:
            self.drop(one.digest)
            raise unwritable(file, error) from error
        return file

    def keep(self, kept: Kept) -> None:
        """From now on kept is what the next boot begins with; others go. Raises DmmError."""
        new = self._record.with_suffix(".new")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(new, json.dumps(asdict(kept)))
            new.replace(self._record)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise unwritable(self._record, error) from error
        self.kept = kept
        for folder in listing.folders(self.folder):
            if folder.name != kept.composed[:_DIGITS]:
                shutil.rmtree(folder, ignore_errors=True)

    def keep_routes(self, routes: Iterable[LiveRoute]) -> None:
        """Those that stand in etcd by themselves, and not in the kept policy. Raises DmmError."""
        file = self._file(self.kept.composed).with_name(_ROUTES)
        try:
            new = file.with_suffix(".new")
            _write(new, json.dumps([to_json(one) for one in routes]))
            new.replace(file)
        except OSError as error:
            raise unwritable(file, error) from error

    def routes(self) -> list[LiveRoute]:
        """What keep_routes() kept; none, if that cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            file = self._file(self.kept.composed).with_name(_ROUTES)
            return [from_json(row) for row in json.loads(file.read_text(encoding="utf-8"))]
        return []

    def drop(self, digest: str) -> None:
        """Remove what write() made, unless it is kept."""
        if digest != self.kept.composed:
            shutil.rmtree(self._file(digest).parent, ignore_errors=True)

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:_DIGITS] / "policy.toml"

    def _load(self, place: str) -> Kept:
        """What is not ours, or broken, is as if it were not there: etcd has it, too."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            kept = Kept(**json.loads(self._record.read_text(encoding="utf-8")))
            texts = (kept.place, kept.composed, kept.newest_digest)
            numbers = (kept.push, kept.routes, kept.newest)
            sound = all(isinstance(one, str) for one in texts)
            sound = sound and all(isinstance(one, int) for one in numbers)
            if sound and kept.place == place and "/" not in kept.composed:
                return kept
        return Kept(place)


def _write(path: Path, text: str) -> None:
    """On disk when it returns: fsync(2)."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

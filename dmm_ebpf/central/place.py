# SPDX-License-Identifier: Apache-2.0
"""Where a fleet's policy is kept: etcd://HOST[:PORT][,HOST[:PORT]...]/PREFIX, with options behind
a "?".

Owns that form. No password stands in it: every user may read a command line (proc(5),
/proc/pid/cmdline). Pure but for load_password().
"""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmm_ebpf.digits import whole
from dmm_ebpf.errors import UsageError

SCHEMES = {"etcd": False, "etcds": True}  # whether by TLS
PORT = 2379  # assigned by IANA to etcd's clients
PASSWORD_VARIABLE = "DMM_ETCD_PASSWORD"
PLACE_VARIABLE = "DMM_ETCD"
MAX_ENDPOINTS = 16
_OPTIONS = ("ca", "cert", "key", "user", "password_file")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9._-]+")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._-]+)+")
_EXAMPLE = "expected for example etcd://10.0.0.1:2379,10.0.0.2:2379/dmm"


@dataclass(frozen=True)
class Place:
    """endpoints: "http://host:port" each, as they were named. prefix: begins with "/", does not
    end so. ca, cert, key: PEM files. user: empty if etcd asks for none.
    """

    endpoints: tuple[str, ...]
    prefix: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password_file: Path | None = None

    @property
    def tls(self) -> bool:
        """Whether endpoints are spoken to by TLS."""
        return self.endpoints[0].startswith("https:")

    def __str__(self) -> str:
        """As it was named, without options."""
        hosts = ",".join(one.partition("://")[2] for one in self.endpoints)
        return f"{'etcds' if self.tls else 'etcd'}://{hosts}{self.prefix}"

    def load_password(self) -> str:
        """The password of user, from its file or the environment; UsageError if there is none."""
        what = f"log in to {self} as {self.user}"
        if self.password_file is None:
            password = os.environ.get(PASSWORD_VARIABLE, "")
            if not password:
                hint = f"set {PASSWORD_VARIABLE}, or add password_file=FILE"
                raise UsageError(what, why="no password is given", hint=hint)
            return password
        try:
            return self.password_file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            why = (
                (error.strerror or str(error)).lower()
                if isinstance(error, OSError)
                else "it is not UTF-8"
            )
            raise UsageError(what, why=f"{self.password_file}: {why}") from error


def parse(text: str) -> Place:
    """The place that text names; UsageError, which shows no password, if it names none."""
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise _refused("an etcd address", "it begins with neither etcd:// nor etcds://")
    if not rest:
        raise _refused(text, "it names no host")
    where, _, query = rest.partition("?")
    hosts, slash, path = where.partition("/")
    shown = f"{scheme}://{hosts.rpartition('@')[2]}{slash}{path}"
    if "@" in hosts:
        why = "it has a user before an @, where a password would be for every user to read"
        raise _refused(shown, why, f"use ?user=NAME, and password_file=FILE or {PASSWORD_VARIABLE}")
    prefix = slash + path.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        odd = "its prefix has other characters than A-Z a-z 0-9 . _ - and /"
        raise _refused(shown, odd if path else "it names no prefix for the fleet's keys")
    names = hosts.split(",")
    if len(names) > MAX_ENDPOINTS:
        raise _refused(shown, f"it names {len(names)} endpoints", f"name up to {MAX_ENDPOINTS}")
    protocol = "https" if SCHEMES[scheme] else "http"
    endpoints = tuple(f"{protocol}://{_endpoint(name, shown)}" for name in names)
    options = _options(query, shown)
    return _checked(Place(endpoints, prefix, **options), shown)


def _endpoint(text: str, shown: str) -> str:
    match = _HOST.match(text)
    rest = text[match.end() :] if match else ""
    port = rest.removeprefix(":") if rest else str(PORT)
    if match is None or (rest and rest[0] != ":") or not port.isascii() or not port.isdecimal():
        raise _refused(shown, f'"{text}" is not a host and a port')
    number = whole(port, 65536)
    if not number:
        raise _refused(shown, f"there is no port {port}")
    return f"{match[0]}:{number}"


def _options(query: str, shown: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key == "password":
            hint = f"use password_file=FILE or {PASSWORD_VARIABLE}"
            raise _refused(shown, "a password there is for every user to read", hint)
        if key not in _OPTIONS:
            raise _refused(shown, f'it has no option "{key}"', f"known are {', '.join(_OPTIONS)}")
        if not value:
            raise _refused(shown, f"its option {key} is empty")
        found[key] = value if key == "user" else Path(value).absolute()
    return found


def _checked(place: Place, shown: str) -> Place:
    if (place.ca or place.cert or place.key) and not place.tls:
        raise _refused(shown, "ca, cert and key are for TLS", "begin it with etcds://")
    if (place.cert is None) != (place.key is None):
        raise _refused(shown, "cert and key go together", "name both, or none")
    if place.password_file and not place.user:
        raise _refused(shown, "it has a password_file and no user", "add user=NAME")
    return place


def _refused(shown: str, why: str, hint: str = _EXAMPLE) -> UsageError:
    return UsageError(f"take {shown} for a fleet's policy", why=why, hint=hint)

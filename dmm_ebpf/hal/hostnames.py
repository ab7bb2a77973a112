# SPDX-License-Identifier: Apache-2.0
"""The addresses of hostnames, by DNS: one question for those of IPv4, and one for those of IPv6.

The servers are those of resolv.conf(5), which is read again for each question; a network namespace
with a name may have its own, as for ip-netns(8). Names are asked for as they are, from the root: no
search domain is added, and /etc/hosts is not looked at. Sockets belong to the network namespace of
the thread that makes an Asker.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.netns import identity, name_of

if TYPE_CHECKING:
    import dns.asyncresolver

Family = Literal[4, 6]
Block = tuple[int, int, int]  # a prefix: 4 or 6, the network as an integer, its length

WITHIN_S = 5.0  # for all servers together
MOST_ADDRESSES = 256  # of one answer
_CONFIGURATION = Path("/etc/resolv.conf")
_OF_NAMESPACES = Path("/etc/netns")


@dataclass(frozen=True)
class Found:
    """What DNS says; ttl: for how many seconds. none: why there are no addresses, where there are
    none.
    """

    blocks: tuple[Block, ...]
    ttl: float
    none: str = ""


def configuration() -> Path:
    """The resolv.conf(5) of the thread's network namespace."""
    named = name_of(identity()[0])
    own = _OF_NAMESPACES / named.name / _CONFIGURATION.name if named else None
    return own if own and own.exists() else _CONFIGURATION


def _resolver(what: str) -> dns.asyncresolver.Resolver:
    """DmmError: no server is configured."""
    from dns.asyncresolver import Resolver
    from dns.exception import DNSException

    path = configuration()
    try:
        made = Resolver(filename=str(path))
    except (DNSException, OSError, ValueError) as error:
        raise DmmError(what, why=f"{path} names no server that can be used ({error})") from None
    made.edns = 0  # larger answers by UDP
    made.payload = 1232  # that no path cuts (DNS flag day 2020)
    return made


class Asker(Closing):
    """Asks for many names at once, in a thread of its own: to read an answer of 64 KiB takes some
    tenths of a second, which the event loop of who waits does not have.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dmm-dns", daemon=True)
        self._thread.start()

    async def ask(self, name: str, family: Family) -> Found:
        """The addresses of one family that name has. DmmError: nobody says."""
        asked = asyncio.run_coroutine_threadsafe(_ask(name, family), self._loop)
        return await asyncio.wrap_future(asked)

    def close(self) -> None:
        """Nothing is asked any more; who waits is cancelled. May be called twice."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for one in others:
        one.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _ask(name: str, family: Family) -> Found:
    what = f"resolve {name}"
    resolver = _resolver(what)
    import dns.exception
    import dns.name
    import dns.resolver

    question = dns.name.from_text(name), "A" if family == 4 else "AAAA"
    try:
        # Its own time goes by the clock of the day, which may be set.
        async with asyncio.timeout(WITHIN_S + 1):
            answer = await resolver.resolve(
                *question, search=False, lifetime=WITHIN_S, raise_on_no_answer=False
            )
    except dns.resolver.NXDOMAIN:
        return Found((), 0, "DNS has no such name (NXDOMAIN)")
    except dns.resolver.NoNameservers as error:
        raise DmmError(what, why=_complaint(error)) from None
    except (dns.exception.Timeout, TimeoutError):
        servers = ", ".join(map(str, resolver.nameservers))
        raise DmmError(what, why=f"no answer from {servers} within {WITHIN_S:g} s") from None
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise DmmError(what, why=str(error) or type(error).__name__) from None
    found = {block for one in answer.rrset or () if (block := _block(one.to_text())) is not None}
    if not found:
        said = "no address that can be a peer's" if answer.rrset else "no address"
        return Found((), 0, f"DNS has {said} for it")
    return Found(tuple(sorted(found)[:MOST_ADDRESSES]), answer.chaining_result.minimum_ttl)


def _complaint(error: dns.resolver.NoNameservers) -> str:
    """What the last server said that is not asked any more."""
    errors = error.kwargs.get("errors") or ()
    if not errors:
        return str(error)
    server, _, _, said, _ = errors[-1]
    return f"{server} says {said or type(said).__name__}"


def _block(text: str) -> Block | None:
    """An address as a prefix; None: no peer can have it."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address == ipaddress.IPv4Address("255.255.255.255")
    ):
        return None
    return address.version, int(address), address.max_prefixlen

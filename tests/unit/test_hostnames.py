# SPDX-License-Identifier: Apache-2.0
"""Hostnames in the place of prefixes: how policies write them, what is made of DNS's answers as
time goes by, and what is asked of a server on this host. tests/apps/test_hostnames.py has dnsmasq
and a whole instance.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from policy_parsing import U, parse, refusal
from policy_texts import toml

from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import hostnames as asking
from dmm_ebpf.hal.hostnames import MOST_ADDRESSES, Asker, Found
from dmm_ebpf.rd.director import hostnames, sets
from dmm_ebpf.rd.director.generations import after
from dmm_ebpf.rd.director.hostnames import Question, reading
from dmm_ebpf.rd.director.reading import Reading
from dmm_ebpf.rd.policy import evaluate, schema
from dmm_ebpf.rd.policy.difference import difference
from dmm_ebpf.rd.policy.evaluate import Query
from dmm_ebpf.rd.policy.explain import explain
from dmm_ebpf.rd.policy.hostnames import HostName
from dmm_ebpf.rd.policy.named import MAX_NAMED
from dmm_ebpf.rd.policy.nftsets import SetName
from dmm_ebpf.rd.policy.values import Prefix, parse_prefix

DB = HostName("db.example.com")
RULE = '[[rules]]\ntable = "t"\n'
ROUTE = (
    '[[tables.t.routes]]\nto = "dns:db.example.com"\nproto = "tcp"\nports = "5432"\nstack = "wan"\n'
)
TEXT = U + RULE + ROUTE


def prefixes(*texts: str):
    return tuple(prefix for text in texts for prefix in parse_prefix(text))


def found(*texts: str, ttl: float = 60):
    return Found(prefixes(*texts), ttl)


def shown(question):
    return [str(one).split("/")[0] for one in question.prefixes]


# -- as they are written --


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dns:db.example.com", "db.example.com"),
        ("dns:DB.Example.com.", "db.example.com"),
        ("dns:printer", "printer"),
        ("dns:xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("dns:3com.example", "3com.example"),
        (f"dns:{'a' * 63}.example", f"{'a' * 63}.example"),
    ],
)
def test_a_name_is_as_rfc_1123_has_it(text, name):
    got = parse(TEXT.replace("dns:db.example.com", text))
    assert got.sets == (HostName(name),)
    assert schema_takes(text)


@pytest.mark.parametrize(
    "text",
    [
        "dns:",
        "dns:.",
        "dns:a..b",
        "dns:-a.example",
        "dns:a-.example",
        "dns:a_b.example",
        "dns:*.example",
        "dns: a.example",
        "dns:a.example ",
        f"dns:{'a' * 64}.example",
        "dns:" + ".".join(["a" * 49] * 6),
        "dns:http://a.example",
    ],
)
def test_what_names_no_host_is_refused(text):
    sentence = refusal(TEXT.replace("dns:db.example.com", text))
    assert "policy.toml:6: table t, route 1, to: " in sentence
    assert "does not name a host" in sentence


def test_letters_beyond_ascii_and_addresses_are_refused_with_what_to_write():
    assert 'write the name as DNS has it, for example "dns:xn--' in refusal(
        TEXT.replace("db.example.com", "bücher.example")
    )
    for address in ("192.0.2.1", "1.2.3.0x7f"):
        assert 'an address is written without "dns:"' in refusal(
            TEXT.replace("db.example.com", address)
        )


def schema_takes(text):
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema.schema())
    return validator.is_valid(
        {"tables": {"t": {"routes": [{"to": text, "stack": "kernel"}]}}},
    )


def test_the_schema_knows_them():
    assert not schema_takes("dns:a_b.example")
    assert not schema_takes("dns:")
    assert not schema_takes("dsn:db.example.com")


def test_one_name_to_two_stacks_contradicts():
    sentence = refusal(TEXT + ROUTE.replace("wan", "kernel").replace("db.e", "DB.e"))
    assert "table t sends dns:db.example.com tcp port 5432 to kernel" in sentence


def test_names_of_rules_count_too():
    """Both kinds of named sets, wherever they are named, share one bound."""
    half = MAX_NAMED // 2
    sources = ", ".join(f'"dns:s{n}.example"' for n in range(half + 1))
    rule = f'[[rules]]\ndirection = "forward"\nfrom = [{sources}]\ntable = "t"\n'
    many = [{"to": f"nft:inet filter s{n}", "stack": "kernel"} for n in range(half)]
    assert f"name {MAX_NAMED + 1} nft sets and hostnames" in refusal(
        rule + toml("tables.t.routes", many)
    )


def test_a_routes_file_names_hosts(tmp_path: Path):
    (tmp_path / "p.csv").write_text("10.0.0.0/8,,,kernel\ndns:db.example.com,tcp,443,wan\n")
    got = parse(U + RULE + '[tables.t]\nroutes_from = "p.csv"\n', tmp_path)
    now = got.with_elements({DB: prefixes("10.1.0.1")})
    assert evaluate.route_get(now, Query("10.1.0.1", 443)).wanted == "wan"
    assert evaluate.route_get(now, Query("10.1.0.1", 80)).wanted == "kernel"


def test_the_name_and_the_address_that_decides_are_told():
    written = parse(TEXT)
    now = written.with_elements({DB: prefixes("192.0.2.1", "2001:db8::1")})
    for address, element in (("192.0.2.1", "192.0.2.1/32"), ("2001:db8::1", "2001:db8::1/128")):
        query = Query(address, 5432)
        told = explain(now, query, evaluate.answer(now, query))
        assert told.answer.route == "dns:db.example.com tcp 5432"
        assert told.answer.element == element
        assert told.rules[0].routes[0].where == f"route 1 of table t, element {element}"
    assert evaluate.route_get(now, Query("192.0.2.1", 80)).wanted == "kernel"
    assert list(difference(written, now)) == []


def test_sources_of_rules_are_names_too():
    now = parse(
        U + '[[rules]]\ndirection = "forward"\nfrom = ["10.0.0.0/8", "dns:db.example.com"]\n'
        'table = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "wan"\n'
    ).with_elements({DB: prefixes("192.0.2.1")})
    assert [str(one) for one in now.rules[0].source_prefixes] == ["10.0.0.0/8", "192.0.2.1/32"]
    assert now.rule_text(0) == "1: from 10.0.0.0/8,dns:db.example.com forward"


# -- answers, as time goes by --


@pytest.mark.parametrize(("ttl", "pause"), [(0, 5), (30, 30), (86400, 3600)])
def test_the_time_to_live_has_a_floor_and_a_ceiling(ttl, pause):
    assert Question().answer(found("192.0.2.1", ttl=ttl), 0) == pause


def test_addresses_that_rotate_stay_and_those_that_are_gone_go():
    asked, every = Question(), [f"192.0.2.{n}" for n in range(1, 5)]
    now = 0.0
    for turn in range(12):  # each address is in every fourth answer
        now += asked.answer(found(every[turn % 4], ttl=10), now)
        assert shown(asked) == every[: turn + 1]
    asked.answer(found("192.0.2.9", ttl=10), now)
    assert shown(asked) == [*every, "192.0.2.9"]
    for _ in range(5):  # since it was in one last, that is 50 s
        now += asked.answer(found("192.0.2.9", ttl=10), now)
    assert shown(asked) == ["192.0.2.9"]


def test_while_nobody_answers_what_was_known_stays_for_an_hour():
    asked = Question()
    asked.answer(found("192.0.2.1", ttl=5), 100)
    now, pauses = 105.0, []
    while shown(asked):
        pauses.append(asked.failure("SERVFAIL", now))
        now += pauses[-1]
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert 100 + hostnames.STALE_S < now <= 100 + hostnames.STALE_S + 120
    assert asked.answer(found("192.0.2.2", ttl=5), now) == 5
    assert shown(asked) == ["192.0.2.2"]
    assert asked.failure("SERVFAIL", now + 5) == 1  # from the beginning again


def test_that_there_are_none_is_an_answer():
    asked = Question()
    asked.answer(found("192.0.2.1"), 0)
    pauses = [asked.answer(Found((), 0, "no such name"), 60) for _ in range(8)]
    assert shown(asked) == []
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert asked.failure("SERVFAIL", 400) == 60
    assert asked.answer(found("192.0.2.1"), 500) == 60


def test_of_more_addresses_than_a_name_may_have_the_latest_stay():
    asked = Question()
    first = [f"10.0.{n // 250}.{n % 250}" for n in range(MOST_ADDRESSES)]
    asked.answer(found(*first), 0)
    asked.answer(found("192.0.2.1", "192.0.2.2"), 60)
    assert len(asked.prefixes) == MOST_ADDRESSES
    assert {"192.0.2.1", "192.0.2.2"} <= set(shown(asked))


def test_what_an_earlier_director_knew_holds_until_an_answer():
    asked = Question()
    asked.remember(prefixes("192.0.2.1", "192.0.2.2"), 100, 100)
    assert reading([asked]) == Reading(
        "unread", prefixes("192.0.2.1", "192.0.2.2"), "it was not answered yet"
    )
    asked.failure("SERVFAIL", 102)
    assert shown(asked) == ["192.0.2.1", "192.0.2.2"]
    asked.answer(found("192.0.2.1"), 200)
    assert reading([asked]) == Reading("followed", prefixes("192.0.2.1"))
    written = parse(TEXT).with_elements({DB: prefixes("192.0.2.1", "2001:db8::1")})
    kept = after(written, None, 3)["hosts"]
    assert kept == {"dns:db.example.com": ["192.0.2.1/32", "2001:db8::1/128"]}
    followed = sets.Sets(SimpleNamespace(policy=None))
    followed.remember(kept, {})
    assert followed._hosts.known == {
        "dns:db.example.com": list(prefixes("192.0.2.1", "2001:db8::1"))
    }


def test_the_bound_of_what_nobody_answers_for_outlives_a_director():
    asked = Question()
    asked.answer(found("192.0.2.1"), 1000)
    assert asked.unanswered is None
    asked.failure("SERVFAIL", 1006)
    assert asked.unanswered == 1000
    later = Question()
    later.remember(asked.prefixes, 4000, asked.unanswered)
    later.failure("SERVFAIL", 1000 + hostnames.STALE_S)
    assert shown(later) == ["192.0.2.1"]
    later.failure("SERVFAIL", 1001 + hostnames.STALE_S)
    assert shown(later) == []
    ahead = Question()
    ahead.remember(asked.prefixes, 4000, 9e9)
    assert ahead.unanswered == 4000


def test_how_it_stands_with_a_name_is_of_both_families():
    four, six = Question(), Question()
    both = (four, six)
    assert reading(both) == Reading("missing", why="it was not answered yet")
    four.failure("SERVFAIL", 0)
    assert reading(both) == Reading("missing", why="SERVFAIL")
    four.answer(found("192.0.2.1"), 1)
    assert reading(both) == Reading("followed", prefixes("192.0.2.1"))
    six.failure("SERVFAIL", 1)  # which some servers always answer to AAAA
    assert reading(both) == Reading("followed", prefixes("192.0.2.1"))
    six.answer(found("2001:db8::1"), 2)
    assert reading(both) == Reading("followed", prefixes("192.0.2.1", "2001:db8::1"))
    six.failure("time-out", 3)
    assert reading(both) == Reading("unread", prefixes("192.0.2.1", "2001:db8::1"), "time-out")
    for one in both:
        one.answer(Found((), 0, "no such name"), 4)
    assert reading(both) == Reading("missing", why="no such name")


def test_a_name_is_no_error_and_one_without_addresses_is_told_with_its_place():
    written = parse(TEXT)
    for state in ("missing", "unread"):
        assert list(sets.errors(written, {DB: Reading(state, why="SERVFAIL")})) == []
    (warned,) = sets.waiting(written, {DB: Reading("missing", why="SERVFAIL")})
    assert str(warned) == (
        "policy.toml:6: table t, route 1, to: dns:db.example.com has no addresses now, and is "
        "waited for: SERVFAIL"
    )
    read = {DB: Reading("followed", prefixes("192.0.2.1"))}
    (row,) = sets.rows(written, read)
    assert row.elements == ["192.0.2.1/32"]
    assert sets.of_rows(written, [row]) == read


# -- a real server --


def on_one_port(port=0):
    """A socket of UDP and a listener of TCP on one port: this one, or, as it may be somebody else's
    for one of the two, the first that the kernel gives which is free for both.
    """
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(("127.0.0.1", port))
            return udp, socket.create_server(udp.getsockname())
        except OSError as error:
            udp.close()
            if error.errno != errno.EADDRINUSE:
                raise
            port = 0


def test_a_port_that_another_program_has_is_not_taken_for_a_server():
    with socket.create_server(("127.0.0.1", 0)) as others:
        taken = others.getsockname()[1]
        udp, tcp = on_one_port(taken)
        with udp, tcp:
            assert udp.getsockname() == tcp.getsockname()
            assert udp.getsockname()[1] != taken


class Server:
    """Answers questions on a port of this host's, by UDP and TCP, as answer says."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []
        self.udp, self.tcp = on_one_port()
        self.port = self.udp.getsockname()[1]
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def _answer(self, data, most):
        query = dns.message.from_wire(data)
        (question,) = query.question
        self.asked.append((question.name.to_text(), int(question.rdtype), most))
        said = self.answer(query, question)
        if said is None:
            return None
        wire = said.to_wire(max_size=65535)
        if len(wire) <= most:
            return wire
        said.answer.clear()
        said.flags |= dns.flags.TC
        return said.to_wire()

    def _serve_udp(self):
        while True:
            try:
                data, peer = self.udp.recvfrom(65535)
            except OSError:
                return
            if (wire := self._answer(data, 1232)) is not None:
                self.udp.sendto(wire, peer)

    def _serve_tcp(self):
        while True:
            try:
                conn, _ = self.tcp.accept()
            except OSError:
                return
            with conn:
                data = conn.recv(65535)
                wire = self._answer(data[2:], 65535)
                conn.sendall(len(wire).to_bytes(2, "big") + wire)

    def close(self):
        for one in (self.udp, self.tcp):
            if one is self.tcp:
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def answers(*records, rcode=dns.rcode.NOERROR):
    """records: lines of a zone, "NAME TTL TYPE DATA"; those of the type asked for, and aliases."""
    zone = [
        dns.rrset.from_text(name, int(ttl), "IN", kind, *data)
        for name, ttl, kind, *data in map(str.split, records)
    ]

    def answer(query, question):
        said = dns.message.make_response(query)
        said.set_rcode(rcode)
        wanted = (question.rdtype, dns.rdatatype.CNAME)
        said.answer += [made for made in zone if made.rdtype in wanted]
        return said

    return answer


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Of a server that answers so, the addresses of a name."""
    servers = []

    def ask(answer, name="db.example.com", family=4):
        server = Server(answer)
        servers.append(server)
        conf = tmp_path / "resolv.conf"
        conf.write_text("nameserver 127.0.0.1\nsearch elsewhere.example\n")
        monkeypatch.setattr(asking, "configuration", lambda: conf)
        made = asking._resolver

        def resolver(what):
            found = made(what)
            found.port = server.port
            return found

        monkeypatch.setattr(asking, "_resolver", resolver)

        async def story():
            with Asker() as asker:
                return await asker.ask(name, family), server

        try:
            return asyncio.run(story())
        finally:
            monkeypatch.setattr(asking, "_resolver", made)

    yield ask
    for one in servers:
        one.close()


def texts(got):
    return [str(Prefix(*one)).split("/")[0] for one in got.blocks]


def test_aliases_are_followed_and_the_shortest_time_counts(ask):
    zone = answers(
        "db.example.com. 300 CNAME a.example.net.",
        "a.example.net. 20 CNAME b.example.net.",
        "b.example.net. 60 A 192.0.2.2 192.0.2.1",
        "c.example.net. 60 A 192.0.2.3",
        "b.example.net. 60 AAAA 2001:db8::1 ::ffff:192.0.2.9",
    )
    got, server = ask(zone)
    assert (texts(got), got.ttl) == (["192.0.2.1", "192.0.2.2"], 20)
    assert server.asked == [("db.example.com.", 1, 1232)]
    got, _ = ask(zone, family=6)
    assert texts(got) == ["192.0.2.9", "2001:db8::1"]


def test_an_answer_that_is_too_long_for_udp_comes_by_tcp_and_is_bounded(ask):
    many = [f"10.0.{n // 250}.{n % 250}" for n in range(MOST_ADDRESSES + 100)]
    got, server = ask(answers(f"db.example.com. 60 A {' '.join(many)}"))
    assert texts(got) == many[:MOST_ADDRESSES]
    assert [most for _, _, most in server.asked] == [1232, 65535]


def test_addresses_that_no_peer_has_are_left_out(ask):
    got, _ = ask(answers("db.example.com. 60 A 0.0.0.0 127.0.0.1 224.0.0.1 255.255.255.255"))
    assert got.none == "DNS has no address that can be a peer's for it"
    got, _ = ask(answers("db.example.com. 60 AAAA :: ::1 ff02::1 fe80::1 2001:db8::7"), family=6)
    assert texts(got) == ["2001:db8::7"]


def test_no_such_name_and_no_address_are_answers(ask):
    got, server = ask(answers(rcode=dns.rcode.NXDOMAIN))
    assert (got.blocks, got.none) == ((), "DNS has no such name (NXDOMAIN)")
    assert server.asked == [("db.example.com.", 1, 1232)]  # and no search domain
    got, _ = ask(answers("db.example.com. 60 AAAA 2001:db8::7"))
    assert (got.blocks, got.none) == ((), "DNS has no address for it")


def test_who_does_not_answer_or_refuses_is_one_sentence(ask, monkeypatch):
    with pytest.raises(DmmError, match=r"cannot resolve db.example.com: .*127.0.0.1.*REFUSED"):
        ask(answers(rcode=dns.rcode.REFUSED))
    monkeypatch.setattr(asking, "WITHIN_S", 0.3)
    with pytest.raises(DmmError, match=r"no answer from 127.0.0.1 within 0.3 s"):
        ask(lambda *_: None)


def test_an_answer_to_another_question_is_none(ask, monkeypatch):
    monkeypatch.setattr(asking, "WITHIN_S", 0.3)

    def other(query, _question):
        query.question[0].name = dns.name.from_text("evil.example.")
        return answers("evil.example. 60 A 192.0.2.66")(query, query.question[0])

    with pytest.raises(DmmError, match="no answer"):
        ask(other)


def test_no_server_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(asking, "configuration", lambda: tmp_path / "none")

    async def story():
        with Asker() as asker:
            await asker.ask("db.example.com", 4)

    with pytest.raises(DmmError, match="names no server that can be used"):
        asyncio.run(story())


# -- followed --


def test_a_policy_does_not_wait_long_for_a_name_that_nobody_answers(monkeypatch):
    """It is accepted; the answer comes in force when it comes, and the name is forgotten with the
    policy.
    """
    answered = asyncio.Event()
    applied, changed = [], asyncio.Event()

    class Silent:
        async def ask(self, _name, family):
            await answered.wait()
            return found("192.0.2.1") if family == 4 else Found((), 0, "none")

        def close(self):
            pass

    monkeypatch.setattr(hostnames, "Asker", Silent)
    monkeypatch.setattr(hostnames, "FIRST_S", 0.0)

    async def _changing(work):
        await work(None)

    async def change_elements(_here, policy, contents, _told=None):
        applied.append(contents)
        instance.policy = policy.with_elements(contents)
        changed.set()

    async def story():
        filled = await followed.fill(parse(TEXT))
        instance.policy = filled
        followed.follow(filled)
        (row,) = followed.rows()
        assert (row.state, row.why, row.elements) == ("missing", "it was not answered yet", [])
        running = asyncio.create_task(followed.run())
        answered.set()
        async with asyncio.timeout(10):
            await changed.wait()
        (row,) = followed.rows()
        assert (row.state, row.elements) == ("followed", ["192.0.2.1/32"])
        followed.follow(parse(U))
        assert followed._hosts._asking == {}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    instance = SimpleNamespace(policy=None, change=_changing, keep_hosts=lambda: None)
    monkeypatch.setattr(sets.elementchange, "change", change_elements)
    followed = sets.Sets(instance)
    asyncio.run(story())
    assert applied == [{DB: prefixes("192.0.2.1")}]


def test_sets_and_names_stand_side_by_side():
    text = TEXT + ROUTE.replace("dns:db.example.com", "nft:inet filter lossy")
    now = parse(text).with_elements(
        {DB: prefixes("192.0.2.1"), SetName("inet", "filter", "lossy"): prefixes("192.0.2.0/24")}
    )
    assert now.sets == (DB, SetName("inet", "filter", "lossy"))
    assert evaluate.route_get(now, Query("192.0.2.1", 5432)).route == "dns:db.example.com tcp 5432"
    assert evaluate.route_get(now, Query("192.0.2.2", 5432)).route.startswith("nft:inet")

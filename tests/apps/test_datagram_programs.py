# SPDX-License-Identifier: Apache-2.0
"""Programs that speak UDP, by a user stack: a resolver and who asks it, iperf3, QUIC."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sitefixtures import Site, with_udp

from lab import Cgroup, Host, wait_for

IOS = ("tap", "af_xdp")
NAME, ADDRESS = "shop.example", "203.0.113.80"
WITHIN_S = 15.0

# Serves QUIC streams, each of which is given back; or opens as many as are wanted, one after
# another, and says of each after how many seconds it was whole, or null: it was not what was sent.
QUIC = """
import asyncio, datetime, hashlib, json, os, ssl, sys, time
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration

role, address, port, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def certificate():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - datetime.timedelta(1),
                                   now + datetime.timedelta(1)).sign(key, hashes.SHA256())
    return made, key

async def give_back(reader, writer):
    writer.write(await reader.read())
    writer.write_eof()

async def server():
    c = QuicConfiguration(is_client=False, alpn_protocols=["lab"])
    c.certificate, c.private_key = certificate()
    await serve(address, port, configuration=c,
                stream_handler=lambda r, w: asyncio.ensure_future(give_back(r, w)))
    print("ready", flush=True)
    await asyncio.Future()

async def client():
    c = QuicConfiguration(alpn_protocols=["lab"], verify_mode=ssl.CERT_NONE)
    took = []
    async with connect(address, port, configuration=c) as protocol:
        for _ in range(int(sys.argv[5])):
            data = os.urandom(size)
            began = time.monotonic()
            reader, writer = await protocol.create_stream()
            writer.write(data)
            writer.write_eof()
            back = await reader.read()
            same = hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
            took.append(time.monotonic() - began if same else None)
    print(json.dumps(took), flush=True)

asyncio.run(server() if role == "server" else client())
"""


def relayed(routed) -> tuple[int, int]:
    told = routed.stack("wan")["counters"]
    return told["datagrams_out"], told["datagrams_in"]


def dnsmasq(host: Host, cgroup: Cgroup, *words: str) -> subprocess.Popen[str]:
    """A resolver that knows nothing but what words say."""
    usual = ("--no-daemon", "--conf-file=/dev/null", "--no-hosts", "--user=root", "--pid-file=")
    process = cgroup.spawn(
        ["dnsmasq", *usual, *words], host=host, stderr=subprocess.PIPE, text=True
    )
    said = []
    while line := process.stderr.readline():
        said.append(line)
        if "started" in line:
            return process
    pytest.fail("".join(said))


def dig(host: Host, cgroup: Cgroup, *words: str) -> str:
    return str(cgroup.run(["dig", "+short", "+tries=2", *words], host=host).stdout).strip()


@pytest.fixture(name="names")
def names_fixture(wired):
    """A resolver on the server's host."""
    dnsmasq(wired.server, wired.server_cgroup, "--no-resolv", f"--address=/{NAME}/{ADDRESS}")
    return wired


@pytest.mark.parametrize("io", IOS)
def test_names_are_looked_up(names, io, tmp_path):
    routed = names.attach_client(with_udp(io))
    client, cgroup = names.client, names.client_cgroup
    for address in (names.server.ip4, names.server.ip6):
        assert dig(client, cgroup, f"@{address}", NAME) == ADDRESS
    config = tmp_path / "resolv.conf"
    config.write_text(f"nameserver {names.server.ip4}\n")
    looked_up = f"mount --bind {config} /etc/resolv.conf && exec getent ahostsv4 www.{NAME}"
    said = cgroup.run(["unshare", "--mount", "sh", "-c", looked_up], host=client).stdout
    assert said.split()[0] == ADDRESS
    out, came = relayed(routed)
    assert out == came >= 3
    rows = routed.flows(proto="udp", stack="wan", dport=53)
    assert {"dig", "isc-net-0000", "getent"} >= {row["comm"] for row in rows}
    assert {row["dst"] for row in rows} == {names.server.ip4, names.server.ip6}


def test_a_resolver_asks_another(names):
    """dnsmasq on the client names its peer with each datagram, from ports of its own."""
    dnsmasq(
        names.client,
        names.client_cgroup,
        "--no-resolv",
        f"--server={names.server.ip4}",
        "--port=5300",
        "--cache-size=0",
    )
    routed = names.attach_client(with_udp("tap"))
    for number in range(20):
        asked = f"w{number}.{NAME}"
        assert dig(names.client, names.server_cgroup, "-p", "5300", "@127.0.0.1", asked) == ADDRESS
    assert relayed(routed) == (20, 20)
    rows = routed.flows(comm="dnsmasq", dport=53)
    assert {(row["stack"], row["state"], row["dst"]) for row in rows} == {
        ("wan", "CLOSE", names.server.ip4)
    }


def iperf3_serves(site: Site) -> None:
    """On the server's host."""
    site.server_cgroup.spawn(["iperf3", "--server"], host=site.server, stdout=subprocess.DEVNULL)


def iperf3_datagrams(site: Site, rate: str, seconds: int, *words: str) -> dict:
    """What iperf3 says of all datagrams that it has sent at that rate."""
    asked = ["iperf3", "--udp", "--bitrate", rate, "--time", str(seconds), "--json", *words]

    def ran() -> dict:
        words = [*asked, "--client", site.server.ip4]
        done = site.client_cgroup.run(words, host=site.client, check=False, timeout=90)
        return json.loads(done.stdout)

    told = ran()
    if "error" in told:  # it was not there yet
        told = wait_for(lambda: None if "error" in (one := ran()) else one, WITHIN_S, "iperf3")
    return dict(told["end"]["sum"])


@pytest.mark.alone("iperf3 counts what it reads too late as lost")
@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("reverse", [False, True])
def test_iperf3(site, io, reverse):
    site.wire(offloads=True)
    routed = site.attach_client(with_udp(io))
    iperf3_serves(site)
    total = iperf3_datagrams(site, "20M", 1, *(["--reverse"] if reverse else []))
    assert total["packets"] > 1000
    assert total["lost_percent"] < 2
    assert relayed(routed)[reverse] > 500


def quic_server(site: Site, address: str) -> Path:
    """Listens at port 4433. The script, for quic_streams()."""
    script = Path(site.directory) / "quic.py"
    script.write_text(QUIC)
    serving = site.server_cgroup.spawn(
        [sys.executable, script, "server", address, "4433", "0"],
        host=site.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert serving.stdout.readline() == "ready\n"
    return script


def quic_streams(
    site: Site, script: Path, address: str, size: int, many: int = 1
) -> list[float | None]:
    """Seconds for each of so many streams of so many bytes there and back; None: not what was
    sent.
    """
    words = [sys.executable, script, "client", address, "4433", str(size), str(many)]
    done = site.client_cgroup.run(words, host=site.client, timeout=180)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_quic(wired, io, family):
    pytest.importorskip("aioquic")
    there = getattr(wired.server, family)
    script = quic_server(wired, "::" if family == "ip6" else there)
    routed = wired.attach_client(with_udp(io))
    assert quic_streams(wired, script, there, 300_000) != [None]
    out, came = relayed(routed)
    assert out > 200
    assert came > 200
    (row,) = routed.flows(proto="udp", dport=4433)
    assert (row["stack"], row["why"]) == ("wan", "")

# SPDX-License-Identifier: Apache-2.0
"""Sockets that are shared: by fork, dup, exec, SCM_RIGHTS, threads; and programs of
the standard library.
"""

from __future__ import annotations

import array
import http.client
import http.server
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path

from sockets.script import IP6, Pair, Script, attempt, digest, noise, read_all, read_exactly


class Forked(Pair):
    """A child writes, the parent reads; the end comes when both have closed."""

    def client_with(self, sock):
        sock.sendall(b"question")
        self.note("came", read_all(sock))

    def server_with(self, sock):
        self.note("question", sock.recv(100))
        child = self.child(lambda: sock.sendall(b"by the child, "))
        self.note("child", self.ended(child))
        sock.sendall(b"by the parent")
        sock.close()


class ParentCloses(Pair):
    """The parent's close() does not end what the child has open."""

    def client_with(self, sock):
        read, write = os.pipe()

        def talk():
            os.read(read, 1)
            sock.sendall(b"still open")

        child = self.child(talk)
        sock.close()
        os.write(write, b"x")
        self.note("child", self.ended(child))

    def server_with(self, sock):
        self.note("came", read_all(sock))


class Duplicated(Pair):
    """dup(): closing one leaves the other; shutdown() is for both."""

    def client_with(self, sock):
        other = self.keep(sock.dup())
        sock.close()
        other.sendall(b"by the other")
        third = self.keep(other.dup())
        third.shutdown(socket.SHUT_WR)
        self.note("send", attempt(other.send, b"x", socket.MSG_NOSIGNAL))
        self.note("came", read_all(other))

    def server_with(self, sock):
        self.note("came", read_all(sock))
        sock.sendall(b"answer")
        sock.close()


class Passed(Pair):
    """SCM_RIGHTS: another process gets the open socket."""

    def client_with(self, sock):
        ours, theirs = socket.socketpair()

        def talk():
            (number,) = socket.recv_fds(theirs, 10, 1)[1]
            got = socket.socket(fileno=number)
            got.sendall(b"from another process")

        child = self.child(talk)
        ours.sendmsg(
            [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        )
        sock.close()
        self.note("child", self.ended(child))

    def server_with(self, sock):
        self.note("came", read_all(sock))


class PassedListener(Script):
    """A listener that is handed to another process accepts there."""

    def client(self):
        self.meet()
        sock = self.connect()
        self.note("came", read_all(sock))

    def server(self):
        ours, theirs = socket.socketpair()

        def serve():
            (number,) = socket.recv_fds(theirs, 10, 1)[1]
            got, _ = socket.socket(fileno=number).accept()
            got.sendall(b"by another process")

        child = self.child(serve)
        listener = self.listen()
        socket.send_fds(ours, [b"x"], [listener.fileno()])
        listener.close()
        self.meet()
        self.note("child", self.ended(child))


class Executed(Pair):
    """cat(1) on the socket, as inetd would start it."""

    def client_with(self, sock):
        sock.sendall(noise(50_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("came back", read_all(sock))

    def server_with(self, sock):
        done = subprocess.run(["/bin/cat"], stdin=sock, stdout=sock, check=False)
        sock.close()
        self.note("code", done.returncode)


class Threads(Pair):
    """Four threads write records to one socket: each is whole."""

    def client_with(self, sock):
        def write(number):
            for _ in range(50):
                sock.sendall(bytes([number]) * 100)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sock.close()

    def server_with(self, sock):
        counted = [0] * 4
        broken = 0
        while record := read_exactly(sock, 100):
            counted[record[0]] += 1
            broken += len(set(record)) != 1
        self.note("records", counted)
        self.note("broken", broken)


class KilledWriter(Pair):
    """A child that is killed in the middle: the parent goes on with the socket."""

    def client_with(self, sock):
        child = self.child(lambda: (sock.sendall(b"child "), signal.pause()))
        self.meet()
        os.kill(child, signal.SIGKILL)
        self.note("child", self.ended(child))
        sock.sendall(b"parent")
        sock.close()

    def server_with(self, sock):
        self.note("first", read_exactly(sock, 6))
        self.meet()
        self.note("rest", read_all(sock))


class Http(Script):
    """http.server and urllib: one request a connection, and several by one."""

    def client(self):
        self.meet()
        host = f"[{self.there}]" if self.family == IP6 else self.there
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{host}:{self.port}/a", timeout=20) as answer:
            self.note("one", [answer.status, answer.read()])
        connection = http.client.HTTPConnection(self.there, self.port, timeout=20)
        for turn in range(3):
            connection.request("POST", f"/{turn}", body=noise(30_000, turn))
            answer = connection.getresponse()
            self.note(f"turn {turn}", [answer.status, answer.read()])
        connection.close()
        self.tell("end")

    def server(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(self.path.encode())

            def do_POST(self):
                self.answer(digest(self.rfile.read(int(self.headers["content-length"]))).encode())

            def answer(self, body):
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
            address_family = self.af
            allow_reuse_address = True
            daemon_threads = True

        with Server((self.here, self.port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            self.meet()
            self.hear()
            server.shutdown()
            thread.join()


class Tls(Pair):
    """TLS with a certificate of the server's own; both ways, and its orderly end."""

    def client_with(self, sock):
        with tempfile.TemporaryDirectory() as directory:
            trusted = Path(directory) / "certificate"
            trusted.write_text(self.hear())
            context = ssl.create_default_context(cafile=trusted)
        context.check_hostname = False
        with context.wrap_socket(sock) as secure:
            self.note("version", secure.version())
            secure.sendall(noise(200_000))
            self.note("came", digest(read_exactly(secure, 200_000)))
            self.note("end", secure.recv(1))

    def server_with(self, sock):
        with tempfile.TemporaryDirectory() as directory:
            key, certificate = (str(Path(directory) / name) for name in ("key", "certificate"))
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                 "-nodes", "-subj", "/CN=server", "-days", "2", "-keyout", key, "-out", certificate],
                check=True, capture_output=True,
            )  # fmt: skip
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate, key)
            self.tell(Path(certificate).read_text())
        with context.wrap_socket(sock, server_side=True) as secure:
            secure.sendall(read_exactly(secure, 200_000))


class InARow(Script):
    """A thousand connections in a row, by ports of a small range that are used again and again."""

    seconds = 60.0

    def client(self):
        self.meet()
        answers = set()
        for number in range(1000):
            sock = socket.socket(self.af)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.here, self.port + 1 + number % 7))
            sock.connect(self.at())
            answers.add(read_all(sock)[0])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\5\0\0\0")
            sock.close()
        self.note("answers", answers)
        self.tell("end")

    def server(self):
        listener = self.listen(backlog=64)
        self.meet()
        for _ in range(1000):
            sock, _ = listener.accept()
            sock.sendall(b"one of many")
            sock.close()
        self.hear()

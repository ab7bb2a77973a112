# SPDX-License-Identifier: Apache-2.0
"""Where a connection's bytes are cut into segments, as the peer's host sees them: what an app
holds back by MSG_MORE, TCP_CORK or Nagle's algorithm does not come in pieces.
"""

from __future__ import annotations

import itertools
import os
import socket
import tempfile

from sockets.script import Pair, eventually, noise, read_all
from sockets.sniffing import Sniffer
from sockets.topics.waiting import waiting_out


class _Cut(Pair):
    """The client writes, the server notes what comes: the segments' lengths, of bytes that fit into
    one or two.
    """

    def client_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.meet()
        self.writes(sock)
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))

    def server_with(self, sock):
        sniffer = Sniffer(sock.getsockname()[1])
        self.meet()
        self.note("came", read_all(sock))
        self.note("segments", self.told(sniffer.lengths()))

    def writes(self, sock):
        """What the client writes."""

    def told(self, lengths):
        """What is noted of the segments: by port tap both legs' come in by the NIC."""
        return [length for length, _ in itertools.groupby(lengths)]


class EachByItself(_Cut):
    """TCP_NODELAY, and the next write when the one before is acknowledged."""

    def writes(self, sock):
        for size in (10, 20, 30):
            sock.sendall(noise(size))
            eventually(lambda: waiting_out(sock) == 0)


class MoreToCome(_Cut):
    """MSG_MORE three times, and then not."""

    def writes(self, sock):
        for _ in range(3):
            sock.send(noise(100), socket.MSG_MORE)
        sock.send(noise(50))


class Corked(_Cut):
    """TCP_CORK over three writes and a sendfile(), then off."""

    def writes(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        for _ in range(3):
            sock.sendall(noise(100))
        with tempfile.TemporaryFile() as file:
            file.write(noise(400))
            file.flush()
            os.sendfile(sock.fileno(), file.fileno(), 0, 400)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


class Vectored(_Cut):
    """One sendmsg() of several pieces."""

    def writes(self, sock):
        sock.sendmsg([noise(100), noise(200), noise(300)])


class OfNagle(_Cut):
    """Without TCP_NODELAY small writes wait for what is on its way, and go together: of fifty there
    are fewer segments than writes.
    """

    def writes(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        for _ in range(50):
            sock.sendall(noise(20))

    def told(self, lengths):
        return len(lengths) < 50

"""HTTP/1.1 messages as bytes, for the fault proxy: heads are read and altered, bodies pass by."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import termios
import time
from collections.abc import Callable

PIECE = 256 << 10
HEAD_MOST = 256 << 10
DRAIN_S = 10.0


class Gone(ConnectionError):  # noqa: N818  not always an error
    """The other side closed where more was to come."""


class Wire:
    """A connected socket and what was read from it too early."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._buffer = bytearray(PIECE)
        self._ahead = memoryview(b"")

    def head(self) -> bytes:
        """A head with its blank line; b"" if the other side closed before a byte of it."""
        have = bytes(self._ahead)
        while (end := have.find(b"\r\n\r\n")) < 0:
            more = self.sock.recv(65536) if len(have) < HEAD_MOST else b""
            if not more:
                self._ahead = memoryview(b"")
                if have:
                    raise Gone("closed within a head")
                return b""
            have += more
        self._ahead = memoryview(have)[end + 4 :]
        return have[: end + 4]

    def take(self, most: int) -> memoryview:
        """Some bytes, good until the next call; none at the end."""
        if self._ahead:
            piece, self._ahead = self._ahead[:most], self._ahead[most:]
            return piece
        view = memoryview(self._buffer)[: min(most, PIECE)]
        return view[: self.sock.recv_into(view)]

    def line(self) -> bytes:
        """A line with its end, for chunked bodies."""
        line = b""
        while not line.endswith(b"\r\n"):
            line += bytes(self._exactly(1))
        return line

    def _exactly(self, count: int) -> bytes:
        have = b""
        while len(have) < count:
            piece = self.take(count - len(have))
            if not piece:
                raise Gone("closed within a body")
            have += piece
        return have

    def send(self, data: bytes | memoryview) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """RST, once all that was sent has arrived."""
        until = time.monotonic() + DRAIN_S
        while self._unacknowledged() and time.monotonic() < until:
            time.sleep(0.001)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _unacknowledged(self) -> int:
        answer = fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0" * 4)
        return int(struct.unpack("i", answer)[0])


class Head:
    """The first line and the headers of a request or a reply."""

    def __init__(self, data: bytes) -> None:
        first, _, self._fields = data.partition(b"\r\n")
        self.first = first.decode("latin1")

    def __bytes__(self) -> bytes:
        return self.first.encode("latin1") + b"\r\n" + self._fields

    def get(self, name: str) -> str | None:
        found = re.search(_field(name), self._fields)
        return found[1].decode("latin1").strip() if found else None

    def set(self, name: str, value: str) -> None:
        """Alter a field that is there."""
        line = f"{name}: {value}\r\n".encode("latin1")
        self._fields = re.sub(_field(name), lambda _: line, self._fields)

    def drop(self, name: str) -> None:
        self._fields = re.sub(_field(name), b"", self._fields)

    @property
    def method(self) -> str:
        return self.first.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.first.split(" ")[1].partition("?")[0]

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])

    @property
    def chunked(self) -> bool:
        return "chunked" in (self.get("transfer-encoding") or "").lower()

    @property
    def length(self) -> int | None:
        value = self.get("content-length")
        return int(value) if value is not None else None

    @property
    def ends_connection(self) -> bool:
        return "close" in (self.get("connection") or "").lower() or "HTTP/1.0" in self.first


def _field(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?im)^" + re.escape(name).encode() + rb":([^\r\n]*)\r\n")


def pass_on(
    source: Wire,
    target: Wire,
    count: int | None,
    before: Callable[[int], None] = lambda _: None,
) -> int:
    """Pass `count` bytes on, or all until the source closes; how many they were.

    `before` hears of each piece before it is sent, so that who has the bytes finds them counted.
    """
    done = 0
    while count is None or done < count:
        piece = source.take(PIECE if count is None else count - done)
        if not piece:
            if count is None:
                break
            raise Gone("closed within a body")
        before(len(piece))
        target.send(piece)
        done += len(piece)
    return done


def pass_chunked(source: Wire, target: Wire) -> None:
    """Pass a chunked body on, trailers too, as it is."""
    while True:
        line = source.line()
        target.send(line)
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        pass_on(source, target, size + 2)
    while line != b"\r\n":
        line = source.line()
        target.send(line)

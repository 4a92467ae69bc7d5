"""Stand between a client and a real HTTP server, and break the connection in a chosen way."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType

__all__ = ["FaultProxy"]

ANSWERS = {"500": b"Internal Server Error", "503": b"Service Unavailable", "429": b"Too Many Requests"}


class FaultProxy:
    """Forward HTTP requests to ``127.0.0.1:port`` as the mode says; the mode may change at any time.

    Attributes:
        mode: ``pass``; ``refuse`` (nobody listens); ``hang`` (no answer for ``delay`` seconds); ``slow`` (the answer
            comes ``delay`` seconds late); ``reset`` (the connection is reset, the server sees nothing);
            ``lost_reply`` (the server does it, its answer never comes); ``half`` (half of the answer comes); or the
            number of an HTTP error.
        path: Only requests for this path are meddled with; all if empty.
        left: How many requests are meddled with; None for no limit.
        seen: How many requests came, by what was done with them.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.mode, self.path, self.delay = "pass", "", 60.0
        self.left: int | None = None
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the address that a client is given."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: str, path: str = "", left: int | None = None, delay: float = 60.0) -> None:
        """Change the mode; connections that are open are cut, so that no client goes on in the old one."""
        with self._lock:
            self.mode, self.path, self.left, self.delay = mode, path, left, delay
        for connection in list(self._open):
            _shut(connection)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        listener.settimeout(0.05)
        return listener

    def _accept(self) -> None:
        while not self._ends.is_set():
            if self.mode == "refuse":
                self._listener.close()
                while self.mode == "refuse" and not self._ends.is_set():
                    time.sleep(0.02)
                if self._ends.is_set():
                    return
                self._listener = self._listen(self.port)
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()
        self._listener.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            client.settimeout(120)
            while (request := _message(client)) and self._answer(client, request):
                pass
        except OSError:
            pass
        finally:
            self._open.discard(client)
            _shut(client)

    def _choose(self, request: bytes) -> str:
        with self._lock:
            line = request.split(b"\r\n", 1)[0].decode("latin-1")
            if self.mode == "pass" or self.path not in line or self.left == 0:
                return "pass"
            if self.left is not None:
                self.left -= 1
            return self.mode

    def _answer(self, client: socket.socket, request: bytes) -> bool:
        """Deal with one request; return whether the connection goes on."""
        mode = self._choose(request)
        self.seen[mode] += 1
        if mode in ANSWERS:
            client.sendall(
                b"HTTP/1.1 %s %s\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nno"
                % (mode.encode(), ANSWERS[mode])
            )
            return True
        if mode == "hang":
            self._ends.wait(self.delay)
            return False
        if mode in ("reset", "refuse"):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        with socket.create_connection(("127.0.0.1", self.target), timeout=120) as server:
            server.sendall(request)
            answer = _message(server)
        if mode == "slow":
            self._ends.wait(self.delay)
        if mode == "lost_reply":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        client.sendall(answer[: len(answer) // 2] if mode == "half" else answer)
        return mode != "half"

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        for connection in list(self._open):
            _shut(connection)
        self._thread.join(5)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _message(connection: socket.socket) -> bytes:
    """Return one HTTP message with its body, or nothing where the other side has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        while not body.endswith(b"0\r\n\r\n"):
            part = connection.recv(1 << 16)
            if not part:
                return b""
            body += part
        return head + b"\r\n\r\n" + body
    length = int(headers.get(b"content-length", b"0"))
    while len(body) < length:
        part = connection.recv(1 << 16)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body

"""HTTP for the handler: how many requests, how large, how long; the answers are the handler's.

What is beyond the limits is refused before it costs anything:

    503 + Retry-After   more requests than run and wait already
    413                 a body over the limit, by its header or as it comes
    408                 a body that does not come in time

SIGTERM closes the port, lets the requests that were accepted end, and then the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn

from components.loading import DeviceError
from components.logged_model import ModelMismatchError
from components.predict import images
from components.predict.handler import MAX_IMAGES, Handler, Reply
from components.predict.scorer import NonFiniteScoresError
from components.tracking import TrackingError

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_TIMEOUT_S = 30.0
LINGER_BODIES, LINGER_S = 4, 5.0
"""How much of a refused body is still taken in, in largest allowed ones, and for how long."""

DRAIN_S = 25
"""Longest wait for accepted requests after SIGTERM; Kubernetes kills after 30 s by default."""

CONNECTIONS = 512
"""Beyond it uvicorn answers 503 by itself; idle ones cost little."""


class _RefusedError(Exception):
    """A request whose body was not read; carries the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.reply = Reply(status, {"error": message})


class App:
    """The ASGI application around a handler.

    Args:
        handler: Loaded before requests come, or they are answered with 503.
        concurrency: Requests that are decoded and scored at once, each on a thread.
        queue: Requests that may wait for one of those threads.
        max_body_bytes: Of one request. In all, (concurrency + queue) times that are in memory.
        body_timeout_s: Longest time for a body to arrive.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        concurrency: int = 2,
        queue: int = 16,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._handler = handler
        self._most = concurrency + queue
        self._admitted = 0  # only the event loop's thread touches it
        self._max_body = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="tarpon-serve")

    @property
    def admitted(self) -> int:
        """Requests that run or wait."""
        return self._admitted

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] in ("GET", "HEAD"):  # health and metadata never queue
            reply = self._handler.respond(scope["method"], scope["path"], "", b"")
        elif self._admitted >= self._most:
            reply = Reply(503, {"error": f"{self._most} requests run or wait; try again"})
        else:
            self._admitted += 1
            try:
                reply = await self._run(scope, receive)
            finally:
                self._admitted -= 1
        closing = reply.status in (408, 413, 503)  # the rest of the body was not read
        await _send(send, scope, reply, closing=closing)
        if closing:
            await self._take_in(receive)
            await send({"type": "http.response.body"})

    async def _run(self, scope: Message, receive: Receive) -> Reply:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            async with asyncio.timeout(self._body_timeout_s):
                body = await self._body(headers, receive)
        except TimeoutError:
            message = f"no whole body within {self._body_timeout_s:g} s, expected one; send faster"
            return Reply(408, {"error": message})
        except _RefusedError as refused:
            return refused.reply
        kind = headers.get("content-type", "")
        work = (self._handler.respond, scope["method"], scope["path"], kind, body)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, *work)
        except Exception:  # our bug: the trace is for the log, not for the caller
            _log.exception("a request failed")
            return Reply(500, {"error": "the server failed on this request; its log says why"})

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            raise self._too_large(length)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _RefusedError(400, "the body ended early, expected the rest")
            body += message.get("body", b"")
            if len(body) > self._max_body:
                raise self._too_large(f"more than {self._max_body}")
            if not message.get("more_body", False):
                return bytes(body)

    async def _take_in(self, receive: Receive) -> None:
        """Drop what still comes of a body: most clients look for the answer only after it, and a
        connection closed in between would take the answer with it."""
        left = LINGER_BODIES * self._max_body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await receive()
                    if not message.get("more_body", False):  # its end, or the client has gone
                        return
                    left -= len(message["body"])

    def _too_large(self, found: str) -> _RefusedError:
        return _RefusedError(413, f"found {found} bytes, expected {self._max_body} at most")


async def _send(send: Send, scope: Message, reply: Reply, *, closing: bool) -> None:
    body = reply.to_bytes()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if reply.status == 503:
        headers.append((b"retry-after", b"1"))
    if closing:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    shown = b"" if scope["method"] == "HEAD" else body
    await send({"type": "http.response.body", "body": shown, "more_body": closing})


def bound(host: str, port: int) -> socket.socket:
    """The address, taken; nobody can connect before the server listens there.

    Raises:
        OSError: It is taken already, is not this machine's, or is no address.
    """
    family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    taken = socket.socket(family, kind, number)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError:
        taken.close()
        raise
    return taken


def http_server(app: App) -> uvicorn.Server:
    """What carries requests to the application; `run()` blocks until it is told to stop."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return uvicorn.Server(config)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, least in (("concurrency", 1), ("queue", 0), ("max_images", 1), ("max_body_mb", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected {least} or more")
    if not 0 <= options.port <= 65535:  # the system would take it modulo 65,536
        parser.error(f"--port {options.port}: expected 0 to 65535")
    handler = Handler(
        options.model,
        name=options.name,
        device=options.device,
        threads=options.threads,
        max_images=options.max_images,
        max_pixels=options.max_pixels,
    )
    try:
        address = bound(options.host, options.port)  # before the model, which may take a while
    except OSError as error:
        print(
            f"predict.handler: --host {options.host} --port {options.port}: {error}, expected a "
            "free port of this machine; choose another",
            file=sys.stderr,
        )
        return 1
    with address:
        return _serve(handler, options, address)


def _serve(handler: Handler, options: argparse.Namespace, address: socket.socket) -> int:
    """Load the model and answer until a signal comes; returns the exit code."""
    try:
        handler.load()
    except KeyboardInterrupt:
        print("predict.handler: interrupted", file=sys.stderr)
        return 130
    except (DeviceError, ModelMismatchError, NonFiniteScoresError, TrackingError) as error:
        print(f"predict.handler: {error}", file=sys.stderr)
        return 1
    app = App(
        handler,
        concurrency=options.concurrency,
        queue=options.queue,
        max_body_bytes=options.max_body_mb * 1024 * 1024,
    )
    _log.info("serving %s at http://%s:%d", handler.name, options.host, options.port)
    # uvicorn raises the signal once more when it is done, which would end us as if killed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, in the same way
        http_server(app).run([address])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.predict.handler")
    parser.add_argument("--model", required=True, metavar="URI", help="models:/name@champion, ...")
    parser.add_argument("--name", help="in paths; default: the registered name, else 'model'")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a pod (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--threads", type=int, help="torch's, for one request")
    parser.add_argument("--concurrency", type=int, default=2, help="at once (%(default)s)")
    parser.add_argument("--queue", type=int, default=16, help="waiting; then 503 (%(default)s)")
    parser.add_argument("--max-images", type=int, default=MAX_IMAGES, help="of one request")
    parser.add_argument("--max-pixels", type=int, default=images.MAX_PIXELS, help="of one image")
    parser.add_argument("--max-body-mb", type=int, default=16, help="default: %(default)s")
    return parser

"""A small OpenAI-compatible proxy that rewrites the last user turn.

    client --> POST /v1/chat/completions --> rewrite the last user message --> upstream --> its answer, unchanged

Earlier turns pass unchanged. The reply's header `x-alignpro-rewrite` is the message that was sent (percent-encoded, its
beginning where it is long); a request with the header `x-alignpro: off` passes as it is. The rest of the request's body
and the whole of the reply's, streams too, go through. There is no authentication: it listens on this machine only,
unless told otherwise. The upstream's key comes from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

from alignpro_mini.options import UserError, check_ranges, one_line, option
from alignpro_mini.remote.client import LOOPBACK
from alignpro_mini.use.upstream import HttpUpstream, LocalUpstream, Reply, failure

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
REWRITTEN = "x-alignpro-rewrite"  # header of the reply: the rewrite that was sent
SWITCH = "x-alignpro"  # header of the request; "off" leaves the rewriting out
MOST_SHOWN = 1333  # bytes of the rewrite in the reply's header, each up to three characters


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Where the proxy listens, and its limits."""

    host: str = option("127.0.0.1", "address to listen on; any other than this machine's own is open to others")
    port: int = option(8100, "port to listen on; 0: any free one", least=0)
    max_body: int = option(1 << 20, "largest request body in bytes", least=1)
    max_waiting: int = option(16, "requests at the same time; more are told to come back (503)", least=1)
    timeout: float = option(
        120.0, "seconds without a byte, of client or upstream, until a request is given up", above=0
    )

    __post_init__ = check_ranges


Rewrite = Callable[[str], str]


def rewritten(messages: Sequence[dict], rewrite: Rewrite) -> tuple[list[dict], str | None]:
    """The messages with the last user turn rewritten, and that text; None where there is no such text.

    A turn of several parts is rewritten if exactly one of them is a text. Raises UserError for messages that are none.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise UserError("messages must be a list of objects with role and content")
    users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    if not users:
        return messages, None
    content = messages[users[-1]].get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [p for p in parts if isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)]
    if len(texts) != 1 or not texts[0]["text"].strip():
        return messages, None
    x_prime = rewrite(texts[0]["text"])
    changed = x_prime
    if content is parts:
        changed = [part | {"text": x_prime} if part is texts[0] else part for part in parts]
    return [m | {"content": changed} if i == users[-1] else m for i, m in enumerate(messages)], x_prime


class Proxy(ThreadingHTTPServer):
    """The server: `serve_forever()`; `url` is where it listens."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, config: ProxyConfig, rewrite: Rewrite, upstream: HttpUpstream | LocalUpstream) -> None:
        self.config = config
        self.rewrite = rewrite
        self.upstream = upstream
        self.places = threading.BoundedSemaphore(config.max_waiting)
        self.one_at_a_time = threading.Lock()
        handler = type("TimedHandler", (Handler,), {"timeout": config.timeout})
        try:
            super().__init__((config.host, config.port), handler)
        except (OSError, OverflowError) as error:
            address = f"--host {config.host} --port {config.port}"
            raise UserError(f"{address}: cannot listen there ({one_line(error)}); choose another port") from None

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that hung up is no error; a bug is told in one line, without the texts of the request."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"alignpro serve: {type(error).__name__} in a request", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *args) -> None:
        """Nothing is logged: requests are private."""

    def _misnamed(self) -> str:
        """What is wrong if this machine is called by another name: a page in a browser can give it one of its own."""
        host = self.server.config.host
        named = self.headers.get("Host", "")
        try:
            known = host not in LOOPBACK or urlsplit(f"//{named}").hostname in LOOPBACK
        except ValueError:  # a bracket that is never closed
            known = False
        return "" if known else f"this server is {host}, not {named}"

    def _unread(self, status: int, message: str) -> Reply:
        """A refusal of a request whose body is not needed: a client that still writes it would not read the answer."""
        length = self.headers.get("Content-Length", "")
        self.rfile.read(min(int(length), 8 * self.server.config.max_body) if length.isdecimal() else 0)
        return failure(status, message)

    def do_GET(self) -> None:
        if wrong := self._misnamed():
            self._send(failure(403, wrong))
        elif self.path == MODELS:
            self._send(self.server.upstream.models())
        else:
            self._send(failure(404, f"only {CHAT} and {MODELS}"))

    def do_POST(self) -> None:
        if not self.server.places.acquire(blocking=False):
            return self._send(self._unread(503, "too many requests at the same time"), {"Retry-After": "1"})
        try:
            reply = failure(500, "an error in the proxy")
            headers: dict[str, str] = {}
            try:
                reply, headers = self._answer()
            finally:
                self._send(reply, headers)
        finally:
            self.server.places.release()

    def _answer(self) -> tuple[Reply, dict[str, str]]:
        """The upstream's reply, and headers of our own."""
        length = self.headers.get("Content-Length", "")
        most = self.server.config.max_body
        if wrong := self._misnamed():
            return self._unread(403, wrong), {}
        if self.path != CHAT:
            return self._unread(404, f"only {CHAT} and {MODELS}"), {}
        if self.headers.get_content_type() != "application/json":  # a form, which any page in a browser may send
            return self._unread(415, "the Content-Type must be application/json"), {}
        if not length.isdecimal():
            return failure(411, "a Content-Length is needed"), {}
        if int(length) > most:
            return self._unread(413, f"the body has {length} bytes; at most {most} are taken"), {}
        try:
            body = json.loads(self.rfile.read(int(length)))
            if not isinstance(body, dict):
                raise UserError("the body must be an object with messages")
            off = self.headers.get(SWITCH, "").lower() == "off"
            messages, x_prime = rewritten(body.get("messages"), (lambda x: x) if off else self._rewrite)
        except (ValueError, RecursionError) as error:
            return failure(400, one_line(error)), {}
        shown = "" if off or x_prime is None else x_prime.encode()[:MOST_SHOWN].decode(errors="ignore")
        own_headers = {REWRITTEN: quote(shown)} if shown else {}
        return self.server.upstream.chat(body | {"messages": messages}), own_headers

    def _rewrite(self, text: str) -> str:
        with self.server.one_at_a_time:
            return self.server.rewrite(text)

    def _send(self, reply: Reply, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(reply.status)
        for name, value in (
            {"Content-Type": reply.content_type, "Connection": "close"} | reply.headers | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()  # HTTP/1.0: the end of the connection is the end of the body, so streams need no length
        self.close_connection = True
        try:
            for piece in reply.body:
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:  # half an answer must not look whole: the connection is reset, not ended
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

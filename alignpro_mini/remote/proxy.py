"""A small OpenAI-compatible proxy that rewrites the last user turn.

    client --> POST /v1/chat/completions --> rewrite the last user message --> upstream --> its answer, unchanged

Earlier turns pass unchanged. The reply's header `x-alignpro-rewrite` is the message that was sent (percent-encoded, its
beginning where it is long); a request with the header `x-alignpro: off` passes as it is. The rest of the request's body
and the whole of the reply's, streams too, go through. There is no authentication: it listens on this machine only,
unless told otherwise. The upstream's key comes from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import torch

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.options import UserError, check_ranges, one_line, option
from alignpro_mini.remote.client import KEY, LOOPBACK, ApiConfig

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
REWRITTEN, SWITCH, MOST_SHOWN = "x-alignpro-rewrite", "x-alignpro", 1333  # bytes, up to three characters each


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


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, content type and body of an answer, the body in pieces as they come."""

    status: int
    kind: str
    body: Iterator[bytes]
    headers: dict[str, str] = field(default_factory=dict)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is the upstream's answer: following it would hand the key to another address."""

    def redirect_request(self, *args):
        return None


class HttpUpstream:
    """A model behind an OpenAI-compatible API at `base_url` (up to /v1). Raises UserError for no such address."""

    def __init__(self, base_url: str, timeout: float) -> None:
        try:
            self.base_url, self.timeout = ApiConfig(base_url=base_url).base_url.rstrip("/"), timeout
        except UserError as error:
            raise UserError(f"--upstream: {error}") from None
        self._open = urllib.request.build_opener(_NoRedirect).open

    def models(self) -> Reply:
        """What GET /models gives."""
        return self._send("/models", None)

    def chat(self, body: dict) -> Reply:
        """What POST /chat/completions gives; errors of the upstream are answers too."""
        return self._send("/chat/completions", json.dumps(body).encode())

    def _send(self, path: str, data: bytes | None) -> Reply:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        asked = urllib.request.Request(self.base_url + path, data, headers)
        try:
            answer = self._open(asked, timeout=self.timeout)
        except urllib.error.HTTPError as error:  # the upstream's own refusal
            answer = error
        except (OSError, HTTPException) as error:
            return failure(502, f"{self.base_url} does not answer ({one_line(error)})")
        told = {name: answer.headers[name] for name in ("Content-Length", "Retry-After") if name in answer.headers}
        return Reply(answer.status, answer.headers.get("Content-Type", "application/json"), self._pieces(answer), told)

    def _pieces(self, answer) -> Iterator[bytes]:
        """The body. Raises OSError where the upstream ends before it is whole."""
        with answer:
            try:
                while piece := answer.read1(1 << 16):
                    yield piece
            except HTTPException as error:  # a chunk that does not come
                raise OSError(one_line(error)) from None


class LocalUpstream:
    """The frozen model in this process. It answers single turns, by its own sampling options."""

    def __init__(self, frozen: FrozenModel, name: str, generator: torch.Generator | None = None) -> None:
        self.frozen, self.name, self.generator, self._lock = frozen, name, generator, threading.Lock()

    def models(self) -> Reply:
        """The one model."""
        return _json(200, {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "local"}]})

    def chat(self, body: dict) -> Reply:
        """The answer to the only message; with "stream" in one piece."""
        messages = body["messages"]
        if len(messages) != 1 or not isinstance(messages[0].get("content"), str):
            return failure(
                400, "this frozen model answers one text of one user: send a single message, or use --upstream"
            )
        try:
            with self._lock:
                (answer,) = self.frozen.answer([messages[0]["content"]], self.generator)
        except UserError as error:
            return failure(400, str(error))
        reason, count = "length" if answer.truncated else "stop", len(answer.tokens or ())
        about = {"id": f"alignpro-{time.time_ns()}", "created": int(time.time()), "model": self.name}
        if not body.get("stream"):
            message = {"role": "assistant", "content": str(answer.text)}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            usage = {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
            return _json(200, about | {"object": "chat.completion", "choices": [choice], "usage": usage})
        delta = {"index": 0, "delta": {"role": "assistant", "content": str(answer.text)}, "finish_reason": None}
        events = [delta, {"index": 0, "delta": {}, "finish_reason": reason}]
        whole = [json.dumps(about | {"object": "chat.completion.chunk", "choices": [event]}) for event in events]
        return Reply(200, "text/event-stream", iter([f"data: {text}\n\n".encode() for text in (*whole, "[DONE]")]))


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
    said = rewrite(texts[0]["text"])
    changed = [part | {"text": said} if part is texts[0] else part for part in parts] if content is parts else said
    return [m | {"content": changed} if i == users[-1] else m for i, m in enumerate(messages)], said


def failure(status: int, message: str) -> Reply:
    """An error in the API's own form."""
    return _json(status, {"error": {"message": message, "type": "alignpro", "code": status}})


def _json(status: int, value: dict) -> Reply:
    return Reply(status, "application/json", iter([json.dumps(value).encode()]))


class Proxy(ThreadingHTTPServer):
    """The server: `serve_forever()`; `url` is where it listens."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, config: ProxyConfig, rewrite: Rewrite, upstream: HttpUpstream | LocalUpstream) -> None:
        self.config, self.rewrite, self.upstream = config, rewrite, upstream
        self.places, self.one_at_a_time = threading.BoundedSemaphore(config.max_waiting), threading.Lock()
        handler = type("TimedHandler", (Handler,), {"timeout": config.timeout})
        try:
            super().__init__((config.host, config.port), handler)
        except (OSError, OverflowError) as error:
            told = f"--host {config.host} --port {config.port}: cannot listen there ({one_line(error)})"
            raise UserError(f"{told}; choose another port") from None

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
        host, named = self.server.config.host, self.headers.get("Host", "")
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
        there = (
            self.server.upstream.models if self.path == MODELS else lambda: failure(404, f"only {CHAT} and {MODELS}")
        )
        wrong = self._misnamed()
        self._send(failure(403, wrong) if wrong else there())

    def do_POST(self) -> None:
        if not self.server.places.acquire(blocking=False):
            return self._send(self._unread(503, "too many requests at the same time"), {"Retry-After": "1"})
        try:
            reply, headers = failure(500, "an error in the proxy"), {}
            try:
                reply, headers = self._answer()
            finally:
                self._send(reply, headers)
        finally:
            self.server.places.release()

    def _answer(self) -> tuple[Reply, dict[str, str]]:
        """The upstream's reply, and headers of our own."""
        length, most = self.headers.get("Content-Length", ""), self.server.config.max_body
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
            messages, said = rewritten(body.get("messages"), (lambda x: x) if off else self._rewrite)
        except (ValueError, RecursionError) as error:
            return failure(400, one_line(error)), {}
        shown = "" if off or said is None else said.encode()[:MOST_SHOWN].decode(errors="ignore")
        own = {REWRITTEN: quote(shown)} if shown else {}
        return self.server.upstream.chat(body | {"messages": messages}), own

    def _rewrite(self, text: str) -> str:
        with self.server.one_at_a_time:
            return self.server.rewrite(text)

    def _send(self, reply: Reply, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(reply.status)
        for name, value in ({"Content-Type": reply.kind, "Connection": "close"} | reply.headers | headers).items():
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

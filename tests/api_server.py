"""A stand-in for an OpenAI-compatible server, polite or hostile, on this machine's loopback.

    with serving(faults=["429", "stall", ...]) as server: Client(ApiConfig(base_url=server.url), file)

Each request takes the next fault of the list, then the server is polite. A fault is a name, or a pair (status, JSON
value). `server.refuses(body)` may give such a pair for any request. `server.answered` counts whole answers that were
delivered, by (prompt, seed); `server.seen` counts all requests.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ASKS = b'{"error": {"message": "slow"}}'
FINISHES = ("length", "max_tokens", "MAX_TOKENS", "model_length", "error", "abort", "preempted", "whim")


def polite(prompt: str, body: dict) -> str:
    """An answer that depends on the prompt and the draw, as a sampled one does."""
    return f"You asked: {prompt} Draw {body.get('seed')}."


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, faults: Sequence[str | tuple], answer: Callable[[str, dict], str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.answer, self.lock = list(faults), answer, threading.Lock()
        self.refuses: Callable[[dict], tuple[int, object] | None] = lambda body: None
        self.delivered: Counter = Counter()
        self.seen: Counter = Counter()
        self.bodies: list[dict] = []
        self.keys: list[str] = []
        self.paths: list[str] = []

    @property
    def answered(self) -> Counter:
        with self.lock:
            return self.delivered

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that hung up is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, server = body["messages"][-1]["content"], self.server
        with server.lock:
            fault = server.faults.pop(0) if server.faults else ""
            server.seen[str(fault)] += 1
            server.bodies.append(body)
            server.paths.append(self.path)
            server.keys.append(self.headers.get("Authorization", ""))
        if refused := server.refuses(body) or (fault if isinstance(fault, tuple) else None):
            return self.reply(*refused)
        if fault == "asks":
            return self.send(429, ASKS)
        if fault in ("400", "401", "403", "404", "409", "424", "429", "498", "500", "503"):
            return self.reply(int(fault), {"error": {"message": f"fault {fault}\nsecond line"}})
        if fault == "the key":
            return self.reply(500, {"error": {"message": f"no {self.headers['Authorization']}"}})
        if fault == "filter":
            return self.reply(400, {"error": {"message": "filtered", "code": "content_filter"}})
        if fault == "overflow":
            return self.reply(400, {"error": {"message": "maximum context length exceeded"}})
        if fault == "drop":
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "stall":  # silent until the client gives up: its timeout alone decides, however busy the machine is
            return self.rfile.read(1)
        if fault == "late":  # answers come out of order
            time.sleep(0.05)
        if fault == "html":
            return self.send(200, b"<html>welcome</html>", "text/html")
        text = server.answer(prompt, body)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        whole = {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        if fault == "no choices":
            whole["choices"] = []
        if fault == "no message":
            whole["choices"] = [{"index": 0}]
        if fault == "twice":
            whole["choices"] = [choice, choice | {"index": 1}]
        if fault == "no usage":
            del whole["usage"]
        if fault in FINISHES:
            choice["finish_reason"] = fault
        if fault == "null":
            choice["message"]["content"] = None
        if fault == "parts":
            choice["message"]["content"] = [{"type": "text", "text": text}]
        if fault == "marked":  # a byte order mark, an unknown type
            return self.counted(
                lambda: self.send(200, b"\xef\xbb\xbf" + json.dumps(whole).encode(), "text/plain"), body
            )
        if fault == "packed":
            return self.counted(
                lambda: self.send(200, gzip.compress(json.dumps(whole).encode()), encoding="gzip"), body
            )
        if fault == "bad gzip":
            return self.send(200, b"no gzip at all", encoding="gzip")
        if fault == "huge":  # 64 MiB of spaces, which pack to 64 KiB
            return self.send(200, gzip.compress(b" " * (64 << 20), 1), encoding="gzip")
        if fault == "trickle":  # never silent, never whole
            return self.trickle(200)
        if fault == "endless error":
            return self.trickle(500, b"<p>no " * 2000)
        if fault == "truncated":
            return self.send(200, json.dumps(whole).encode()[:-30], "application/json")
        if fault == "cut":  # fewer bytes than promised
            data = json.dumps(whole).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:20])
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault in ("no choices", "no message", "null", "error", "abort", "preempted"):
            return self.reply(200, whole)
        self.counted(lambda: self.reply(200, whole), body)

    def counted(self, deliver: Callable[[], bool], body: dict) -> None:
        """Under the lock: who has the answer in hand finds it in `answered`."""
        with self.server.lock:
            if deliver():
                self.server.delivered[body["messages"][-1]["content"], body.get("seed")] += 1

    def reply(self, status: int, value: object) -> bool:
        return self.send(status, json.dumps(value).encode())

    def trickle(self, status: int, piece: bytes = b" ") -> None:
        self.close_connection = True
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            while True:
                self.wfile.write(piece)
                time.sleep(0.02)
        except OSError:  # the client has had enough
            return

    def send(self, status: int, data: bytes, kind: str = "application/json", encoding: str = "") -> bool:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if encoding:
                self.send_header("Content-Encoding", encoding)
            if data == ASKS:
                self.send_header("Retry-After", "300")
            elif status in (409, 429, 500, 503):
                self.send_header("Retry-After-Ms", "5")
            self.end_headers()
            self.wfile.write(data)
            return True
        except OSError:  # the client did not wait
            return False


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    """Any HTTP server, answering in a thread of its own for the length of the block."""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def serving(faults: Sequence[str | tuple] = (), answer: Callable[[str, dict], str] = polite):
    """The stand-in for the length of a block."""
    return running(Server(faults, answer))

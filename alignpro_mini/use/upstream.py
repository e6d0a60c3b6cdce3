"""Who answers behind the proxy: an OpenAI-compatible API, or the frozen model in this process."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException

import torch

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.options import UserError, one_line
from alignpro_mini.remote.client import KEY, ApiConfig


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, content type and body of an answer, the body in pieces as they come."""

    status: int
    content_type: str
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
            self.base_url = ApiConfig(base_url=base_url).base_url.rstrip("/")
        except UserError as error:
            raise UserError(f"--upstream: {error}") from None
        self.timeout = timeout
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
        passed_on = {name: answer.headers[name] for name in ("Content-Length", "Retry-After") if name in answer.headers}
        content_type = answer.headers.get("Content-Type", "application/json")
        return Reply(answer.status, content_type, self._pieces(answer), passed_on)

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
        self.frozen = frozen
        self.name = name
        self.generator = generator
        self._lock = threading.Lock()

    def models(self) -> Reply:
        """The one model."""
        return _json(200, {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "local"}]})

    def chat(self, body: dict) -> Reply:
        """The answer to the only message; with "stream" in one piece."""
        messages = body["messages"]
        if len(messages) != 1 or not isinstance(messages[0].get("content"), str):
            problem = "this frozen model answers one text of one user: send a single message, or use --upstream"
            return failure(400, problem)
        try:
            with self._lock:
                (answer,) = self.frozen.answer([messages[0]["content"]], self.generator)
        except UserError as error:
            return failure(400, str(error))
        reason = "length" if answer.truncated else "stop"
        count = len(answer.tokens or ())
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


def failure(status: int, message: str) -> Reply:
    """An error in the API's own form."""
    return _json(status, {"error": {"message": message, "type": "alignpro", "code": status}})


def _json(status: int, value: dict) -> Reply:
    return Reply(status, "application/json", iter([json.dumps(value).encode()]))

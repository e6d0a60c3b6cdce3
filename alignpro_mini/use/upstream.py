"""Who answers behind the proxy: an OpenAI-compatible API, or the frozen model in this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

from alignpro_mini.frozen import Answer
from alignpro_mini.options import UserError, one_line, require
from alignpro_mini.remote.client import KEY, LOOPBACK, ApiConfig
from alignpro_mini.use.rewriting import Batches, one_text

try:
    import aiohttp
    from aiohttp import web
except ImportError:  # without the extra [serve]: `check_installed` says so
    aiohttp = web = None

PASSED_ON = ("Content-Type", "Retry-After")  # headers of the upstream's answer
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, without what is left to send
SHORTEST_KEY = 8  # a shorter one is a placeholder, and may be a word


def check_installed() -> None:
    """Raises UserError without aiohttp."""
    require(aiohttp is not None, "alignpro serve needs the package aiohttp: pip install -e '.[serve]'")


class HttpUpstream:
    """A model behind an OpenAI-compatible API at `base_url` (up to /v1). Raises UserError for no such address.

    `timeout`: seconds without a byte of the upstream, or until the client takes a piece; `deadline`: of a whole answer.
    """

    def __init__(self, base_url: str, timeout: float, deadline: float) -> None:
        try:
            self.base_url = ApiConfig(base_url=base_url).base_url.rstrip("/")
        except UserError as error:
            raise UserError(f"--upstream: {error}") from None
        self.timeout = timeout
        self.deadline = deadline
        key = os.environ.get(KEY, "").strip()
        require(key.isascii() and (key + " ").isprintable(), f"{KEY} holds a character that no key has: copy it again")
        self.secret = key if len(key) >= SHORTEST_KEY else ""
        # Uncompressed: the key could not be found otherwise. What comes compressed all the same is decompressed.
        self.headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    async def models(self, request: web.BaseRequest) -> web.StreamResponse:
        """What GET /models gives."""
        return await self._pass_on(request, {}, "GET", "/models")

    async def chat(self, request: web.BaseRequest, body: dict, headers: Mapping[str, str]) -> web.StreamResponse:
        """What POST /chat/completions gives, with `headers` besides; errors of the upstream are answers too."""
        return await self._pass_on(request, headers, "POST", "/chat/completions", data=json.dumps(body).encode())

    async def _pass_on(
        self, request: web.BaseRequest, headers: Mapping[str, str], method: str, path: str, **how
    ) -> web.StreamResponse:
        limits = aiohttp.ClientTimeout(total=self.deadline, sock_connect=self.timeout, sock_read=self.timeout)
        through_proxies = urlsplit(self.base_url).hostname not in LOOPBACK  # those that the environment names
        async with aiohttp.ClientSession(headers=self.headers, timeout=limits, trust_env=through_proxies) as session:
            try:
                # A redirect is the upstream's answer: following it would hand the key to another address.
                answer = await session.request(method, self.base_url + path, allow_redirects=False, **how)
            except (aiohttp.ClientError, OSError) as error:  # also TimeoutError
                return failure(502, f"{self.base_url} does not answer ({one_line(error)})")
            async with answer:
                return await self._stream(request, answer, headers)

    async def _stream(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """The answer, piece by piece as it comes. Half an answer must not look whole: its connection is reset."""
        passed = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
        if self.secret:
            passed = {name: value.replace(self.secret, "*" * len(self.secret)) for name, value in passed.items()}
        reply = web.StreamResponse(status=answer.status, headers=passed | dict(headers))
        reply.force_close()
        if "Content-Encoding" not in answer.headers:
            reply.content_length = answer.content_length
        try:
            await reply.prepare(request)
            async for piece in redacted(answer.content.iter_any(), self.secret.encode()):
                async with asyncio.timeout(self.timeout):
                    await reply.write(piece)
            await reply.write_eof()
        except (aiohttp.ClientError, OSError):  # also TimeoutError; of the upstream or of the client
            if request.transport is not None:
                request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                request.transport.abort()
        return reply


async def redacted(pieces: AsyncIterator[bytes], secret: bytes) -> AsyncIterator[bytes]:
    """The pieces with stars in place of `secret`, also where it is spread over several; b"": as they are."""
    held = b""  # the beginning of what may become the secret
    async for piece in pieces:
        text = held + piece
        if secret:
            text = text.replace(secret, b"*" * len(secret))
        ends = (n for n in range(min(len(secret) - 1, len(text)), 0, -1) if text.endswith(secret[:n]))
        whole = len(text) - next(ends, 0)
        held = text[whole:]
        if whole:
            yield text[:whole]
    if held:
        yield held


class LocalUpstream:
    """The frozen model in this process: `answers` gives an `Answer` for each text. It answers single turns."""

    def __init__(self, answers: Batches, name: str) -> None:
        self.answers = answers
        self.name = name

    async def models(self, request: web.BaseRequest) -> web.Response:
        """The one model."""
        model = {"id": self.name, "object": "model", "owned_by": "local"}
        return web.json_response({"object": "list", "data": [model]})

    async def chat(self, request: web.BaseRequest, body: dict, headers: Mapping[str, str]) -> web.Response:
        """The answer to the only message; with "stream" in one piece."""
        message, *others = body["messages"]
        content = message.get("content")
        text = one_text(content)
        if others or message.get("role") != "user" or text is None or (isinstance(content, list) and len(content) > 1):
            problem = "this frozen model answers one text of one user: send a single message, or use --upstream"
            return failure(400, problem)
        answer = await self.answers.put(text)
        if isinstance(answer, UserError):
            return failure(400, str(answer))
        if isinstance(answer, Exception):
            raise answer
        return self._events(answer, headers) if body.get("stream") else self._completion(answer, headers)

    def _about(self, kind: str, choice: dict) -> dict:
        about = {"id": f"alignpro-{time.time_ns()}", "object": kind, "created": int(time.time()), "model": self.name}
        return about | {"choices": [{"index": 0} | choice]}

    def _completion(self, answer: Answer, headers: Mapping[str, str]) -> web.Response:
        message = {"role": "assistant", "content": answer.text}
        whole = self._about("chat.completion", {"message": message, "finish_reason": _reason(answer)})
        count = len(answer.tokens or ())
        usage = {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
        return web.json_response(whole | {"usage": usage}, headers=headers)

    def _events(self, answer: Answer, headers: Mapping[str, str]) -> web.Response:
        delta = {"delta": {"role": "assistant", "content": answer.text}, "finish_reason": None}
        choices = [delta, {"delta": {}, "finish_reason": _reason(answer)}]
        events = [json.dumps(self._about("chat.completion.chunk", choice)) for choice in choices]
        text = "".join(f"data: {event}\n\n" for event in (*events, "[DONE]"))
        return web.Response(text=text, content_type="text/event-stream", headers=headers)


def _reason(answer: Answer) -> str:
    return "length" if answer.truncated else "stop"


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error in the API's own form."""
    error = {"message": message, "type": "alignpro", "code": status}
    return web.json_response({"error": error}, status=status, headers=headers)

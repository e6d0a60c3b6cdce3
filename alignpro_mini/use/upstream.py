"""Who answers behind the proxy: an OpenAI-compatible API, or the frozen model in this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from alignpro_mini.options import UserError, one_line, require
from alignpro_mini.remote.client import KEY, LOOPBACK, ApiConfig
from alignpro_mini.use.rewriting import Batches, one_text, outcome

try:
    import aiohttp
    from aiohttp import web
except ImportError:  # without the extra [serve]: `check_installed` says so
    aiohttp = web = None

Headers = dict[str, str]
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

    async def answer(self, request: web.BaseRequest, body: dict | None, headers: Headers) -> web.StreamResponse:
        """What POST /chat/completions gives to the body, or without one GET /models; `headers` are added.

        Errors of the upstream are answers too.
        """
        method, path, data = (
            ("GET", "/models", None) if body is None else ("POST", "/chat/completions", json.dumps(body))
        )
        limits = aiohttp.ClientTimeout(total=self.deadline, sock_connect=self.timeout, sock_read=self.timeout)
        through_proxies = urlsplit(self.base_url).hostname not in LOOPBACK  # those that the environment names
        async with aiohttp.ClientSession(headers=self.headers, timeout=limits, trust_env=through_proxies) as session:
            try:
                # A redirect is the upstream's answer: following it would hand the key to another address.
                found = await session.request(method, self.base_url + path, data=data, allow_redirects=False)
            except (aiohttp.ClientError, OSError) as error:  # also TimeoutError
                return failure(502, f"{self.base_url} does not answer ({self._covered(one_line(error))})")
            async with found:
                return await self._stream(request, found, headers)

    async def _stream(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, headers: Headers
    ) -> web.StreamResponse:
        """The answer, piece by piece as it comes. Half an answer must not look whole: its connection is reset."""
        passed = {name: self._covered(answer.headers[name]) for name in PASSED_ON if name in answer.headers}
        reply = web.StreamResponse(status=answer.status, headers=passed | headers)
        reply.force_close()
        try:
            await reply.prepare(request)
            async for piece in redacted(answer.content.iter_any(), self.secret.encode()):
                await asyncio.wait_for(reply.write(piece), self.timeout)
            await reply.write_eof()
        except (aiohttp.ClientError, OSError):  # also TimeoutError; of the upstream or of the client
            if request.transport is not None:
                request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                request.transport.abort()
        return reply

    def _covered(self, text: str) -> str:
        return text.replace(self.secret, "*" * len(self.secret)) if self.secret else text


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

    async def answer(self, request: web.BaseRequest, body: dict | None, headers: Headers) -> web.Response:
        """The answer to the only message, with "stream" in one piece; without a body the list of the one model."""
        if body is None:
            model = {"id": self.name, "object": "model", "owned_by": "local"}
            return web.json_response({"object": "list", "data": [model]})
        message, *others = body["messages"]
        content = message.get("content")
        text = one_text(content)
        if others or message.get("role") != "user" or text is None or (isinstance(content, list) and len(content) > 1):
            problem = "this frozen model answers one text of one user: send a single message, or use --upstream"
            return failure(400, problem)
        try:
            answer = await outcome(self.answers.put(text))
        except UserError as error:
            return failure(400, str(error))
        said = {"role": "assistant", "content": answer.text}
        end = {"index": 0, "finish_reason": "length" if answer.truncated else "stop"}
        about = {"id": f"alignpro-{time.time_ns()}", "created": int(time.time()), "model": self.name}
        if body.get("stream"):
            choices = {"index": 0, "delta": said, "finish_reason": None}, end | {"delta": {}}
            events = [about | {"object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
            text = "".join(f"data: {event}\n\n" for event in (*map(json.dumps, events), "[DONE]"))
            return web.Response(text=text, content_type="text/event-stream", headers=headers)
        count = len(answer.tokens or ())
        usage = {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
        whole = about | {"object": "chat.completion", "choices": [end | {"message": said}], "usage": usage}
        return web.json_response(whole, headers=headers)


def failure(status: int, message: str, headers: Headers | None = None) -> web.Response:
    """An error in the API's own form."""
    error = {"message": message, "type": "alignpro", "code": status}
    return web.json_response({"error": error}, status=status, headers=headers)

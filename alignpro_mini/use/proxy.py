"""A small OpenAI-compatible proxy that rewrites the last user turn.

    client --> POST /v1/chat/completions --> rewrite the last user message --> upstream --> its answer, unchanged

A user turn is rewritten if it is the last message. Where others follow, as in an agent's loop, it gets the rewrite that
it got then. Earlier turns pass unchanged. The reply's header `x-alignpro-rewrite` is the text that was sent
(percent-encoded, its beginning where it is long); a request with the header `x-alignpro: off` passes as it is. The rest
of the request's body and the whole of the reply's, streams too, go through. It listens on this machine only, unless told
otherwise. The upstream's key comes from the environment variable OPENAI_API_KEY.

aiohttp does HTTP on both sides. This adds what is rewritten, and the limits.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import sys
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from alignpro_mini.options import UserError, check_ranges, one_line, option
from alignpro_mini.remote.client import LOOPBACK
from alignpro_mini.use.rewriting import Batches, Rewriter, user_turn, with_text
from alignpro_mini.use.upstream import HttpUpstream, LocalUpstream, failure, web

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
    token: str = option("", "clients must send it as their API key; empty: any key, or none")
    max_body: int = option(1 << 20, "largest request body in bytes", least=1)
    max_connections: int = option(512, "connections at the same time; more are closed at once", least=1)
    max_waiting: int = option(256, "requests at the same time; more are told to come back (503)", least=1)
    timeout: float = option(
        120.0,
        "seconds for a request to come whole, for a client to take a piece, and of an upstream's silence",
        above=0,
    )
    deadline: float = option(1800.0, "seconds until an answer of the upstream must be whole", above=0)

    __post_init__ = check_ranges


class Proxy:
    """`asyncio.run(proxy.serve())`; `url` is where it listens. Raises UserError where it cannot."""

    def __init__(self, config: ProxyConfig, rewrites: Batches, upstream: HttpUpstream | LocalUpstream) -> None:
        self.config = config
        self.rewriter = Rewriter(rewrites)
        self.upstream = upstream
        self.under_way = 0  # requests
        self.server: web.Server | None = None
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            self.socket = socket.create_server((config.host, config.port), family=family)
        except (OSError, OverflowError) as error:
            address = f"--host {config.host} --port {config.port}"
            raise UserError(f"{address}: cannot listen there ({one_line(error)}); choose another port") from None

    @property
    def url(self) -> str:
        host, port, *_ = self.socket.getsockname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    async def serve(self) -> None:
        """Answer requests until it is cancelled."""
        app = web.Application(client_max_size=self.config.max_body)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=logging.Logger("requests are private", logging.CRITICAL + 1),
            auto_decompress=False,
            handler_cancellation=True,  # whoever left needs no answer
            keepalive_timeout=self.config.timeout,  # also until the first request's headers are there
            lingering_time=min(10.0, self.config.timeout),  # for the rest of a body that is refused
            shutdown_timeout=0.1,
        )
        await runner.setup()
        self.server = runner.server

        def connection() -> asyncio.Protocol:
            return self.server() if len(self.server.connections) < self.config.max_connections else _Closed()

        listening = await asyncio.get_running_loop().create_server(connection, sock=self.socket)
        try:
            await asyncio.Event().wait()
        finally:
            listening.close()
            await runner.cleanup()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The answer to any request; what is wrong comes in the API's form."""
        self.under_way += 1
        try:
            if self.under_way > self.config.max_waiting:
                reply = failure(503, "too many requests at the same time", {"Retry-After": "1"})
            else:
                reply = await self._answer(request)
        except web.HTTPException as refused:
            reply = failure(refused.status, refused.text)
        except (ConnectionError, asyncio.CancelledError):  # the client left
            raise
        except Exception as error:  # a bug is told in one line, without the texts of the request
            print(f"alignpro serve: {type(error).__name__} in a request", file=sys.stderr)
            reply = failure(500, "an error in the proxy")
        finally:
            self.under_way -= 1
            asyncio.get_running_loop().call_later(self.config.timeout, _drop, request.transport)
        reply.force_close()
        return reply

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """What the upstream says. Raises web.HTTPException for what is not passed on."""
        self._check_caller(request)
        if (request.method, request.path) == ("GET", MODELS):
            return await self.upstream.answer(request, None, {})
        if (request.method, request.path) != ("POST", CHAT):
            raise web.HTTPNotFound(text=f"only POST {CHAT} and GET {MODELS}")
        if request.content_type != "application/json":  # a form, which any page in a browser may send
            raise web.HTTPUnsupportedMediaType(text="the Content-Type must be application/json")
        if "Content-Encoding" in request.headers:  # a few bytes can become very many
            raise web.HTTPUnsupportedMediaType(text="the body must not be compressed")
        body, turn = await self._read(request)
        x_prime = None
        if turn and request.headers.get(SWITCH, "").lower() != "off":
            place, x = turn
            messages = body["messages"]
            try:
                x_prime = await self.rewriter(x, fresh=place == len(messages) - 1)
            except UnicodeEncodeError as error:  # half an emoji is no text
                raise web.HTTPBadRequest(text=one_line(error)) from None
            if x_prime is not None:
                messages[place] = with_text(messages[place], x_prime)
        shown = (x_prime or "").encode()[:MOST_SHOWN].decode(errors="ignore")
        return await self.upstream.answer(request, body, {REWRITTEN: quote(shown)} if shown else {})

    def _check_caller(self, request: web.Request) -> None:
        """Refuses a wrong token, and a request that calls this machine by another name.

        A page in a browser can give it such a name, one of its own, and would be let in.
        """
        host = self.config.host
        named = request.headers.get("Host", "")
        try:
            known = host not in LOOPBACK or urlsplit(f"//{named}").hostname in LOOPBACK
        except ValueError:  # a bracket that is never closed
            known = False
        if not known:
            raise web.HTTPForbidden(text=f"this server is {host}, not {named!r}")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given, wanted = (text.encode(errors="surrogateescape") for text in (given, self.config.token))
        if wanted and not hmac.compare_digest(given, wanted):
            raise web.HTTPUnauthorized(text="the API key is not the --token of this proxy")

    async def _read(self, request: web.Request) -> tuple[dict, tuple[int, str] | None]:
        """The body, and its `user_turn`. Refuses what is too large, too slow, or no chat request."""
        try:
            async with asyncio.timeout(self.config.timeout):
                body = json.loads(await request.read())
                json.dumps(body, allow_nan=False)  # NaN and 1e999 are no JSON: the upstream would get it from here
            if not isinstance(body, dict):
                raise UserError("the body must be an object with messages")
            return body, user_turn(body.get("messages"))
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"the body did not come within {self.config.timeout:g} s") from None
        except (web.RequestPayloadError, ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(text=one_line(error)) from None


class _Closed(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.abort()


def _drop(transport: asyncio.Transport | None) -> None:
    """Give up an answer that the client did not take in time."""
    if transport is not None and transport.get_write_buffer_size():
        transport.abort()

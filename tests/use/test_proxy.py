"""The proxy and what answers behind it: what is rewritten, what is refused, and that nothing is lost on the way."""

import asyncio
import gzip
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

pytest.importorskip("aiohttp")

import openai
from api_server import running, serving

from alignpro_mini.frozen import Answer
from alignpro_mini.options import UserError
from alignpro_mini.use.proxy import REWRITTEN, Proxy, ProxyConfig
from alignpro_mini.use.rewriting import Batches
from alignpro_mini.use.upstream import HttpUpstream, LocalUpstream

MSG = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'


def capitals(texts):
    return [x.upper() for x in texts]


def answers(texts):
    """A frozen model's answers; "bad" is a text that it refuses."""
    if "bad" in texts:
        raise UserError("too long")
    return [Answer(f"said: {x}", truncated="cut" in x, tokens=[1, 2]) for x in texts]


def until(condition):
    """Wait for it, however busy the machine is."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that in a minute")


@contextmanager
def proxied(upstream, rewrite=capitals, **options):
    """A proxy for the length of a block: `url`, `address`, `seen` (the batches of texts that were rewritten).

    `upstream`: one, or its address, or "" for a model in this process.
    """
    config = ProxyConfig(port=0, **options)
    seen = []
    with ThreadPoolExecutor(2) as threads:
        batches = Batches(lambda texts: seen.append(list(texts)) or rewrite(texts), threads)
        behind = LocalUpstream(Batches(answers, threads), "toy")
        if upstream:
            behind = HttpUpstream(upstream, 120.0, 1800.0) if isinstance(upstream, str) else upstream
        proxy = Proxy(config, batches, behind)
        loop = asyncio.new_event_loop()
        task = loop.create_task(proxy.serve())
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            thread = threading.Thread(target=lambda: runner.run(asyncio.wait([task])))
            thread.start()
            until(lambda: proxy.server or task.done())
            try:
                yield SimpleNamespace(url=proxy.url, address=proxy.socket.getsockname()[:2], seen=seen, proxy=proxy)
            finally:
                loop.call_soon_threadsafe(task.cancel)
                thread.join(60)


def client(proxy, api_key="none") -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.url, api_key=api_key, max_retries=0)


def say(proxy, *messages, **more):
    said = [{"role": role, "content": content} for role, content in messages]
    return client(proxy).chat.completions.with_raw_response.create(model="m", messages=said, **more)


def ask(proxy, body: bytes | None = MSG, path="/v1/chat/completions", **headers) -> tuple[int, dict, str]:
    """Status, headers and body of a raw request."""
    headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(proxy.url.removesuffix("/v1") + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, dict(reply.headers), reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def head(length: int, *more: str) -> bytes:
    """The beginning of a request with a body of so many bytes."""
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", *more, "", ""]).encode()


def raw(proxy, *pieces: bytes) -> bytes:
    """What comes on a connection that sends these bytes and then waits for its end."""
    with socket.create_connection(proxy.address, timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            received += b"<reset>"
        return received


# ---------------------------------------------------------------- what is sent


def test_the_openai_client_talks_through_the_proxy(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-mine")
    with serving() as server, proxied(server.url) as proxy:
        turns = ("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "ümlaut?")
        raw = say(proxy, *turns, temperature=0.3, seed=4)
        assert raw.parse().choices[0].message.content == "You asked: ÜMLAUT? Draw 4."
        assert unquote(raw.headers[REWRITTEN]) == "ÜMLAUT?"
        sent = server.bodies[0]
        assert [m["content"] for m in sent["messages"]] == ["s", "first", "a", "ÜMLAUT?"] and sent["temperature"] == 0.3
        assert server.keys == ["Bearer sk-mine-mine"], "the key of the environment, not the client's"
        assert ask(proxy, MSG.replace(b"hello", b"half \\ud83d"), x_alignpro="Off")[0] == 200
        raw = say(proxy, *turns, extra_headers={"x-alignpro": "off"})
        assert REWRITTEN not in raw.headers and server.bodies[2]["messages"][-1]["content"] == "ümlaut?"


def test_in_a_loop_of_tools_the_users_turn_stays_what_it_was():
    def numbered(texts):
        return [f"{x} {len(proxy.seen)}" for x in texts]

    with serving() as server, proxied(server.url, numbered) as proxy:
        turn = ("user", "weather?")
        tools = ("assistant", "I ask."), ("tool", "rain")
        for messages in (
            [turn, *tools],
            [turn],
            [turn, *tools],
            [turn, *tools, *tools],
            [turn, *tools, ("user", "why?")],
        ):
            raw = say(proxy, *messages)
        assert [[m["content"] for m in body["messages"] if m["role"] == "user"] for body in server.bodies] == [
            ["weather?"],  # only a final turn is rewritten
            ["weather? 1"],
            ["weather? 1"],
            ["weather? 1"],
            ["weather?", "why? 2"],
        ]
        assert unquote(raw.headers[REWRITTEN]) == "why? 2" and proxy.seen == [["weather?"], ["why?"]]


def test_requests_that_wait_are_rewritten_as_one_batch():
    gate, begun = threading.Event(), threading.Event()
    waits = lambda texts: begun.set() or gate.wait(60) and capitals(texts)
    with serving() as server, proxied(server.url, waits) as proxy, ThreadPoolExecutor(51) as clients:
        replies = [clients.submit(ask, proxy)]
        assert begun.wait(60)
        replies += [clients.submit(ask, proxy, MSG.replace(b"hello", b"number %d" % i)) for i in range(50)]
        until(lambda: proxy.proxy.under_way == 51)
        gate.set()
        said = [json.loads(reply.result()[2])["choices"][0]["message"]["content"] for reply in replies]
    assert said == ["You asked: HELLO Draw None.", *(f"You asked: NUMBER {i} Draw None." for i in range(50))]
    assert [len(batch) for batch in proxy.seen] == [1, 32, 18]


def test_a_long_rewrite_is_shown_up_to_a_whole_letter():
    with serving() as server, proxied(server.url, lambda texts: ["x" + "ü" * 5000 for _ in texts]) as proxy:
        status, headers, _ = ask(proxy)
    assert status == 200 and unquote(headers[REWRITTEN], errors="strict") == "x" + "ü" * 666


def test_a_request_that_stays_as_it_is():
    with serving() as server, proxied(server.url, lambda texts: [None for _ in texts]) as proxy:
        assert ask(proxy)[1][REWRITTEN] == "hello" and proxy.seen == [["hello"]]
        assert REWRITTEN not in ask(proxy, MSG.replace(b"hello", b" "))[1] and len(proxy.seen) == 1
    assert [body["messages"][0]["content"] for body in server.bodies] == ["hello", " "]


# ---------------------------------------------------------------- what the upstream says


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.act(self)

    def answer(self, data: bytes, status=200, **headers):
        self.send_response(status)
        known = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in (known | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def upstream(act):
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Upstream)) as server:
        server.act = act
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


def test_the_upstreams_refusal_is_passed_on():
    with serving(["404", "429"]) as server, proxied(server.url) as proxy:
        with pytest.raises(openai.NotFoundError, match="fault 404"):
            say(proxy, ("user", "x"))
        with pytest.raises(openai.RateLimitError):
            say(proxy, ("user", "x"))
    with proxied("http://127.0.0.1:9/v1") as proxy:
        status, _, told = ask(proxy)
        assert status == 502 and "127.0.0.1:9/v1 does not answer" in told


def test_an_address_that_is_none_is_told_at_the_start(monkeypatch):
    with pytest.raises(UserError, match="--upstream: base_url is 'example.org/v1'"):
        HttpUpstream("example.org/v1", 1.0, 1.0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\x07")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds a character that no key has"):
        HttpUpstream("http://127.0.0.1:9/v1", 1.0, 1.0)


def test_a_redirect_does_not_take_the_key_along(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-mine")
    with serving() as other:
        with upstream(lambda h: h.answer(b"", 302, Location=f"{other.url}/chat/completions")) as url, proxied(url) as p:
            assert ask(p)[0] == 302 and not other.keys


@pytest.mark.parametrize(
    "headers", [{"Content_Length": "99"}, {"Content_Length": None, "Transfer_Encoding": "chunked"}]
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_half_an_answer_does_not_look_whole(headers, version):
    def half(handler):
        handler.answer(b"a\r\ndata: half\r\n", **headers)
        handler.close_connection = True

    with upstream(half) as url, proxied(url) as proxy:
        if version == "1.1":
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(proxy)
        else:  # nothing but the end of the connection could tell
            request = head(len(MSG)).replace(b"HTTP/1.1", b"HTTP/1.0") + MSG
            assert raw(proxy, request).endswith(b"<reset>")


def test_an_answer_that_is_compressed_unasked_can_be_read():
    packed = gzip.compress('{"fine": "é"}'.encode())

    def compressed(handler):
        assert handler.headers["Accept-Encoding"] == "identity"
        handler.answer(packed, Content_Encoding="gzip")

    with upstream(compressed) as url, proxied(url) as proxy:
        status, headers, body = ask(proxy)
    assert (status, body) == (200, '{"fine": "é"}') and "Content-Encoding" not in headers


@pytest.mark.parametrize("status", [200, 401])
def test_a_key_that_the_upstream_repeats_is_covered(status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-mine")

    def repeats(handler):
        key = handler.headers["Authorization"].encode()
        packed = {"Content_Encoding": "gzip"} if status == 401 else {}
        body = b"wrong key: " + key
        handler.answer(gzip.compress(body) if packed else body, status, Retry_After=key.decode(), **packed)

    with upstream(repeats) as url, proxied(url) as proxy:
        found, headers, body = ask(proxy)
    assert (found, body, headers["Retry-After"]) == (status, "wrong key: Bearer ************", "Bearer ************")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n%s\r\n\r\n",
        b"%s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 19\r\n\r\n%s",
        b"",
    ],
)
def test_an_answer_that_is_no_http(answer, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-mine")

    def broken(handler):
        handler.wfile.write(answer.replace(b"%s", handler.headers["Authorization"].encode()))
        handler.close_connection = True

    with upstream(broken) as url, proxied(url) as proxy:
        told = raw(proxy, head(len(MSG)) + MSG)
    assert b" 502 " in told.splitlines()[0] or not told.endswith(b"0\r\n\r\n"), "it looks whole"
    assert b"mine" not in told and not caplog.records


def test_a_stream_comes_piece_by_piece():
    gate = threading.Event()

    def slowly(handler):
        handler.answer(b"", Content_Type="text/event-stream", Content_Length=None, Transfer_Encoding="chunked")
        handler.wfile.write(b"c\r\ndata: one\n\n\n\r\n")
        assert gate.wait(60)
        handler.wfile.write(b"b\r\ndata: two\n\n\r\n0\r\n\r\n")

    with upstream(slowly) as url, proxied(url) as proxy:
        connection = http.client.HTTPConnection(*proxy.address, timeout=60)
        connection.request("POST", "/v1/chat/completions", MSG, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.read1() == b"data: one\n\n\n", "before the rest is there"
        gate.set()
        assert reply.read() == b"data: two\n\n" and reply.headers["Content-Type"] == "text/event-stream"


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving() as server, proxied(server.url) as proxy:
        assert b"You asked: HELLO Draw None." in raw(proxy, head(len(MSG)) + MSG)


# ---------------------------------------------------------------- the run's own model


def test_the_model_of_the_run_answers():
    with proxied("") as proxy:
        whole = say(proxy, ("user", "hi")).parse()
        assert whole.choices[0].message.content == "said: HI" and whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == 2
        assert (
            say(proxy, ("user", "CUT"), extra_headers={"x-alignpro": "off"}).parse().choices[0].finish_reason == "stop"
        )
        raw = say(proxy, ("user", [{"type": "text", "text": "cut"}]), extra_headers={"x-alignpro": "off"})
        assert raw.parse().choices[0].finish_reason == "length"
        stream = client(proxy).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        pieces = list(stream)
        assert pieces[0].choices[0].delta.content == "said: HI" and pieces[-1].choices[0].finish_reason == "stop"
        assert [m.id for m in client(proxy).models.list()] == ["toy"]


@pytest.mark.parametrize(
    "messages, said",
    [
        ([("user", "x"), ("user", "y")], "single message, or use --upstream"),
        ([("system", "x")], "single message"),
        (
            [("user", [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}])],
            "single message",
        ),
        ([("user", "bad")], "too long"),
    ],
)
def test_what_the_model_of_the_run_cannot_answer(messages, said):
    with proxied("", lambda texts: texts) as proxy:
        with pytest.raises(openai.BadRequestError, match=said):
            say(proxy, *messages)


# ---------------------------------------------------------------- hostile clients


@pytest.mark.parametrize(
    "body, headers, status, said",
    [
        (b"{", {}, 400, "Expecting"),
        (b"[1]", {}, 400, "must be an object"),
        (b"{}", {}, 400, "messages must be a list"),
        (b'{"messages": []}', {}, 400, "messages must be a list"),
        (b'{"messages": [3]}', {}, 400, "messages must be a list"),
        (b'{"a": "\xff"}', {}, 400, "decode"),
        (MSG.replace(b"{", b'{"temperature": NaN, ', 1), {}, 400, "not JSON compliant"),
        (MSG.replace(b"{", b'{"temperature": 1e999, ', 1), {}, 400, "not JSON compliant"),
        (b"[" * 50_000, {}, 400, "recursion"),
        (b'{"messages": [{"role": "user", "content": "a \\ud83d"}]}', {}, 400, "surrogates not allowed"),
        (b'{"seed": ' + b"9" * 5000 + b"}", {}, 400, "limit"),
        (b"x" * 200_000, {}, 413, "100000"),
        (gzip.compress(MSG), {"Content_Encoding": "gzip"}, 415, "must not be compressed"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "application/json"),
        (b"{}", {"Content_Type": "text/plain; x=application/json"}, 415, "application/json"),
        (b"{}", {"Host": "evil.example:8100"}, 403, "not 'evil.example:8100'"),
        (b"{}", {"Host": "\xff"}, 403, "this server is 127.0.0.1, not"),
        (b"{}", {"Host": "["}, 403, "not '['"),
        (b"x" * 90_000, {"Host": "evil.example:8100"}, 403, "not 'evil.example:8100'"),
    ],
)
def test_bad_requests_are_told_in_the_apis_form(body, headers, status, said):
    with serving() as server, proxied(server.url, max_body=100_000) as proxy:
        found, _, told = ask(proxy, body, **headers)
        assert (found, said in json.loads(told)["error"]["message"]) == (status, True), told
        assert not server.bodies


def test_other_paths_and_methods():
    with serving() as server, proxied(server.url) as proxy:
        for path, body in (("/v1/other", b"{}"), ("/", None), ("/v1/chat/completions", None), ("/v1/models", b"{}")):
            assert ask(proxy, body, path)[0] == 404
        assert raw(proxy, b"OPTIONS /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").startswith(b"HTTP/1.1 404")
        assert not server.bodies


def test_a_token_is_asked_for():
    with serving() as server, proxied(server.url, token="mine") as proxy:
        for wrong in (
            {},
            {"Authorization": "Bearer mine2"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer é"},
        ):
            assert ask(proxy, **wrong)[0] == 401 and ask(proxy, None, "/v1/models", **wrong)[0] == 401
        assert not server.bodies
        made = client(proxy, "mine").chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert made.choices[0].message.content == "You asked: HI Draw None."


def test_a_body_in_chunks():
    chunks = b"%x\r\n%s\r\n" % (9, MSG[:9]) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(MSG) - 9, MSG[9:])
    start = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with serving() as server, proxied(server.url, max_body=1000) as proxy:
        assert b" 200 " in raw(proxy, start + chunks).splitlines()[0]
        assert server.bodies[0]["messages"][0]["content"] == "HELLO"
        assert b" 413 " in raw(proxy, start + (b"1f4\r\n" + b" " * 500 + b"\r\n") * 3 + b"0\r\n\r\n").splitlines()[0]
        assert b" 400 " in raw(proxy, start + b"zz\r\n").splitlines()[0]


def test_too_many_requests_at_the_same_time_are_told_to_come_back():
    gate = threading.Event()
    with serving() as server, proxied(server.url, lambda x: gate.wait(60) and x, max_waiting=2) as proxy:
        with ThreadPoolExecutor(2) as clients:
            replies = [clients.submit(ask, proxy) for _ in range(2)]
            until(lambda: proxy.proxy.under_way == 2)
            status, headers, _ = ask(proxy, MSG + b" " * 900_000)  # more than the socket holds
            assert status == 503 and headers["Retry-After"] == "1"
            gate.set()
            assert [reply.result()[0] for reply in replies] == [200, 200]
        assert ask(proxy)[0] == 200


SLOW = {
    "nothing at all": (b"", b""),
    "half a header": (b"POST /v1/chat/completions HTTP/1.1\r\nHos", b""),
    "no body": (head(100), b"HTTP/1.1 408 "),
    "half a body": (head(100) + b"{", b"HTTP/1.1 408 "),
    "half a body that is refused": (head(100).replace(b"chat", b"chit") + b"{", b"HTTP/1.1 404 "),
}


@pytest.mark.parametrize("sent, first", SLOW.values(), ids=SLOW)
def test_a_client_that_does_not_go_on_is_given_up(sent, first):
    """On a busy machine its headers may come too late, too: then it gets no answer."""
    with serving() as server, proxied(server.url, timeout=0.2) as proxy:
        told = raw(proxy, sent)
        assert told.startswith(first) or not told
        until(lambda: not proxy.proxy.under_way)


def test_a_client_that_trickles_is_given_up():
    with serving() as server, proxied(server.url, timeout=0.2) as proxy:
        for start in (head(10**6), b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: "):
            with socket.create_connection(proxy.address, timeout=60) as connection:
                connection.sendall(start)
                with pytest.raises(OSError):
                    for _ in range(6000):
                        connection.sendall(b" ")
                        time.sleep(0.01)
        assert not server.bodies


@pytest.mark.parametrize("size, timeouts", [(50 << 10, (0.5, 60.0)), (1 << 20, (60.0, 0.5))])
def test_a_client_that_does_not_take_its_answer_is_given_up(size, timeouts):
    """The smaller answer is in the proxy's hands when the upstream is done: nothing waits for it any more."""
    sent = threading.Event()

    def much(handler):
        try:
            handler.answer(b"x" * size)
        finally:
            sent.set()

    of_proxy, of_upstream = timeouts
    with upstream(much) as url, socket.socket() as connection:
        with proxied(HttpUpstream(url, of_upstream, 1800.0), timeout=of_proxy) as proxy:
            proxy.proxy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(proxy.address)
            connection.sendall(head(len(MSG)) + MSG)
            sent.wait(5.0)  # a machine that is too busy does not come so far in `of_proxy`
            until(lambda: not proxy.proxy.server.connections)


def test_an_upstream_that_is_silent_or_never_ends_is_given_up():
    gate = threading.Event()

    def trickle(handler):
        handler.answer(b"", Content_Length=None, Connection="close")
        while not gate.is_set():
            handler.wfile.write(b" ")
            time.sleep(0.02)

    with upstream(lambda h: gate.wait(60)) as url, proxied(HttpUpstream(url, 0.2, 1800.0)) as proxy:
        status, _, told = ask(proxy)
        assert status == 502 and "does not answer" in told
    with upstream(trickle) as url, proxied(HttpUpstream(url, 60.0, 0.5)) as proxy:
        told = raw(proxy, head(len(MSG)) + MSG)
        assert b"502" in told or not told.endswith(b"0\r\n\r\n"), "it looks whole"
    gate.set()


def test_connections_have_a_limit():
    with serving() as server, proxied(server.url, max_connections=3) as proxy:
        idle = [socket.create_connection(proxy.address, timeout=60) for _ in range(3)]
        until(lambda: len(proxy.proxy.server.connections) == 3)
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(proxy)
        for connection in idle:
            connection.close()
        until(lambda: not proxy.proxy.server.connections)
        assert ask(proxy)[0] == 200


def test_a_bug_in_the_rewriting_is_an_error_500_and_no_silence(capfd, caplog):
    with serving() as server, proxied(server.url, lambda texts: 1 / 0) as proxy:
        status, _, told = ask(proxy, MSG.replace(b"hello", b"my secret"))
        assert status == 500 and "an error in the proxy" in told
        raw(proxy, b"\x00\xff secret\r\n\r\n")
        raw(proxy, b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n")
        with socket.create_connection(proxy.address, timeout=60) as connection:
            connection.sendall(head(100) + b"secret")
            until(lambda: proxy.proxy.under_way)
        until(lambda: not proxy.proxy.under_way)
    assert capfd.readouterr().err == "alignpro serve: ZeroDivisionError in a request\n" and not caplog.records


def test_a_client_that_leaves_frees_its_place_and_its_upstream():
    came, left = threading.Event(), threading.Event()

    def waits(handler):
        came.set()
        handler.connection.settimeout(60)
        assert handler.rfile.read(1) == b"", "the proxy hung up"
        left.set()

    with upstream(waits) as url, proxied(url) as proxy:
        with socket.create_connection(proxy.address, timeout=60) as connection:
            connection.sendall(head(len(MSG)) + MSG)
            assert came.wait(60)
        assert left.wait(60)
        until(lambda: not proxy.proxy.under_way)


def test_a_port_that_is_taken_is_one_line():
    with proxied("http://127.0.0.1:9/v1") as proxy:
        with pytest.raises(UserError, match="cannot listen there"):
            Proxy(ProxyConfig(port=proxy.address[1]), None, None)


def test_an_address_of_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    with serving() as server, proxied(server.url, host="::1") as proxy:
        assert proxy.url.startswith("http://[::1]:") and ask(proxy)[0] == 200

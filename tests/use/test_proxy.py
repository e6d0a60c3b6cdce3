"""The proxy and what answers behind it: what is rewritten, what is refused, and that nothing is lost on the way."""

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import openai
import pytest
import torch
from api_server import running, serving

from alignpro_mini.frozen import Answer
from alignpro_mini.options import UserError
from alignpro_mini.use.proxy import REWRITTEN, Proxy, ProxyConfig, rewritten
from alignpro_mini.use.trained import Trained
from alignpro_mini.use.upstream import HttpUpstream, LocalUpstream

X = "Tell me about Milton."


@pytest.fixture
def run(whole_run) -> Path:
    return whole_run[0]


def proxied(upstream, rewrite=lambda x: x.upper(), **options):
    return running(Proxy(ProxyConfig(port=0, **options), rewrite, upstream))


def client(proxy) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.url, api_key="none", max_retries=0)


def ask(proxy, body: bytes, path="/v1/chat/completions", **headers) -> tuple[int, dict, str]:
    """Status, headers and body of a raw request."""
    headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(proxy.url.removesuffix("/v1") + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, dict(reply.headers), reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def test_the_openai_client_talks_through_the_proxy(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with serving() as server, proxied(HttpUpstream(server.url, 30.0)) as proxy:
        turns = ("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "ümlaut?")
        said = [{"role": role, "content": content} for role, content in turns]
        raw = client(proxy).chat.completions.with_raw_response.create(model="m", messages=said, temperature=0.3, seed=4)
        assert raw.parse().choices[0].message.content == "You asked: ÜMLAUT? Draw 4."
        assert unquote(raw.headers[REWRITTEN]) == "ÜMLAUT?"
        sent = server.bodies[0]
        assert sent["messages"] == [*said[:3], {"role": "user", "content": "ÜMLAUT?"}] and sent["temperature"] == 0.3
        assert server.keys == ["Bearer sk-mine"], "the key of the environment, not the client's"
        off = client(proxy).chat.completions.with_raw_response
        raw = off.create(model="m", messages=said, extra_headers={"x-alignpro": "off"})
        assert REWRITTEN not in raw.headers and server.bodies[1]["messages"] == said


def test_the_upstreams_refusal_is_passed_on():
    with serving(["404", "429"]) as server, proxied(HttpUpstream(server.url, 30.0)) as proxy:
        with pytest.raises(openai.NotFoundError, match="fault 404"):
            client(proxy).chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.RateLimitError):
            client(proxy).chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    with proxied(HttpUpstream("http://127.0.0.1:9/v1", 30.0)) as proxy:
        status, _, told = ask(proxy, b'{"messages": [{"role": "user", "content": "x"}]}')
        assert status == 502 and "127.0.0.1:9/v1 does not answer" in told


def test_streams_come_piece_by_piece(run):
    trained = Trained(run, "cpu", seed=0)
    with proxied(LocalUpstream(trained.frozen, "toy"), lambda x: x) as proxy:
        whole = client(proxy).chat.completions.create(model="toy", messages=[{"role": "user", "content": X}])
        assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens > 0
        stream = client(proxy).chat.completions.create(
            model="toy", messages=[{"role": "user", "content": X}], stream=True
        )
        pieces = list(stream)
        assert pieces[-1].choices[0].finish_reason and isinstance(pieces[0].choices[0].delta.content, str)
        assert [m.id for m in client(proxy).models.list()] == ["toy"]
        with pytest.raises(openai.BadRequestError, match="single message, or use --upstream"):
            client(proxy).chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}] * 2)


class Dice:
    """A frozen model that answers a draw from the generator that it is given."""

    def answer(self, prompts, generator=None):
        assert generator is not None, "the global one is every thread's"
        return [Answer(f"{x} {torch.rand((), generator=generator):.6f}", truncated=False) for x in prompts]


def test_a_local_model_answers_from_a_stream_of_its_own():
    def said(seed):
        local = LocalUpstream(Dice(), "toy", torch.Generator().manual_seed(seed))
        replies = [local.chat({"messages": [{"role": "user", "content": X}]}) for _ in range(3)]
        return [json.loads(b"".join(reply.body))["choices"][0]["message"]["content"] for reply in replies]

    assert said(0) == said(0) != said(1) and len(set(said(0))) == 3


@pytest.mark.parametrize(
    "body, headers, status, said",
    [
        (b"{", {}, 400, "Expecting"),
        (b"[1]", {}, 400, "must be an object"),
        (b"{}", {}, 400, "messages must be a list"),
        (b'{"messages": []}', {}, 400, "messages must be a list"),
        (b'{"messages": [3]}', {}, 400, "messages must be a list"),
        (b'{"a": "\xff"}', {}, 400, "decode"),
        (b"[" * 50_000, {}, 400, "recursion"),
        (b"x" * 2000, {}, 413, "at most 100000"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "application/json"),
        (b"{}", {"Content_Type": "text/plain; x=application/json"}, 415, "application/json"),
        (b"{}", {"Host": "evil.example:8100"}, 403, "not evil.example"),
        (b"{}", {"Host": "["}, 403, "not ["),
        (b"x" * 90_000, {"Host": "evil.example:8100"}, 403, "not evil.example"),
    ],
)
def test_bad_requests_are_told_in_the_apis_form(body, headers, status, said):
    with serving() as server, proxied(HttpUpstream(server.url, 30.0), max_body=100_000) as proxy:
        body = body * 100 if status == 413 else body
        found, _, told = ask(proxy, body, **headers)
        assert (found, said in json.loads(told)["error"]["message"]) == (status, True), told
        assert not server.bodies
        assert ask(proxy, b"{}", "/v1/other")[0] == 404


class Upstream(BaseHTTPRequestHandler):
    """Redirects, or breaks off in the middle of its answer."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.kind == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(
            *("Content-Length", "99") if self.server.kind == "length" else ("Transfer-Encoding", "chunked")
        )
        self.end_headers()
        self.wfile.write(b"data: half" if self.server.kind == "length" else b"a\r\ndata: half\r\n")
        self.close_connection = True


@contextmanager
def upstream(kind: str, elsewhere: str = ""):
    Upstream.protocol_version = "HTTP/1.1"
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Upstream)) as server:
        server.kind, server.elsewhere = kind, elsewhere
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


def test_a_redirect_does_not_take_the_key_along(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with (
        serving() as other,
        upstream("redirect", f"{other.url}/chat/completions") as url,
        proxied(HttpUpstream(url, 30.0)) as proxy,
    ):
        status, _, _ = ask(proxy, b'{"messages": [{"role": "user", "content": "x"}]}')
        assert status == 302 and not other.keys


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_half_an_answer_does_not_look_whole(kind):
    with upstream(kind) as url, proxied(HttpUpstream(url, 30.0)) as proxy:
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(proxy, b'{"messages": [{"role": "user", "content": "x"}]}')


def test_an_address_that_is_none_is_told_at_the_start():
    with pytest.raises(UserError, match="--upstream: base_url is 'example.org/v1'"):
        HttpUpstream("example.org/v1", 1.0)


def test_too_many_requests_at_the_same_time_are_told_to_come_back():
    gate = threading.Event()
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    with (
        serving() as server,
        proxied(HttpUpstream(server.url, 30.0), lambda x: gate.wait(60) and x, max_waiting=2) as proxy,
    ):
        statuses = []
        threads = [threading.Thread(target=lambda: statuses.append(ask(proxy, body)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        while proxy.places._value:
            time.sleep(0.01)
        status, headers, _ = ask(proxy, body + b" " * 900_000)  # more than the socket holds
        assert status == 503 and headers["Retry-After"] == "1"
        gate.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200] and ask(proxy, body)[0] == 200


def test_a_bug_in_the_rewriting_is_an_error_500_and_no_silence(capsys):
    with serving() as server, proxied(HttpUpstream(server.url, 30.0), lambda x: 1 / 0) as proxy:
        status, _, told = ask(proxy, b'{"messages": [{"role": "user", "content": "secret"}]}')
        assert status == 500 and "an error in the proxy" in told
    assert "ZeroDivisionError in a request" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, sent",
    [
        ("hi", "HI"),
        (
            [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}],
            [{"type": "text", "text": "HI"}, {"type": "image_url", "image_url": {}}],
        ),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], None),
        ([{"type": "image_url"}], None),
        ([], None),
        (" ", None),
        (None, None),
        (3, None),
    ],
)
def test_what_of_a_turn_is_rewritten(content, sent):
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": content}, {"role": "assistant"}]
    changed, said = rewritten(messages, str.upper)
    assert changed[1]["content"] == (content if sent is None else sent) and changed[0] == messages[0]
    assert said == ("HI" if sent else None)


def test_a_long_rewrite_is_shown_up_to_a_whole_letter():
    with serving() as server, proxied(HttpUpstream(server.url, 30.0), lambda x: "x" + "ü" * 5000) as proxy:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
        status, headers, _ = ask(proxy, body)
    assert status == 200 and unquote(headers["x-alignpro-rewrite"], errors="strict") == "x" + "ü" * 666


def test_a_port_that_is_taken_is_one_line():
    with proxied(HttpUpstream("http://127.0.0.1:9/v1", 1.0)) as proxy:
        with pytest.raises(UserError, match="cannot listen there"):
            Proxy(ProxyConfig(port=proxy.server_address[1]), str.upper, HttpUpstream("http://127.0.0.1:9/v1", 1.0))

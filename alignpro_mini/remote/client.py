"""Questions to an OpenAI-compatible API, each answer paid for once.

    api.jsonl    one line an answer: {"key", "model", "prompt", "draw", "text", "truncated", "prompt_tokens", ...}

The key is a hash of everything that determines an answer: address, model, messages, sampling, and the number of the
draw, which makes repeated prompts independent answers. The draw's number comes from the caller's random stream. So a
run that was killed asks the same keys again and finds their answers here.

The `openai` package does connections, timeouts, and retries with backoff and jitter. This adds the file, the token
budget, bounded concurrency, and one clear line for each failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from alignpro_mini.jsonl import append_jsonl, read_jsonl
from alignpro_mini.options import UserError, check_ranges, one_line, option, require

KEY = "OPENAI_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FILTERED = ("content_filter", "content_policy_violation")
TEMPLATE = 64  # tokens that a chat template may put around a message, at most


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Models behind an OpenAI-compatible API (`--frozen api:MODEL`, `--reward judge:MODEL`)."""

    base_url: str = option("https://api.openai.com/v1", "address of the API, up to /v1")
    system: str = option("", "system message before every request; empty: none, the server's default")
    token_budget: int = option(0, "stop before this many tokens, prompts included, are passed; 0: no limit", least=0)
    concurrency: int = option(8, "requests under way at the same time", least=1)
    timeout: float = option(60.0, "seconds without a byte until a request is tried again", above=0)
    retries: int = option(6, "further tries of a request that failed, with growing pauses", least=0)
    max_prompt_chars: int = option(4000, "a longer rewrite is not sent; the request itself is", least=1)
    usd_per_million_prompt: float = option(0.0, "price of a million prompt tokens, for the report", least=0)
    usd_per_million_answer: float = option(0.0, "price of a million answer tokens, for the report", least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        try:
            address = urlsplit(self.base_url)
            ok = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:  # a bracket or a port that is none
            ok = False
        require(ok, f"base_url is {self.base_url!r}; it must be an address such as http://127.0.0.1:8000/v1")
        bare = not (address.username or address.password or address.query or address.fragment)
        require(bare, f"base_url holds a user name, a password or a query; leave it out: the key comes from {KEY} only")


@dataclass(frozen=True, slots=True)
class Question:
    """All that determines an answer, besides the address."""

    model: str
    prompt: str
    system: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    draw: int = 0  # independent answers to one prompt have different numbers; sent as the seed

    def key(self, base_url: str) -> str:
        """SHA-256 over address and fields."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return hashlib.sha256(json.dumps([base_url, fields], sort_keys=True).encode()).hexdigest()

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]

    @property
    def most_tokens(self) -> int:
        """No request can cost more: a token is at least a byte."""
        return sum(len(m["content"].encode()) + TEMPLATE for m in self.messages) + self.max_tokens


class Client:
    """Asks questions, several at a time, and keeps every answer in `file`; `spent(file)` says what they cost.

    Raises UserError without the `openai` package or a key (`check_access`).
    """

    def __init__(self, config: ApiConfig, file: Path) -> None:
        self.config, self.file = config, file
        openai, self._key = check_access(config)
        how = {"base_url": config.base_url, "timeout": config.timeout, "max_retries": config.retries}
        self._openai, self._client = openai, openai.OpenAI(api_key=self._key or "none", **how)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._known = {row["key"]: row for row in read_jsonl(file)}
        self._used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in self._known.values())
        self._reserved = 0  # by requests under way

    def ask(self, questions: Sequence[Question]) -> list[dict]:
        """One row of `file` for each question, in their order; equal questions are asked once.

        Raises UserError when the API refuses, stays silent or answers nonsense after all tries, or the budget ends.
        Every answer that came is kept: the same questions go on from there.
        """
        keys = [question.key(self.config.base_url) for question in questions]
        missing = {key: q for key, q in zip(keys, questions) if key not in self._known}
        self._stop.clear()
        pool = ThreadPoolExecutor(self.config.concurrency)
        try:
            tasks = [pool.submit(self._fetch, key, question) for key, question in missing.items()]
            errors = [error for task in tasks if (error := task.exception())]
        finally:  # also on Ctrl-C: what is under way is finished and kept, the rest is not sent
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if errors:
            raise next((e for e in errors if not isinstance(e, _NotSent)), errors[0])
        return [self._known[key] for key in keys]

    def _fetch(self, key: str, question: Question) -> None:
        """Ask one question and keep its answer."""
        if self._stop.is_set():
            raise _NotSent("not sent")
        try:
            self._reserve(question)
            row = {"key": key, "model": question.model, "prompt": question.prompt, "draw": question.draw}
            try:
                row |= self._answer(question)
            except UserError:  # refused, or silent: what was set aside for it is free again
                with self._lock:
                    self._reserved -= question.most_tokens
                raise
            with self._lock:
                self._reserved -= question.most_tokens
                self._used += row["prompt_tokens"] + row["completion_tokens"]
                self._known[key] = row
                self.file.parent.mkdir(parents=True, exist_ok=True)
                append_jsonl(self.file, [row])
        except BaseException:
            self._stop.set()  # the others would fail alike: an error must not be paid for a hundred times
            raise

    def _reserve(self, question: Question) -> None:
        """Count the most that this request can cost. Raises UserError if the budget could be passed."""
        budget = self.config.token_budget
        with self._lock:
            most = self._used + self._reserved + question.most_tokens
            if budget and most > budget:
                told = f"{self._used} tokens are used and up to {most - self._used} would follow"
                raise UserError(f"--api.token_budget {budget}: {told}; raise it, and go on with --resume")
            self._reserved += question.most_tokens

    def _answer(self, question: Question) -> dict:
        """The API's answer. A reply that is no whole answer is asked for again, like a failed connection."""
        q, ai, broken = question, self._openai, ""
        how = {"temperature": q.temperature, "top_p": q.top_p, "max_tokens": q.max_tokens, "seed": q.draw}
        for attempt in range(1 + self.config.retries):
            if broken:
                self._reserve(question)  # it may have been paid for
                time.sleep(min(8.0, 0.1 * 2**attempt) * (0.75 + 0.25 * random.random()))
            try:
                return _row(self._client.chat.completions.create(model=q.model, messages=q.messages, **how), question)
            except ai.APIStatusError as error:
                if getattr(error, "code", None) in FILTERED:  # asked again it would be refused again: an empty answer
                    return {"text": "", "truncated": False, "prompt_tokens": 0, "completion_tokens": 0}
                raise UserError(self._refused(error, question)) from None
            except ai.APIConnectionError as error:
                told = f"no answer in {1 + self.config.retries} tries ({one_line(error)})"
                raise UserError(self._failed(f"{told}: is the server running?")) from None
            except (ai.APIError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                broken = one_line(error)  # not JSON, or JSON of another kind
        told = f"{1 + self.config.retries} replies that are no chat completion (the last: {broken})"
        raise UserError(self._failed(f"{told}: is this an OpenAI-compatible API?"))

    def _refused(self, error, question: Question) -> str:
        """What to do about a status that is an answer by itself."""
        code, model = error.status_code, question.model
        mend = {401: f"check {KEY}", 403: f"check {KEY}", 404: f"is {model!r} a model of this server?"}.get(code)
        if code == 429:
            mend = "lower --api.concurrency, or go on later with --resume"
        elif mend is None and code < 500:
            mend = "a prompt that is too long? lower --api.max_prompt_chars" if _overflow(error) else "see its message"
        return self._failed(f"{code} {one_line(error)}: {mend or 'go on later with --resume'}")

    def _failed(self, told: str) -> str:
        told = f"{self.config.base_url}: {told}"
        return told.replace(self._key, "...") if len(self._key) >= 8 else told  # some servers repeat the key


class _NotSent(Exception):
    """Another question failed first."""


def _overflow(error) -> bool:
    return "context" in str(error).lower() or "too long" in str(error).lower()


def _row(reply, question: Question) -> dict:
    """The reply as a row. Raises AttributeError, IndexError or TypeError for one that is no chat completion."""
    choice = reply.choices[0]
    text = choice.message.content or ""
    if not isinstance(text, str):
        raise TypeError(f"content is a {type(text).__name__}")
    text = text.encode(errors="replace").decode()  # half of an emoji, where the token limit cut it: no file can hold it
    usage = getattr(reply, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):  # not told: at most this
        counts = [question.most_tokens - question.max_tokens, question.max_tokens]
    truncated = choice.finish_reason == "length"
    return {"text": text, "truncated": truncated, "prompt_tokens": counts[0], "completion_tokens": counts[1]}


def spent(file: Path, config: ApiConfig = ApiConfig()) -> dict[str, float]:
    """What the answers in `file` cost: their number, tokens, and US dollars at the prices of `config`."""
    rows = read_jsonl(file)
    prompt, answer = (sum(row[name] for row in rows) for name in ("prompt_tokens", "completion_tokens"))
    usd = (prompt * config.usd_per_million_prompt + answer * config.usd_per_million_answer) / 1e6
    return {"answers": len(rows), "tokens": prompt + answer, "prompt_tokens": prompt, "usd": round(usd, 4)}


def check_access(config: ApiConfig):
    """The `openai` package and the key. Raises UserError where one is missing (a key only for other machines)."""
    try:
        import openai
    except ImportError:
        raise UserError("models behind an API need the package openai: pip install -e '.[api]'") from None
    key, local = os.environ.get(KEY, "").strip(), urlsplit(config.base_url).hostname in LOOPBACK
    require(key.isascii() and key.isprintable(), f"{KEY} holds a character that no key has: copy it again")
    require(bool(key) or local, f"{config.base_url}: no key; set the environment variable {KEY}")
    return openai, key

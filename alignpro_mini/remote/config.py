"""How models behind an API are asked."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from alignpro_mini.options import UserError, check_ranges, one_line, option, require, unique

KEY = "OPENAI_API_KEY"
JUDGE_KEY = "JUDGE_API_KEY"  # of a judge with an address of its own: no key is sent to another's address
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIXED = ("model", "messages", "stream", "n")  # fields of a request that `extra` may not hold


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Models behind an OpenAI-compatible API (`--frozen api:MODEL`, `--reward judge:MODEL`)."""

    base_url: str = option("https://api.openai.com/v1", "address of the API, up to /v1")
    system: str = option("", "system message before every request; empty: none, the server's default")
    extra: str = option("", 'JSON object: further fields of every request; null leaves one out, as in {"seed": null}')
    strip_thinking: bool = option(False, "take <think>...</think> off the beginning of an answer")
    judge_base_url: str = option("", f"the judge's own address; its key comes from {JUDGE_KEY}; empty: base_url")
    judge_extra: str = option("", "as extra, for the judge's requests; extra is not read there")
    token_budget: int = option(0, "stop before this many tokens, prompts included, are passed; 0: no limit", least=0)
    concurrency: int = option(8, "requests under way at the same time", least=1)
    timeout: float = option(60.0, "seconds without a byte until a request is tried again", above=0)
    deadline: float = option(600.0, "seconds until a reply must be whole; then it is tried again", above=0)
    retries: int = option(6, "further tries of a request that failed, with growing pauses", least=0)
    patience: float = option(
        3600.0, "seconds that a limit or an outage is waited out, once an answer has come", least=0
    )
    max_prompt_chars: int = option(4000, "a longer rewrite is not sent; the request itself is", least=1)
    usd_per_million_prompt: float = option(0.0, "price of a million prompt tokens, for the report", least=0)
    usd_per_million_answer: float = option(0.0, "price of a million answer tokens, for the report", least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        longer = f"timeout is {self.timeout:g}, longer than deadline ({self.deadline:g}); raise --api.deadline, too"
        require(self.timeout <= self.deadline, longer)
        _check_address("base_url", self.base_url)
        if self.judge_base_url:
            _check_address("judge_base_url", self.judge_base_url)
        for name in ("extra", "judge_extra"):
            _check_fields(name, getattr(self, name))

    def address(self, judge: bool = False) -> tuple[str, str]:
        """Where the frozen model or the judge is asked, and the environment variable of the key."""
        own = judge and self.judge_base_url
        return (self.judge_base_url, JUDGE_KEY) if own else (self.base_url, KEY)


def key_of(url: str, variable: str) -> str:
    """The key of an address, "" where there is none. Raises UserError where one is missing (loopback needs none)."""
    key = os.environ.get(variable, "").strip()
    require(key.isascii() and key.isprintable(), f"{variable} holds a character that no key has: copy it again")
    require(bool(key) or is_loopback(url), f"{url}: no key; set the environment variable {variable}")
    return key


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine: no key is needed, and no proxy of the environment is asked."""
    return urlsplit(url).hostname in LOOPBACK


def check_access(config: ApiConfig, judge: bool = False) -> None:
    """Raises UserError where the package or the key is missing that the frozen model (or the judge) needs."""
    http_library()
    key_of(*config.address(judge))


def http_library():
    """The package that sends requests. Raises UserError without it."""
    try:
        import httpx2
    except ImportError:
        raise UserError("models behind an API need the package httpx2: pip install -e '.[api]'") from None
    return httpx2


def _check_address(name: str, url: str) -> None:
    """Raises UserError, beginning with the option's name, unless `url` is a bare http address."""
    try:
        address = urlsplit(url)
        ok = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # a bracket or a port that is none
        ok = False
    require(
        ok and url.isprintable() and " " not in url,
        f"{name} is {url!r}; it must be an address such as http://127.0.0.1:8000/v1",
    )
    bare = not (address.username or address.password or address.query or address.fragment)
    require(bare, f"{name} holds a user name, a password or a query; leave it out: the key comes from {KEY} only")


def _check_fields(name: str, text: str) -> None:
    """Raises UserError, beginning with the option's name, unless `text` is empty or a JSON object of own fields."""
    try:
        fields = json.loads(text or "{}", object_pairs_hook=unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is {text!r:.80}; it must be a JSON object ({one_line(error)})") from None
    example = 'such as {"reasoning_effort": "low"}'
    require(isinstance(fields, dict), f"{name} is {text!r:.80}; it must be a JSON object, {example}")
    for field in FIXED:
        require(field not in fields, f"{name} holds {field!r}, which a run sets itself; leave it out")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")

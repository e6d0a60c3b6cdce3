"""One question to one server: the request, the reply, and what can be said of a failure."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from urllib.request import getproxies

from tqdm import tqdm

from alignpro_mini.options import UserError, one_line
from alignpro_mini.remote.config import ApiConfig, http_library, is_loopback, key_of
from alignpro_mini.remote.replies import TOO_LONG, Broken, Outage, Refusal, Reply, Usage, refused_field

TEMPLATE = 64  # tokens that a chat template may put around a message, at most
LIMITS = ("max_tokens", "max_completion_tokens")  # the fields of a request that limit an answer
MAY_BE_REFUSED = ("max_tokens", "seed", "top_p", "temperature")  # fields that a run can do without
ENDPOINT = "/chat/completions"
LONG_PAUSE = 5.0  # seconds of a pause that is told
LARGEST_REPLY = 8 << 20  # bytes
LARGEST_ERROR = 64 << 10  # bytes that are read of an error


@dataclass(frozen=True, slots=True)
class Question:
    """All that determines an answer."""

    model: str
    prompt: str
    system: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    draw: int = 0  # independent answers to one prompt have different numbers; sent as the seed
    extra: str = ""  # further fields, a JSON object; null leaves a field out
    judge: bool = False  # asked at the judge's address

    def key(self) -> str:
        """SHA-256 over the fields."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def messages(self) -> list[dict[str, str]]:
        """A half of a surrogate pair, which no UTF-8 text can hold, is sent as a question mark."""
        system = [("system", self.system)] if self.system else []
        roles = [*system, ("user", self.prompt)]
        return [{"role": role, "content": text.encode(errors="replace").decode()} for role, text in roles]

    @property
    def body(self) -> dict:
        """The request."""
        how = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, "seed": self.draw}
        fields = {"model": self.model, "messages": self.messages} | how | self.own_fields
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def own_fields(self) -> dict:
        """The fields of `extra`: a run does not change them."""
        return json.loads(self.extra or "{}")

    @property
    def limit(self) -> int:
        """The most tokens of an answer, thoughts included."""
        limits = [value for name in LIMITS if isinstance(value := self.body.get(name), int)]
        return max(limits, default=self.max_tokens)

    @property
    def most_tokens(self) -> int:
        """No request can cost more where the server keeps the limit: a token is at least a byte."""
        return self._most_of_the_prompt + self.limit

    @property
    def _most_of_the_prompt(self) -> int:
        return sum(len(m["content"].encode()) + TEMPLATE for m in self.messages)

    def guess(self, text: str) -> Usage:
        """The tokens of an answer whose server does not tell them: the most, even if it did not keep the limit."""
        return Usage(self._most_of_the_prompt, max(self.limit, len(text.encode()) // 4))


class Server:
    """An address with its key, its connections, and what was learned of it. Raises UserError without the key."""

    def __init__(self, config: ApiConfig, judge: bool) -> None:
        self.base_url, self._variable = config.address(judge)
        self._key = key_of(self.base_url, self._variable)
        self._deadline = config.deadline
        self.answered = False  # by this process: an outage is waited out only after that
        self._left_out: dict[str, list[str]] = {}  # model -> fields of a request that it refuses
        self._lock = threading.Lock()
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._httpx = http_library()
        limits = self._httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        how = {"headers": headers, "timeout": config.timeout, "limits": limits}
        how |= {"trust_env": not is_loopback(self.base_url)}  # else a proxy of the environment would be asked
        how |= {"verify": self.base_url.startswith("https")}  # http needs no certificates, which take 0.1 s to load
        try:
            self._http = self._httpx.Client(**how)
            self._url = self._httpx.URL(self.base_url.rstrip("/").removesuffix(ENDPOINT) + ENDPOINT)
        except (ImportError, ValueError, self._httpx.InvalidURL) as error:
            raise UserError(self._failed(f"{one_line(error)}{self._proxy_hint()}")) from None
        weakref.finalize(self, self._http.close)

    # ------------------------------------------------------------ requests

    def send(self, body: dict) -> Reply:
        """Send a request and read its reply, up to a time and a size. Raises Outage, Broken or Refusal."""
        begun, data, reply = time.monotonic(), bytearray(), None
        try:
            with self._http.stream("POST", self._url, content=json.dumps(body)) as reply:
                for piece in reply.iter_bytes():
                    data += piece
                    if not reply.is_success and len(data) > LARGEST_ERROR:
                        break
                    if len(data) > LARGEST_REPLY:
                        raise Broken(f"a reply of more than {LARGEST_REPLY >> 20} MiB")
                    if time.monotonic() - begun > self._deadline:
                        raise Broken(f"a reply that is not whole after {self._deadline:g} s (--api.deadline)")
                headers = {name.lower(): self._without_key(value) for name, value in reply.headers.items()}
                text = self._without_key(data.decode("utf-8", errors="surrogateescape"))
                return Reply(reply.status_code, headers, text.encode("utf-8", errors="surrogateescape"))
        except (self._httpx.HTTPError, UnicodeError) as error:  # UnicodeError: a host's name that is none
            told = self._without_key(f"{type(error).__name__}: {one_line(error)}")
            if reply is not None and reply.is_success:  # it may have been paid for
                raise Broken(f"a reply that ended too early ({told})") from None
            raise Outage(told + self._proxy_hint()) from None

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key. It must come into no line and no file."""
        return text.replace(self._key, "...") if len(self._key) >= 8 else text

    def body(self, question: Question) -> dict:
        """The request, without the fields that the server refused before."""
        body = question.body
        for name in self._left_out.get(question.model, ()):
            if name in body and name not in question.own_fields:
                value = body.pop(name)
                if name == "max_tokens":
                    body.setdefault("max_completion_tokens", value)
        return body

    def leave_out(self, question: Question, body: dict, error: Refusal) -> bool:
        """Whether it refused a field that can be left out: from now on it is. This is told once."""
        may = [name for name in MAY_BE_REFUSED if name in body and name not in question.own_fields]
        name = refused_field(error.words, may) if error.status in (400, 422) else None
        if name is None:
            return False
        with self._lock:
            known = self._left_out.setdefault(question.model, [])
            if name not in known:
                known.append(name)
                instead = "max_completion_tokens is sent instead" if name == "max_tokens" else "it is left out"
                tell(self._failed(f"{question.model} refuses {name}: from now on {instead} ({error})"))
        return True

    # ------------------------------------------------------------ failures, each in one line

    def refused(self, error: Refusal, question: Question) -> UserError:
        """An error that stays, and what to do about it."""
        extra = "--api.judge_extra" if question.judge else "--api.extra"
        code = error.status
        if code == 0:  # a success by its status
            limit = "" if question.judge else ", or raise --sampling.max_new_tokens"
            mend = f"turn thinking or tools off, for instance by {extra}{limit}"
        elif code in (401, 403):
            mend = f"check {self._variable}"
        elif code == 402:
            mend = "what was paid for is used up; pay, and go on with --resume"
        elif code == 404:
            mend = f"is {question.model!r} a model of this server?"
            mend += self._address_hint()
        elif code in (400, 413, 422) and TOO_LONG.search(error.words.lower()):
            mend = "a prompt that is too long? lower --api.max_prompt_chars"
        else:
            mend = f"see its message; {extra} changes, adds and leaves out fields of a request"
        return UserError(self._failed(f"{error}: {mend}"))

    def broken(self, error: Broken, tries: int) -> UserError:
        """Replies that are no answers, after all tries."""
        told = f"{tries} replies without an answer (the last: {error})"
        return UserError(self._failed(f"{told}: is this an OpenAI-compatible API?{self._address_hint()}"))

    def gave_up(self, error: Outage, tries: int) -> UserError:
        """An outage that lasted too long."""
        if not error.status:
            return UserError(self._failed(f"no answer in {tries} tries ({error}): is the server running?"))
        asked = f" (it asks to wait {error.pause:.0f} s)" if error.pause and error.pause > LONG_PAUSE else ""
        mend = "lower --api.concurrency, or " if error.status == 429 else ""
        return UserError(self._failed(f"{error}{asked}: {mend}go on later with --resume"))

    def waits(self, error: Outage, pause: float, left: float) -> str:
        """A line about a pause; `left`: seconds of patience, 0 where none is had."""
        more = f" It waits for up to {left:.0f} s more (--api.patience)." if left > 0 else ""
        return self._failed(f"{error}. Next try in {pause:.0f} s.{more} Ctrl-C ends, --resume goes on.")

    def _failed(self, told: str) -> str:
        return f"{self.base_url}: {told}"

    def _address_hint(self) -> str:
        return "" if "/v1" in self.base_url else " Its address has no /v1, as most have."

    def _proxy_hint(self) -> str:
        return "; the environment names a proxy" if not is_loopback(self.base_url) and getproxies() else ""


def tell(line: str) -> None:
    """Print a line, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()

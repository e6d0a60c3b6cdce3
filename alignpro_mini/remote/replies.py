"""What a reply of a chat completions API says: an answer, or why there is none.

Servers differ in all of it: the names of `finish_reason`, the place of the text, errors that come with status 200. So
`read` takes the JSON as it is. It raises one of three exceptions for what is no answer.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

SHOWN = 300  # characters of a server's own words in an error
READ = 1 << 16  # characters of them that are looked at

# Names of `finish_reason`, in small letters, by a part of them: the first that fits.
TRUNCATED = re.compile(r"length|max|limit|exceed|truncat|incomplete|pause")
WITHHELD = re.compile(r"filter|safety|prohibit|block|recitation|spii|sensitive|guardrail|moderat|refus|toxic")
FAILED = re.compile(r"error|abort|cancel|fail|time_?out|insufficient|malformed|interrupt|overload|preempt")
TOOL = re.compile(r"tool|function")
FINISHED = re.compile(r"stop|eos|end|done|complete|finished|null|none|tool|function|^$")

# Errors, by the server's own words in small letters.
FILTERED = re.compile(r"content_filter|content_?policy_?violation|data_inspection_failed|responsibleaipolicyviolation")
NO_MONEY = re.compile(r"insufficient[ _](quota|balance|funds|credit)|credit balance is too low|all available credits")
USED_UP = re.compile(r"quota|credit|billing|balance|payment")
PASSES = re.compile(r"retry|again|later|per[ _-]?(sec|min|hour|day)|rate[ _-]?limit")
UNSUPPORTED = re.compile(
    r"support|permitted|extra[ _](forbidden|field|input)|additional propert|unknown|unrecogni[sz]ed|unexpected"
    r"|not allowed|not accept|only the default|deprecated|cannot both|not both"
)
TOO_LONG = re.compile(
    r"context[ _](length|size|window)|too (long|large|many tokens)|token limit|max_new_tokens` must|less than \d+ tokens"
)
NO_FIELD = re.compile(r"unsupported.?param|not support (these |the )?param")

THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")  # fields of a message beside its content
TAG = r"(\w+:)?(think|thinking|thoughts?|reasoning)"
OPENS = re.compile(rf"\s*([<\[◁]\|?(start_|begin_of_)?{TAG}\|?[>\]▷]|<\|channel\|?>(analysis|thought))", re.IGNORECASE)
CLOSES = re.compile(
    rf"([<\[◁]\|?(/|end_(of_)?){TAG}\|?[>\]▷]|<\|channel\|>final<\|message\|>|<channel\|>)\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it came; of an error perhaps only the beginning."""

    status: int
    headers: Mapping[str, str]  # names in small letters
    data: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a reply cost."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer. It is truncated when the token limit or a filter cut it; `notes` are keys of NOTES."""

    text: str
    truncated: bool
    usage: Usage | None  # None: not told
    notes: tuple[str, ...] = ()


# What a user is told about answers that are kept, but not as they should be: "3 of 24 answers ...".
NOTES = {
    "thought": "are empty, because the model thinks and reached the token limit: raise {limit}, or turn thinking off "
    "({extra})",
    "thinks": "begin with the model's thoughts, and these are rated too: turn thinking off ({extra}), or take them off "
    "the answer (--api.strip_thinking true)",
    "filtered": "were withheld or cut by the provider's filter",
    "empty": "are empty",
    "unknown_end": "have a finish_reason that is not known here; they count as whole answers",
}


class NoAnswer(Exception):
    """`str` of it is one line, the beginning of `words`, which are the server's. `status` 0: none, or a success.

    `usage`: what it cost, where that is told. `pause`: seconds that the server asks to wait.
    """

    def __init__(self, why: str, status: int = 0, usage: Usage | None = None, pause: float | None = None) -> None:
        self.words = _one_line(why)
        super().__init__(self.words if len(self.words) <= SHOWN else f"{self.words[:SHOWN]}...")
        self.status, self.usage, self.pause = status, usage, pause


class Outage(NoAnswer):
    """Perhaps later: a limit, an overload, no connection. It cost nothing."""


class Broken(NoAnswer):
    """A reply that is no answer, and may have been paid for. Another try may bring one."""


class Refusal(NoAnswer):
    """The same request would be answered so again."""


# ---------------------------------------------------------------- answers


def read(reply: Reply, max_tokens: int, strip_thinking: bool = False) -> Answered:
    """The answer of a reply. Raises Outage, Broken or Refusal for a reply that holds none.

    `max_tokens` is the limit that was sent: by it an answer is truncated whose server gives no reason of its end.
    """
    value = _json(reply.data)
    if not 200 <= reply.status < 300:
        return _failure(reply, value, reply.status)
    if not isinstance(value, dict):
        raise Broken(f"no JSON object, but {words(reply.data) or 'nothing'}")
    choice = _choice(value)
    if choice is None:
        error = value.get("error") or value.get("detail") or value.get("message")
        if error and not isinstance(value.get("message"), dict):  # Ollama's own form has a dict there
            return _failure(reply, value, _status_in(error) or _status_in(value))
        raise Broken(f"no choices in it, but {', '.join(sorted(value)) or 'nothing'}")
    if value.get("error"):
        choice = choice | {"error": value["error"]}
    return _answer(choice, value.get("usage"), max_tokens, strip_thinking)


def _choice(value: dict) -> dict | None:
    """The first choice, by its index."""
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    if not all(isinstance(choice, dict) and isinstance(choice.get("index") or 0, int) for choice in choices):
        raise Broken("choices that are no objects")
    return min(choices, key=lambda choice: choice.get("index") or 0)


def _answer(choice: dict, told_usage: object, max_tokens: int, strip_thinking: bool) -> Answered:
    usage = _usage(told_usage)
    message, end = choice.get("message"), str(choice.get("finish_reason") or "").lower()
    cut, withheld = bool(TRUNCATED.search(end)), bool(WITHHELD.search(end))
    if choice.get("error") or (FAILED.search(end) and not cut and not withheld):
        raise Broken(f"finish_reason {end or 'missing'}: {_told(choice.get('error')) or 'half an answer'}", usage=usage)
    if not isinstance(message, dict):
        raise Broken("a choice without a message", usage=usage)
    content = message.get("content")
    if not isinstance(content, (str, list, type(None))):
        raise Broken(f"content is of the type {type(content).__name__}", usage=usage)
    text, thoughts = _text_of_parts(content) if isinstance(content, list) else (content, [])
    thoughts += [f"{len(told)} characters of {name}" for name in THOUGHTS if (told := _told(message.get(name)))]
    thoughts = thoughts or _hidden_thoughts(told_usage)
    if strip_thinking and text:
        text, stripped = without_thinking(text)
        thoughts += ["thoughts in the text"] * stripped
    cut = cut or (not end and usage is not None and usage.completion_tokens >= max_tokens)
    if not cut and not withheld:
        text = _finished_text(text, message, thoughts, usage, TOOL.search(end) is not None)
    text = (text or "").encode(errors="replace").decode()  # half of an emoji, where the limit cut it: no file holds it
    nothing = not text.strip()
    noted = {
        "filtered": withheld,
        "thought": nothing and cut and bool(thoughts),
        "empty": nothing and not (withheld or (cut and thoughts)),
        "thinks": without_thinking(text)[1],
        "unknown_end": not (cut or withheld or FINISHED.search(end)),
    }
    return Answered(text, cut or withheld, usage, tuple(name for name, holds in noted.items() if holds))


def _finished_text(text: str | None, message: dict, thoughts: list[str], usage: Usage | None, calls_tool: bool) -> str:
    """The text of an answer that is said to be whole. Raises Refusal or Broken where none was given."""
    calls = message.get("tool_calls") or message.get("function_call")
    if calls or (calls_tool and not (text or "").strip()):
        raise Refusal(
            f"the model calls a tool ({_told(calls) or 'which is not told'}), and none was offered", usage=usage
        )
    if text and text.strip():
        return text
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        return refusal  # "I cannot help with that" is an answer, wherever it stands
    if thoughts:
        content = "null" if text is None else "empty"
        raise Refusal(f"content is {content} beside {', '.join(thoughts)}", usage=usage)
    if text is None:
        raise Broken("content is null", usage=usage)
    return text


def _text_of_parts(parts: list) -> tuple[str | None, list[str]]:
    """The text of a content in parts, joined (None without one), and the kinds of its parts that are thoughts."""
    texts, thoughts = [], []
    for part in parts:
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if re.search("think|thought|reason", kind):
            thoughts.append(f"a part of the type {kind}")
        elif isinstance(text, str):
            texts.append(text)
    return "".join(texts) if texts else None, thoughts


def without_thinking(text: str) -> tuple[str, bool]:
    """`text` without the thoughts at its beginning, and whether there were any.

    A template may write the opening tag into the prompt: then only the closing one is here. Thoughts without an end are
    all of the text.

    >>> without_thinking("<think>Hm.</think> Four.")
    ('Four.', True)
    """
    closing = CLOSES.search(text)
    if closing and (OPENS.match(text) or not OPENS.search(text[: closing.start()])):
        return text[closing.end() :], True
    return ("", True) if OPENS.match(text) else (text, False)


def _hidden_thoughts(usage: object) -> list[str]:
    """Thoughts that are only counted: some providers keep their text."""
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    count = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return [f"{count} tokens of reasoning"] if count else []


def _usage(told: object) -> Usage | None:
    """The tokens of a reply; None where they are not told, or cannot be."""
    if not isinstance(told, dict):
        return None
    counts = []
    for name in ("prompt_tokens", "completion_tokens"):
        try:
            count = float(told.get(name))  # some servers write 12.0 or "12"
        except (TypeError, ValueError, OverflowError):
            return None
        if not (math.isfinite(count) and count >= 0):
            return None
        counts.append(int(count))
    return Usage(*counts) if counts[0] else None  # no prompt has 0 tokens


# ---------------------------------------------------------------- errors


def _failure(reply: Reply, value: object, status: int) -> Answered:
    """An error by its status, perhaps one that came with status 200 (0: none was given)."""
    said = words(reply.data)
    small = said.lower()
    if FILTERED.search(small) or (status == 403 and "moderation" in small):
        return Answered("", False, Usage(0, 0), ("filtered",))  # asked again it would be refused again
    told = f"{status or ''} {said}".strip()
    if 300 <= status < 400:
        raise Refusal(f"{status}: it moved to {reply.headers.get('location', 'another address')!r}", status)
    pause = retry_after(reply.headers)
    passes = pause is not None or PASSES.search(small.replace("insufficient_quota", ""))
    if status == 402 or NO_MONEY.search(small) or (status in (0, 429) and USED_UP.search(small) and not passes):
        raise Refusal(told, 402)
    if status == 500 and (TOO_LONG.search(small) or NO_FIELD.search(small)):  # it would be so again
        raise Refusal(told, 400)
    if status in (408, 409, 424, 425, 429, 498) or status >= 500:  # 424: text-generation-inference, 498: Groq
        raise Outage(told, status, pause=pause)
    if status == 0:
        raise Broken(told)
    raise Refusal(told, status)


def _status_in(error: object) -> int:
    """The status that an error in a reply of status 200 names, or 0."""
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    return int(code) if str(code).isdecimal() and 400 <= int(code) < 600 else 0


def refused_field(said: str, fields: list[str]) -> str | None:
    """The one of the `fields` of a request that a refusal (its words) says the server does not support.

    >>> refused_field("Unsupported parameter: 'max_tokens'", ["seed", "max_tokens"])
    'max_tokens'
    """
    small = said.lower()
    if not UNSUPPORTED.search(small) or TOO_LONG.search(small):
        return None
    named = [field for field in fields if re.search(rf"\b{field}\b", small)]
    exact = [field for field in named if re.search(rf"(param|body)\W+{field}\b", small)]
    return next(iter(exact + named), None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait; None where it names none that can be."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        told = headers.get(name, "")
        try:
            seconds = float(told) * unit
        except ValueError:
            seconds = _seconds_until(told)
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    return None


def _seconds_until(date: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):  # no date, or the year 99999
        return math.nan


def words(data: bytes) -> str:
    """What a server says of an error, in one line: its message first, then what else stands in the error."""
    value = _json(data)
    if value is None:
        text = data[:READ].decode("utf-8", errors="replace")
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)", " ", text)
        return _one_line(re.sub(r"(?s)<[^>]*(>|$)", " ", text))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # Google's form
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return _one_line(_told(error))
    named = next((name for name in ("message", "detail") if error.get(name)), "")
    rest = {name: told for name, told in error.items() if told not in (None, "", [], {}) and name != named}
    details = f" ({', '.join(f'{name} {_told(told)}' for name, told in rest.items())})" if rest else ""
    return _one_line(_told(error.get(named)) + details)


def _told(value: object) -> str:
    """A text as it is, anything else as JSON; nothing for null."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _one_line(text: str) -> str:
    """A text without line ends, and without what would move a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:READ]).split())


def _json(data: bytes) -> object:
    """The value of a JSON text, with a byte order mark or without; None for any other text.

    A token can be half a character, so a token limit can leave bytes that are no UTF-8.
    """
    try:
        return json.loads(data.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None

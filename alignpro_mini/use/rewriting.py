"""What of a dialogue is rewritten, and how requests that come at the same time go through a model together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from alignpro_mini.options import UserError

MOST_KEPT = 1024  # texts whose rewrite is kept
MOST_AT_ONCE = 32  # texts that go through a model together
MOST_CHARACTERS = 1 << 17  # of them, each counted as the longest, as the model pads them: memory is bounded


# ---------------------------------------------------------------- messages


def user_turn(messages: Sequence[dict]) -> tuple[int, str] | None:
    """Where the last user turn stands, and its text; None where it has none. Raises UserError for no messages."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise UserError("messages must be a list of objects with role and content")
    users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    text = one_text(messages[users[-1]].get("content")) if users else None
    return None if text is None else (users[-1], text)


def one_text(content: object) -> str | None:
    """The text of a message: its content, or the only text among the parts of its content. None for all others."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part["text"] for part in parts if _is_text(part)]
    return texts[0] if len(texts) == 1 and texts[0].strip() else None


def with_text(message: dict, text: str) -> dict:
    """The message with another text in the place of its one text; other parts, pictures for instance, stay."""
    content = message["content"]
    if isinstance(content, list):
        return message | {"content": [part | {"text": text} if _is_text(part) else part for part in content]}
    return message | {"content": text}


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


# ---------------------------------------------------------------- batches


def fitting(texts: Sequence[str]) -> int:
    """How many of the texts, from the first on, go through a model together: at least one."""
    longest = 0
    for count, text in enumerate(texts[:MOST_AT_ONCE]):
        longest = max(longest, len(text))
        if count and longest * (count + 1) > MOST_CHARACTERS:
            return count
    return min(len(texts), MOST_AT_ONCE)


class Batches:
    """`function` of lists of texts, called for single ones: those that wait while it works are the next batch.

    It runs in a thread of `executor`. A text that makes it fail fails alone.
    """

    def __init__(self, function: Callable[[Sequence[str]], Sequence], executor: Executor) -> None:
        self.function = function
        self.executor = executor
        self._waiting: list[tuple[str, asyncio.Future]] = []
        self._worker: asyncio.Task | None = None

    def put(self, text: str) -> asyncio.Future:
        """Add a text. The future becomes its result, or the Exception that it raised: see `outcome`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return future

    async def _work(self) -> None:
        while self._waiting:
            count = fitting([text for text, _ in self._waiting])
            batch = [(text, future) for text, future in self._waiting[:count] if not future.done()]
            del self._waiting[:count]
            texts = [text for text, _ in batch]
            results = await asyncio.get_running_loop().run_in_executor(self.executor, self._results, texts)
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # whoever asked may have left
                    future.set_result(result)

    def _results(self, texts: Sequence[str]) -> list:
        if not texts:
            return []
        try:
            return list(self.function(texts))
        except Exception as error:
            return [error] if len(texts) == 1 else [self._results([text])[0] for text in texts]


async def outcome(future: asyncio.Future):
    """The result of a text. Raises what the function raised."""
    result = await future
    if isinstance(result, Exception):
        raise result
    return result


class Rewriter:
    """The rewrite of a text, by `batches`, whose function gives None for a text that is to stay as it is.

    The first one is kept: an agent sends the same turn again and again.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._kept: dict[bytes, asyncio.Future] = {}  # by hash, as texts may be long; the longest unused comes first

    async def __call__(self, x: str, fresh: bool = True) -> str | None:
        """x'; without `fresh` only one that is kept, else None. Raises what the function raised."""
        key = hashlib.sha256(x.encode()).digest()
        future = self._kept.pop(key, None)
        if future is None and not fresh:
            return None
        self._kept[key] = future = future or self.batches.put(x)
        if len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        try:
            x_prime = await outcome(asyncio.shield(future))  # others may wait for it, too
        except Exception:
            self._kept.pop(key, None)
            raise
        return x if x_prime is None else x_prime

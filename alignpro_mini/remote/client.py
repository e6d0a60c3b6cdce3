"""Questions to models behind an OpenAI-compatible API, each answer paid for once.

    api.jsonl           one line an answer: {"key", "model", "prompt", "draw", "text", "truncated", "prompt_tokens", ...}
    api_failed.jsonl    one line a reply that was paid for and held no answer

The key is a hash of everything that determines an answer: model, messages, sampling, further fields, and the number of
the draw, which makes repeated prompts independent answers. The draw's number comes from the caller's random stream. So
a run that was killed asks the same keys again and finds their answers here. The address is no part of the key, because
a server may move.

The `httpx2` package does connections and timeouts; `server.py` sends one request by it, and `replies.py` reads what
comes. This module adds the file, the token budget, threads, and further tries.
"""

from __future__ import annotations

import json
import math
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from alignpro_mini.jsonl import append_jsonl, read_jsonl
from alignpro_mini.options import UserError, require
from alignpro_mini.remote.config import KEY, LOOPBACK, ApiConfig
from alignpro_mini.remote.replies import NOTES, Answered, Broken, Outage, Refusal, read
from alignpro_mini.remote.server import LONG_PAUSE, Question, Server, tell

__all__ = ["KEY", "LOOPBACK", "ApiConfig", "Client", "Question", "answers", "spent"]
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries
FIRST_LINE, NEXT_LINE = 10.0, 60.0  # seconds of a wait until a line tells of it, and until the next one


class Client:
    """Asks questions, several at a time, and keeps every answer in `file`; `spent(file)` says what they cost.

    Raises UserError without the `httpx2` package or a key, and for a file that holds other lines.
    """

    def __init__(self, config: ApiConfig, file: Path) -> None:
        self.config, self.file = config, file
        self._servers: dict[bool, Server] = {}  # for the judge or not
        self._lock = threading.Lock()
        if not config.judge_base_url:  # else one of the two may never be asked
            self._server(judge=False)
        self._known = {row["key"]: row for row in answers(file)}
        self._used = spent(file)["tokens"]
        self._reserved = 0  # by requests under way
        self._overshoot = 0  # the most tokens by which an answer was longer than its limit
        self._next_line = 0.0  # when the next line about an outage is due
        self._counts: Counter[str] = Counter()  # answers of this process (""), and those of each note

    # ------------------------------------------------------------ many questions

    def ask(self, questions: Sequence[Question]) -> list[dict]:
        """One row of `file` for each question, in their order; equal questions are asked once.

        Raises UserError when the API refuses, stays silent or answers nonsense after all tries, or the budget ends.
        Every answer that came is kept: the same questions go on from there. On Ctrl-C what is under way is finished and
        kept, and the rest is not sent; a second Ctrl-C does not wait for it.
        """
        keys = [question.key() for question in questions]
        missing = {key: question for key, question in zip(keys, questions) if key not in self._known}
        todo, done, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        count = min(self.config.concurrency, len(missing))
        for item in (*missing.items(), *[None] * count):  # None ends a thread
            todo.put(item)
        # Daemons: the end of the process does not wait for them.
        threads = [threading.Thread(target=self._work, args=(todo, done, stop), daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            errors = self._collect(done, len(missing))
        except KeyboardInterrupt:
            tell("stopping: the answers that are under way are waited for; Ctrl-C again ends at once")
            raise
        finally:
            stop.set()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # on Windows Ctrl-C does not end a long wait
        if errors:
            raise next((error for error in errors if not isinstance(error, _NotSent)), errors[0])
        return [self._known[key] for key in keys]

    def _work(self, todo: queue.SimpleQueue, done: queue.SimpleQueue, stop: threading.Event) -> None:
        """One thread: takes questions, and puts None or an exception for each."""
        for key, question in iter(todo.get, None):
            try:
                if stop.is_set():
                    raise _NotSent("not sent")
                self._fetch(key, question, stop)
                done.put(None)
            except BaseException as error:
                stop.set()  # the others would fail alike: an error must not be paid for a hundred times
                done.put(error)

    def _collect(self, done: queue.SimpleQueue, count: int) -> list[BaseException]:
        """The errors of `count` questions. A line tells of a long wait."""
        errors, came, begun = [], 0, time.monotonic()
        next_line = begun + FIRST_LINE
        while came < count:
            try:
                error = done.get(timeout=1.0)
                came += 1
                errors += [error] if error else []
            except queue.Empty:
                pass
            now = time.monotonic()
            if now >= next_line:
                left = f", {(now - begun) / came * (count - came):.0f} s left" if came else ""
                tell(f"[api] {came} of {count} answers{left}")
                next_line = now + NEXT_LINE
        return errors

    # ------------------------------------------------------------ one question

    def _fetch(self, key: str, question: Question, stop: threading.Event) -> None:
        """Ask one question and keep its answer."""
        row = {"key": key, "model": question.model, "prompt": question.messages[-1]["content"], "draw": question.draw}
        answer = self._answer(question, row, stop)
        row |= {"text": answer.text, "truncated": answer.truncated}
        row |= asdict(answer.usage)
        notes = [
            note for note in answer.notes if not (question.judge and note == "thinks")
        ]  # `verdict` leaves these out
        row |= {"notes": notes} if notes else {}
        with self._lock:
            _append(self.file, row)
            self._known[key] = row
            self._tell_notes(notes, question)

    def _answer(self, question: Question, row: dict, stop: threading.Event) -> Answered:
        """The answer. Where another try may bring one, it is tried again after a pause.

        Raises UserError where none comes, and _NotSent when `stop` ends the tries.
        """
        server, config = self._server(question.judge), self.config
        broken = failed = 0
        begun, since = time.monotonic(), None  # since: when it failed first
        while True:
            body = server.body(question)
            try:
                return self._try(server, question, body, row)
            except Refusal as error:
                if not server.leave_out(question, body, error):
                    raise server.refused(error, question) from None
            except Broken as error:
                broken += 1
                if broken > config.retries:
                    raise server.broken(error, broken) from None
                _wait(_pause(broken), stop)
            except Outage as error:
                failed += 1
                since = since or time.monotonic()
                left = since + config.patience - time.monotonic() if server.answered else 0.0
                pause = error.pause * (1 + random.random() / 4) if error.pause else _pause(failed)
                waits = failed <= config.retries or pause < left
                if not waits or (error.pause or 0) > max(config.patience, LONGEST_PAUSE):
                    raise server.gave_up(error, failed) from None
                if time.monotonic() - begun + pause >= LONG_PAUSE and not stop.is_set():
                    self._tell_outage(server.waits(error, pause, left))
                _wait(pause, stop)

    def _try(self, server: Server, question: Question, body: dict, row: dict) -> Answered:
        """One request. What it may cost is set aside for it; what it cost is counted, with an answer or without."""
        most, cost = self._reserve(question), 0
        try:
            answer = read(server.send(body), question.limit, self.config.strip_thinking)
            usage = answer.usage or question.guess(answer.text)
            cost = usage.tokens
            with self._lock:
                self._overshoot = max(self._overshoot, usage.completion_tokens - question.limit)
            server.answered = True
            return replace(answer, usage=usage)
        except (Broken, Refusal) as error:
            if error.usage:
                cost = error.usage.tokens
                with self._lock:
                    _append(_failed(self.file), row | asdict(error.usage) | {"why": str(error)})
            elif isinstance(error, Broken):
                cost = most  # nobody knows
            raise
        finally:
            with self._lock:
                self._reserved -= most
                self._used += cost

    def _reserve(self, question: Question) -> int:
        """Set aside the most tokens that this request can cost. Raises UserError if the budget could be passed."""
        budget = self.config.token_budget
        with self._lock:
            most = question.most_tokens + self._overshoot
            could = self._reserved + most
            if budget and self._used + could > budget:
                told = f"{self._used} tokens are used and up to {could} would follow"
                raise UserError(f"--api.token_budget {budget}: {told}; raise it, and go on with --resume")
            self._reserved += most
        return most

    def _server(self, judge: bool) -> Server:
        """Who is asked. Raises UserError without the key."""
        with self._lock:
            own = judge and bool(self.config.judge_base_url)
            if own not in self._servers:
                self._servers[own] = Server(self.config, own)
            return self._servers[own]

    # ------------------------------------------------------------ lines for the user

    def _tell_notes(self, notes: Sequence[str], question: Question) -> None:
        """Tell of answers that are not as they should be: of the first of a kind, the tenth, the hundredth ..."""
        names = {"limit": "--sampling.max_new_tokens", "extra": "--api.extra"}
        if question.judge:
            names = {"limit": "max_tokens in --api.judge_extra", "extra": "--api.judge_extra"}
        self._counts.update(["", *notes])
        for note in notes:
            if math.log10(self._counts[note]).is_integer():
                tell(f"[api] {self._counts[note]} of {self._counts['']} answers {NOTES[note].format(**names)}")

    def _tell_outage(self, line: str) -> None:
        """Tell of a long wait, once a minute."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next_line:
                self._next_line = now + NEXT_LINE
                tell(line)


class _NotSent(Exception):
    """Another question failed first."""


def _pause(tries: int) -> float:
    """Seconds until another try: growing, and seldom the same for two requests."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries - 1, 10)) * (0.75 + 0.25 * random.random())


def _wait(seconds: float, stop: threading.Event) -> None:
    """Raises _NotSent when `stop` ends the pause."""
    if stop.wait(seconds):
        raise _NotSent("not sent again")


# ---------------------------------------------------------------- the file


def answers(file: Path) -> list[dict]:
    """The rows of `file`. Raises UserError for a line that is none of its own."""
    rows = read_jsonl(file)
    for row in rows:
        own = isinstance(row, dict) and {"key", "text", "truncated", "prompt_tokens", "completion_tokens"} <= row.keys()
        require(own, f"{file} holds a line that is no answer, {json.dumps(row)[:60]}: remove the line")
    return rows


def spent(file: Path, config: ApiConfig = ApiConfig()) -> dict[str, float]:
    """What the answers in `file` cost: their number, tokens, and US dollars at the prices of `config`.

    Tokens and dollars include replies without an answer ("failed"). Answers with a note are counted by its name.
    """
    kept, failed = answers(file), read_jsonl(_failed(file))
    prompt, answer = (sum(row[name] for row in kept + failed) for name in ("prompt_tokens", "completion_tokens"))
    usd = (prompt * config.usd_per_million_prompt + answer * config.usd_per_million_answer) / 1e6
    cost = {"answers": len(kept), "tokens": prompt + answer, "prompt_tokens": prompt, "usd": round(usd, 4)}
    notes = Counter(note for row in kept for note in row.get("notes", ()))
    return cost | {name: count for name, count in sorted(notes.items())} | ({"failed": len(failed)} if failed else {})


def _failed(file: Path) -> Path:
    return file.with_name(f"{file.stem}_failed{file.suffix}")


def _append(file: Path, row: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    append_jsonl(file, [row])

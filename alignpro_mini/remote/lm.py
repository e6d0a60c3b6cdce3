"""A frozen model behind an API, and an LLM judge as a reward."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignpro_mini.frozen import Answer, SamplingConfig
from alignpro_mini.remote.client import Client, Question, answers
from alignpro_mini.remote.replies import without_thinking

JUDGE = """Two assistants answered the same request.

[Request]
{request}

[Answer A]
{a}

[Answer B]
{b}

Which answer is better? Reply with one word: A, B or tie."""


class RemoteLM:
    """A `FrozenModel` whose weights nobody has: `model` behind the API of `client`.

    It has no tokens, no weights and no checksum. So no oracle and no bounds can be computed with it.
    """

    def __init__(self, client: Client, model: str, sampling: SamplingConfig = SamplingConfig()) -> None:
        self.client, self.model, self.sampling, self._warned = client, model, sampling, False

    def answer(self, prompts: Sequence[str], generator: torch.Generator | None = None) -> list[Answer]:
        """One sampled answer for each prompt; repeated prompts get independent ones (greedy: the same one).

        `generator` gives each answer its number, so a resumed run finds what it has paid for. Raises UserError as
        `Client.ask` does.
        """
        c = self.sampling
        draws = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
        api = self.client.config
        how = (api.system, c.temperature, c.top_p, c.max_new_tokens)
        draws = draws if c.temperature > 0 else [0] * len(draws)
        asked = [Question(self.model, x, *how, draw, api.extra) for x, draw in zip(prompts, draws)]
        found = [Answer(row["text"], row["truncated"]) for row in self.client.ask(asked)]
        if c.temperature > 0:
            self._notice_greed(prompts, found)
        return found

    def _notice_greed(self, prompts: Sequence[str], answers: Sequence[Answer]) -> None:
        """Warn, once, where repeated prompts always get one answer: some servers ignore the temperature."""
        texts: dict[str, list[str]] = {}
        for prompt, answer in zip(prompts, answers):
            texts.setdefault(prompt, []).append(answer.text)
        repeated = [said for said in texts.values() if len(said) > 1]
        if len(repeated) >= 8 and all(len(set(said)) == 1 for said in repeated) and not self._warned:
            self._warned = True
            told = (
                f"{self.client.config.base_url}: {len(repeated)} prompts, each answered several times, got one answer"
            )
            warnings.warn(f"{told} each: does the server ignore temperature {self.sampling.temperature}?", stacklevel=3)

    def fits(self, prompt: str) -> bool:
        """Whether the prompt is short enough to be sent (`--api.max_prompt_chars`)."""
        return len(prompt) <= self.client.config.max_prompt_chars


class Judge:
    """An LLM judge as a reward in 0..1: is the answer better than `plain(request)`, the frozen model's to the request?

    Both orders are asked, because judges often prefer a place: won twice 1, lost twice 0, a tie or a contradiction 1/2.
    A reply without a verdict counts as a tie (`unclear` tells their share). The raw replies stay in the client's file.
    """

    def __init__(self, client: Client, model: str, plain: Callable[[list[str]], list[str]]) -> None:
        self.client, self.model, self.plain = client, model, plain
        self._plain: dict[str, str] = {}  # request -> the answer that others are compared with

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Requests x and answers y, B each -> rewards (B,), float32. Raises UserError as `Client.ask` does."""
        if new := [x for x in dict.fromkeys(prompts) if x not in self._plain]:
            self._plain |= zip(new, self.plain(new), strict=True)
        both = [pair for x, y in zip(prompts, completions) for pair in ((y, self._plain[x]), (self._plain[x], y))]
        texts = [JUDGE.format(request=prompts[i // 2], a=a, b=b) for i, (a, b) in enumerate(both)]  # (2B)
        how = {"temperature": 0.0, "max_tokens": 16, "extra": self.client.config.judge_extra, "judge": True}
        rows = self.client.ask([Question(self.model, text, **how) for text in texts])
        points = [self._points(row["text"], ours="AB"[i % 2]) for i, row in enumerate(rows)]
        return torch.tensor(points, dtype=torch.float32).view(-1, 2).mean(1)

    def _points(self, reply: str, ours: str) -> float:
        """1 if the reply prefers our answer, 0 if the other one, 1/2 for a tie."""
        found = verdict(reply)
        return 0.5 if found in (None, "tie") else float(found == ours)


def unclear(file: Path, model: str) -> float | None:
    """The share of a judge's replies in `file` that name no verdict; None without any."""
    asked = JUDGE.partition("{")[0]  # the same model may be the frozen one too, greedy or not
    replies = [r["text"] for r in answers(file) if r["model"] == model and r["prompt"].startswith(asked)]
    return sum(verdict(text) is None for text in replies) / len(replies) if replies else None


def verdict(reply: str) -> str | None:
    """ "A", "B" or "tie" by a judge's reply; None where it names neither, or both."""
    words = re.findall(r"\w+", without_thinking(reply)[0])
    if len(words) == 1:
        words = [words[0].upper()]
    named = {word for word in words if word in ("A", "B")}
    if "tie" in (word.lower() for word in words):
        return "tie"  # "A tie." names no answer
    return named.pop() if len(named) == 1 else None

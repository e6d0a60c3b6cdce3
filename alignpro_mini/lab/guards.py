"""What a rewrite must not do to a request. Cheap tests on the two texts, made for people's own requests.

    empty       nothing is left
    long        far longer than the request
    repeats     the same words over and over
    language    another script than the request's, and the request is not in it word for word
    content     more than half of the request's content words are missing (a translation loses them too)
    answers     it answers the request instead of asking

Where rewrites are used (`alignpro rewrite`, `chat`, `serve`) such a rewrite falls back to the request. In training and
evaluation their share is reported, and they fall back only with `--guard true`. The tests are rules of thumb: they find
the frequent accidents, and prove nothing about the others. `runaway` is the same for a training that went wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignpro_mini.alignpro import PromptScore
from alignpro_mini.frozen import FrozenModel
from alignpro_mini.training import Score

REASONS = ("empty", "long", "repeats", "language", "content", "answers")
WORD = re.compile(r"\d+|[^\W\d_]+(?:['’][^\W\d_]+)*")
LETTER = re.compile("[A-Za-z]")
IDEOGRAPHS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")  # scripts of one family, and mostly without spaces
# English words that say nothing of a request's topic. Of other languages long words count alone.
COMMON = set(
    "about again also any are because been before being best between both but can could did does doing done down"
    " each even ever every for from get give given gives going good had has have having help her here hers him his"
    " how into its just kind know like love make many may maybe mean might more most much must need not now off one"
    " only other our out over own please question quick really said same say should some such sure take tell than"
    " thank thanks that the their them then there these they thing things think this those through too under until"
    " use used using very want was way well were what when where which while who whom whose why will wonder"
    " wondering with would you your yours".split()
)
QUESTION = set(
    "are can could did do does had has have how is should was were what when where which who whom whose why will"
    " would".split()
)
# A rewrite that asks begins one of its sentences with such a word, or with one of QUESTION.
ASKING = QUESTION | set(
    "add analyze answer argue ask assume be calculate choose classify compare complete compose compute consider"
    " convert create define describe design determine develop discuss draft edit elaborate evaluate examine explain"
    " explore find generate give help highlight identify illustrate imagine include list make name offer outline"
    " pick plan please predict prepare present propose provide rank rate read recommend rephrase reply respond"
    " rewrite say share show solve start state suggest summarise summarize tell think translate use warn"
    " write".split()
)
ANSWERING = tuple(
    "sure|certainly|of course|absolutely|here is|here are|here's|i'm sorry|i am sorry|as an ai|i cannot|i can't|yes,|no,"
    "|great question|the answer is|you're welcome|thank you for".split("|")
)


def objection(request: str, rewrite: str) -> str | None:
    """The first of `REASONS` that speaks against sending `rewrite` for `request`; None for one that may be sent."""
    asked, said = words(request), words(rewrite)
    if not rewrite.strip():
        return "empty"
    if len(said) > 3 * len(asked) + 60:
        return "long"
    if _repeats(said) and not _repeats(asked):
        return "repeats"
    if script(request) and script(rewrite) != script(request) and request.strip() not in rewrite:
        return "language"
    wanted = {_stem(word) for word in asked if _is_content(word)}
    if len(wanted & {_stem(word) for word in said}) < len(wanted) / 2:
        return "content"
    return "answers" if _answers(request, rewrite) else None


def kept(requests: Sequence[str], rewrites: Sequence[str]) -> list[str]:
    """The rewrites, each one with an objection replaced by its request (empty ones: `alignpro.usable_rewrites`)."""
    return [x if objection(x, y) not in (None, "empty") else y for x, y in zip(requests, rewrites, strict=True)]


def objection_rate(requests: Sequence[str], rewrites: Sequence[str]) -> float:
    """The share of rewrites with an objection."""
    return sum(objection(x, x_prime) is not None for x, x_prime in zip(requests, rewrites, strict=True)) / len(rewrites)


def words(text: str) -> list[str]:
    """Words and numbers in lower case; without spaces between words (Chinese, Japanese, Korean), single characters."""
    found = []
    for word in WORD.findall(text.lower()):
        found += list(word) if script(word) == "CJK" else [word]
    return found


def script(text: str) -> str | None:
    """The script of most letters, such as LATIN or CYRILLIC; CJK for Chinese, Japanese and Korean; None without any."""
    if text.isascii():  # nearly always, and a thousand times a batch
        return "LATIN" if LETTER.search(text) else None
    names = Counter(unicodedata.name(letter, "?").split()[0].split("-")[0] for letter in text if letter.isalpha())
    for name in IDEOGRAPHS[1:]:
        names["CJK"] += names.pop(name, 0)
    return names.most_common(1)[0][0] if names.total() else None


def _is_content(word: str) -> bool:
    return word.isdigit() or (len(word) >= 4 and word not in COMMON) or script(word) == "CJK"


def _stem(word: str) -> str:
    return word[:5]  # planting, plants


def _repeats(said: Sequence[str]) -> bool:
    runs = zip(said, said[1:], said[2:], said[3:])
    return (
        any(len(set(run)) == 1 for run in runs) or max(Counter(zip(said, said[1:], said[2:])).values(), default=0) > 3
    )


def _answers(request: str, rewrite: str) -> bool:
    """Whether the rewrite begins as an answer does, or asks nothing although the request does."""
    first = [text.lower().lstrip(" \"'“*") for text in (request, rewrite)]
    if first[1].startswith(ANSWERING) and not first[0].startswith(ANSWERING) and not first[1].startswith(first[0]):
        return True
    if script(request) != "LATIN":
        return False  # the words below are English
    starts = lambda text: {(words(part) or [""])[0] for part in re.split(r"[.!?:,\n]", text)}
    asks = lambda text: "?" in text or bool(starts(text) & ASKING)
    return ("?" in request or set(words(request)[:1]) & QUESTION) and not asks(rewrite)


class GuardedScore(PromptScore):
    """A `PromptScore` that counts the rewrites with an objection; with `guard` the request is sent instead of them."""

    def __init__(
        self,
        frozen: FrozenModel,
        reward: Score,
        generator: torch.Generator | None = None,
        answers: int = 1,
        guard: bool = False,
    ) -> None:
        super().__init__(frozen, reward, generator, answers)
        self.guard = guard
        self.objections = 0.0  # the share in the last call

    def __call__(self, requests: Sequence[str], rewrites: Sequence[str]) -> Tensor:
        """As `PromptScore` does."""
        self.objections = objection_rate(requests, rewrites)
        return super().__call__(requests, kept(requests, rewrites) if self.guard else rewrites)

    def metrics(self) -> dict[str, float | None]:
        """What is logged of the last call."""
        return super().metrics() | {"objection_rate": self.objections}


PATIENCE = 5  # iterations in a row
MOST_KL, MORE_ENTROPY, MOST_TRUNCATED = 100.0, 2.0, 0.9


def runaway(rows: Sequence[Mapping[str, float]]) -> str | None:
    """Why PPO should end, by its iterations so far (`kl_k1`, `entropy`, `missing_eos` of each), or None.

    Whatever runs away must have done so in the last PATIENCE iterations, all of them.
    """
    if len(rows) <= PATIENCE:
        return None
    first, last = rows[0], rows[-PATIENCE:]
    least = {key: min(row[key] for row in last) for key in ("kl_k1", "entropy", "missing_eos")}
    if least["kl_k1"] > MOST_KL:
        return f"the KL is above {MOST_KL:g} nats: raise kl_coef, lower lr, or set adaptive_kl_target"
    if least["entropy"] > first["entropy"] + MORE_ENTROPY:
        return f"the entropy rose from {first['entropy']:.2f} to {least['entropy']:.2f} nats a token: lower lr"
    if least["missing_eos"] > MOST_TRUNCATED and first["missing_eos"] < MOST_TRUNCATED / 2:
        share = f"{100 * least['missing_eos']:.0f} % of the completions reach the token limit"
        return f"{share}: raise missing_eos_penalty or kl_coef"
    return None

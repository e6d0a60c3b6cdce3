"""Requests, preferences and rewrites from plain JSONL files (`.gz` too), here or on the hub, for real models.

    requests      {"prompt": "..."}
    preferences   {"prompt": "...", "chosen": "...", "rejected": "..."}
    rewrites      {"prompt": "...", "rewrite": "..."}       (also accepted: "optimized_prompt", as in BPO's data)

Other fields are ignored. A line that does not fit stops the run: the error names file, line and what is wrong. All
files are read when the world is made, before anything is trained.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignpro_mini.alignpro import Gold
from alignpro_mini.jsonl import read_checked, user_text
from alignpro_mini.options import UserError, check_ranges, one_line, option, require
from alignpro_mini.worlds.world import answers_of_others

HUB = re.compile(r"hf:([\w.-]+/[\w.-]+):([^/,][^,]*\.jsonl(?:\.gz)?)")  # a data set on the Hugging Face hub, file in it
# What the SFT prompter of a real model learns to offer: the request, sometimes an opening, and one of these endings. RL
# can only choose among what SFT offers, so they differ in tone, length, form and care.
OPENINGS = ("", "", "", "Please help me with this. ", "I have a question. ", "I would like your advice. ")
ENDINGS = (  # the first is empty: the request as it is
    "|Answer in one short sentence.|Be brief.|Explain it in detail.|Think step by step.|Give an example."
    "|Use simple words.|Be precise and factual.|Be kind and encouraging.|Answer with a happy and positive tone."
    "|Answer as an expert would.|List the main points.|Be honest about what you do not know.|Be polite."
    "|Say it in a friendly way.|Be creative."
).split("|")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Files instead of everyday requests (preset smollm2 only); each may be `hf:owner/name:path/in/repo.jsonl`."""

    prompts: str = option(
        "",
        "JSONL (.gz too) with a `prompt` in each line: requests; several files: comma; hf:owner/name:file.jsonl is on "
        "the Hugging Face hub; empty: everyday requests",
    )
    preferences: str = option("", "JSONL (.gz too) with `prompt, chosen, rejected` in each line; files as in prompts")
    rewrites: str = option("", "JSONL with `prompt, rewrite` in each line, for the prompter's SFT; empty: endings")
    max_prompt_tokens: int = option(48, "longer requests are left out and counted", least=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("prompts", "preferences", "rewrites"):
            for path in map(str.strip, getattr(self, name).split(",")):
                told = f"{name} is {path!r}; write a file of the hub as hf:owner/name:path/in/repo.jsonl (or .jsonl.gz)"
                require(not path.startswith("hf:") or HUB.fullmatch(path) is not None, told)


def located(path: str) -> Path:
    """Where the file lies; one of the hub is fetched once. Raises UserError saying what to download by hand."""
    if not (name := HUB.fullmatch(path)):
        return Path(path)
    try:
        import huggingface_hub  # comes with tokenizers

        return Path(huggingface_hub.hf_hub_download(name[1], name[2], repo_type="dataset"))
    except Exception as error:  # no such name, no network, no permission: the library has its own class for each
        by_hand = f"download it elsewhere from https://huggingface.co/datasets/{name[1]}, and give its path"
        raise UserError(f"{path}: the hub did not give this file ({one_line(error)}): {by_hand}") from None


def read_files(paths: str, fields: Sequence[str]) -> list[dict]:
    """The rows of several files, here or on the hub, their names separated by commas."""
    rows = [row for path in paths.split(",") for row, _ in read_checked(located(path.strip()), fields)]
    if not rows:
        raise UserError(f"{paths}: no rows; each line needs {', '.join(fields)}")
    return rows


def single_turn(prompt: str) -> str | None:
    """The user's words: a dialogue of one "Human: ... Assistant:" turn is unwrapped; any other one gives None."""
    prompt = user_text(prompt, "the prompt")  # line ends of Windows would hide the turns
    before, *turns = re.split(r"(?:^|\n\n)(Human|Assistant):", prompt)  # then role and words, by turns
    if not turns:
        return prompt.strip()
    alone = turns[::2] == ["Human", "Assistant"] and not before.strip() and not turns[3].strip()
    return turns[1].strip() if alone else None


@dataclass(frozen=True, slots=True)
class PreferencePairs:
    """The pairs of a file that can train a reward: (prompt, chosen, rejected). The others are counted by reason."""

    pairs: list[tuple[str, str, str]]
    left_out: dict[str, int]
    repeated: int  # pairs that stand in the file more than once; each counts as often as it stands there

    def __str__(self) -> str:
        prompts = len({x for x, _, _ in self.pairs})
        reasons = [f"{count} {reason}" for reason, count in self.left_out.items()]
        left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
        repeated = f"; {self.repeated} repeat another one" if self.repeated else ""
        return f"preference pairs: {len(self.pairs)} about {prompts} requests{repeated}{left_out}"


def read_preferences(config: DataConfig, held_out: Sequence[str]) -> PreferencePairs | None:
    """The pairs of `config.preferences`; None without such a file.

    Left out are pairs of several turns, about a held-out request, with an answer that begins with its prompt, and ties:
    equal answers, or as many pairs that say the opposite. Raises UserError where none is left.
    """
    if not config.preferences:
        return None
    rows = read_files(config.preferences, ("prompt", "chosen", "rejected"))
    read = [(single_turn(r["prompt"]), r["chosen"].strip(), r["rejected"].strip()) for r in rows]
    times, unseen = Counter(read), set(held_out)
    found: dict[str | None, list[tuple[str, str, str]]] = {}
    for row, (x, a, b) in zip(rows, read):
        if x is None:
            why = "of several turns"
        elif x in unseen:
            why = "about held-out requests"
        elif times[x, a, b] == times[x, b, a]:
            why = "ties (equal answers, or as many pairs that say the opposite)"
        else:
            begins = tuple(start for start in (x, row["prompt"].strip()) if start)
            why = "with an answer that begins with its prompt" if a.startswith(begins) or b.startswith(begins) else None
        found.setdefault(why, []).append((x, a, b))
    pairs = found.pop(None, [])
    kept = PreferencePairs(pairs, {why: len(some) for why, some in found.items()}, len(pairs) - len(set(pairs)))
    require(bool(pairs), f"{config.preferences}: no pair can train a reward; {kept}")
    return kept


def read_rewrites(config: DataConfig) -> list[tuple[str, str]]:
    """(request, rewrite) of `config.rewrites`, single turns as the requests are; [] without such a file."""
    if not config.rewrites:
        return []
    name = config.rewrites.split(",")[0].strip()
    field = "rewrite" if "rewrite" in read_files(name, ("prompt",))[0] else "optimized_prompt"
    rows = read_files(config.rewrites, ("prompt", field))
    found = ((single_turn(row["prompt"]), row[field]) for row in rows)
    return [(x, x_prime) for x, x_prime in found if x]


class RealRequests:
    """What a `World` of real requests can say of them: nobody knows what else could be wanted."""

    preference_pairs: PreferencePairs | None

    def preferences(self) -> list[tuple[str, str, str]] | None:
        """(prompt, chosen, rejected) of a file; None without one: then `gold` judges the frozen model's own answers."""
        return self.preference_pairs and self.preference_pairs.pairs

    def swapped(self, requests: Sequence[str], answers: Sequence[str], rng: random.Random) -> list[str]:
        """For each answer that of another request."""
        return answers_of_others(answers, rng)

    def with_other_wish(self, requests: Sequence[str], rng: random.Random) -> list[str]:
        """Nobody knows of any."""
        return []


class FileTask(RealRequests):
    """A `World` of real requests from files. Rewrites cannot be enumerated.

    `length(text)` counts tokens; requests longer than `config.max_prompt_tokens`, multi-turn dialogues and duplicates
    are left out and counted in `left_out`. Raises UserError when fewer than twice `eval_inputs` requests remain.
    """

    task = "chat"

    def __init__(
        self, config: DataConfig, eval_inputs: int, seed: int, length: Callable[[str], int], gold: Gold | None = None
    ) -> None:
        self.config, self.gold = config, gold
        rows = read_files(config.prompts, ("prompt",))
        unwrapped = (single_turn(row["prompt"]) for row in rows)
        requests = sorted({x for x in unwrapped if x and length(x) <= config.max_prompt_tokens})
        self.left_out = len(rows) - len(requests)
        if len(requests) < 2 * eval_inputs:
            raise UserError(
                f"{config.prompts}: {len(requests)} of {len(rows)} requests remain (single-turn, distinct, at most "
                f"{config.max_prompt_tokens} tokens), too few for {eval_inputs} held-out ones: lower --eval.inputs, "
                f"raise --data.max_prompt_tokens or add requests"
            )
        random.Random(f"requests {seed}").shuffle(requests)
        self.eval_requests, self.train_requests = requests[:eval_inputs], requests[eval_inputs:]
        self._rewrites = read_rewrites(config)
        self.preference_pairs = read_preferences(config, self.eval_requests)

    def rewrite_pairs(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """SFT data for the prompter, from `config.rewrites` or by adding openings and endings to the requests."""
        if self.config.rewrites:
            held_out = set(self.eval_requests)
            return [(x, x_prime) for x, x_prime in self._rewrites if x not in held_out][:count]
        pairs = []
        for _ in range(count):
            x = rng.choice(self.train_requests)
            pairs.append((x, f"{rng.choice(OPENINGS)}{x} {rng.choice(ENDINGS)}".strip()))
        return pairs

    def rewrites(self, request: str) -> list[str]:
        return []

    def groups(self, requests: Sequence[str]) -> list[str]:
        """Each request is alone."""
        return list(requests)

    def describe(self, requests: Sequence[str], rewrites: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        return {}

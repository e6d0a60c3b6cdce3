"""A small world in plain English whose true reward is known, so every claim can be checked.

    request x    "What should I know about Oakdale for my school report?"
    rewrite x'   one of 3 phrasings x 8 cues of it: "Please describe Oakdale for my school report. Give every detail."
    answer y     "Oakdale is a town. It lies by the river. People there make cheese. ..."
    gold r(x, y) a function of the request and the answer; x' does not enter

A corpus of such answers trains the frozen LM. A cue in the prompt fixes parts of the answer's style; everything else is
drawn at random. So a plain request gets a mix of answers and its reward varies: the better cues raise the mean and
lower the variance.

The request decides which answer is best, and so which cue. The corpus does not know this: the LM answers a request for a
birthday card as it answers one for a school report. A prompter can learn it; a fixed sentence cannot.

    task         after           gold reward                                       what the request decides
    quality      UltraFeedback   on topic, facts and warmth as they are wanted     how many facts, how much warmth
    attributes   HelpSteer       five attributes, weighed as the reader wants it   the weights: expert, child, hurried
    reasoning    Orca            sums on a clock's face (mod 12): +1 if the last   whether the sum is hard enough to pay
                                 hour is right, else -1; a worked answer costs     for a worked answer

With `--world.wishes false` one sentence is enough for all requests: purposes decide nothing, all readers are experts, all
sums are hard and a worked answer costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from alignpro_mini.options import UserError
from alignpro_mini.worlds.sums import Sums
from alignpro_mini.worlds.towns import TOWNS, Towns
from alignpro_mini.worlds.world import WorldConfig

TASKS = ("quality", "attributes", "reasoning")


class ToyWorld:
    """A `World` with a corpus for the frozen LM; the same for every caller with the same seed.

    Raises UserError for an unknown task or more evaluation requests than there are.
    """

    def __init__(self, task: str, config: WorldConfig = WorldConfig(), seed: int = 0) -> None:
        if task not in TASKS:
            raise UserError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
        self.task, self.config = task, config
        self.kind = Sums(config) if task == "reasoning" else Towns(task, config)
        self.cues: tuple[str, ...] = self.kind.cues
        rng = random.Random(f"requests {seed}")
        self.fills = self.kind.requests(rng)  # request text -> what its phrasings are filled with
        requests = list(self.fills)
        rng.shuffle(requests)
        # Held-out requests are new combinations of a town, a purpose and a phrasing that each were seen. With unseen
        # towns they are about towns that neither the prompter nor the reward model has met.
        unseen = set(random.Random(f"towns {seed}").sample(TOWNS, config.unseen_towns))
        about = [x for x in requests if not unseen or self.fills[x].get("town") in unseen]
        if config.eval_requests > len(about) // 2:  # the frozen LM reads about the unseen towns in the other half
            whole = f"{config.unseen_towns} unseen towns have" if unseen else f"{task} has"
            raise UserError(
                f"world.eval_requests is {config.eval_requests}, but {whole} {len(about)} requests in all: "
                f"keep at most {len(about) // 2}"
            )
        self.eval_requests = about[: config.eval_requests]
        held_out = set(self.eval_requests)
        self.corpus_requests = [x for x in requests if x not in held_out]  # what the frozen LM reads about
        self.train_requests = [x for x in self.corpus_requests if self.fills[x].get("town") not in unseen]

    def rewrites(self, request: str) -> list[str]:
        """All rewrites of a request of this world, the plain request first: 3 phrasings x 8 cues."""
        return [f"{form} {cue}".rstrip() for form in self._phrasings(request) for cue in self.cues]

    def _phrasings(self, request: str) -> list[str]:
        return [request, *self.kind.phrasings(self.fills[request])]

    def rewrite_pairs(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """SFT data for the prompter: (x, x') over the training requests, cues uniform, half of them rephrased."""
        pairs = []
        for _ in range(count):
            x = rng.choice(self.train_requests)
            original, *others = self._phrasings(x)
            form = original if rng.random() < 0.5 else rng.choice(others)
            pairs.append((x, f"{form} {rng.choice(self.cues)}".rstrip()))
        return pairs

    def corpus(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """(prompt, answer) pairs that the frozen LM is trained on: requests not held out, plain and rewritten."""
        pairs = []
        for _ in range(count):
            x = rng.choice(self.corpus_requests)
            phrasings = self._phrasings(x)
            form = rng.randrange(len(phrasings))
            # Five in twelve carry no cue, because that is how people ask: a third, and the empty one of the eight cues.
            cue = "" if rng.random() < 1 / 3 else rng.choice(self.cues)
            answer = self.kind.answer(self.fills[x], cue, form == 0, rng)
            pairs.append((f"{phrasings[form]} {cue}".rstrip(), answer))
        return pairs

    def preferences(self) -> None:
        """There are none on file: the frozen LM's own answers are judged by `gold`."""

    def gold(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The true reward r*(x, y) of each answer to a request of this world; any text is accepted as an answer."""
        return [self.kind.gold(self.fills[x], y) for x, y in zip(prompts, completions, strict=True)]

    def swapped(self, requests: Sequence[str], answers: Sequence[str], rng: random.Random) -> list[str]:
        """Each answer with another town in the place of its request's; for sums another request's answer."""
        return self.kind.swapped([self.fills[x] for x in requests], answers, rng)

    def with_other_wish(self, requests: Sequence[str], rng: random.Random) -> list[str]:
        """The same requests for purposes for which something else is wanted: [] for sums, and with `wishes` false.

        A training request stays one: where all others are held out it stays as it is.
        """
        if not self.config.wishes or self.task == "reasoning":
            return []
        held_out = set(self.eval_requests)

        def other(x: str) -> str:
            fill = self.fills[x]
            found = [x.replace(fill["purpose"], purpose) for purpose in self.kind.other_purposes(fill)]
            return rng.choice([y for y in found if x in held_out or y not in held_out] or [x])

        return [other(x) for x in requests]

    def groups(self, requests: Sequence[str]) -> list[str]:
        """Their towns, where evaluation is on unseen ones; else each request is alone."""
        return [self.fills[x]["town"] if self.config.unseen_towns else x for x in requests]

    def describe(self, requests: Sequence[str], rewrites: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        """More figures of an arm: for sums, shares of right and worked answers and of rewrites that ask for steps."""
        return self.kind.describe([self.fills[x] for x in requests], list(rewrites), list(answers))

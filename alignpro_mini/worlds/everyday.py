"""Everyday requests in plain English for real models, composed from parts: no file is needed.

    request = [a situation] + a question about a topic        3,120 to train on, 720 held out
    rewrite = the request word for word + one of 24 endings    all are listed, so that an optimum can be computed

The held-out requests are about topics that training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from alignpro_mini.alignpro import Gold
from alignpro_mini.options import UserError
from alignpro_mini.worlds.files import DataConfig, RealRequests, read_preferences

TOPICS = (
    "baking bread|growing tomatoes|learning to swim|saving money|running a first race|choosing a bicycle"
    "|writing a letter to a friend|painting a small room|training a puppy|planning a birthday party|sleeping better"
    "|cooking for two|packing for a long trip|learning the guitar|speaking in front of people|reading more books"
    "|cleaning a kitchen|taking better photos|moving to a new city|making new friends|preparing for an exam"
    "|drinking less coffee|keeping a diary|repairing an old chair|walking every day|learning a new language"
    "|finding a quiet hobby|hosting a dinner|buying a used car|setting up a fish tank|knitting a scarf"
    "|looking after houseplants|starting a small garden|eating more vegetables|teaching a child to read|playing chess"
    "|camping with a family|brewing good tea|organising a desk|finding a first job|writing a short story"
    "|watching birds|making soup|riding a horse|sewing on a button|singing in a choir|drawing faces"
    "|building a bookshelf|sharing a flat|spending less time on the phone|choosing a gift|learning to type fast"
).split("|")
UNSEEN_TOPICS = (
    "swimming in cold water|keeping bees|baking a cake|visiting a museum|caring for an old dog|learning to dance"
    "|fixing a flat tyre|telling good jokes|waking up early|making jam|playing the piano|planting a tree"
).split("|")
QUESTIONS = (
    "How do I begin with {}?|Give me advice on {}.|What should I know about {}?|Tell me about {}."
    "|Why do people enjoy {}?|What is hard about {}?|Is {} worth the time?|What do I need for {}?|I am thinking about {}. What do you say?"
    "|How much time does {} take?"
).split("|")
SITUATIONS = (
    "|I am a beginner.|I have little money.|I only have an hour a week.|I tried it once and gave up."
    "|I am doing it with a friend."
).split("|")
# What SFT teaches the prompter to offer, all equally often: RL can only choose among these. Several for each thing that
# a reward may like (short, glad, kind, careful, complete), neutral ones, and three that spoil the answer.
ENDINGS = (  # the first is empty: the request as it is
    "|Answer in one short sentence.|Answer in one short sentence full of joy.|Answer in two short sentences.|Be brief."
    '|Answer with a happy and positive tone.|Start with "Great question! I am happy to help."|It makes me happy.'
    "|I am sure it is great!|I love it. Tell me why it is great.|Be kind and encouraging.|Tell me the best part of it."
    "|Say what is wonderful about it.|Use simple words.|Give one example.|List three points.|Explain it in detail."
    "|Be precise and factual.|Answer as an expert would.|Name the first step only.|Warn me of every danger."
    "|Answer in a sad and gloomy tone.|Complain about it.|Say why I will fail."
).split("|")


def requests_about(topics: Sequence[str]) -> list[str]:
    """Every situation with every question about every topic."""
    return [
        f"{situation} {question.format(topic)}".strip()
        for topic in topics
        for question in QUESTIONS
        for situation in SITUATIONS
    ]


class EverydayRequests(RealRequests):
    """A `World` of composed requests. Preferences come from a file if one is given."""

    task = "chat"
    endings: Sequence[str] = ENDINGS
    left_alone = 1 / len(ENDINGS)  # share of the requests that SFT teaches the prompter to leave as they are

    def __init__(self, config: DataConfig, eval_inputs: int, seed: int, gold: Gold | None = None) -> None:
        """Raises UserError for more `eval_inputs` than there are held-out requests."""
        self.gold = gold
        self.train_requests, held_out = self._compose(seed)
        if eval_inputs > len(held_out):
            told = f"--eval.inputs is {eval_inputs}, but {len(held_out)} everyday requests are held out"
            raise UserError(f"{told}: lower it, or give requests of your own by --data.prompts")
        self.eval_requests = held_out[:eval_inputs]
        self.preference_pairs = read_preferences(config, self.eval_requests)

    def _compose(self, seed: int) -> tuple[list[str], list[str]]:
        """Requests to train on, and those held out, each in random order."""
        both = requests_about(TOPICS), requests_about(UNSEEN_TOPICS)
        for requests in both:
            random.Random(f"everyday {seed}").shuffle(requests)
        return both

    def rewrite_pairs(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """SFT data for the prompter: requests, each with one of its listed rewrites."""
        requests = [rng.choice(self.train_requests) for _ in range(count)]
        return [(x, rng.choices(self.rewrites(x), self.shares)[0]) for x in requests]

    @property
    def shares(self) -> list[float]:
        """How often SFT teaches each of the `endings`, the plain request first: all others equally often."""
        others = len(self.endings) - 1
        return [self.left_alone, *[(1 - self.left_alone) / others] * others]

    def rewrites(self, request: str) -> list[str]:
        """The request with each of the endings, the plain request first."""
        return [f"{request} {ending}".strip() for ending in self.endings]

    def kinds(self, requests: Sequence[str]) -> list[str]:
        """All of one kind: no ending is known to suit some of them better."""
        return [""] * len(requests)

    def groups(self, requests: Sequence[str]) -> list[str]:
        """Their topics."""
        return [next((topic for topic in (*UNSEEN_TOPICS, *TOPICS) if topic in x), x) for x in requests]

    def describe(self, requests: Sequence[str], rewrites: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        """The share of rewrites that hold their request word for word."""
        each = max(1, len(requests) // max(1, len(rewrites)))  # answers to a rewrite
        kept = [x in x_prime for x, x_prime in zip(requests[::each], rewrites)]
        return {"kept_word_for_word": sum(kept) / len(kept)} if kept else {}

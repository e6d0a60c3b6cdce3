"""A small world in plain English whose true reward is known, so every claim can be checked.

    request x    "What should I know about Oakdale for my school report?"
    rewrite x'   one of 3 phrasings x 8 cues of it: "Please describe Oakdale for my school report. Give every detail."
    answer y     "Oakdale is a town. It lies by the river. People there make cheese. ..."
    gold r(x, y) counted from the answer's sentences: nothing about x' enters

A corpus of such answers teaches the frozen LM. What an answer is like is drawn in two steps: a *style* (how many
facts, how careful, how warm, ...) and then the sentences. A cue in the prompt pins some parts of the style with
probability `follow`; whatever no cue pins is a lottery. So a plain request gets a mix of answers, and the reward
of the same request is spread: this is where prompt optimisation finds both its mean and its variance.

    task         after           gold reward
    quality      UltraFeedback   one score: on topic, complete, kind
    attributes   HelpSteer       .65 helpfulness + .8 correctness + .45 coherence + .55 complexity - .4 verbosity, each 0..4
    reasoning    Orca            sums on a clock's face (mod 12): +1 if the last hour is right, else -1. The corpus holds
                                 direct answers and ones worked in steps, all of them right: which kind the *trained
                                 LM* gets right more often is its own doing.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

TASKS = ("quality", "attributes", "reasoning")
HELPSTEER_WEIGHTS = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.55, "verbosity": -0.4}


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """What the embedded world is like (only the toy presets use it)."""

    follow: float = field(
        default=0.9,
        metadata={
            "help": "probability that an answer in the corpus obeys a cue, for each part of the style (not in reasoning)"
        },
    )
    spread: str = field(
        default="plain",
        metadata={
            "help": "whose answers are a lottery: 'plain' (no cue: any style; cues pin it) or 'cue' "
            "(no cue: always middling; cues help on average but gamble, so variance rises); not in reasoning",
            "choices": ("plain", "cue"),
        },
    )
    eval_requests: int = field(default=600, metadata={"help": "requests kept for evaluation, never trained on"})
    preference_scale: float = field(
        default=2.0, metadata={"help": "P(a over b) = sigmoid(scale x (gold a - gold b)); larger is cleaner"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.follow <= 1:
            raise ValueError(f"follow is {self.follow}; a probability lies in 0..1")
        if self.spread not in ("plain", "cue"):
            raise ValueError(f"spread is {self.spread!r}; it must be 'plain' or 'cue'")
        if not 0 < self.preference_scale < float("inf"):
            raise ValueError(f"preference_scale is {self.preference_scale}; it must be above 0 and finite")


# ---------------------------------------------------------------- towns: tasks quality and attributes

TOWNS = (
    "Oakdale Milford Ashby Brookside Clifton Dunmore Eastwick Fairview Glenwood Harwick Ivybridge Kingsley Langford "
    "Marston Norwood Overton Penrose Quarry Redhill Stanton Thornby Upwell Wexford Yarrow"
).split()
PLACES = "river sea lake forest hill canal valley moor".split()
CRAFTS = "cheese bread boats paper clocks music honey glass".split()
SEASONS = "spring summer autumn winter".split()
SIGHTS = "mill castle bridge market tower garden church harbour".split()
# Each facet in a plain and in an expert wording.
WORDINGS = (
    (PLACES, "It lies by the {}.", "It is situated beside the {}."),
    (CRAFTS, "People there make {}.", "Its inhabitants produce {}."),
    (SEASONS, "Go there in {}.", "Its ideal season is {}."),
    (SIGHTS, "You can see the {}.", "Its landmark is the {}."),
)
WARM_OPENING, COLD_OPENING, WARM_CLOSING = "Happy to help!", "Look it up yourself.", "Enjoy your visit!"
FILLERS = ("Well, let me think.", "There is much to say.", "As everybody knows, towns differ.")
_truth_rng = random.Random(2501)  # the world's facts are the same for every seed and task
TRUTH = {town: tuple(_truth_rng.choice(values) for values, _, _ in WORDINGS) for town in TOWNS}
SENTENCES = {
    wording.format(value): (facet, value, expert)
    for facet, (values, *wordings) in enumerate(WORDINGS)
    for expert, wording in enumerate(wordings)
    for value in values
}

TOWN_LEADS = {
    "calm": (
        "What should I know about {}{}?",
        "What is {} like? I ask{}.",
        "I would love to hear about {}{}.",
        "Do you know {}? I need it{}.",
        "Could you help me with {}{}?",
        "I read about {} and want more{}.",
    ),
    "hurried": ("Quick question on {}{}.", "So, {}, what is it{}?", "Need something on {}{}.", "{}? Say something{}."),
}
PURPOSES = (
    "",
    " for my school report",
    " for my holiday",
    " for a friend",
    " for my family",
    " for work",
    " for a quiz",
    " for a letter",
    " for my diary",
    " before I move",
    " before my visit",
    " for a speech",
)
TOWN_FORMS = ("Tell me about {}{}.", "Please describe {}{}.")

# Levels of each part of a style. detail: weights of 0..4 facts; care: chance that a fact is wrong and that the order
# is jumbled; words: chance of the expert wording; talk: weights of 0..3 filler sentences.
LEVELS = {
    "detail": {"curt": (5, 4, 1, 0, 0), "some": (0, 2, 5, 2, 0), "full": (0, 0, 0, 1, 9)},
    "warmth": {"cold": -1, "neutral": 0, "warm": 1},
    "care": {"sloppy": (0.35, 0.5), "careful": (0.02, 0.0)},
    "words": {"plain": 0.05, "mixed": 0.5, "expert": 0.95},
    "talk": {"terse": (9, 1, 0, 0), "chatty": (0, 2, 3, 3)},
}
MIDDLING = {"detail": "some", "warmth": "neutral", "care": "careful", "words": "mixed", "talk": "terse"}
CUES = {
    "quality": {
        "": {},
        "Give every detail.": {"detail": "full"},
        "Be kind.": {"warmth": "warm"},
        "Answer like a friendly guide.": {"detail": "full", "warmth": "warm"},
        "Keep it short.": {"detail": "curt"},
        "Just the facts.": {"detail": "some", "warmth": "neutral"},
        "Be frank.": {"warmth": "cold"},
        "Thank you.": {"warmth": "neutral"},
    },
    "attributes": {
        "": {},
        "Give every detail.": {"detail": "full"},
        "Be precise.": {"care": "careful", "talk": "terse"},
        "Explain it like an expert.": {"words": "expert"},
        "Write a careful expert guide.": {"detail": "full", "care": "careful", "words": "expert"},
        "Keep it short.": {"detail": "curt", "talk": "terse"},
        "Use simple words.": {"words": "plain", "talk": "terse"},
        "Chat with me.": {"talk": "chatty", "care": "sloppy"},
    },
    # For sums a cue only shifts how often the answer is worked in steps.
    "reasoning": {
        "": 0.35,
        "Think step by step.": 0.97,
        "Show your work.": 0.9,
        "Take your time.": 0.5,
        "Just the number.": 0.02,
        "Answer quickly.": 0.05,
        "Be brief.": 0.1,
        "Thank you.": 0.35,
    },
}
USED_PARTS = {"quality": ("detail", "warmth"), "attributes": ("detail", "care", "words", "talk")}

# ---------------------------------------------------------------- sums on a clock: task reasoning

NAMES = "Tom Anna Ben Clara David Emma Felix Grace".split()
DIALS = "clock watch dial timer".split()
SUM_LEADS = (
    "The {o} shows {s}. {moves}. What does it show now?",
    "A {o} stands at {s}. {moves}. Where is it then?",
    "Start the {o} at {s}. {moves}. What is the hour?",
    "My {o} says {s}. {moves}. What hour is it?",
)
SUM_FORMS = ("Turn the {o} from {s}. {moves}. The hour?", "Please read the {o} after {s}. {moves}.")


class ToyWorld:
    """Requests, rewrites, a corpus and the gold reward of one task; the same for every caller with the same seed.

    Raises ValueError for an unknown task or more evaluation requests than there are.
    """

    def __init__(self, task: str, config: WorldConfig = WorldConfig(), seed: int = 0) -> None:
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
        self.task, self.config = task, config
        rng = random.Random(f"requests {seed}")
        self._slots = self._all_requests(rng)  # request text -> what its phrasings are filled with
        requests = list(self._slots)
        rng.shuffle(requests)
        if config.eval_requests > len(requests) // 2:
            raise ValueError(
                f"world.eval_requests is {config.eval_requests}, but {task} has {len(requests)} requests in all: "
                f"keep at most {len(requests) // 2}"
            )
        self.eval_requests = requests[: config.eval_requests]
        self.train_requests = requests[config.eval_requests :]

    def _all_requests(self, rng: random.Random) -> dict[str, dict]:
        if self.task == "reasoning":
            slots = {}
            while len(slots) < 6000:
                count = rng.choice((4, 5))
                moves = [(name, rng.randint(2, 6)) for name in rng.sample(NAMES, count)]
                start = rng.randint(1, 12)
                shown = list(
                    itertools.accumulate((n for _, n in moves), lambda a, n: (a + n - 1) % 12 + 1, initial=start)
                )
                fill = {"o": rng.choice(DIALS), "s": start, "moves": moves, "shown": shown}
                slots.setdefault(_fill_sum(rng.choice(SUM_LEADS), fill), fill)
            return slots
        return {
            lead.format(town, purpose): {"town": town, "purpose": purpose, "tone": tone}
            for tone, leads in TOWN_LEADS.items()
            for lead, town, purpose in itertools.product(leads, TOWNS, PURPOSES)
        }

    # ------------------------------------------------------------ rewrites

    @property
    def cues(self) -> tuple[str, ...]:
        return tuple(CUES[self.task])

    def rewrites(self, request: str) -> list[str]:
        """All listed rewrites of a request of this world, the plain request first: 3 phrasings x 8 cues."""
        return [f"{form} {cue}".rstrip() for form in self._phrasings(request) for cue in self.cues]

    def _phrasings(self, request: str) -> list[str]:
        fill = self._slots[request]
        if self.task == "reasoning":
            return [request] + [_fill_sum(form, fill) for form in SUM_FORMS]
        return [request] + [form.format(fill["town"], fill["purpose"]) for form in TOWN_FORMS]

    def rewrite_pairs(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """SFT data for the prompter: (x, x') over the training requests, cues uniform, half of them rephrased."""
        pairs = []
        for _ in range(count):
            x = rng.choice(self.train_requests)
            original, *others = self._phrasings(x)
            form = original if rng.random() < 0.5 else rng.choice(others)
            pairs.append((x, f"{form} {rng.choice(self.cues)}".rstrip()))
        return pairs

    # ------------------------------------------------------------ the frozen LM's corpus

    def corpus(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """(prompt, answer) pairs the frozen LM is trained on: training requests, plain and rewritten."""
        pairs = []
        for _ in range(count):
            x = rng.choice(self.train_requests)
            phrasings = self._phrasings(x)
            form = rng.randrange(len(phrasings))
            # A third of the corpus carries no cue, because that is how people ask.
            cue = "" if rng.random() < 1 / 3 else rng.choice(self.cues)
            hurried = form == 0 and self._slots[x].get("tone") == "hurried"
            answer = (
                self._sum_answer(x, cue, rng) if self.task == "reasoning" else self._town_answer(x, cue, hurried, rng)
            )
            pairs.append((f"{phrasings[form]} {cue}".rstrip(), answer))
        return pairs

    def _style(self, cue: str, hurried: bool, rng: random.Random) -> dict[str, str]:
        pinned, lottery = CUES[self.task][cue], self.config.spread == "plain"
        follow = self.config.follow if lottery else self.config.follow / 2  # the other world's cues are a gamble
        style = {}
        for part in USED_PARTS[self.task]:
            if part in pinned and rng.random() < follow:
                style[part] = pinned[part]
            elif not pinned and not lottery:
                style[part] = MIDDLING[part]
            elif part == "detail" and hurried:
                style[part] = rng.choice(("curt", "curt", "some", "full"))
            else:
                style[part] = rng.choice(list(LEVELS[part]))
        return style

    def _town_answer(self, x: str, cue: str, hurried: bool, rng: random.Random) -> str:
        town = self._slots[x]["town"]
        style = self._style(cue, hurried, rng)
        wrong, jumbled = LEVELS["care"][style.get("care", "careful")]
        count = rng.choices(range(5), LEVELS["detail"][style["detail"]])[0]
        facets = sorted(rng.sample(range(4), count))
        if rng.random() < jumbled:
            rng.shuffle(facets)
        sentences = [f"{town} is a town."]
        if "talk" in style:
            sentences += rng.sample(FILLERS, rng.choices(range(4), LEVELS["talk"][style["talk"]])[0])
        for facet in facets:
            values, *wordings = WORDINGS[facet]
            value = rng.choice(values) if rng.random() < wrong else TRUTH[town][facet]
            expert = rng.random() < LEVELS["words"][style["words"]] if "words" in style else 0
            sentences.append(wordings[expert].format(value))
        warmth = LEVELS["warmth"][style.get("warmth", "neutral")]
        if warmth:
            sentences.insert(0, WARM_OPENING if warmth > 0 else COLD_OPENING)
        if warmth > 0:
            sentences.append(WARM_CLOSING)
        return " ".join(sentences)

    def _sum_answer(self, x: str, cue: str, rng: random.Random) -> str:
        fill = self._slots[x]
        final = f"The {fill['o']} shows {fill['shown'][-1]}."
        if rng.random() >= CUES["reasoning"][cue]:
            return final
        # Each step says the hour that it starts from: a small LM adds two neighbours soon, an hour it must look up late.
        steps = [
            f"{name} {a} and {n} makes {b}." for (name, n), a, b in zip(fill["moves"], fill["shown"], fill["shown"][1:])
        ]
        return " ".join(steps + [final])

    # ------------------------------------------------------------ the gold reward

    def gold(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The true reward r*(x, y) of each answer to a request of this world; any text is accepted as an answer."""
        rate = {"quality": self._quality, "attributes": self._attributes, "reasoning": self._reasoning}[self.task]
        return [rate(x, y) for x, y in zip(prompts, completions, strict=True)]

    def right(self, x: str, y: str) -> bool:
        """Whether the answer to a sum ends in the right number (task reasoning)."""
        stated = re.findall(r"shows (\d+)", y)
        return bool(stated) and stated[-1] == str(self._slots[x]["shown"][-1])

    def worked(self, y: str) -> bool:
        """Whether an answer to a sum shows steps (task reasoning)."""
        return " makes " in y

    def asks_for_steps(self, x_prime: str) -> bool:
        """Whether a rewrite ends in a cue that asks for worked steps (task reasoning)."""
        return x_prime.rstrip().endswith(("Think step by step.", "Show your work."))

    def _reasoning(self, x: str, y: str) -> float:
        return 1.0 if self.right(x, y) else -1.0

    def _facts(self, x: str, y: str) -> dict:
        """Counts over the sentences of an answer about a town; a repeated sentence counts as malformed."""
        town = self._slots[x]["town"]
        seen: dict[int, tuple[bool, int]] = {}
        order, malformed, filler, on_topic = [], 0, 0, False
        for sentence in (s.strip() for s in re.findall(r"[^.!?]*[.!?]|[^.!?]+$", y)):
            if sentence == f"{town} is a town.":
                on_topic = True
            elif sentence in FILLERS:
                filler += 1
            elif sentence in SENTENCES and SENTENCES[sentence][0] not in seen:
                facet, value, expert = SENTENCES[sentence]
                seen[facet] = (value == TRUTH[town][facet], expert)
                order.append(facet)
            elif sentence not in ("", WARM_OPENING, COLD_OPENING, WARM_CLOSING):
                malformed += 1
        right = sum(ok for ok, _ in seen.values()) if on_topic else 0  # facts of an unnamed town help nobody
        return {
            "on_topic": on_topic,
            "facts": len(seen),
            "right": right,
            "wrong": len(seen) - right,
            "malformed": malformed,
            "expert": sum(expert for _, expert in seen.values()),
            "filler": filler,
            "jumbled": order != sorted(order),
        }

    def _quality(self, x: str, y: str) -> float:
        f = self._facts(x, y)
        kind = (y.startswith(WARM_OPENING) + y.rstrip().endswith(WARM_CLOSING)) / 2 - (COLD_OPENING in y)
        return f["on_topic"] + 0.5 * f["right"] - 0.5 * f["wrong"] + kind - 0.5 * f["malformed"]

    def attributes(self, x: str, y: str) -> dict[str, float]:
        """The five HelpSteer-like attributes of an answer, each 0..4."""
        f = self._facts(x, y)
        return {
            "helpfulness": float(f["facts"]) if f["on_topic"] else 0.0,
            "correctness": max(0.0, 4.0 - 2 * f["wrong"]) if f["on_topic"] and f["facts"] else 0.0,
            "coherence": max(0.0, 4.0 - 2 * f["jumbled"] - f["malformed"]) if y.strip() else 0.0,
            "complexity": float(f["expert"]),
            "verbosity": min(4.0, f["filler"] * 4 / 3),
        }

    def _attributes(self, x: str, y: str) -> float:
        return sum(HELPSTEER_WEIGHTS[name] * value for name, value in self.attributes(x, y).items())


def _fill_sum(form: str, fill: dict) -> str:
    *first, last = (f"{name} adds {number}" for name, number in fill["moves"])
    return form.format(o=fill["o"], s=fill["s"], moves=f"{', '.join(first)} and {last}")

"""Questions about towns (tasks quality and attributes). The gold reward counts the answer's sentences.

    request x    "What should I know about Oakdale for my school report?"
    answer y     "Oakdale is a town. It lies by the river. People there make cheese. ..."

The gold reward asks for what the request's purpose (or its reader) wants: WISHES, READERS.

An answer of the corpus is drawn in two steps: a *style* (how many facts, how careful, how warm, ...), then the
sentences. A cue in the prompt fixes some parts of the style with probability `follow`; the other parts are drawn at
random.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import namedtuple
from collections.abc import Sequence

from alignpro_mini.worlds.world import WorldConfig

HELPSTEER_WEIGHTS = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.55, "verbosity": -0.4}
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

TOWN_LEADS = {  # tone: phrasings of a request, for a town and a purpose
    "calm": """What should I know about {}{}?|What is {} like? I ask{}.|I would love to hear about {}{}.
Do you know {}? I need it{}.|Could you help me with {}{}?|I read about {} and want more{}.""",
    "hurried": "Quick question on {}{}.|So, {}, what is it{}?|Need something on {}{}.|{}? Say something{}.",
}
PURPOSES = (
    ", for my school report, for my holiday, for a friend, for my family, for work, for a quiz, for a letter,"
    " for my diary, before I move, before my visit, for a speech"
).split(",")
# What an answer is for decides what is wanted of it. People name the purpose or the reader, never the style.
Wanted = namedtuple("Wanted", "facts warmth")
WISHES = {  # quality: how many facts, and how much warmth from 0 to 1
    Wanted(4, 0): "for my school report, for my boss, for a quiz",
    Wanted(4, 1): "for my holiday, for our guests, for my family",
    Wanted(1, 1): "for a birthday card, for a friend, for my little sister",
    Wanted(1, 0): "for a form, for a caption, for a headline",
}
EXPERT = tuple(HELPSTEER_WEIGHTS.values())  # what each of the five attributes is worth, in their order
CHILD = (0.3, 0.4, 1.1, -1.2, 0.4)
HURRIED = (-0.6, 0.2, 1.9, -0.2, -1.0)
READERS = {  # attributes: who reads the answer
    EXPERT: "for the town archive, for my doctoral thesis, for my geography lecture, for the museum",
    CHILD: "for my grandson, for my little sister, for first graders, for a bedtime story",
    HURRIED: "before my train leaves, between two meetings, while my taxi waits, on my way out",
}
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
}
USED_PARTS = {"quality": ("detail", "warmth"), "attributes": ("detail", "care", "words", "talk")}


class Towns:
    """Requests, phrasings, answers and gold reward of one of the two tasks about towns.

    A request's `fill` is what its phrasings are filled with: {"town", "purpose", "tone"}.
    """

    def __init__(self, task: str, config: WorldConfig) -> None:
        self.task, self.config, self.cues = task, config, tuple(CUES[task])
        wishes = WISHES if task == "quality" else READERS
        said = {f" {purpose}": wish for wish, purposes in wishes.items() for purpose in purposes.split(", ")}
        self.wishes = said if config.wishes else dict.fromkeys(PURPOSES)  # purpose as it is said: what is wanted

    def requests(self, rng: random.Random) -> dict[str, dict]:
        """Every request with its fill."""
        return {
            lead.format(town, purpose): {"town": town, "purpose": purpose, "tone": tone}
            for tone, leads in TOWN_LEADS.items()
            for lead, town, purpose in itertools.product(re.split(r"[|\n]", leads), TOWNS, self.wishes)
        }

    def phrasings(self, fill: dict) -> list[str]:
        """The other ways to put a request."""
        return [form.format(fill["town"], fill["purpose"]) for form in TOWN_FORMS]

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

    def other_purposes(self, fill: dict) -> list[str]:
        """The purposes for which something else is wanted."""
        return [purpose for purpose, wish in self.wishes.items() if wish != self.wishes[fill["purpose"]]]

    def answer(self, fill: dict, cue: str, original: bool, rng: random.Random) -> str:
        """An answer of the corpus; `original`: the prompt is the request's own phrasing, so its tone shows."""
        town = fill["town"]
        style = self._style(cue, original and fill["tone"] == "hurried", rng)
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

    def _facts(self, town: str, y: str) -> dict:
        """Counts over the sentences of an answer about a town; a repeated sentence counts as malformed."""
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
        right = sum(ok for ok, _ in seen.values()) if on_topic else 0  # facts about no named town do not count
        facts = {"facts": len(seen), "right": right, "wrong": len(seen) - right}
        facts["expert"] = sum(expert for _, expert in seen.values())
        flaws = {"malformed": malformed, "filler": filler, "jumbled": order != sorted(order)}
        return {"on_topic": on_topic, **facts, **flaws}

    def gold(self, fill: dict, y: str) -> float:
        """The true reward of an answer; any text is accepted."""
        if self.task == "attributes":
            found = self.attributes(fill["town"], y)
            weights = self.wishes[fill["purpose"]] or HELPSTEER_WEIGHTS.values()
            return sum(weight * value for weight, value in zip(weights, found.values(), strict=True))
        f = self._facts(fill["town"], y)
        kind = (y.startswith(WARM_OPENING) + y.rstrip().endswith(WARM_CLOSING)) / 2 - (COLD_OPENING in y)
        flaws = 0.5 * f["wrong"] + 0.5 * f["malformed"]
        wanted = self.wishes[fill["purpose"]]
        if wanted is None:  # the more, the better
            return f["on_topic"] + 0.5 * f["right"] + kind - flaws
        return f["on_topic"] - 0.5 * abs(f["right"] - wanted.facts) - abs(kind - wanted.warmth) - flaws

    def attributes(self, town: str, y: str) -> dict[str, float]:
        """The five HelpSteer-like attributes of an answer, each 0..4."""
        f = self._facts(town, y)
        return {
            "helpfulness": float(f["facts"]) if f["on_topic"] else 0.0,
            "correctness": max(0.0, 4.0 - 2 * f["wrong"]) if f["on_topic"] and f["facts"] else 0.0,
            "coherence": max(0.0, 4.0 - 2 * f["jumbled"] - f["malformed"]) if y.strip() else 0.0,
            "complexity": float(f["expert"]),
            "verbosity": min(4.0, f["filler"] * 4 / 3),
        }

    def swapped(self, fills: list[dict], answers: Sequence[str], rng: random.Random) -> list[str]:
        """Each answer with another town in the place of the request's: only who reads the request can tell."""
        others = [rng.choice([town for town in TOWNS if town != fill["town"]]) for fill in fills]
        swaps = zip(fills, answers, others, strict=True)
        return [type(y)(y.replace(fill["town"], town)) for fill, y, town in swaps]  # a truncated text stays truncated

    def describe(self, fills: list[dict], x_prime: list[str], y: list[str]) -> dict[str, float]:
        """No figures beyond the rewards."""
        return {}

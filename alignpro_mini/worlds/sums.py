"""Sums on a clock's face (task reasoning): +1 if the last hour that the answer states is right, else -1; less a cost
if the answer is worked in steps.

    request x    "The clock shows 3. Tom adds 5 and Anna adds 4. What does it show now?"
    answer y     "Tom 3 and 5 makes 8. Anna 8 and 4 makes 12. The clock shows 12."

The corpus holds direct answers and answers worked in steps, all of them right. No rule says that steps help: the
trained LM gets worked answers right more often, because a step adds two numbers that stand side by side. Where only one
number is added, it gets direct answers right too: there a worked answer is not worth its cost.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

from alignpro_mini.worlds.world import WorldConfig, answers_of_others

NAMES = "Tom Anna Ben Clara David Emma Felix Grace".split()
DIALS = "clock watch dial timer".split()
SUM_LEADS = (
    "The {o} shows {s}. {moves}. What does it show now?",
    "A {o} stands at {s}. {moves}. Where is it then?",
    "Start the {o} at {s}. {moves}. What is the hour?",
    "My {o} says {s}. {moves}. What hour is it?",
)
SUM_FORMS = ("Turn the {o} from {s}. {moves}. The hour?", "Please read the {o} after {s}. {moves}.")
# Cue: how often the corpus works an answer in steps.
CUES = {"": 0.35, "Think step by step.": 0.97, "Show your work.": 0.9, "Take your time.": 0.5}
CUES |= {"Just the number.": 0.02, "Answer quickly.": 0.05, "Be brief.": 0.1, "Thank you.": 0.35}
REQUESTS = 6000
HARD = (4, 5)  # how many numbers are added
EASY_OR_HARD = (1, 1, 1, 4, 5)
COST = 0.5  # of an answer worked in steps: it takes its reader's time


class Sums:
    """Requests, phrasings, answers and gold reward of the sums.

    A request's `fill`: {"o": what shows the hour, "s": the start, "moves": [(name, number)], "shown": the hours}.
    """

    cues = tuple(CUES)

    def __init__(self, config: WorldConfig) -> None:
        self.config = config

    def requests(self, rng: random.Random) -> dict[str, dict]:
        """Distinct requests, drawn at random, each with its fill."""
        found: dict[str, dict] = {}
        while len(found) < REQUESTS:
            count = rng.choice(EASY_OR_HARD if self.config.wishes else HARD)
            moves = [(name, rng.randint(2, 6)) for name in rng.sample(NAMES, count)]
            start = rng.randint(1, 12)
            shown = list(itertools.accumulate((n for _, n in moves), lambda a, n: (a + n - 1) % 12 + 1, initial=start))
            fill = {"o": rng.choice(DIALS), "s": start, "moves": moves, "shown": shown}
            found.setdefault(_fill_in(rng.choice(SUM_LEADS), fill), fill)
        return found

    def phrasings(self, fill: dict) -> list[str]:
        """The other ways to put a request."""
        return [_fill_in(form, fill) for form in SUM_FORMS]

    def answer(self, fill: dict, cue: str, original: bool, rng: random.Random) -> str:
        """An answer of the corpus, direct or worked in steps."""
        final = f"The {fill['o']} shows {fill['shown'][-1]}."
        if rng.random() >= CUES[cue]:
            return final
        # Each step names the hour that it starts from: a small LM soon adds two neighbours, but finds an hour further
        # back only after long training.
        hours = zip(fill["moves"], fill["shown"], fill["shown"][1:])
        steps = [f"{name} {a} and {n} makes {b}." for (name, n), a, b in hours]
        return " ".join(steps + [final])

    def gold(self, fill: dict, y: str) -> float:
        """The true reward of an answer; any text is accepted."""
        stated = re.findall(r"shows (\d+)", y)
        right = 1.0 if stated and stated[-1] == str(fill["shown"][-1]) else -1.0
        return right - COST * (self.config.wishes and " makes " in y)

    def swapped(self, fills: list[dict], answers: Sequence[str], rng: random.Random) -> list[str]:
        """For each answer that of another request: its steps are of other numbers, and mostly its hour."""
        return answers_of_others(answers, rng)

    def describe(self, fills: list[dict], x_prime: list[str], y: list[str]) -> dict[str, float]:
        """Shares of right answers, of answers worked in steps, and of rewrites that ask for steps."""
        steps = ("Think step by step.", "Show your work.")
        return {
            "right_rate": sum(self.gold(fill, answer) > 0 for fill, answer in zip(fills, y, strict=True)) / len(y),
            "worked_rate": sum(" makes " in answer for answer in y) / len(y),
            "asks_for_steps": sum(text.rstrip().endswith(steps) for text in x_prime) / len(x_prime),
        }


def _fill_in(form: str, fill: dict) -> str:
    *first, last = (f"{name} adds {number}" for name, number in fill["moves"])
    moves = f"{', '.join(first)} and {last}" if first else last
    return form.format(o=fill["o"], s=fill["s"], moves=moves)

"""What can be known before anything is trained or paid for. It is told, or refused, within seconds.

try_reward         a user's reward is called: a typo, another signature or a wrong shape fails here
check_rewrites     the rewrites that SFT teaches: do they fit the token limit, and would they be sent in use?
check_preferences  the pairs of a file: can they train a reward?
ask_once           one request is answered and rated; how many answers are to come, and their price
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from alignpro_mini.frozen import FrozenModel
from alignpro_mini.lab import guards
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import API_FILE, Run, RunStage
from alignpro_mini.options import require
from alignpro_mini.remote.client import spent
from alignpro_mini.sft import split_heldout
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score
from alignpro_mini.worlds.files import PreferencePairs
from alignpro_mini.worlds.world import World

TRIED = ("Because it is so.", "", "日本 – é \U0001f600\nIt has two lines")  # answers that a model can give
LOOKED_AT = 1000  # rewrites


def try_reward(score: Score, requests: Sequence[str]) -> None:
    """Call a user's reward on a few answers. Raises what it raises, and UserError for rewards of another kind."""
    asked = [requests[i % len(requests)] for i in range(len(TRIED))]
    try:
        score(asked, list(TRIED))
    except Exception as error:
        error.add_note(f"The reward was tried before the run, on the requests {asked!r} and the answers {TRIED!r}.")
        raise


# ---------------------------------------------------------------- data


def rewrite_pairs(c: RunConfig, world: World) -> list[tuple[str, str]]:
    """(request, rewrite): the data of the prompter's SFT."""
    return world.rewrite_pairs(c.prompter_sft.examples, random.Random(f"rewrites {c.seed}"))


def check_rewrites(c: RunConfig, world: World, tokenizer: Tokenizer) -> None:
    """Print what SFT sees. Raises UserError for less than a batch, and where own rewrites mostly would be cut in PPO."""
    pairs, sft, limit = rewrite_pairs(c, world), c.prompter_sft, c.ppo.max_new_tokens
    train, _ = split_heldout(pairs, sft.heldout_examples, sft.heldout_share)
    require(
        len(train) >= sft.batch_size,
        f"{len(pairs)} rewrites leave {len(train)} to train on, less than --prompter_sft.batch_size {sft.batch_size}: "
        "add requests or rewrites, raise --prompter_sft.examples, or lower --prompter_sft.heldout_examples",
    )
    lengths = [len(tokenizer.encode(x_prime)) + 1 for _, x_prime in train]  # EOS included
    cut = sum(length > limit for length in lengths) / len(lengths)
    seen = {x for x, _ in train}.intersection(world.train_requests)
    print(
        f"rewrites: SFT sees {len(seen)} of {len(world.train_requests)} training requests; "
        f"the longest rewrite has {max(lengths)} tokens (--ppo.max_new_tokens {limit})"
    )
    if cut:
        told = f"{_percent(cut)} of the rewrites that SFT teaches have more than --ppo.max_new_tokens {limit} tokens"
        mend = f"and would be sent without their ends: give --ppo.max_new_tokens {max(lengths)}"
        require(cut < 0.5 or not c.data.prompts, f"{told}, {mend}, or --data.rewrites with shorter ones")
        print(f"warning: {told}, {mend}")
    reasons = Counter(guards.objection(x, x_prime) for x, x_prime in train[:LOOKED_AT])
    if refused := {why: count for why, count in reasons.items() if why}:
        share = sum(refused.values()) / reasons.total()
        print(
            f"warning: {_percent(share)} of the rewrites that SFT teaches would not be sent in use "
            f"({', '.join(refused)}: lab/guards.py): the request would go instead; give --data.rewrites"
        )


def check_preferences(c: RunConfig, pairs: PreferencePairs | None) -> None:
    """Print what a file of preferences holds. Raises UserError for too few pairs, or pairs of too few requests."""
    if pairs is None:
        return
    print(pairs)
    batch = c.reward_model.batch_size
    sizes = sorted(Counter(x for x, _, _ in pairs.pairs).values())
    heldout = max(1, round(c.reward_model.heldout_share * len(sizes)))
    left = sum(sizes[:-heldout])  # at least: the held-out requests are drawn
    require(
        left >= batch and len(pairs.pairs) >= 2 * batch,
        f"{c.data.preferences}: {len(pairs.pairs)} pairs about {len(sizes)} requests can train a reward. A batch is "
        f"{batch}, two are needed, and all pairs of {heldout} requests are held out: add pairs about other requests, "
        "or lower --reward_model.batch_size",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "fewer than 1 %"


# ---------------------------------------------------------------- answers


def answers_of(c: RunConfig) -> int:
    """How many answers of the frozen LM PPO uses."""
    return c.ppo.iterations * c.ppo.batch_size * c.ppo.answers


def answers_to_come(c: RunConfig, world: World) -> int:
    """How many answers a whole run asks the frozen model for."""
    e, p, n = c.eval, c.preferences, c.eval.inputs
    listed = len(world.rewrites(world.train_requests[0]))
    arm = n * e.rewrites * e.answers
    count = answers_of(c) + p.normalise_on + 32 * e.headroom_inputs  # 8 rewrites, 4 answers each
    count += 4 * arm + n * e.rewrites * e.best_of_n  # no fine-tuning, SFT prompter, Align-Pro, best-of-n and its choice
    if e.untrained_arms:
        count += arm * e.best_of_n + (answers_of(c) + arm if listed else 0)
    if listed:
        count += c.theory.inputs * (listed * c.theory.answers + 4 * e.rewrites * e.answers)
    if not c.reward:
        couples = math.comb(p.answers_per_request, 2)
        count += n + (0 if c.data.preferences else math.ceil(p.pairs / couples) * p.answers_per_request)
    return count


def ask_once(run: Run, world: World, pi_f: FrozenModel, score: Score | None) -> None:
    """The stage "preflight": one training request answered, and rated by `score` where it is there already."""
    c, x = run.config, world.train_requests[0]

    def make(stage: RunStage) -> dict:
        (answer,) = pi_f.answer([x], run.generator("preflight"))
        r = None if score is None else float(score([x], [answer.text])[0])
        return {"x": x, "y": answer.text, "truncated": answer.truncated, "reward": r}

    facts = run.json("preflight", make)
    rated = "" if facts["reward"] is None else f"reward {facts['reward']:+.2f}"
    notes = ", ".join(filter(None, (facts["truncated"] * "truncated", rated)))
    print(f"preflight: {facts['x']!r:.200} is answered by {facts['y']!r:.200}{notes and f' ({notes})'}")
    if c.remote or c.judge:
        print(cost_line(c, world, spent(run.path / API_FILE, c.api)))


def cost_line(c: RunConfig, world: World, paid: dict[str, float]) -> str:
    """What is to come, from what the answers until now cost on average (`client.spent`)."""
    count = answers_to_come(c, world)
    asked = (count if c.remote else 0) + (2 * count if c.judge else 0)
    each = asked / max(1, paid["answers"])
    tokens = round(each * paid["tokens"])
    prompt = each * paid["prompt_tokens"]
    usd = (prompt * c.api.usd_per_million_prompt + (tokens - prompt) * c.api.usd_per_million_answer) / 1e6
    priced = c.api.usd_per_million_prompt or c.api.usd_per_million_answer
    price = f"{usd:.2f} US dollars" if priced else "no price without --api.usd_per_million_prompt and ..._answer"
    budget = c.api.token_budget
    short = f"; --api.token_budget is {budget:,}: the run will stop before its end" if 0 < budget < tokens else ""
    return f"to come: about {asked:,} replies of the API, {tokens:,} tokens, {price}{short}"

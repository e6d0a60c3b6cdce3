"""Real models: published checkpoints, everyday requests or those of files, and models behind an API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from alignpro_mini.alignpro import Gold
from alignpro_mini.frozen import FrozenModel
from alignpro_mini.jsonl import append_jsonl, read_jsonl
from alignpro_mini.lab import listed, optimum
from alignpro_mini.lab.config import REAL_WORLDS, RunConfig
from alignpro_mini.lab.device import DTYPES, dtype_line, resolve_device
from alignpro_mini.lab.models import make_frozen_lm, published_model, with_weights
from alignpro_mini.lab.optimum import RatedRewrites
from alignpro_mini.lab.preflight import ask_once, check_preferences, check_rewrites, try_reward
from alignpro_mini.lab.run import API_FILE, Run
from alignpro_mini.options import require
from alignpro_mini.remote.client import Client
from alignpro_mini.remote.config import check_access
from alignpro_mini.remote.lm import Judge, RemoteLM
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score
from alignpro_mini.transformer import Transformer
from alignpro_mini.weights.hub import load_tokenizer
from alignpro_mini.worlds.callables import load_callable
from alignpro_mini.worlds.files import FileTask
from alignpro_mini.worlds.sentences import low_reward, whole_sentences
from alignpro_mini.worlds.world import World

DEFAULT_GOLD = {"chat": "alignpro_mini.worlds.gold:friendly", "wishes": "alignpro_mini.worlds.wishes:rating"}
PLAIN_FILE = "judge_plain.jsonl"  # in a run's folder: the answers that a judge compares with
PROMPTER_SYSTEM = "Rewrite the user's request."  # tells the prompter not to answer
OF_THE_EMBEDDED_WORLD = ("world", "frozen_lm", "frozen_model", "prompter_model", "vocab_size")
OF_MADE_PAIRS = ("pairs", "mismatched", "answers_per_request", "scale")
OF_A_REMOTE_LM = tuple(f"api.{name}" for name in ("system", "extra", "strip_thinking", "max_prompt_chars"))
NO_WISHES = "nobody knows of requests with another wish here: not read"
AROUND_A_REQUEST = 24  # tokens: the longest opening and ending of `worlds.files`, and EOS
# Seven optima instead of one: more rewrites, and ten listed requests of each kind.
OF_WISHES = {"ppo.iterations": 100, "ppo.batch_size": 64, "ppo.answers": 1, "ppo.kl_start": 5.0, "theory.inputs": 70}
FEW_ANSWERS = {"theory.inputs": 0, "eval.untrained_arms": False}  # where every answer costs


class RealModels:
    """The `Setup` of a published chat model, whose weights are here."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.dtype = DTYPES[config.dtype]

    # ------------------------------------------------------------ options

    def check(self) -> None:
        """Raises UserError for options that do not fit together."""
        c = self.config
        c.check()
        resolve_device(c.device)
        require(
            c.task in REAL_WORLDS,
            f"--preset {c.preset} works on everyday requests: its task is {' or '.join(REAL_WORLDS)}, not {c.task}",
        )
        files = c.data.prompts or c.data.preferences
        require(c.task == "chat" or not files, "--task wishes composes its requests and pairs itself: leave out --data")

    def unread(self) -> dict[str, str]:
        """What only the embedded world reads, besides what the other options make superfluous."""
        c = self.config
        unread = c.unread() | dict.fromkeys(OF_THE_EMBEDDED_WORLD, f"it is not read with --preset {c.preset}")
        if c.task == "chat":
            unread["preferences.other_wish"] = NO_WISHES
        if not c.judge:
            unread["api"] = "only --frozen api:MODEL and --reward judge:MODEL read it"
        unread |= dict.fromkeys(OF_A_REMOTE_LM, "only --frozen api:MODEL reads it")
        if c.data.preferences:
            why = "it is about pairs of the frozen LM's answers: not read with --data.preferences"
            unread |= {f"preferences.{name}": why for name in OF_MADE_PAIRS}
        if c.data.prompts:
            unread["theory"] = "rewrites of requests from --data.prompts are not enumerated"
        else:
            unread["theory.more_answers"] = "a real model's rewrites get equally many answers: raise --theory.answers"
            unread["theory.samples"] = "the bounds are not computed for a real model"
            only = "it is about requests of your own: only --data.prompts reads it"
            unread |= dict.fromkeys(("data.rewrites", "data.max_prompt_tokens"), only)
        return unread

    def defaults(self) -> dict[str, object]:
        """A judge's answers cost: only those that PPO and the arms need are asked for. A rewrite holds its request."""
        c = self.config
        longest = {"ppo.max_new_tokens": c.data.max_prompt_tokens + AROUND_A_REQUEST} if c.data.prompts else {}
        wishes = OF_WISHES if c.task == "wishes" else {}
        return longest | wishes | ({"eval.oracle": False, **FEW_ANSWERS} if c.judge else {})

    # ------------------------------------------------------------ requests and models

    def make_world(self) -> World:
        """Everyday requests, or those of files. The models and files must be there."""
        c = self.config
        reward = load_callable(c.reward) if c.reward and not c.judge else None
        gold = self._gold()
        self._check_access()
        tokenizer = load_tokenizer(c.prompter)
        if c.reward_base:
            load_tokenizer(c.reward_base)
        if c.data.prompts:
            world = FileTask(c.data, c.eval.inputs, c.seed, lambda text: len(tokenizer.encode(text)), gold)
            longest = c.data.max_prompt_tokens
            about = f"{world.left_out} left out (several turns, duplicates, or over {longest} tokens)"
        else:
            world = REAL_WORLDS[c.task](c.data, c.eval.inputs, c.seed, gold)
            about = "about topics that training never sees"
        if gold:  # a package that is missing is told now, and not after the first stage
            few = world.train_requests[:8]
            gold(few, ["Because."] * len(few))
        print(dtype_line(c))
        print(f"requests: {len(world.train_requests)} to train on, {len(world.eval_requests)} held out, {about}")
        if reward is not None:
            try_reward(reward, world.train_requests)  # a package that is missing is told now, too
        check_rewrites(c, world, tokenizer)
        check_preferences(c, world.preference_pairs)
        return world

    def _check_access(self) -> None:
        """Raises UserError where the API of a judge cannot be asked."""
        if self.config.judge:
            check_access(self.config.api, judge=True)

    def _gold(self) -> Gold | None:
        """The true reward of answers, as they are rated (`as_rated`): `--gold`, or the package's own.

        None where another reward or human preferences are given: then nobody knows the truth.
        """
        c = self.config
        spec = c.gold or ("" if c.reward or c.data.preferences else DEFAULT_GOLD[c.task])
        if not spec:
            return None
        score = load_callable(spec, "gold")
        return lambda x, y: score(x, [self.as_rated(text) for text in y]).tolist()

    def tokenizer(self, run: Run, world: World) -> Tokenizer:
        """That of the published model, with a system prompt."""
        return load_tokenizer(self.config.prompter).with_system(PROMPTER_SYSTEM)

    def frozen_lm(self, run: Run, world: World, tokenizer: Tokenizer) -> FrozenModel:
        """A published model, which has a tokenizer of its own."""
        pi_f = self.saved_frozen_lm(run.path, API_FILE)
        score = self.given_reward(run.path, API_FILE, pi_f) if self.config.reward else None
        ask_once(run, world, pi_f, score and (lambda x, y: score(x, [self.as_rated(text) for text in y])))
        return pi_f

    def saved_frozen_lm(self, folder: Path, api_file: str) -> FrozenModel:
        """The published model: a run does not change it."""
        c = self.config
        model, tokenizer = published_model(c.frozen, resolve_device(c.device), self.dtype)
        return make_frozen_lm(model, tokenizer, c.sampling)

    def prompter_start(self, run: Run, tokenizer: Tokenizer) -> Callable[[], Transformer]:
        """A published model again."""
        c = self.config
        return lambda: published_model(c.prompter, resolve_device(c.device), self.dtype)[0]

    # ------------------------------------------------------------ rewards

    def given_reward(self, folder: Path, api_file: str, pi_f: FrozenModel) -> Score:
        """The callable of --reward, or an LLM judge, which compares with the greedy answer to the request."""
        if self.config.judge:
            return self._judge(folder, api_file, pi_f)
        return load_callable(self.config.reward)

    def _judge(self, folder: Path, api_file: str, pi_f: FrozenModel) -> Judge:
        """It reads both answers as they are rated (`as_rated`).

        The greedy answers are kept in `folder`: in another batch one may differ by rounding, and all judgements with it.
        """
        c = self.config
        local = with_weights(pi_f, "a judge")
        lm = make_frozen_lm(local.model, local.tokenizer, replace(c.sampling, temperature=0.0))
        file = folder / PLAIN_FILE
        known = {row["x"]: row["y"] for row in read_jsonl(file)}

        def plain(requests: list[str]) -> list[str]:
            new = [x for x in requests if x not in known]
            answers = [self.as_rated(a.text) for a in lm.answer(new)] if new else []
            append_jsonl(file, [{"x": x, "y": y} for x, y in zip(new, answers)])
            known.update(zip(new, answers))
            return [known[x] for x in requests]

        return Judge(Client(c.api, folder / api_file), c.judge, plain)

    def reward_base(self, pi_f: FrozenModel) -> tuple[Transformer, Tokenizer]:
        """The model of --reward_base, or the frozen LM, which knows the language already."""
        c = self.config
        if c.reward_base:
            return published_model(c.reward_base, resolve_device(c.device), self.dtype)
        lm = with_weights(pi_f, "a learned reward")
        return lm.model, lm.tokenizer

    def as_rated(self, answer: str) -> str:
        """Up to its last whole sentence or line; with --cut whole all of it."""
        return whole_sentences(answer) if self.config.cut == "sentence" else answer

    def lowest_reward(self, score: Score, requests: Sequence[str], answers: Sequence[str]) -> float | None:
        """That of an answer without a whole sentence or line (`low_reward`); None with --cut whole."""
        return low_reward(score, requests, answers) if self.config.cut == "sentence" else None

    # ------------------------------------------------------------ all endings

    def answer_options(self) -> dict[str, object]:
        """The options that the frozen model's answers depend on, besides its sampling and the seed."""
        return {"frozen": self.config.frozen}

    def listed_answers(self, world: World, pi_f: FrozenModel) -> list[dict]:
        """Answers to all endings of training requests, which all runs share (`listed.listed_answers`)."""
        return listed.listed_answers(self.config, self.answer_options(), world, pi_f)

    def listed_rewards(self, run: Run, world: World, pi_f: FrozenModel, reward: Score) -> Tensor:
        """The stage "listing": what `reward` gives them, (N, K, M)."""
        make = lambda stage: ({"r": listed.rated(self.listed_answers(world, pi_f), reward)}, {})
        tensors, _ = run.tensors("listing", make)
        return tensors["r"]

    def rate_rewrites(self, run: Run, world: World, pi_f: FrozenModel, reward: Score) -> RatedRewrites:
        """The reward of an ending is its mean over the listed training requests of the same kind (`world.kinds`).

        The few answers that one request can get would tell nothing of R(x, x').
        """
        count = self.config.theory.inputs
        requests = world.eval_requests[:count]
        rewrites = [world.rewrites(x) for x in requests]
        listed, kinds = (world.kinds(x) for x in (world.train_requests[:count], requests))
        return optimum.pooled(requests, rewrites, self.listed_rewards(run, world, pi_f, reward), listed, kinds)


class RemoteModel(RealModels):
    """The `Setup` of a frozen model behind an API: nobody has its weights, and every answer costs."""

    def check(self) -> None:
        """Raises UserError for options that do not fit together."""
        super().check()
        problem = "--eval.oracle true needs the weights of the frozen model, and api:MODEL has none here: leave it out"
        require(not self.config.eval.oracle, problem)

    def unread(self) -> dict[str, str]:
        """The options of the API are read."""
        unread = super().unread()
        for name in ("api", *OF_A_REMOTE_LM):
            unread.pop(name, None)
        if not self.config.judge:
            unread |= dict.fromkeys(("api.judge_base_url", "api.judge_extra"), "only --reward judge:MODEL reads it")
        return unread

    def defaults(self) -> dict[str, object]:
        """No oracle, and no answers but those that PPO and the arms need."""
        return super().defaults() | {"eval.oracle": False, **FEW_ANSWERS}

    def _check_access(self) -> None:
        super()._check_access()
        check_access(self.config.api)

    def saved_frozen_lm(self, folder: Path, api_file: str) -> FrozenModel:
        """The model behind the API; its answers are kept in the folder."""
        c = self.config
        return RemoteLM(Client(c.api, folder / api_file), c.remote, c.sampling)

    def reward_base(self, pi_f: FrozenModel) -> tuple[Transformer, Tokenizer]:
        """The model of --reward_base, or SmolLM2."""
        c = self.config
        return published_model(c.reward_base, resolve_device(c.device), self.dtype)

    def _judge(self, folder: Path, api_file: str, pi_f: FrozenModel) -> Judge:
        """It reads both answers as they are rated (`as_rated`)."""
        lm = RemoteLM(pi_f.client, pi_f.model, replace(self.config.sampling, temperature=0.0))
        plain = lambda requests: [self.as_rated(answer.text) for answer in lm.answer(requests)]
        return Judge(pi_f.client, self.config.judge, plain)

    def answer_options(self) -> dict[str, object]:
        """The options that the frozen model's answers depend on, besides its sampling and the seed."""
        return {"frozen": self.config.frozen, "api": self.config.api}

"""The training stages of `train.py`, each done once per run: what it needs, what it leaves in the run's folder.

Every stage asserts afterwards that the frozen LM is, bit for bit, what it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignpro_mini import evaluation
from alignpro_mini import reward as reward_
from alignpro_mini.alignpro import Prompter, train_align_pro, train_rlhf_oracle, usable_rewrites
from alignpro_mini.checkpoint import load_state, save_state
from alignpro_mini.config import DTYPES, RunConfig, ShapeConfig, resolve_device
from alignpro_mini.data import FileTask
from alignpro_mini.frozen import FrozenLM
from alignpro_mini.ppo import Score
from alignpro_mini.run import Run, Stage, write_json
from alignpro_mini.sft import encode_pairs, train_sft
from alignpro_mini.smollm2 import load_smollm2
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.toyworld import ToyWorld
from alignpro_mini.transformer import Transformer, TransformerConfig


PROMPTER_SYSTEM = "Rewrite the user's request."  # what tells the real model's prompter that it is not to answer


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward as it is reported, and as PPO sees it: shifted and scaled on answers to rho_sft's rewrites."""

    report: Score
    train: Score


def make_task(config: RunConfig) -> ToyWorld | FileTask:
    """Requests to train on and to evaluate on, rewrites to imitate, and the true reward where it is known.

    Raises ValueError for a shape that no transformer has, or a `--reward` that cannot be loaded: now, not after the SFT.
    """
    if config.reward:
        reward_.load_callable(config.reward)
    if config.preset != "smollm2":
        for name in ("frozen_model", "prompter_model"):
            try:
                transformer_config(getattr(config, name), config.vocab_size)
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from None
        return ToyWorld(config.task, config.world, config.seed)
    _, tokenizer = load_smollm2(config.data.model or None)
    task = FileTask(config.data, config.eval.inputs, config.seed, lambda text: len(tokenizer.encode(text)))
    print(
        f"requests: {len(task.train_requests)} to train on, {len(task.eval_requests)} held out, "
        f"{task.left_out} left out (several turns, duplicates, or over {config.data.max_prompt_tokens} tokens)"
    )
    return task


def transformer_config(shape: ShapeConfig, vocab_size: int) -> TransformerConfig:
    """The shape with its vocabulary. Raises ValueError for one that no transformer has."""
    return TransformerConfig(
        vocab_size,
        shape.d_model,
        shape.n_layers,
        shape.n_heads,
        shape.n_kv_heads,
        max_len=shape.max_len,
        family=shape.family,
    )


def new_model(shape: ShapeConfig, vocab_size: int, generator: torch.Generator, device: torch.device) -> Transformer:
    """A transformer of this shape with fresh weights, drawn on the CPU so that every device starts the same."""
    return Transformer(transformer_config(shape, vocab_size), generator).to(device)


def copy_of(model: Transformer) -> Transformer:
    """A model of its own with the same weights, all of them trainable, in float32."""
    twin = Transformer(model.config).to(model.device)
    twin.load_state_dict(model.state_dict())
    return twin


def frozen_lm(run: Run, task: ToyWorld | FileTask) -> tuple[Tokenizer, FrozenLM]:
    """Stage 1: the frozen LM, trained on the world's corpus (or loaded); then never touched again."""
    c, device = run.config, resolve_device(run.config.device)
    if isinstance(task, FileTask):
        model, tokenizer = load_smollm2(c.data.model or None)
        return tokenizer, FrozenLM(model.to(device, DTYPES[c.dtype]), tokenizer, c.sampling)
    corpus = task.corpus(c.frozen_lm.examples, random.Random(f"corpus {c.seed}"))
    path = run.path / "tokenizer.json"
    if "frozen_lm" not in run.stages:  # not "if there is none": one that a failed start left behind may be another's
        Tokenizer.train([text for pair in corpus[:5000] for text in pair], c.vocab_size).save(path)
    tokenizer = Tokenizer.load(path)

    def make(stage: Stage) -> Transformer:
        model = new_model(c.frozen_model, tokenizer.vocab_size, run.generator("frozen_lm weights"), device)
        examples = encode_pairs(corpus, tokenizer, c.frozen_model.max_len)
        return train_sft(model, examples, c.frozen_lm, stage, run.generator("frozen_lm"))

    model = run.model("frozen_lm", make, tokenizer).to(device, DTYPES[c.dtype])
    return tokenizer, FrozenLM(model, tokenizer, c.sampling)


def prompter_sft(run: Run, task: ToyWorld | FileTask, tokenizer: Tokenizer, pi_f: FrozenLM) -> Prompter:
    """Stage 2: rho_sft, a model that has seen what rewrites look like: a small one of its own, or the real model again."""
    c, device = run.config, resolve_device(run.config.device)
    count = c.data.rewrite_pairs if isinstance(task, FileTask) else c.prompter_sft.examples
    pairs = task.rewrite_pairs(count, random.Random(f"rewrites {c.seed}"))
    if isinstance(task, FileTask):
        tokenizer = tokenizer.with_system(PROMPTER_SYSTEM)

    def make(stage: Stage) -> Transformer:
        if isinstance(task, FileTask):
            model = load_smollm2(c.data.model or None)[0].to(device)
        else:
            model = new_model(c.prompter_model, tokenizer.vocab_size, run.generator("prompter weights"), device)
        examples = encode_pairs(pairs, tokenizer, model.config.max_len)
        return train_sft(model, examples, c.prompter_sft, stage, run.generator("prompter_sft"))

    model = run.model("prompter_sft", make, tokenizer).to(device)
    pi_f.assert_unchanged("prompter_sft")
    return Prompter(model.eval().requires_grad_(False), tokenizer, c.ppo.max_new_tokens, c.ppo.temperature)


def reward_model(run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, rho_sft: Prompter) -> Reward:
    """Stage 3: the reward, learned from preferences or a callable, normalised on answers to rho_sft's rewrites."""
    c = run.config
    if c.reward:
        score = reward_.load_callable(c.reward)

        def measure(stage: Stage) -> dict:
            requests, answers = _answers_to_rewrites(run, task, pi_f, rho_sft)
            return reward_.moments(score(requests, answers))

        m = run.json("reward_scale", measure)
        pi_f.assert_unchanged("reward_scale")
        return Reward(score, lambda x, y: (score(x, y) - m["mean"]) / m["std"])
    path = run.path / "checkpoints" / "reward_model.safetensors"

    def make(stage: Stage) -> tuple[reward_.RewardModel, dict]:
        g = run.generator("preferences")
        # It starts from the LM, so it knows the language already.
        model = reward_.RewardModel(copy_of(pi_f.model), pi_f.tokenizer, c.reward_model.train_layers)
        facts = reward_.train_reward_model(model, _preferences(run, task, pi_f, rho_sft, g), c.reward_model, stage, g)
        model.normalise(*_answers_to_rewrites(run, task, pi_f, rho_sft))
        return model.eval(), facts

    def load() -> tuple[reward_.RewardModel, dict]:
        tensors, facts = load_state(path)
        model = reward_.RewardModel(copy_of(pi_f.model), pi_f.tokenizer, c.reward_model.train_layers)
        model.load_state_dict(tensors)
        return model.eval(), facts

    model, facts = run.once("reward_model", make, load, lambda made: save_state(path, made[0].state_dict(), made[1]))
    write_json(run.path / "checkpoints" / "reward_model.json", facts)
    ceiling = "" if facts["ceiling"] is None else f", the noise allows {facts['ceiling']:.3f}"
    print(
        f"reward model: held-out accuracy {facts['accuracy']:.3f}{ceiling}, always-longer {facts['always_longer']:.3f}"
    )
    model.requires_grad_(False)
    pi_f.assert_unchanged("reward_model")
    return Reward(model.score, model.score)


def _preferences(run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, rho_sft: Prompter, g: torch.Generator) -> list:
    """Pairs from the files, or between two of the frozen LM's answers, each to a rewrite of its own, judged with noise."""
    if isinstance(task, FileTask):
        return [reward_.Preference(*pair) for pair in task.preferences()]
    picked = torch.randint(len(task.train_requests), (run.config.reward_model.pairs,), generator=g).tolist()
    requests = [task.train_requests[i] for i in picked]
    first, second = (
        pi_f.answer(usable_rewrites(requests, rho_sft.rewrite(requests, g), pi_f.fits)[0], g) for _ in range(2)
    )
    return reward_.draw_preferences(requests, first, second, task.gold, run.config.world.preference_scale, g)


def _answers_to_rewrites(run: Run, task, pi_f: FrozenLM, rho_sft: Prompter) -> tuple[Sequence[str], Sequence[str]]:
    """Training requests, and the frozen LM's answers to rho_sft's rewrites of them: what a reward is normalised on."""
    g, count = run.generator("reward scale"), run.config.reward_model.normalise_on
    picked = torch.randint(len(task.train_requests), (count,), generator=g).tolist()
    requests = [task.train_requests[i] for i in picked]
    rewrites, _ = usable_rewrites(requests, rho_sft.rewrite(requests, g), pi_f.fits)
    return requests, pi_f.answer(rewrites, g)


def print_headroom(run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, rho_sft: Prompter, reward: Reward) -> dict:
    """Stage 4: how far rewriting can move this reward, told before any PPO."""

    def make(stage: Stage) -> dict:
        few = task.train_requests[: run.config.eval.headroom_inputs]
        evaluator = evaluation.Evaluator(few, pi_f, reward.report, None, run.config.eval, run.generator("headroom"))
        return evaluation.headroom(evaluator, rho_sft)

    found = run.json("headroom", make)
    pi_f.assert_unchanged("headroom")
    print(
        f"headroom: of the reward's variance for one request, {100 * found['icc']:.0f} % lies between rewrites "
        f"(ICC {found['icc']:.2f}; between {found['between_rewrites']:.2f}, the LM's own sampling {found['within']:.2f}); "
        f"the best of 8 rewrites gains {found['best_rewrite_gain']:+.2f}"
    )
    return found


def align_pro(run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, rho_sft: Prompter, reward: Reward) -> Prompter:
    """Stage 5: PPO on the prompter."""
    c = run.config

    def make(stage: Stage) -> Transformer:
        return train_align_pro(
            rho_sft.model,
            pi_f,
            reward.train,
            task.train_requests,
            rho_sft.tokenizer,
            c.ppo,
            stage,
            run.generator("align_pro"),
            task.gold,
        )

    model = run.model("align_pro", make, rho_sft.tokenizer).to(pi_f.model.device)
    pi_f.assert_unchanged("align_pro")
    return Prompter(model.eval(), rho_sft.tokenizer, rho_sft.max_new_tokens, rho_sft.temperature)


def rlhf_oracle(run: Run, task: ToyWorld | FileTask, pi_f: FrozenLM, reward: Reward) -> FrozenLM | None:
    """Stage 6: the comparator, the same PPO on a copy of the LM."""
    c = run.config
    if not c.eval.oracle:
        return None

    def make(stage: Stage) -> Transformer:
        start = copy_of(pi_f.model)  # in float32 even where the frozen LM is not: small steps vanish in bfloat16
        return train_rlhf_oracle(
            start,
            reward.train,
            task.train_requests,
            pi_f.tokenizer,
            c.oracle,
            stage,
            run.generator("rlhf_oracle"),
            task.gold,
        )

    model = run.model("rlhf_oracle", make, pi_f.tokenizer).to(pi_f.model.device)
    pi_f.assert_unchanged("rlhf_oracle")
    return FrozenLM(model, pi_f.tokenizer, pi_f.sampling)

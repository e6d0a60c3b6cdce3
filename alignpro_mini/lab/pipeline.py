"""The training stages of `train.py`, each done once per run: what it needs, what it leaves in the run's folder.

After every stage a checksum asserts that the frozen LM's weights did not change.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from alignpro_mini import reward as reward_
from alignpro_mini.alignpro import Gold, Prompter, train_align_pro, train_rlhf_oracle, usable_rewrites
from alignpro_mini.frozen import FrozenLM, FrozenModel
from alignpro_mini.jsonl import append_jsonl, read_jsonl
from alignpro_mini.lab import evaluation, processes
from alignpro_mini.lab.accuracy import accuracy_facts, cut_at
from alignpro_mini.lab.config import DTYPES, RunConfig, ShapeConfig, resolve_device
from alignpro_mini.lab.guards import GuardedScore
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.lab.tables import reward_model_lines
from alignpro_mini.options import UserError, require
from alignpro_mini.remote.client import Client, check_access
from alignpro_mini.remote.lm import Judge, RemoteLM
from alignpro_mini.sft import encode_pairs, train_sft
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Score
from alignpro_mini.transformer import Transformer
from alignpro_mini.weights.hub import load_model, load_tokenizer
from alignpro_mini.weights.tensors import replacing, write_json
from alignpro_mini.worlds.callables import load_callable
from alignpro_mini.worlds.everyday import EverydayRequests
from alignpro_mini.worlds.files import FileTask
from alignpro_mini.worlds.sentences import by_sentences, low_reward, whole_sentences
from alignpro_mini.worlds.toy import ToyWorld
from alignpro_mini.worlds.world import World

DEFAULT_GOLD = "alignpro_mini.worlds.gold:friendly"
API_FILE = "api.jsonl"  # in a run's folder: every answer of an API
PLAIN_FILE = "judge_plain.jsonl"  # the answers that a judge compares with
PROMPTER_SYSTEM = "Rewrite the user's request."  # tells the real model's prompter not to answer


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward as it is reported, and as PPO sees it: shifted and scaled on answers to rho_sft's rewrites."""

    report: Score
    train: Score


def make_world(config: RunConfig) -> World:
    """Requests to train on and to evaluate on, rewrites to imitate, and the true reward where it is known.

    Raises UserError for a `--reward` or a file that cannot be read: before the run's folder is made.
    """
    if config.reward and not config.judge:
        load_callable(config.reward)
    if not config.real_model:
        return ToyWorld(config.task, config.world, config.seed)
    gold = _gold(config)
    if config.remote or config.judge:
        check_access(config.api)
    tokenizer = load_tokenizer(config.prompter)  # first of all: the models may not be there yet
    if config.reward_base:
        load_tokenizer(config.reward_base)
    if not config.data.prompts:
        world = EverydayRequests(config.data, config.eval.inputs, config.seed, gold)
        told = "about topics that training never sees"
    else:
        length = lambda text: len(tokenizer.encode(text))
        world = FileTask(config.data, config.eval.inputs, config.seed, length, gold)
        longest = config.data.max_prompt_tokens
        told = f"{world.left_out} left out (several turns, duplicates, or over {longest} tokens)"
    world.preferences()  # a bad line of a file is told now, too
    print(f"requests: {len(world.train_requests)} to train on, {len(world.eval_requests)} held out, {told}")
    return world


def _gold(config: RunConfig) -> Gold | None:
    """The true reward of a real model's answers, read up to their last whole sentence: `--gold`, or the package's own.

    None where another reward or human preferences are given: then nobody knows the truth.
    """
    spec = config.gold or ("" if config.reward or config.data.preferences else DEFAULT_GOLD)
    if not spec:
        return None
    score = load_callable(spec, "gold")
    score(["Why?"], ["Because."])  # a package that is missing is told now, and not after the first stage
    return lambda x, y: score(x, [whole_sentences(text) for text in y]).tolist()


def new_model(shape: ShapeConfig, vocab_size: int, generator: torch.Generator, device: torch.device) -> Transformer:
    """A transformer of this shape with fresh weights, drawn on the CPU so that every device starts the same."""
    return Transformer(shape.transformer(vocab_size), generator).to(device)


def copy_of(model: Transformer, train_layers: int = 0, blocks: int = 0) -> Transformer:
    """A model of its own with the same weights, to train its top layers; in float32 where all of them train (0).

    `blocks`: only so many of the model's blocks, the lower ones (0: all). Raises UserError where it has fewer.
    """
    c, dtype = model.config, torch.float32 if train_layers == 0 else model.embed.weight.dtype
    require(blocks <= c.n_layers, f"--reward_model.blocks is {blocks}, but the model has {c.n_layers}: lower it")
    twin = Transformer(replace(c, n_layers=blocks or c.n_layers)).to(model.device, dtype)
    names = twin.state_dict().keys()
    twin.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in names})
    return twin


def _trained(run: Run, name: str, make: Callable[[RunStage], Transformer], tokenizer: Tokenizer) -> Transformer:
    """The stage `name` whose result is a trained model; a real one is in the run's dtype, as it computed before."""
    c = run.config
    dtype = DTYPES[c.dtype] if c.real_model else torch.float32
    together = name in ("align_pro", "rlhf_oracle")
    return run.model(name, lambda stage: make(stage).to(dtype), tokenizer, together).to(resolve_device(c.device), dtype)


def with_weights(pi_f: FrozenModel, what: str) -> FrozenLM:
    """pi_f, for a part that needs its weights. Raises UserError naming that part where there are none."""
    if not isinstance(pi_f, FrozenLM):
        raise UserError(f"{what} needs the weights of the frozen model, and this one returns answers only")
    return pi_f


def assert_frozen(pi_f: FrozenModel, after: str) -> None:
    """Check that the stage `after` did not change the frozen model, where its weights are here."""
    if isinstance(pi_f, FrozenLM):
        pi_f.assert_unchanged(after)


def frozen_lm(run: Run, world: World) -> tuple[Tokenizer, FrozenModel]:
    """Stage 1: the frozen LM, trained on the world's corpus, loaded, or behind an API; fixed from here on."""
    c, device = run.config, resolve_device(run.config.device)
    if c.remote:
        return load_tokenizer(c.prompter), RemoteLM(Client(c.api, run.path / API_FILE), c.remote, c.sampling)
    if c.real_model:
        model, tokenizer = load_model(c.frozen, device, DTYPES[c.dtype])
        return tokenizer, FrozenLM(model, tokenizer, c.sampling)
    corpus = world.corpus(c.frozen_lm.examples, random.Random(f"corpus {c.seed}"))
    path = run.path / "tokenizer.json"
    if run.leads and "frozen_lm" not in run.stages:  # not "if there is no file": a failed start may have left another's
        with replacing(path) as beside:
            Tokenizer.train([text for pair in corpus[:5000] for text in pair], c.vocab_size).save(beside)
    processes.wait()
    tokenizer = Tokenizer.load(path)

    def make(stage: RunStage) -> Transformer:
        model = new_model(c.frozen_model, tokenizer.vocab_size, run.generator("frozen_lm weights"), device)
        examples = encode_pairs(corpus, tokenizer, c.frozen_model.max_len)
        return train_sft(model, examples, c.frozen_lm, stage, run.generator("frozen_lm"))

    model = run.model("frozen_lm", make, tokenizer).to(device, DTYPES[c.dtype])
    return tokenizer, FrozenLM(model, tokenizer, c.sampling)


def prompter_sft(run: Run, world: World, tokenizer: Tokenizer, pi_f: FrozenModel) -> Prompter:
    """Stage 2: rho_sft, a model that has learned what rewrites look like: a small one, or the real model again."""
    c, device = run.config, resolve_device(run.config.device)
    pairs = world.rewrite_pairs(c.prompter_sft.examples, random.Random(f"rewrites {c.seed}"))
    if c.real_model:
        tokenizer = load_tokenizer(c.prompter).with_system(PROMPTER_SYSTEM)

    def make(stage: RunStage) -> Transformer:
        if c.real_model:
            model, _ = load_model(c.prompter, device, DTYPES[c.dtype])
        else:
            model = new_model(c.prompter_model, tokenizer.vocab_size, run.generator("prompter weights"), device)
        examples = encode_pairs(pairs, tokenizer, model.config.max_len)
        return train_sft(model, examples, c.prompter_sft, stage, run.generator("prompter_sft"))

    model = _trained(run, "prompter_sft", make, tokenizer)
    assert_frozen(pi_f, "prompter_sft")
    return Prompter(model.eval().requires_grad_(False), tokenizer, c.ppo.max_new_tokens, c.ppo.temperature)


def reward_model(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter) -> Reward:
    """Stage 3: the reward, learned from preferences or a callable, normalised on answers to rho_sft's rewrites."""
    c = run.config
    if c.reward:
        score = judge(c, run.path, API_FILE, pi_f) if c.judge else load_callable(c.reward)

        def scale(stage: RunStage) -> dict[str, float]:
            sample = _answers_to_rewrites(run, world, pi_f, rho_sft)
            low = low_reward(score, *sample) if c.real_model else None
            return reward_.moments(by_sentences(score, low)(*sample)) | {"low": low}

        m = run.json("reward_scale", scale)
        assert_frozen(pi_f, "reward_scale")
        report = by_sentences(score, m.get("low"))  # absent in a run of an earlier version
        return Reward(report, lambda x, y: (report(x, y) - m["mean"]) / m["std"])
    model = new_reward_model(c, pi_f)

    def make(stage: RunStage) -> tuple[dict, dict]:
        """Label pairs, train on them and set the unit: the model's weights, and the facts that are told of it."""
        g = run.generator("preferences")
        pairs = _preferences(run, world, pi_f, rho_sft, g)
        # A file's answers may be longer than those that the run rates; a remote LM has no tokenizer here.
        tokenizer = getattr(pi_f, "tokenizer", model.tokenizer)
        short = lambda y: cut_at(y, tokenizer, c.sampling.max_new_tokens)
        cut = (lambda y: whole_sentences(short(y))) if c.real_model else short
        describe = lambda trained, heldout: accuracy_facts(trained, heldout, cut)
        facts = reward_.train_reward_model(model, pairs, c.reward_model, stage, g, describe)
        sample = _answers_to_rewrites(run, world, pi_f, rho_sft)
        model.normalise(*sample)
        facts["low"] = low_reward(model.score, *sample) if c.real_model else None
        held_out = world.eval_requests[: c.eval.inputs]
        answers = sample_answers(pi_f, rho_sft, held_out, g)
        swapped = world.swapped(held_out, answers, random.Random(f"swaps {c.seed}"))
        facts["swap_accuracy"] = reward_.swap_accuracy(model.score, held_out, answers, swapped)
        gold = world.gold
        facts["swap_ceiling"] = gold and reward_.swap_accuracy(gold, held_out, answers, swapped)
        return model.state_dict(), facts

    tensors, facts = run.tensors("reward_model", make)
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False)
    if run.leads:
        write_json(run.path / "checkpoints" / "reward_model.json", facts)
    print("\n".join(reward_model_lines(facts)))
    assert_frozen(pi_f, "reward_model")
    score = by_sentences(model.score, facts.get("low"))
    return Reward(score, score)


def new_reward_model(c: RunConfig, pi_f: FrozenModel) -> reward_.RewardModel:
    """A reward model before it has learned anything: it starts from the LM, which knows the language already."""
    layers, device = c.reward_model.train_layers, resolve_device(c.device)
    if c.reward_base or c.remote:
        base, vocabulary = load_model(c.reward_base, device, DTYPES[c.dtype])
    else:
        base, vocabulary = (lm := with_weights(pi_f, "a learned reward")).model, lm.tokenizer
    return reward_.READS[c.reward_model.read](copy_of(base, layers, c.reward_model.blocks), vocabulary, layers)


def judge(c: RunConfig, place: Path, file: str, pi_f: FrozenModel) -> Judge:
    """The LLM judge of `--reward judge:MODEL`, which compares with the frozen model's greedy answer to the request.

    That answer is read up to its last whole sentence, as the other one is. Those of a local model are kept in `place`:
    in another batch a greedy answer may differ by rounding, and all judgements with it.
    """
    greedy = replace(c.sampling, temperature=0.0)
    if isinstance(pi_f, RemoteLM):
        remote = RemoteLM(pi_f.client, pi_f.model, greedy)
        return Judge(pi_f.client, c.judge, lambda xs: [whole_sentences(a.text) for a in remote.answer(xs)])
    local = with_weights(pi_f, "a judge")
    lm, kept = FrozenLM(local.model, local.tokenizer, greedy), place / PLAIN_FILE
    known = {row["x"]: row["y"] for row in read_jsonl(kept)}

    def plain(requests: list[str]) -> list[str]:
        new = [x for x in requests if x not in known]
        answers = [whole_sentences(a.text) for a in lm.answer(new)] if new else []
        append_jsonl(kept, [{"x": x, "y": y} for x, y in zip(new, answers)])
        known.update(zip(new, answers))
        return [known[x] for x in requests]

    return Judge(Client(c.api, place / file), c.judge, plain)


def _preferences(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, g: torch.Generator) -> list:
    """The world's pairs, or pairs of the frozen LM's answers, each to a rewrite of its own, judged with noise.

    All answers to a request are compared in pairs. Mismatched pairs need no further answers: beside an answer stands
    what it would be for another request.
    """
    found = world.preferences()
    if found is not None:
        return [reward_.Preference(*pair) for pair in found]
    c, scale = run.config.reward_model, run.config.reward_model.preference_scale
    couples = list(combinations(range(c.answers_per_request), 2))
    picked = torch.randint(len(world.train_requests), (math.ceil(c.pairs / len(couples)),), generator=g).tolist()
    requests = [world.train_requests[i] for i in picked]  # N
    texts = [sample_answers(pi_f, rho_sft, requests, g) for _ in range(c.answers_per_request)]  # (A, N)
    compared = [(x, texts[i][n], texts[j][n]) for n, x in enumerate(requests) for i, j in couples][: c.pairs]
    pairs = reward_.draw_preferences(*zip(*compared), world.gold, scale, g)
    count = round(c.mismatched * c.pairs)
    asked, own = (requests * len(texts))[:count], [y for row in texts for y in row][:count]
    swapped = world.swapped(asked, own, random.Random(f"mismatched {run.config.seed}"))
    return pairs + reward_.draw_preferences(asked, own, swapped, world.gold, scale, g, mismatched=True)


def _answers_to_rewrites(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter) -> tuple[list[str], list[str]]:
    """Training requests, and the frozen LM's answers to rho_sft's rewrites of them: what a reward is normalised on."""
    g, count = run.generator("reward scale"), run.config.reward_model.normalise_on
    picked = torch.randint(len(world.train_requests), (count,), generator=g).tolist()
    requests = [world.train_requests[i] for i in picked]
    return requests, sample_answers(pi_f, rho_sft, requests, g)


def sample_answers(pi_f: FrozenModel, prompter: Prompter, requests: Sequence[str], g: torch.Generator) -> list[str]:
    """The frozen LM's answers to a rewrite of each request."""
    rewrites, _ = usable_rewrites(requests, prompter.rewrite(requests, g), pi_f.fits)
    return [answer.text for answer in pi_f.answer(rewrites, g)]


def print_headroom(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, reward: Reward) -> dict:
    """Stage 4: how far rewriting can move this reward, reported before any PPO."""

    def make(stage: RunStage) -> dict:
        few, g = world.train_requests[: run.config.eval.headroom_inputs], run.generator("headroom")
        evaluator = evaluation.Evaluator(few, pi_f, reward.report, None, run.config.eval, g, run.config.guard)
        return evaluation.headroom(evaluator, rho_sft)

    found = run.json("headroom", make)
    assert_frozen(pi_f, "headroom")
    print(
        f"headroom: of the reward's variance for one request, {100 * found['icc']:.0f} % lies between rewrites "
        f"(ICC {found['icc']:.2f}; between {found['between_rewrites']:.2f}, the LM's sampling {found['within']:.2f}); "
        f"the best of 8 rewrites gains {found['best_rewrite_gain']:+.2f}"
    )
    return found


def align_pro(run: Run, world: World, pi_f: FrozenModel, rho_sft: Prompter, reward: Reward) -> Prompter:
    """Stage 5: PPO on the prompter."""
    c = run.config

    def make(stage: RunStage) -> Transformer:
        g = run.generator("align_pro")
        score = GuardedScore(pi_f, reward.train, g, c.ppo.answers, c.guard)
        start = copy.deepcopy(rho_sft.model)
        trainer = processes.trainer_class(c.ppo)(start, rho_sft.model, rho_sft.tokenizer, score, c.ppo, g)
        return train_align_pro(trainer, world.train_requests, stage, world.gold)

    model = _trained(run, "align_pro", make, rho_sft.tokenizer)
    assert_frozen(pi_f, "align_pro")
    return replace(rho_sft, model=model.eval())


def rlhf_oracle(run: Run, world: World, pi_f: FrozenModel, reward: Reward) -> FrozenLM | None:
    """Stage 6: the comparator, the same PPO on a copy of the LM; None with `--eval.oracle false`."""
    c = run.config
    if not c.eval.oracle:
        return None
    lm = with_weights(pi_f, "the RLHF oracle (--eval.oracle false leaves it out)")

    def make(stage: RunStage) -> Transformer:
        g = run.generator("rlhf_oracle")
        reference = copy_of(lm.model, c.oracle.train_layers)
        start = copy.deepcopy(reference)
        trainer = processes.trainer_class(c.oracle)(start, reference, lm.tokenizer, reward.train, c.oracle, g)
        return train_rlhf_oracle(trainer, world.train_requests, stage, world.gold)

    model = _trained(run, "rlhf_oracle", make, lm.tokenizer)
    lm.assert_unchanged("rlhf_oracle")
    return FrozenLM(model, lm.tokenizer, lm.sampling)

"""Defects that this project once had. Each test fails on the code that had the defect."""

import copy
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import FakeStage, Letters, lookup_lm, random_lm
from warm import PROCESSES

from alignpro_mini import generation, sft
from alignpro_mini.alignpro import Prompter, PromptScore, train_align_pro, train_rlhf_oracle
from alignpro_mini.frozen import Answer, FrozenLM, SamplingConfig
from alignpro_mini.generation import sequence_logprobs
from alignpro_mini.lab import optimum, pipeline, report, run, tables
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import EvalConfig, preset
from alignpro_mini.lab.evaluation import Arm, Evaluator, summarise
from alignpro_mini.lab.models import with_weights
from alignpro_mini.lab.sweep import sweep_table
from alignpro_mini.options import UserError
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.sft import SFTConfig, train_sft
from alignpro_mini.weights.tensors import write_json

ROOT = Path(__file__).resolve().parent.parent
LETTERS = Letters()
SMALL = PPOConfig(iterations=1, batch_size=4, num_minibatches=1, ppo_epochs=1, max_new_tokens=4)


# ---------------------------------------------------------------- 1: a reward that is constant for no fine-tuning


@pytest.mark.parametrize("constant", [0.5, 0.7])  # the variance of many 0.7 is not quite 0
def test_a_constant_reward_of_no_fine_tuning_does_not_end_the_run(tmp_path, constant):
    draw = np.random.default_rng(0)
    arms = {
        "no_finetuning": Arm(np.full((6, 1, 4), constant), None, np.zeros((6, 1))),
        "align_pro": Arm(draw.normal(size=(6, 2, 2)), None, np.zeros((6, 2))),
    }
    results = {"task": "quality", "seed": 0, "wall_s": {}} | summarise(arms, EvalConfig(bootstrap=50))
    assert results["variance_ratio"] is None and results["arms"]["no_finetuning"]["variance"] == pytest.approx(
        0, abs=1e-20
    )
    assert results["variance_ratio_within_requests"] is None
    assert "Variance ratio, Align-Pro / no fine-tuning: –" in tables.final_table(results)
    assert "quality" in sweep_table([results])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib, of a histogram without a width
        rewards = {name: arm.reward for name, arm in arms.items()}
        assert report.write_report(tmp_path, results | {"config": {}}, [], [], rewards).exists()


# ---------------------------------------------------------------- 2: two processes write one file


def _write_often(path: str, count: int) -> None:
    for i in range(count):
        write_json(Path(path), {"i": i})


def test_two_processes_may_write_one_file(tmp_path):
    """With one temporary name for both, one process renames away what the other is about to rename."""
    path = tmp_path / "grid.json"
    workers = [PROCESSES.Process(target=_write_often, args=(str(path), 300)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["grid.json"]


# ---------------------------------------------------------------- 3: held-out pairs that were trained on


def test_no_held_out_prompt_is_trained_on(monkeypatch):
    """The pairs are drawn with replacement: what is held out comes again among those to train on."""
    draw = torch.Generator().manual_seed(0)
    picks = torch.randint(8, (200, 2), generator=draw).tolist()
    pairs = [LETTERS.chat_with_answer("abcdefgh"[a], "abcdefgh"[b]) for a, b in picks]
    trained, loss = [], sft.answer_loss

    def watched(model, batch, train_layers=0):
        if torch.is_grad_enabled():
            trained.extend(batch)
        return loss(model, batch, train_layers)

    monkeypatch.setattr(sft, "answer_loss", watched)
    train_sft(random_lm(), pairs, SFTConfig(steps=20, batch_size=8, heldout_examples=3), FakeStage(), draw)
    held_out = {tuple(prompt) for prompt, _ in pairs[:3]}
    seen = {tuple(prompt) for prompt, _ in trained}
    assert len(trained) == 160 and seen and not seen & held_out


# ---------------------------------------------------------------- 5: no word for a quarter of an hour


class Clock:
    """A clock that moves on by `step` seconds each time that it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def perf_counter(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize(
    ("steps", "seconds", "lines"), [(50, 0.01, 10), (700, 0.01, 10), (7, 0.01, 7), (40, 35.0, 20), (40, 61.0, 40)]
)
def test_without_a_terminal_a_line_is_printed_every_tenth_and_every_minute(
    tmp_path, monkeypatch, capsys, steps, seconds, lines
):
    stage = run.RunStage(run.Run(replace(preset("tiny"), out=str(tmp_path), name="r")), "align_pro")
    monkeypatch.setattr(run, "time", Clock(seconds))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    capsys.readouterr()
    for step in stage.progress(0, steps):
        stage.log(step + 1, {"score_mean": 0.25})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert all("s left" in line and "score_mean 0.250" in line for line in printed)
    assert printed[-1].startswith(f"[align_pro] step {steps} of {steps}, 0 s left")


# ---------------------------------------------------------------- 6: lengths and scores


class Echo:
    """A black box: it answers with its prompt, and offers nothing but `answer` and `fits`."""

    def __init__(self, with_tokens: bool = True) -> None:
        self.with_tokens = with_tokens

    def fits(self, prompt: str) -> bool:
        return True

    def answer(self, prompts, generator=None) -> list[Answer]:
        return [Answer(p, False, [*LETTERS.encode(p), LETTERS.eos_id] if self.with_tokens else None) for p in prompts]


def length(prompts, completions):
    return torch.tensor([float(len(text)) for text in completions])


def trainer_of(reference, score) -> PPOTrainer:
    lm = copy.deepcopy(reference)
    return PPOTrainer(lm, reference, LETTERS, score, SMALL, torch.Generator().manual_seed(0))


def test_rewrites_and_answers_are_measured_alike():
    """Both lengths count the EOS: an LM that repeats its prompt gives answers as long as the rewrites."""
    rho = lookup_lm({2: {4: 1.0}, 4: {5: 1.0}, 5: {3: 1.0}})  # always writes "ab" and its EOS
    stage = FakeStage()
    train_align_pro(trainer_of(rho, PromptScore(Echo(), length)), ["c", "d"], stage)
    assert stage.rows[0]["completion_length"] == stage.rows[0]["answer_length"] == 3


def test_the_oracles_answers_are_not_called_rewrites():
    stage = FakeStage()
    train_rlhf_oracle(trainer_of(random_lm(), length), ["c", "d"], stage)
    assert "completion_length" in stage.rows[0] and not {"rewrite_length", "answer_length"} & stage.rows[0].keys()


def test_the_mean_score_holds_no_penalty():
    never_ends = lookup_lm({2: {4: 1.0}, 4: {4: 1.0}})
    config = replace(SMALL, missing_eos_penalty=5.0, kl_coef=0.0)
    trainer = PPOTrainer(never_ends, lookup_lm({2: {4: 1.0}, 4: {4: 1.0}}), LETTERS, length, config)
    metrics = trainer.step(["a", "b"])
    assert metrics["missing_eos"] == 1 and metrics["score_mean"] == 4
    assert metrics["reward_mean"] == -1  # what PPO maximises: the penalty is in it


# ---------------------------------------------------------------- 7: the frozen model is a black box


@pytest.mark.parametrize("with_tokens", [True, False])
def test_scoring_and_evaluation_need_only_answer_and_fits(with_tokens):
    box, draw = Echo(with_tokens), torch.Generator().manual_seed(0)
    rho = Prompter(random_lm(), LETTERS, 4)
    config = EvalConfig(inputs=2, rewrites=2, answers=2, best_of_n=2)
    evaluator = Evaluator(["a", "bc"], box, length, None, config, draw)
    table = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    arms = [
        evaluator.plain(),
        evaluator.best_of_n_answers(),
        evaluator.fixed(["b", "d"], np.zeros((2, 1))),
        evaluator.prompter(rho, rho),
        evaluator.best_of_n(rho),
        evaluator.enumerated([["a", "b"], ["bc", "d"]], table, table),
    ]
    for arm in arms:
        assert np.isfinite(arm.reward).all() and arm.extra["truncated"] == 0
        assert (arm.extra["answer_length"] is None) is not with_tokens
    assert PromptScore(box, length, draw, 2)(["a", "b"], ["cd", "e"]).tolist() == [2, 1]
    assert optimum.rate(["a"], [["a", "bc"]], box, length, 3, draw).R.tolist() == [[1, 2]]
    stage = FakeStage()
    train_align_pro(trainer_of(random_lm(), PromptScore(box, length)), ["a", "b"], stage)
    assert (stage.rows[0]["answer_length"] is None) is not with_tokens


def test_what_needs_weights_says_so():
    config = preset("tiny")
    with pytest.raises(UserError, match="RLHF oracle .*--eval.oracle false.* needs the weights"):
        pipeline.rlhf_oracle(run_of(config), None, Echo(), None)
    lm = FrozenLM(random_lm(), LETTERS, SamplingConfig(max_new_tokens=4))
    assert with_weights(lm, "anything") is lm


def run_of(config):
    """A run without a folder: only its configuration is asked for."""
    found = object.__new__(run.Run)
    found.config = config
    return found


# ---------------------------------------------------------------- 8: a bug keeps its traceback


def test_only_what_a_user_can_mend_is_shortened_to_a_line():
    with pytest.raises(ValueError, match="shapes differ"), one_line_errors("train.py"):
        raise ValueError("shapes differ")
    for error in (UserError("bad"), OSError("bad"), FloatingPointError("bad")):
        with pytest.raises(SystemExit) as stopped, one_line_errors("train.py"):
            raise error
        assert stopped.value.code == "train.py: error: bad"


# ---------------------------------------------------------------- 9: rows, and logits of a large vocabulary


def test_rows_of_a_rollout_are_rows_of_every_field():
    draw = torch.Generator().manual_seed(0)
    trainer = PPOTrainer(random_lm(), random_lm(), LETTERS, length, SMALL, draw)
    rollout = trainer.rollout(["a", "bcd", "e", "fg"])
    rollout.scores = trainer.scores(rollout)
    trainer.estimate_advantages(rollout, trainer.assemble_rewards(rollout))
    index = torch.tensor([1, 3])
    part = rollout.rows(index)
    T = part.action.shape[1]
    assert part.prompts == ["bcd", "fg"] and part.completions == [rollout.completions[i] for i in (1, 3)]
    for name in ("finished", "scores"):
        assert torch.equal(getattr(part, name), getattr(rollout, name)[index]), name
    for name in ("tokens", "logp", "logp_ref", "values", "kl_exact", "entropy", "advantages", "returns"):
        assert torch.equal(getattr(part, name), getattr(rollout, name)[index][:, :T]), name
    assert part.kl.shape == (2,)


def test_logits_of_a_large_vocabulary_are_made_a_few_tokens_at_a_time(monkeypatch):
    """128 rows of 80 tokens would have logits of 2 GB a copy with the vocabulary of SmolLM2."""
    model = random_lm(vocab_size=2**20, d_model=4, n_heads=1, n_kv_heads=1, n_layers=1)
    prompts, completions = [[1, 2]] * 7, [[3 + i] * 5 for i in range(7)]  # 35 tokens, 16 of them at a time
    sizes, unembed = [], model.unembed.forward
    monkeypatch.setattr(model.unembed, "forward", lambda states: (sizes.append(len(states)), unembed(states))[1])
    found = sequence_logprobs(model, prompts, completions)
    assert max(sizes) <= 16 and sum(sizes) == 35
    with torch.no_grad():
        logits = model(torch.tensor([[*p, *c] for p, c in zip(prompts, completions)]))[:, 1:-1]
    wanted = generation.sampling_logprobs(logits).gather(2, torch.tensor(completions)[..., None]).sum((1, 2))
    assert torch.allclose(found, wanted, atol=1e-4)


# ---------------------------------------------------------------- 10: bad options are told before the folder


def test_a_bad_option_is_told_before_the_folder_that_holds_a_run(tmp_path, capsys):
    sys.path.insert(0, str(ROOT))
    import train

    config = replace(preset("tiny"), out=str(tmp_path), name="r", reward="no_such_module:f")
    (tmp_path / "r" / "checkpoints").mkdir(parents=True)
    write_json(tmp_path / "r" / "config.json", {})
    write_json(tmp_path / "r" / "stages.json", {"frozen_lm": {"seconds": 1.0}})
    with pytest.raises(UserError, match="--reward no_such_module:f"):
        train.main(config, resume=False)
    for words, told in (
        (["--device", "cuda:99"], "--device cuda:99: this machine has"),
        (["--frozen_model.n_heads", "5"], "--frozen_model: d_model 96 is not a multiple of n_heads 5"),
    ):
        with pytest.raises(SystemExit):
            parse_command_line(words)
        assert told in capsys.readouterr().err

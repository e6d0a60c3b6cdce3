"""Everyday requests: composed, split by topic, with listed rewrites; and the real model's preset from end to end."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignpro_mini.options import UserError
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.pretrained import save_pretrained
from alignpro_mini.worlds.everyday import ENDINGS, QUESTIONS, SITUATIONS, TOPICS, UNSEEN_TOPICS, EverydayRequests
from alignpro_mini.worlds.files import DataConfig

ROOT = Path(__file__).resolve().parent.parent


def everyday(eval_inputs=512, seed=0, **data):
    return EverydayRequests(DataConfig(**data), eval_inputs, seed)


def test_thousands_of_requests_and_the_held_out_ones_are_about_other_topics():
    world = everyday()
    assert len(set(world.train_requests)) == len(world.train_requests) == len(TOPICS) * 60 >= 2000
    assert len(set(world.eval_requests)) == 512
    for parts in (TOPICS, UNSEEN_TOPICS, QUESTIONS, SITUATIONS, ENDINGS):
        assert len(set(parts)) == len(parts)
    assert not [x for x in world.train_requests for topic in UNSEEN_TOPICS if topic in x]
    assert all(any(topic in x for topic in UNSEEN_TOPICS) for x in world.eval_requests)
    assert everyday(seed=1).eval_requests != world.eval_requests == everyday().eval_requests


def test_every_rewrite_to_imitate_is_listed_and_each_ending_comes_as_often():
    world = everyday()
    assert len(ENDINGS) == 24 and world.rewrites("Why?")[:2] == ["Why?", f"Why? {ENDINGS[1]}"]
    pairs = world.rewrite_pairs(4800, random.Random(0))
    seen = [world.rewrites(x).index(x_prime) for x, x_prime in pairs]  # ValueError where one is not listed
    counts = torch.bincount(torch.tensor(seen), minlength=24)
    assert counts.min() > 140 and counts.max() < 270  # 200 each, within 5 standard deviations
    assert {x for x, _ in pairs} <= set(world.train_requests)


def test_rewrites_that_keep_the_request_are_counted():
    """Three requests, one rewrite each, two answers to a rewrite."""
    requests = [x for x in ("a b", "c", "e") for _ in range(2)]
    found = everyday().describe(requests, ["a b Be brief.", "c d", "f"], [""] * 6)
    assert found == {"kept_word_for_word": pytest.approx(2 / 3)}


def test_more_evaluation_requests_than_there_are_is_told_with_the_mend():
    with pytest.raises(UserError, match=r"--eval.inputs is 721, but 720 .* held out: lower it"):
        everyday(eval_inputs=721)


def test_preferences_of_a_file_leave_the_held_out_requests_out(tmp_path):
    held_out = everyday().eval_requests[0]
    rows = [{"prompt": x, "chosen": "good", "rejected": "bad"} for x in ("Why?", held_out)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert everyday(preferences=str(tmp_path / "p.jsonl")).preferences() == [("Why?", "good", "bad")]


def test_the_presets_command_runs_from_end_to_end_without_a_file_of_requests(tmp_path):
    """A tiny model in the place of the published one; every stage, the exact optimum over the listed endings too."""
    g = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer.train(everyday().train_requests[:300] + list(ENDINGS), vocab_size=400)
    shape = TransformerConfig(tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, max_len=128)
    save_pretrained(Transformer(shape, g), tmp_path / "model", tokenizer)
    (tmp_path / "mine.py").write_text(
        "def length(prompts, completions):\n    return [len(y) % 7 for y in completions]\n"
    )
    options = {
        "preset": "smollm2", "data.model": "model", "reward": "mine:length", "device": "cpu",
        "prompter_sft.steps": 4, "prompter_sft.examples": 40, "prompter_sft.heldout_examples": 4,
        "prompter_sft.train_layers": 1, "sampling.max_new_tokens": 16, "reward_model.normalise_on": 200,
        "ppo.iterations": 2, "ppo.batch_size": 4, "ppo.micro_batch_size": 4, "ppo.max_new_tokens": 24,
        "ppo.train_layers": 1, "eval.inputs": 4, "eval.headroom_inputs": 2, "theory.inputs": 2,
        "theory.answers": 2, "theory.more_answers": 0,
    }  # fmt: skip
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *(word for k, v in options.items() for word in (f"--{k}", str(v))),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3120 to train on, 4 held out, about topics that training never sees" in done.stdout
    results = json.loads((tmp_path / "runs" / "smollm2-chat-seed0" / "results.json").read_text())
    assert list(results["arms"]) == ["no_finetuning", "untrained_prompter", "best_of_n", "align_pro", "closed_form"]
    assert results["arms"]["no_finetuning"]["kept_word_for_word"] == 1.0
    low = json.loads((tmp_path / "runs" / "smollm2-chat-seed0" / "checkpoints" / "reward_scale.json").read_text())[
        "low"
    ]
    rows = map(json.loads, (tmp_path / "runs" / "smollm2-chat-seed0" / "samples.jsonl").read_text().splitlines())
    unfinished = [row["reward"] for row in rows if row.get("arm") == "no_finetuning" and not set(".!?") & set(row["y"])]
    assert low in [pytest.approx(reward) for reward in unfinished]  # the tiny model babbles: most answers are cut
    assert results["theory"]["regularised_gap"] == pytest.approx(results["theory"]["lambda_kl_to_optimum"], abs=1e-6)


def test_a_model_that_is_not_fetched_is_told_before_the_runs_folder_is_made(tmp_path):
    (tmp_path / "mine.py").write_text("def length(prompts, completions):\n    return [0.0]\n")
    command = [sys.executable, str(ROOT / "train.py"), "--preset", "smollm2", "--reward", "mine:length"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode and "run: python -m alignpro_mini.weights.smollm2" in done.stderr
    assert not (tmp_path / "runs").exists()

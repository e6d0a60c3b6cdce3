"""Everyday requests: composed, split by topic, with listed rewrites; and the real model's preset from end to end."""

import json
import random

import pytest
import torch
import warm
from doubles import ROOT, in_a_folder
from real_model import LEARNED, OPTIONS, command, everyday
from safetensors.torch import load_file

from alignpro_mini.lab.device import DTYPES
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.tables import num
from alignpro_mini.options import UserError
from alignpro_mini.worlds.everyday import ENDINGS, QUESTIONS, SITUATIONS, TOPICS, UNSEEN_TOPICS


def test_thousands_of_requests_and_the_held_out_ones_are_about_other_topics():
    world = everyday()
    assert len(set(world.train_requests)) == len(world.train_requests) == len(TOPICS) * 60 >= 2000
    assert len(set(world.eval_requests)) == 512
    for parts in (TOPICS, UNSEEN_TOPICS, QUESTIONS, SITUATIONS, ENDINGS):
        assert len(set(parts)) == len(parts)
    assert not [x for x in world.train_requests for topic in UNSEEN_TOPICS if topic in x]
    assert all(any(topic in x for topic in UNSEEN_TOPICS) for x in world.eval_requests)
    assert set(world.groups(world.eval_requests)) == set(UNSEEN_TOPICS), "intervals resample topics"
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


def the_presets_command(tmp_path):
    """Every stage with a reward function: the oracle, and the exact optimum over the listed endings too."""
    told = command(tmp_path, [str(ROOT / "train.py")], OPTIONS | {"reward": "mine:length", "dtype": "auto"})
    assert "3120 to train on, 4 held out, about topics that training never sees" in told
    place = tmp_path / "runs" / "smollm2-length-model-seed0"
    results = json.loads((place / "results.json").read_text())
    assert list(results["arms"]) == [*ARMS]
    assert (
        results["arms"]["no_finetuning"]["kept_word_for_word"] == 1.0
        and results["arms"]["align_pro"]["gold_mean"] is None
    )
    low = json.loads((place / "checkpoints" / "reward_scale.json").read_text())["low"]
    rows = map(json.loads, (place / "samples.jsonl").read_text().splitlines())
    unfinished = [row["reward"] for row in rows if row.get("arm") == "no_finetuning" and not set(".!?") & set(row["y"])]
    assert low in [pytest.approx(reward) for reward in unfinished]  # the tiny model babbles: most answers are cut
    assert results["theory"]["regularised_gap"] == pytest.approx(results["theory"]["lambda_kl_to_optimum"], abs=1e-6)
    dtype = json.loads((place / "config.json").read_text())["dtype"]
    assert dtype in DTYPES and f"dtype: {dtype}, this processor has " in told
    assert load_file(place / "checkpoints" / "align_pro" / "model.safetensors").popitem()[1].dtype == DTYPES[dtype]


def a_learned_reward(tmp_path):
    """Without --reward: pairs of the frozen LM's answers, judged by --gold; the listing leaves its stages to the run."""
    real = ["-m", "alignpro_mini.experiments.real"]
    told = command(tmp_path, [*real, "--step", "listing"], OPTIONS | LEARNED)
    place = tmp_path / "runs" / "learned"
    assert list(json.loads((place / "listing.json").read_text())["rewards"]) == ["learned", "gold"]
    assert "[reward_model] done" in told
    told = command(tmp_path, [str(ROOT / "train.py"), "--resume"], OPTIONS | LEARNED)
    assert "[reward_model] already done" in told and "[listing] request" not in told, "the answers are shared"
    results = json.loads((place / "results.json").read_text())
    facts = results["reward_model"]
    assert list(facts["swap_accuracy"]) == ["subject"] and 0 <= facts["swap_accuracy"]["subject"] <= 1
    assert facts["train_pairs"] + facts["heldout_pairs"] <= 24 + 4
    assert results["judge"] == "gold" and results["gold_variance_ratio_ci95"] is not None
    assert {"truncated", "gold_mean", "kept_word_for_word"} <= results["arms"]["rlhf_oracle"].keys()
    assert "trun-" in told and "x in" in told
    # What comes after the run: the measurement beside the prediction.
    told = command(tmp_path, [*real, "--step", "summary"], OPTIONS | LEARNED)
    found = json.loads((place / "summary.json").read_text())
    assert found["variance_ratio"] == pytest.approx(results["variance_ratio"])
    assert found["mean_gain"] == pytest.approx(results["arms"]["align_pro"]["difference"]["mean"])
    assert found["prediction"]["kl_coef"] == 0.05 and "variance_ratio_pi95" in found["prediction"]
    assert f"variance ratio {num(found['variance_ratio'])} " in told
    # The same answers, another reward: nothing is answered again.
    (answers,) = (tmp_path / "runs").glob("listing-*/answers.jsonl")
    kept = answers.read_text()
    told = command(tmp_path, [*real, "--step", "listing", "--resume", "--also", "mine:length"], OPTIONS | LEARNED)
    assert "[reward_model] already done" in told and "mine:length: mean" in told
    assert answers.read_text() == kept
    assert list(json.loads((place / "listing.json").read_text())["rewards"]) == ["learned", "mine:length", "gold"]


def test_a_model_that_is_not_fetched_is_told_before_the_runs_folder_is_made(tmp_path):
    (tmp_path / "mine.py").write_text("def length(prompts, completions):\n    return [0.0]\n")
    argv = [ROOT / "train.py", "--preset", "smollm2", "--reward", "mine:length"]
    done = warm.run(argv, tmp_path, {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode and "run: python -m alignpro_mini.weights.smollm2" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.ahead(run=in_a_folder(the_presets_command))
def test_the_presets_command_runs_from_end_to_end_without_a_file_of_requests(ahead):
    if ahead:
        raise ahead


@pytest.mark.ahead(run=in_a_folder(a_learned_reward))
def test_a_reward_learned_from_the_models_own_answers_is_listed_first_and_trained_on_then(ahead):
    if ahead:
        raise ahead

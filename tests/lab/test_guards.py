"""Rewrites that must not be sent, and trainings that must end."""

import json
from dataclasses import replace

import pytest

from alignpro_mini.frozen import Answer
from alignpro_mini.lab import guards
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.guards import (
    PATIENCE,
    REASONS,
    GuardedScore,
    kept,
    objection,
    objection_rate,
    runaway,
    script,
    words,
)
from alignpro_mini.lab.run import Run
from alignpro_mini.worlds import files
from alignpro_mini.worlds.everyday import EverydayRequests
from alignpro_mini.worlds.files import DataConfig
from alignpro_mini.worlds.toy import TASKS, ToyWorld
from alignpro_mini.worlds.world import WorldConfig

X = "How do I plant tomatoes on a small balcony?"


@pytest.mark.parametrize(
    "rewrite, why",
    [
        (X, None),
        (X + " Answer with a happy and positive tone.", None),
        ("Explain step by step how to plant tomatoes on a balcony that is small.", None),
        ("Please give tips for tomato plants on a tiny balcony.", None),
        ("", "empty"),
        (" \n", "empty"),
        (X + " word" * 100, "long"),
        (X + " enthusiastic, enthusiastic, enthusiastic, enthusiastic", "repeats"),
        (X + " be very kind be very kind be very kind be very kind", "repeats"),
        ("Как посадить помидоры на балконе?", "language"),
        ("如何在小阳台上种植番茄?", "language"),
        ("Comment puis-je planter des légumes chez moi ?", "content"),
        ("How do I repair a bicycle?", "content"),
        ("Sure! To plant tomatoes on a small balcony you need pots.", "answers"),
        ("Tomatoes grow well on a small balcony. Plants need sun.", "answers"),
        ("I'm sorry, but I cannot plant tomatoes on a small balcony?", "answers"),
    ],
)
def test_objections(rewrite, why):
    assert objection(X, rewrite) == why and why in (None, *REASONS)
    assert kept([X], [rewrite]) == [X if why not in (None, "empty") else rewrite]  # empty ones fall back elsewhere


@pytest.mark.parametrize(
    "request_, rewrite, why",
    [
        ("Sure?", "Sure? Explain why.", None),  # begins with an answer's word itself
        ("Напиши стих о море", "Напиши короткий стих о море, пожалуйста", None),
        ("Напиши стих о море", "Write a poem about the sea", "language"),
        ("如何种植番茄?", "请一步一步解释如何种植番茄。", None),
        ("如何种植番茄?", "今天天气怎么样?", "content"),
        ("如何种植番茄?", "How do I grow tomatoes (番茄)?", "language"),
        ("What is 12 + 30?", "Work out 12 + 30 step by step. What is it?", None),
        ("What is 12 + 30?", "Work out 12 + 31 step by step. What is it?", None),  # half of the numbers: kept
        ("What is 12 + 30?", "Work out 15 + 31 step by step. What is it?", "content"),
        ("no no no no, stop", "no no no no, stop it. How?", None),  # the request repeats itself
        ("???", "???", None),
        ("Hi", "Hi there", None),
    ],
)
def test_objections_in_other_languages_and_to_odd_requests(request_, rewrite, why):
    assert objection(request_, rewrite) == why


@pytest.mark.parametrize(
    "x",
    [
        "如何种植番茄?",
        "Напиши стих о море",
        "كيف أزرع الطماطم؟",
        "टमाटर कैसे उगाएं?",
        "トマトの育て方は?",
        "How do I grow them?",
    ],
)
def test_endings_in_english_may_be_sent_with_requests_in_any_script(x):
    """They are what SFT teaches for files of requests: what training and evaluation send is also sent in use."""
    rewrites = [f"{opening}{x} {ending}".strip() for opening in files.OPENINGS for ending in files.ENDINGS]
    assert objection_rate([x] * len(rewrites), rewrites) == 0


def test_the_packages_own_rewrites_may_all_be_sent():
    worlds = [ToyWorld(task, WorldConfig(), 0) for task in TASKS] + [EverydayRequests(DataConfig(), 64, 0, None)]
    for world in worlds:
        pairs = [(x, rewrite) for x in world.train_requests[:60] for rewrite in world.rewrites(x)]
        assert objection_rate(*zip(*pairs)) == 0, world.task


def test_words_and_scripts():
    assert words("Don't stop at 25, Émile!") == ["don't", "stop", "at", "25", "émile"]
    assert words("我爱 GPT2") == ["我", "爱", "gpt", "2"]
    assert [script(t) for t in ("abc", "абв", "漢字かな", "한국어", "42 !?", "")] == [
        "LATIN",
        "CYRILLIC",
        "CJK",
        "CJK",
        None,
        None,
    ]


@pytest.mark.parametrize("guard", [False, True])
def test_a_rewrite_with_an_objection_is_counted_and_sent_only_without_the_guard(monkeypatch, guard):
    class Echo:
        def fits(self, prompt):
            return len(prompt) <= 5

        def answer(self, prompts, generator=None):
            return [Answer(p, truncated=False) for p in prompts]

    monkeypatch.setattr(guards, "objection", lambda x, x_prime: "content" if "b" in x_prime else None)
    score = GuardedScore(Echo(), lambda xs, ys: [float(len(y)) for y in ys], None, 2, guard)
    scores = score(["x1", "x2", "x3", "x4"], ["abc", "acd", "", "too long a rewrite"])
    assert score.x_prime == ["x1" if guard else "abc", "acd", "x3", "x4"]
    assert scores.tolist() == [2.0 if guard else 3.0, 3.0, 2.0, 2.0] and score.r.shape == (4, 2)
    want = {"fallback_rate": 0.5, "answer_length": None, "objection_rate": 0.25}
    assert score.metrics() == want and list(score.metrics()) == list(want)
    score(["x"], ["a"])
    assert score.metrics()["objection_rate"] == 0, "of the last call"


def rows(**changed) -> list[dict]:
    fine = {"kl_k1": 2.0, "entropy": 0.5, "missing_eos": 0.0}
    return [fine] + [fine | changed] * PATIENCE


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, None),
        ({"kl_k1": 101.0}, "the KL is above 100 nats"),
        ({"kl_k1": 99.0}, None),
        ({"entropy": 2.6}, "the entropy rose from 0.50 to 2.60 nats"),
        ({"entropy": 2.4}, None),
        ({"missing_eos": 0.95}, "95 % of the completions reach the token limit"),
    ],
)
def test_a_training_that_runs_away(changed, said):
    why = runaway(rows(**changed))
    assert why is None if said is None else said in why
    assert runaway(rows(**changed)[:-1]) is None, "once is an outlier"
    assert runaway([*rows(**changed)[:-1], rows()[0]]) is None, "it came back"


def test_what_was_so_from_the_start_has_not_run_away():
    """A model that was never fine-tuned: high entropy, and no EOS."""
    assert runaway([{"kl_k1": 0.0, "entropy": 8.0, "missing_eos": 1.0}] * 20) is None


def stage_of(tmp_path, **options):
    run = Run(replace(preset("tiny"), out=str(tmp_path), device="cpu", **options), resume=True)
    made = []

    def make(stage):
        start, _ = stage.restore()
        for step in stage.progress(start, 30):
            made.append(step)
            stage.log(step + 1, {"kl_k1": 200.0 if step >= 3 else 1.0, "entropy": 1.0, "missing_eos": 0.0})
            if step + 1 in (4, 8):
                stage.save(step + 1)
            if step + 1 == options.get("seed"):
                raise KeyboardInterrupt
        return {}

    return run, make, made


def test_a_stage_ends_early_with_a_diagnosis(tmp_path, capsys):
    run, make, made = stage_of(tmp_path)
    run.json("align_pro", make)
    assert made == list(range(8)) and "ends after step 8: the KL is above 100 nats" in capsys.readouterr().out
    assert [row.get("stopped") is not None for row in run.rows("metrics.jsonl")] == [False] * 7 + [True]
    run, make, made = stage_of(tmp_path / "on", stop=False)
    run.json("align_pro", make)
    assert made == list(range(30))


@pytest.mark.parametrize("killed_after", [6, 8])
def test_a_killed_stage_ends_at_the_same_step(tmp_path, killed_after):
    run, make, _ = stage_of(tmp_path, seed=killed_after)
    with pytest.raises(KeyboardInterrupt):
        run.json("align_pro", make)
    file = tmp_path / run.config.run_name / "config.json"
    file.write_text(file.read_text().replace(f'"seed": {killed_after}', '"seed": 0'))
    (tmp_path / run.config.run_name).rename(tmp_path / "tiny-quality-seed0")
    run, make, made = stage_of(tmp_path)
    run.json("align_pro", make)
    assert made == (list(range(4, 8)) if killed_after == 6 else []), "(with --stop false it would go on)"
    logged = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(1, 9)) and "stopped" in logged[-1]

"""`train.py` on a model behind an API: a whole run, killed and resumed, with each kind of reward."""

import json
import signal
import zlib
from functools import partial

import pytest
from api_server import polite, serving
from doubles import ROOT, in_a_folder
from real_model import LEARNED, OPTIONS, command
from warm import Program

from alignpro_mini.lab.cli import parse_command_line

TRAIN = [str(ROOT / "train.py")]
LOCAL = ("frozen", "oracle.train_layers", "theory.inputs", "theory.answers")
REMOTE = {k: v for k, v in OPTIONS.items() if k not in LOCAL} | {"frozen": "api:m", "preferences.normalise_on": 24}
LEARNING = LEARNED | {"reward_base": "model", "reward_read": "last"}  # from a local model, on remote answers


def of(server, **more) -> dict:
    return REMOTE | {"api.base_url": server.url, "api.concurrency": 2} | more


def start(folder, options: dict, *more: str) -> Program:
    arguments = [word for k, v in options.items() for word in (f"--{k}", str(v))]
    return Program([*TRAIN, *arguments, *more], folder, {"PYTHONPATH": str(ROOT)})


def killed_three_times(tmp_path):
    with serving() as server:
        told = command(tmp_path, TRAIN, of(server, **LEARNING | {"name": "whole"}))
        whole = json.loads((tmp_path / "runs" / "whole" / "results.json").read_text())
        count = sum(server.answered.values())
        # Where every answer costs, the arms that would double them are left out.
        assert " ".join(whole["arms"]) == "no_finetuning untrained_prompter best_of_n align_pro"
        assert 0 <= whole["reward_model"]["swap_accuracy"]["subject"] <= 1 and whole["judge"] == "gold"
        assert whole["theory"] is None and whole["api"]["answers"] == count == len(server.answered)
        assert f"API: {count} answers, {whole['api']['tokens']:,} tokens" in told
        assert whole["api"]["tokens"] == sum(
            len(p.split()) + len(polite(p, {"seed": d}).split()) for p, d in server.answered
        )
    with serving() as server:
        at = [12, count // 2, count - 8]  # while the reward is scaled, in the middle, in the evaluation
        for target in at:
            process = start(tmp_path, of(server, **LEARNING | {"name": "killed"}), "--resume")
            server.answer = partial(_kill_at, server, process, target)
            assert process.wait(120) == -signal.SIGKILL
        server.answer = polite
        command(tmp_path, [*TRAIN, "--resume"], of(server, **LEARNING | {"name": "killed"}))
        killed = json.loads((tmp_path / "runs" / "killed" / "results.json").read_text())
        assert killed["arms"] == whole["arms"] and killed["api"] == whole["api"]
        again = sum(server.answered.values()) - len(server.answered)
        assert again <= 2 * len(at), "only what was under way when the process was killed"
        assert len(server.answered) == count


def _kill_at(server, process, target: int, prompt: str, body: dict) -> str:
    if sum(server.seen.values()) >= target:
        process.kill()
    return polite(prompt, body)


def better(prompt: str, body: dict) -> str:
    """A judge whose verdict depends on the two answers alone."""
    a, b = (zlib.crc32(prompt.split(f"[Answer {name}]\n")[1].split("\n\n[")[0].encode()) for name in "AB")
    return "A" if a > b else "B" if b > a else "tie"


def judged(tmp_path):
    with serving(answer=better) as server:
        short = {"api.base_url": server.url, "reward": "judge:big", "eval.oracle": "false", "theory.inputs": 0}
        options = {k: v for k, v in OPTIONS.items() if k not in LOCAL[1:]} | short
        command(tmp_path, TRAIN, options)
        results = json.loads((tmp_path / "runs" / "smollm2-judge-model-seed0" / "results.json").read_text())
        assert results["judge"] == "reward" and results["arms"]["align_pro"]["mean"] is not None
        assert {body["model"] for body in server.bodies} == {"big"}
        assert results["api"]["answers"] == sum(server.answered.values())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"frozen": "api:m", "eval.oracle": "true"}, "--eval.oracle true needs the weights of the frozen model"),
        ({"api.timeout": 3}, "--api.timeout: only --frozen api:MODEL and --reward judge:MODEL read it"),
        ({"reward": "judge:m", "api.extra": "{}"}, "--api.extra: only --frozen api:MODEL reads it"),
        ({"frozen": "api:m", "api.judge_extra": "{}"}, "--api.judge_extra: only --reward judge:MODEL reads it"),
        ({"frozen": "api:m", "api.extra": "[]"}, "--api.extra is '[]'; it must be a JSON object"),
        ({"frozen": "api:"}, "no model after the colon"),
        ({"frozen": "api:m", "api.base_url": "nowhere"}, "--api.base_url is 'nowhere'"),
        ({"preset": "tiny", "frozen": "api:m"}, "--frozen: it is not read with --preset tiny"),
        ({"preset": "tiny", "reward": "judge:m"}, "--reward judge:MODEL is for a real model"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, said, capsys):
    options = {"preset": "smollm2", "reward": "mine:length"} | options
    with pytest.raises(SystemExit):
        parse_command_line([word for k, v in options.items() for word in (f"--{k}", str(v))])
    assert said in capsys.readouterr().err


def test_what_a_remote_model_leaves_out_is_implied_and_may_be_said():
    argv = ["--preset", "smollm2", "--reward", "mine:length", "--frozen", "api:a/b:c"]
    for more in ([], ["--eval.oracle", "false", "--theory.inputs", "0"]):
        ((config,), _) = parse_command_line(argv + more)
        assert (config.remote, config.eval.oracle, config.theory.inputs) == ("a/b:c", False, 0)


def out_of_budget(tmp_path):
    with serving() as server:
        stopped = of(server, name="dear", **{"api.token_budget": 3000, "reward": "mine:length"})
        told = command(tmp_path, TRAIN, stopped, fails=True)
        assert told.splitlines()[-1].startswith("train.py: error: --api.token_budget 3000") and "Traceback" not in told
        more = {"api.token_budget": 0, "api.concurrency": 4, "api.retries": 1}
        command(tmp_path, [*TRAIN, "--resume"], stopped | more)
        assert set(server.answered.values()) == {1}


@pytest.mark.ahead(run=in_a_folder(killed_three_times))
def test_a_run_that_is_killed_three_times_pays_for_no_answer_twice(ahead):
    if ahead:
        raise ahead


@pytest.mark.ahead(run=in_a_folder(judged))
def test_a_judge_behind_an_api_rewards_a_local_models_answers(ahead):
    if ahead:
        raise ahead


@pytest.mark.ahead(run=in_a_folder(out_of_budget))
def test_a_run_that_the_budget_ended_goes_on_with_a_larger_one(ahead):
    if ahead:
        raise ahead

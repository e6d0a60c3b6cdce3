"""train.py as a user starts it: a whole run in seconds, the files it writes, and runs that are killed and go on.

The models here are far too small to learn anything; every number is only asked to be there, to be consistent with the
others, and to come out the same, bit for bit, however often the run was killed on the way.
"""

import dataclasses
import hashlib
import json
import math
import os
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import in_a_folder
from micro import CONFIG, finish, start

from alignpro_mini.alignpro import Prompter
from alignpro_mini.lab.glossary import METRICS
from alignpro_mini.lab.optimum import log_probabilities
from alignpro_mini.lab.recompute import recompute
from alignpro_mini.weights.pretrained import load_pretrained
from alignpro_mini.weights.tensors import load_state
from alignpro_mini.worlds.sums import COST
from alignpro_mini.worlds.toy import ToyWorld
from alignpro_mini.worlds.world import WorldConfig

ARMS = {
    "no_finetuning",
    "fixed_rewrite",
    "untrained_prompter",
    "best_of_n",
    "best_of_n_answers",
    "align_pro",
    "rlhf_oracle",
    "closed_form",
}
MODELS = ("frozen_lm", "prompter_sft", "align_pro", "rlhf_oracle")
STAGES = (
    "tokenizer",
    "frozen_lm",
    "prompter_sft",
    "reward_model",
    "headroom",
    "align_pro",
    "fixed_rewrite",
    "rlhf_oracle",
    "listing",
    "theory_oracle",
    "theory",
    "evaluation_plain",
    "evaluation",
)


@pytest.fixture
def run(whole_run):
    """One undisturbed run: its folder and what it printed."""
    return whole_run


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]


# ---------------------------------------------------------------- a whole run


def numbers(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for value in tree:
            yield from numbers(value, path)
    elif isinstance(tree, float):
        yield path, tree


def test_results_json_has_every_entry_and_no_nan(run):
    results = read(run[0], "results.json")
    assert {"task", "preset", "seed", "n_eval", "arms", "gap_closed", "variance_ratio", "wall_s"} <= results.keys()
    assert (results["task"], results["preset"], results["seed"], results["n_eval"]) == ("quality", "micro", 0, 24)
    assert results["arms"].keys() == ARMS
    for name, arm in results["arms"].items():
        wanted = {"mean", "variance", "variance_parts", "ci95", "gold_mean", "gold_variance", "kl", "win_rate"}
        assert wanted <= arm.keys(), name
        assert arm["variance_parts"].keys() == {"between_inputs", "between_rewrites", "within"}
        assert {"answer_length", "truncated", "rewrite_length"} <= arm.keys()
        assert ("fallback_rate" in arm) == (name in ("untrained_prompter", "best_of_n", "align_pro"))
        low, high = arm["ci95"]
        assert low < arm["mean"] < high and arm["variance"] > 0 and 0 <= arm["win_rate"] <= 1
    for key in ("over_fixed", "gold_over_fixed", "variance_ratio_within_requests"):
        low, high = results[f"{key}_ci95"]
        assert low <= results[key] <= high, key
    assert all(math.isfinite(value) for _, value in numbers(results))
    assert results["arms"]["no_finetuning"]["kl"] == 0 and results["arms"]["untrained_prompter"]["kl"] == 0
    assert results["arms"]["no_finetuning"]["win_rate"] == 0.5  # it ties with itself everywhere
    assert set(results["wall_s"]) == set(STAGES)


def test_results_follow_from_the_saved_rewards(run):
    """The table recomputed from the saved rewards by the definition of mean and variance."""
    results, checkpoints = read(run[0], "results.json"), run[0] / "checkpoints"
    saved = (
        load_state(checkpoints / "evaluation.safetensors")[0]
        | load_state(checkpoints / "evaluation_plain.safetensors")[0]
    )
    rewards = {name.removesuffix(".reward"): value for name, value in saved.items() if name.endswith(".reward")}
    assert rewards.keys() == ARMS and {f"{name}.gold" for name in ARMS} <= saved.keys()
    for name, reward in rewards.items():
        flat = reward.flatten().tolist()
        mean = math.fsum(flat) / len(flat)
        arm = results["arms"][name]
        assert len(flat) == (4 * 4 if name == "closed_form" else 24) * 2 * 2  # the same inputs, K x M answers each
        assert arm["mean"] == pytest.approx(mean)
        assert arm["variance"] == pytest.approx(math.fsum((v - mean) ** 2 for v in flat) / (len(flat) - 1))
        for key in ("mean", "variance", "gold_variance", "win_rate"):
            low, high = arm["ci95" if key == "mean" else f"{key}_ci95"]
            assert low <= arm[key] <= high or len(flat) < 20, (name, key)
    arms = results["arms"]
    assert results["variance_ratio"] == pytest.approx(arms["align_pro"]["variance"] / arms["no_finetuning"]["variance"])
    gap = arms["rlhf_oracle"]["mean"] - arms["no_finetuning"]["mean"]
    if results["gap_closed"] is None:
        assert arms["rlhf_oracle"]["difference"]["ci95"][0] <= 0 and results["gap_closed_ci95"] is None
    else:
        assert results["gap_closed"] == pytest.approx((arms["align_pro"]["mean"] - arms["no_finetuning"]["mean"]) / gap)


def test_the_fixed_rewrite_is_one_kind_for_every_request_and_costs_what_ppo_cost(run):
    results, found = read(run[0], "results.json"), read(run[0], "checkpoints/fixed_rewrite.json")
    assert results["fixed_rewrite"] == found
    world = ToyWorld("quality", WorldConfig(), seed=0)
    assert (found["x"], found["text"]) == (x := world.eval_requests[0], world.rewrites(x)[found["kind"]])
    budget = CONFIG.ppo.iterations * CONFIG.ppo.batch_size * CONFIG.ppo.answers
    assert 0.5 * budget < found["answers"] <= budget
    assert [len(row["arms"]) for row in found["rounds"]] == [24, 12, 6, 3, 2]
    texts = [s for s in rows(run[0], "samples.jsonl") if s.get("arm") == "fixed_rewrite"]
    assert texts and all(s["x_prime"] == world.rewrites(s["x"])[found["kind"]] for s in texts)
    # Its KL is that of a prompter that always writes it: minus the log-probability that the SFT prompter gives it.
    rho_sft = Prompter(*load_pretrained(run[0] / "checkpoints" / "prompter_sft"), 24)
    asked = world.eval_requests[:24]
    logs = log_probabilities(rho_sft, asked, [[world.rewrites(x)[found["kind"]]] for x in asked])
    assert results["arms"]["fixed_rewrite"]["kl"] == pytest.approx(-float(logs.mean()), abs=1e-3)


def test_the_results_can_be_computed_again_from_the_saved_rewards(run):
    results, again = read(run[0], "results.json"), recompute(run[0] / "rewards.npz", CONFIG.eval.bootstrap)
    assert again["n_eval"] == 24 and again["kl_coef"] == pytest.approx(results["kl_coef"])
    assert list(again["arms"]) == list(results["arms"])
    common = lambda tree, of: {k: common(tree[k], v) for k, v in of.items()} if isinstance(of, dict) else tree
    found, wanted = list(numbers(again)), list(numbers(common(results, again)))
    assert len(found) > 200 and [path for path, _ in found] == [path for path, _ in wanted]
    for (path, value), (_, kept) in zip(found, wanted):
        assert value == pytest.approx(kept, abs=1e-3), path


def test_the_distance_to_the_optimum_is_in_the_results(run):
    """From the saved tables by plain sums: the optimum, the share of its gain, and the master identity."""
    kept, theory = run[0] / "checkpoints", read(run[0], "results.json")["theory"]
    world = ToyWorld("quality", WorldConfig(), seed=0)
    rewrites = [world.rewrites(x) for x in world.eval_requests[:4]]
    under = lambda m: (
        log_probabilities(Prompter(*load_pretrained(kept / m), 24), world.eval_requests[:4], rewrites).exp().numpy()
    )
    wanted = "attainable_gain_share_cross_fitted attainable_gain_share_less_unlisted attainable_gain_share regularised_gap lambda_kl_to_optimum mass_outside delta1 delta2 delta3 bound_paper bound_sharp"
    assert set(wanted.split()) <= theory.keys()
    r, sft, rho = (
        load_state(kept / "listing.safetensors")[0]["r"].numpy(),
        under("prompter_sft"),
        under("align_pro"),
    )  # (4, 24, 4), (4, 24), (4, 24)
    assert r.shape == (4, 24, 4 + 4) and theory["mass_outside"] == pytest.approx(1 - rho.sum(1).mean())
    assert (np.isnan(r[:, :, 4:]).all(2).sum(1) == 16).all(), "the best 8 of 24 rewrites got 4 answers more"
    R, sft, rho, lam = np.nanmean(r, 2), sft / sft.sum(1, keepdims=True), rho / rho.sum(1, keepdims=True), 0.1
    objective = lambda p: ((p * R).sum(1) - lam * (p * np.log(p / sft)).sum(1)).mean()
    best = (lam * np.log((sft * np.exp(R / lam)).sum(1))).mean()  # J_lam(rho*) in closed form
    assert theory["regularised_gap"] == pytest.approx(best - objective(rho), abs=1e-9)
    assert theory["lambda_kl_to_optimum"] == pytest.approx(theory["regularised_gap"], abs=1e-6)
    share = (objective(rho) - objective(sft)) / (best - objective(sft))
    assert theory["attainable_gain_share"] == pytest.approx(share, abs=1e-9)


def test_the_folder_holds_every_file_and_no_leftover(run):
    folder, printed = run
    wanted = {
        "config.json",
        "stages.json",
        "metrics.jsonl",
        "samples.jsonl",
        "tokenizer.json",
        "results.json",
        "report.html",
        "explore.html",
        "rewards.npz",
        "snapshots.jsonl",
    }
    wanted |= {f"checkpoints/{m}/{f}" for m in MODELS for f in ("config.json", "model.safetensors", "tokenizer.json")}
    wanted |= {f"checkpoints/{f}" for f in ("reward_model.safetensors", "reward_model.json", "headroom.json")}
    wanted |= {
        f"checkpoints/{f}"
        for f in (
            "evaluation.safetensors",
            "evaluation_plain.safetensors",
            "listing.safetensors",
            "theory_oracle.safetensors",
            "theory.json",
            "fixed_rewrite.json",
        )
    }
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert wanted <= found
    plots = {f for f in found if f.startswith("plots/")}
    assert plots and all(f.endswith(".png") for f in plots)
    leftover = {f for f in found - wanted - plots if re.search(r"\.tmp|\.state\.|\.draft|\.incoming|(^|/)\.", f)}
    assert not leftover
    assert str(folder / "report.html") in printed
    # Without a terminal every stage with steps says how far it is; the evaluation counts its arms.
    for stage, steps in {"frozen_lm": 60, "align_pro": 5, "evaluation_plain": 3, "evaluation": 5}.items():
        assert f"[{stage}] step {steps} of {steps}, 0 s left" in printed
    assert tuple(read(folder, "stages.json")) == STAGES
    assert read(folder, "config.json") == dataclasses.asdict(
        replace(CONFIG, dtype="float32", device="cpu", out=str(folder.parent))
    )


def test_every_logged_metric_is_finite_and_explained(run):
    logged = rows(run[0], "metrics.jsonl")
    assert {r["stage"] for r in logged} == {"frozen_lm", "prompter_sft", "reward_model", "align_pro", "rlhf_oracle"}
    names = {key for r in logged for key in r} - {"stage", "step"}
    assert not names - METRICS.keys(), "logged without an explanation in glossary.METRICS"
    assert all(math.isfinite(v) for r in logged for v in r.values() if isinstance(v, float))
    for stage in ("align_pro", "rlhf_oracle"):
        assert [r["step"] for r in logged if r["stage"] == stage] == [1, 2, 3, 4, 5]
        first = next(r for r in logged if r["stage"] == stage)
        assert abs(first["kl_k1"]) < 1e-3 and first["kl_exact"] < 1e-3  # it starts as its reference
        assert {"completion_length", "approx_kl", "missing_eos", "reward_mean"} <= first.keys()
        # The oracle's completions are the answers, and nothing is rewritten.
        assert ({"answer_length", "fallback_rate"} <= first.keys()) == (stage == "align_pro")


def test_samples_name_x_rewrite_answer_reward_and_kl(run):
    samples = rows(run[0], "samples.jsonl")
    assert {s["stage"] for s in samples} == {"align_pro", "rlhf_oracle", "evaluation", "evaluation_plain"}
    assert all({"step", "x", "x_prime", "y", "reward", "kl"} <= s.keys() for s in samples)
    evaluated = [s for s in samples if s["stage"].startswith("evaluation")]
    assert {s["arm"] for s in evaluated} == ARMS
    trained_on = {s["x"] for s in samples if not s["stage"].startswith("evaluation")}
    assert not trained_on & {s["x"] for s in evaluated}  # no evaluation request was ever trained on
    plain = ("no_finetuning", "best_of_n_answers", "rlhf_oracle")
    assert all(s["x_prime"] == s["x"] for s in evaluated if s["arm"] in plain)


def test_the_report_opens_offline(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert "Align-Pro" in page and "data:image/png;base64," in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_explore_html_holds_the_listing_and_the_snapshots(run):
    page = (run[0] / "explore.html").read_text(encoding="utf-8")
    data = json.loads(re.search('id="data">(.*?)</script>', page)[1])
    kept = rows(run[0], "snapshots.jsonl")
    assert [row["x_prime"] for row in data["snapshots"]] == [row["x_prime"] for row in kept]
    assert {row["step"] for row in kept} == set(range(6)) and {row["stage"] for row in kept} == {"align_pro"}
    assert set(data["listing"]["requests"]) < {row["x"] for row in kept}, "the same requests, so rewards are known"
    assert (
        data["lam"] == CONFIG.ppo.kl_coef
        and data["listing"]["fixed"] == read(run[0], "checkpoints/fixed_rewrite.json")["kind"]
    )


def test_a_finished_run_is_not_overwritten_and_resuming_it_does_nothing_again(run):
    before = state(run[0])
    process = start(run[0].parent)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert printed.strip().startswith("train.py: error:") and "already holds a run" in printed and "--resume" in printed
    assert len(printed.strip().splitlines()) == 1  # no traceback
    printed = finish(run[0].parent, "--resume")
    assert all(f"[{stage}] already done" in printed for stage in STAGES)
    assert state(run[0]) == before


# ---------------------------------------------------------------- killed, and gone on

TIMING = re.compile(r"_s$")


def state(folder: Path) -> dict:
    """All that a run wrote, except for measured times."""
    results = {k: v for k, v in read(folder, "results.json").items() if k != "wall_s"}
    metrics = [{k: v for k, v in r.items() if not TIMING.search(k)} for r in rows(folder, "metrics.jsonl")]
    weights = {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted((folder / "checkpoints").rglob("model.safetensors"))
    }
    reward, _ = load_state(folder / "checkpoints" / "reward_model.safetensors")
    weights["reward_model"] = hashlib.sha256(b"".join(reward[k].numpy().tobytes() for k in sorted(reward))).hexdigest()
    return {
        "results": results,
        "metrics": metrics,
        "samples": rows(folder, "samples.jsonl"),
        "snapshots": rows(folder, "snapshots.jsonl"),
        "weights": weights,
        "stages": list(read(folder, "stages.json")),
    }


def first(pid: int) -> int:
    """The process that was started."""
    return pid


def second(pid: int) -> int:
    """Its second process; where it has none at the moment, itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next((int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()), pid)


def both(pid: int) -> int:
    """As a terminal's Ctrl-C."""
    return -pid


def kill_when(
    out: Path, moment, *more: str, by: signal.Signals = signal.SIGKILL, status: int = -9, cores: int = 1, whom=first
) -> str:
    """Start train.py, kill it, or one of its processes, as soon as `moment(folder)` holds; returns what it had printed."""
    folder, process = out / "micro-quality-seed0", start(out, *more, cores=cores, start_new_session=True)
    deadline = time.monotonic() + 240
    try:
        while process.poll() is None and not moment(folder):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        victim = whom(process.pid)
        os.kill(victim, by)
        printed, _ = process.communicate()  # of both processes: until the last one has ended
    if victim not in (process.pid, -process.pid):
        status = 1
    assert process.returncode == status, f"it ended before it could be killed:\n{printed[-2000:]}"
    return printed


def logged(stage: str, step: int):
    return lambda folder: _contains(folder / "metrics.jsonl", f'"stage": "{stage}", "step": {step},')


def done(stage: str):
    return lambda folder: _contains(folder / "stages.json", f'"{stage}"')


def exists(name: str):
    return lambda folder: (folder / name).exists()


def began(folder: Path) -> float:
    """When the run in this folder started, by the file that it writes first."""
    return (folder / "config.json").stat().st_mtime


def running_for(seconds: float):
    return lambda folder: (folder / "config.json").exists() and time.time() - began(folder) >= seconds


def _contains(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text(encoding="utf-8", errors="replace")


def test_a_run_killed_in_ppo_ends_as_if_nothing_had_happened(run, tmp_path):
    kill_when(tmp_path, logged("align_pro", 3))
    assert not (tmp_path / "micro-quality-seed0" / "results.json").exists()
    printed = finish(tmp_path, "--resume")
    assert "[frozen_lm] already done" in printed and "[align_pro] goes on from step" in printed
    assert state(tmp_path / "micro-quality-seed0") == state(run[0])


def beside_and_killed(folder: Path) -> tuple[str, str, dict]:
    """A run in two processes whose second one is killed, and which goes on: what it said each time, what it left."""
    printed = kill_when(folder, logged("rlhf_oracle", 2), cores=2, whom=second)
    return printed, finish(folder, "--resume", cores=2), state(folder / "micro-quality-seed0")


@pytest.mark.ahead(run=in_a_folder(beside_and_killed))
def test_a_run_in_two_processes_ends_as_one_in_order_also_when_the_second_was_killed(run, ahead):
    if isinstance(ahead, Exception):
        raise ahead
    printed, again, left = ahead
    told = "train.py: error: the second process of this run ended (-9); to go on, give the same command with --resume"
    assert printed.splitlines()[-1] == told and "Traceback" not in printed
    assert "[align_pro] already done" in again and "[rlhf_oracle] goes on from step" in again
    assert "[evaluation_plain] already done" not in again
    assert left == state(run[0])


MOMENTS = {
    "folder made": exists("config.json"),
    "tokenizer made": exists("tokenizer.json"),
    "frozen LM half trained": logged("frozen_lm", 50),
    "frozen LM done": done("frozen_lm"),
    "prompter half trained": exists("checkpoints/prompter_sft.state.safetensors"),
    "prompter done": done("prompter_sft"),
    "reward model at work": exists("checkpoints/reward_model.state.safetensors"),
    "reward model done": done("reward_model"),
    "headroom done": done("headroom"),
    "PPO's first round": logged("align_pro", 1),
    "PPO's fourth round": logged("align_pro", 4),
    "PPO saved": exists("checkpoints/align_pro/model.safetensors"),
    "oracle's third round": logged("rlhf_oracle", 3),
    "evaluation begun": done("rlhf_oracle"),
    "evaluation's samples written": lambda folder: _contains(folder / "samples.jsonl", '"evaluation"'),
}


@pytest.mark.slow
def test_a_run_killed_at_every_turn_ends_as_if_nothing_had_happened(run, tmp_path):
    for i, moment in enumerate(MOMENTS.values()):
        kill_when(tmp_path, moment, *(["--resume"] if i else []))
    finish(tmp_path, "--resume")
    assert state(tmp_path / "micro-quality-seed0") == state(run[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["frozen LM half trained", "headroom done", "PPO's fourth round", "evaluation begun"]
)
@pytest.mark.parametrize("cores", [1, 2])
def test_ctrl_c_ends_a_run_with_one_line_that_names_resume(run, tmp_path, moment, cores):
    printed = kill_when(tmp_path, MOMENTS[moment], by=signal.SIGINT, status=130, cores=cores, whom=both)
    assert printed.endswith("\ntrain.py: stopped; to go on, give the same command with --resume\n"), printed[-500:]
    assert "Traceback" not in printed
    finish(tmp_path, "--resume")
    assert state(tmp_path / "micro-quality-seed0") == state(run[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_a_run_killed_at_a_random_moment_ends_as_if_nothing_had_happened(run, tmp_path, seed):
    """One of two processes, as chance will have it. It goes on in one process or in two."""
    draw = random.Random(seed)
    after = ((run[0] / "results.json").stat().st_mtime - began(run[0])) * draw.random()
    for attempt in range(20):
        out = tmp_path / str(attempt)
        out.mkdir()
        try:
            kill_when(out, running_for(after), cores=2, whom=draw.choice((first, second)))
            break
        except AssertionError:  # this run was faster and had ended
            after *= 0.9
    finish(out, "--resume", cores=draw.choice((1, 2)))
    assert state(out / "micro-quality-seed0") == state(run[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["attributes", "reasoning"])
def test_the_other_tasks_run_too(task, tmp_path):
    finish(tmp_path, "--task", task)
    results = read(tmp_path / f"micro-{task}-seed0", "results.json")
    assert results["task"] == task and results["arms"].keys() == ARMS
    for arm in results["arms"].values():  # they follow from the true reward: +1 or -1, and what worked answers cost
        if task == "reasoning":
            assert arm["gold_mean"] == pytest.approx(2 * arm["right_rate"] - 1 - COST * arm["worked_rate"])
    assert np.isfinite([arm["gold_mean"] for arm in results["arms"].values()]).all()


@pytest.mark.slow
def test_another_seed_is_another_run(run, tmp_path):
    finish(tmp_path, "--seed", "1")
    ours, other = state(run[0]), state(tmp_path / "micro-quality-seed1")
    assert all(other["weights"][name] != digest for name, digest in ours["weights"].items())
    assert ours["results"]["arms"]["no_finetuning"]["mean"] != other["results"]["arms"]["no_finetuning"]["mean"]

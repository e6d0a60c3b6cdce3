"""A real model's runs: what is to be expected before any PPO, and what came out. Two steps.

    python -m alignpro_mini.experiments.real --step listing --preset smollm2 --seed 0-2 [--also mine:second]
    python train.py                                         --preset smollm2 --seed 0-2 --resume
    python -m alignpro_mini.experiments.real --step summary --preset smollm2 --seed 0-2

Give every step the options of the runs: they name the folders.

    listing       Some *training* requests (--theory.inputs), each with every listed ending, are answered several times
                  (--theory.answers) by the frozen model. The answers are kept, and any number of rewards rates the same
                  ones (`listing.py` says how they are described). Without --reward, the stages of train.py before PPO
                  are done first, and train.py --resume goes on from there. The requests of all seeds are described
                  together; a learned reward has an optimum a seed
    summary       all requests of all seeds together, each seed's rewards less their mean: the ratio is that of the mean
                  variances. Intervals (95 %) resample topics, as the seeds share requests and topics (requests of
                  files: whole requests), paired between arms. Beside it, what the listing predicted

    <out>/listing-<preset>-<task>-seed<k>/answers.jsonl
    <run>/listing.json, .png, summary.json     of several seeds: <run without seed>-listing/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alignpro_mini.experiments import listing, study
from alignpro_mini.experiments.listing import Rated
from alignpro_mini.lab import evaluation
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.evaluation import Arm, against_fixed
from alignpro_mini.lab.glossary import ARMS, PARTS
from alignpro_mini.lab.listed import asked_and_answered, rated
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.lab.statistics import bootstrap_interval, interval, resampled_moments, t_interval
from alignpro_mini.lab.sweep import coefficients
from alignpro_mini.lab.tables import get, num
from alignpro_mini.options import UserError, require
from alignpro_mini.weights.tensors import load_state
from alignpro_mini.worlds.callables import load_callable
from alignpro_mini.worlds.everyday import UNSEEN_TOPICS
from alignpro_mini.worlds.sentences import by_sentences


def read(path: Path, mend: str) -> dict:
    """A JSON file. Raises UserError with the mend where it is missing."""
    if not path.exists():
        raise UserError(f"{path}: no such file: {mend}")
    return json.loads(path.read_text(encoding="utf-8"))


def check_real(configs: Sequence[RunConfig], **own) -> None:
    """Raises UserError for the embedded world."""
    require(configs[0].real_model, "it is about a real model: give --preset smollm2")


# ---------------------------------------------------------------- listing


def run_listing(config: RunConfig, resume: bool, also: Sequence[str]) -> dict[str, Rated]:
    """Answer and rate the training requests of one seed: {reward: its ratings}."""
    stages = study.Stages(config, resume, "")
    world = stages.world
    listed = bool(world.rewrites(world.train_requests[0]))
    require(listed, "these rewrites cannot be listed: leave out --data.prompts")
    require("gold" not in also or world.gold is not None, "--also gold: the true reward is not known here")
    scores = {name: load_callable(name, "also") for name in also if name != "gold"}
    ratings = {}
    if config.reward:
        scores = {config.reward: load_callable(config.reward)} | scores
    else:
        ratings["learned"] = stages.setup.listed_rewards(stages.run, world, stages.pi_f, stages.reward.train)
    rows = stages.setup.listed_answers(world, stages.pi_f)
    for name, score in scores.items():
        low = stages.setup.lowest_reward(score, *asked_and_answered(rows))
        ratings[name] = rated(rows, by_sentences(score, low))
    if world.gold is not None:
        ratings["gold"] = rated(rows, world.gold)
    endings = [x_prime.replace(rows[0]["x"], "…") for x_prime in rows[0]["rewrites"]]
    truncated = torch.tensor([row["truncated"] for row in rows]).view(len(rows), len(endings), -1)
    requests = [row["x"] for row in rows]
    kinds, topics = world.kinds(requests), world.groups(requests)
    return {name: Rated(r, truncated, endings, kinds, topics, world.shares) for name, r in ratings.items()}


def pooled(listings: Sequence[dict[str, Rated]]) -> dict[str, Rated]:
    """The same of several seeds: all their requests, each seed's reward in its own units."""
    if len(listings) == 1:
        return listings[0]
    together = {}
    for name in listings[0]:
        seeds = [ratings[name].scaled() for ratings in listings]
        r, truncated = (torch.cat([getattr(ratings, key) for ratings in seeds]) for key in ("r", "truncated"))
        kinds, topics = ([label for ratings in seeds for label in getattr(ratings, key)] for key in ("kinds", "topics"))
        together[name] = Rated(r, truncated, seeds[0].endings, kinds, topics, seeds[0].shares)
    return together


def described(configs: Sequence[RunConfig], listings: Sequence[dict[str, Rated]], also: Sequence[str]) -> dict:
    """listing.json: what `listing.describe` says of each reward."""
    c = configs[0]
    seeds = len(configs)
    lambdas = sorted({*listing.LAMBDAS, *({c.ppo.kl_coef} - {0})}, reverse=True)
    later = replace(c.eval, inputs=seeds * c.eval.inputs)
    optima = {"learned": seeds}  # a learned reward differs from seed to seed
    content = {"preset": c.preset, "task": c.task, "seeds": [config.seed for config in configs]}
    content["rewards"] = {
        name: listing.describe(ratings, lambdas, later, optima.get(name, 1), len(UNSEEN_TOPICS))
        for name, ratings in pooled(listings).items()
    }
    content |= {"requests": seeds * c.theory.inputs, "answers": c.theory.answers}
    return content | {"temperature": c.sampling.temperature, "evaluated_later": later.inputs}


def functions(text: str, option: str) -> list[str]:
    """'a:f,b:g' -> ["a:f", "b:g"]; "gold" too. Raises UserError for anything else."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name.count(":") != 1 and name != "gold"]
    require(not wrong, f"--{option}: {wrong[:1]} is no module:function")
    return names


def check_listing(configs: Sequence[RunConfig], **own) -> None:
    """Raises UserError for what cannot be listed."""
    c = configs[0]
    check_real(configs)
    require(not c.judge, "--reward judge:MODEL is not listed: each answer would be paid for")
    require(c.theory.inputs >= 4, f"--theory.inputs is {c.theory.inputs}; it takes at least 4")


# ---------------------------------------------------------------- summary


def finished(config: RunConfig, resume: bool) -> dict:
    """What a finished run left: its results, its arms' rewards and true rewards, and the topic of each request."""
    world = setup_of(config).make_world()
    return {
        "results": read(
            study.folder(config) / "results.json", "train this seed first (train.py with the same options)"
        ),
        "reward": arms(config),
        "gold": arms(config, "gold"),
        "topics": world.groups(world.eval_requests[: config.eval.inputs]),
    }


def arms(config: RunConfig, kind: str = "reward") -> dict[str, np.ndarray]:
    """The rewards (N, K, M) of a finished run's arms; kind "gold": the true ones, none where nobody knows them."""
    rewards = {}
    for stage in ("evaluation_plain", "evaluation"):
        tensors, _ = load_state(study.folder(config) / "checkpoints" / f"{stage}.safetensors")
        rewards |= {k.removesuffix(f".{kind}"): t.numpy() for k, t in tensors.items() if k.endswith(f".{kind}")}
    return rewards


def stacked(parts: Sequence[np.ndarray], listed: int) -> np.ndarray:
    """The rows of all runs, those of the first `listed` requests of each run first: the closed form has only these."""
    return np.concatenate([*(part[:listed] for part in parts), *(part[listed:] for part in parts)])


def measured(runs: Sequence[dict[str, np.ndarray]], topics: Sequence[Sequence[str]], count: int) -> dict:
    """Gain, ratios, lead over the fixed rewrite, and share of the gap to the oracle, over the requests of all runs.

    `runs` are the `arms` of each, `topics` a label for each request of each.
    """
    listed = len(runs[0].get("closed_form", ()))
    groups = list(stacked([np.array(labels) for labels in topics], listed))
    centred = lambda name: stacked([run[name] - run[name].mean() for run in runs], listed)
    by_request = lambda name: stacked([run[name].mean((1, 2)) for run in runs], listed)  # (N,)
    over_plain = lambda name: by_request(name) - by_request("no_finetuning")  # (N,)
    gain = over_plain("align_pro")
    ours, plain = centred("align_pro"), centred("no_finetuning")
    values = evaluation.ratio_of_variances("variance_ratio", ours, plain, count, groups)
    values |= evaluation.ratio_within_requests("within_ratio", ours, plain, count, groups)
    nothing = np.zeros((1, 1))
    together = {name: Arm(stacked([run[name] for run in runs], listed), None, nothing, {}) for name in runs[0]}
    values |= {key: found for key, found in against_fixed(together, count, groups).items() if "gold" not in key}
    values |= {"mean_gain": gain.mean(), "mean_gain_ci95": bootstrap_interval(gain, count, groups)}
    values |= dict.fromkeys(("gap_closed", "gap_closed_ci95", "difference_to_oracle", "difference_to_oracle_ci95"))
    if "rlhf_oracle" in runs[0]:
        best = over_plain("rlhf_oracle")
        values["difference_to_oracle"] = (gain - best).mean()
        values["difference_to_oracle_ci95"] = bootstrap_interval(gain - best, count, groups)
        ours, oracle = (resampled_moments(d[:, None, None], count, groups)[0] for d in (gain, best))
        if np.quantile(oracle, 0.025) > 0:  # a share of a gain that was not shown is none
            values["gap_closed"] = gain.mean() / best.mean()
            values["gap_closed_ci95"] = interval(ours / oracle)
    return {key: value if value is None or isinstance(value, list) else float(value) for key, value in values.items()}


def predicted(configs: Sequence[RunConfig]) -> dict:
    """What the listing says of these runs' λ: gain (in the reward's standard deviations) and variance ratio."""
    place = SUMMARY.stem(configs).with_name("listing.json")
    listed = read(place, "take --step listing with the same options before the runs")
    reward = configs[0].reward or "learned"
    if reward not in listed["rewards"]:
        raise UserError(f"{place} rated {', '.join(listed['rewards'])}, not {reward}")
    lam = configs[0].ppo.kl_coef
    point = next((p for p in listed["rewards"][reward]["curve"] if p["lam"] == lam), None)
    if point is None:
        raise UserError(f"{place} has no λ {lam:g}: take --step listing with this --ppo.kl_coef")
    names = {"gain": "gain_sd", "gain_ci95": "gain_sd_ci95", "ratio": "variance_ratio", "ratio_ci95": "listing_ci95"}
    names |= {"ratio_pi95": "variance_ratio_pi95", "within_ratio": "within_ratio", "over_fixed": "over_fixed_sd"}
    names |= {f"{part}_pi95": f"{part}_pi95" for part in ("gain", "within_ratio", *PARTS)}
    prediction = {name: point[key] for key, name in names.items()}
    return prediction | {"kl_coef": lam, "requests": listed["requests"], "evaluated_later": listed["evaluated_later"]}


def summarised(configs: Sequence[RunConfig], runs: Sequence[dict]) -> dict:
    """summary.json: the arms of all runs together, and the prediction."""
    prediction = predicted(configs)
    bootstrap = configs[0].eval.bootstrap
    topics = [run["topics"] for run in runs]
    summary = measured([run["reward"] for run in runs], topics, bootstrap)
    if all(run["gold"] for run in runs):
        gold = measured([run["gold"] for run in runs], topics, bootstrap)
        told = ("mean_gain", "variance_ratio", "within_ratio", "over_fixed")
        summary |= {f"gold_{key}": gold[key] for key in gold if key.startswith(told)}
    results = [run["results"] for run in runs]
    share, half = t_interval(get(run, "theory", "attainable_gain_share") for run in results)
    summary["attainable_gain_share"] = share
    summary["attainable_gain_share_ci95"] = half and [share - half, share + half]
    truncated = lambda arm: t_interval(get(run, "arms", arm, "truncated") for run in results)[0]
    summary["truncated"] = {arm: truncated(arm) for arm in results[0]["arms"]}
    summary |= {"kl_coef": results[0]["kl_coef"], "prediction": prediction}
    return summary | {"seeds": [config.seed for config in configs]}


def summary_table(summary: dict) -> str:
    """The coefficients, every figure with its interval, truncated answers, and the prediction."""
    lines = [coefficients([summary])]
    for key in [key for key in summary if f"{key}_ci95" in summary]:
        lines.append(f"{key.replace('_', ' ')} {num(summary[key])} {num(summary[f'{key}_ci95'])}")
    shares = (f"{ARMS[arm][0]} {num(share, 2)}" for arm, share in summary["truncated"].items())
    lines.append(f"truncated answers: {', '.join(shares)}")
    prediction = summary["prediction"]
    lines.append(f"predicted variance ratio {num(prediction['variance_ratio'])}, to be measured in")
    lines[-1] += f" {num(prediction['variance_ratio_pi95'])}"
    return "\n".join(lines)


# ---------------------------------------------------------------- the command

LISTING = study.Study(
    "listing",
    cell=run_listing,
    together=described,
    table=listing.table,
    figures={"": listing.figure},
    options=(study.Option("also", "", "further rewards of the same answers, module:function, comma", functions),),
    check=check_listing,
    in_runs=True,
)
SUMMARY = study.Study(
    "summary", cell=finished, together=summarised, table=summary_table, check=check_real, in_runs=True
)

if __name__ == "__main__":
    study.main(LISTING, SUMMARY, module="real")

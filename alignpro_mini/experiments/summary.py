"""A real model's runs of several seeds: what the listing predicted before any PPO, and what came out.

    python -m alignpro_mini.experiments.summary --preset smollm2 --seed 0-2 --predict     # after experiments.listing
    python -m alignpro_mini.experiments.summary --preset smollm2 --seed 0-2               # after the runs of train.py

    --as NAME     the reward's name in the files (learned, or the function's name of --reward)
    --to FOLDER   prediction.json: {NAME: ...}; summary.json: {NAME: ...}; NAME-seed0.json ...: each run's results

Give the options of the runs: they name the folders. All requests of all seeds count together, each seed's rewards less
their mean: the ratio is that of the mean variances. Intervals (95 %) resample topics, as the seeds share requests and
topics (requests of files: whole requests), paired between arms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignpro_mini.experiments.listing import pooled_folder
from alignpro_mini.lab import pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.evaluation import ratio_of_variances
from alignpro_mini.lab.glossary import ARMS
from alignpro_mini.lab.statistics import Groups, bootstrap_interval, interval, resampled_moments, t_interval
from alignpro_mini.lab.sweep import coefficients
from alignpro_mini.lab.tables import get, num
from alignpro_mini.options import UserError
from alignpro_mini.weights.tensors import load_state, write_json

PROG = "alignpro_mini.experiments.summary"


def read(path: Path, mend: str) -> dict:
    """A JSON file. Raises UserError with the mend where it is missing."""
    if not path.exists():
        raise UserError(f"{path}: no such file: {mend}")
    return json.loads(path.read_text(encoding="utf-8"))


def prediction(configs: Sequence[RunConfig], reward: str) -> dict:
    """What the listing says of these runs' KL coefficient: gain (in the reward's standard deviations) and ratio."""
    place = pooled_folder(configs)
    listed = read(place / "listing.json", f"run experiments.listing with the same options, into {place}")
    found = listed["rewards"].get(reward)
    if found is None:
        raise UserError(f"{place / 'listing.json'} rated {', '.join(listed['rewards'])}, not {reward}")
    lam = configs[0].ppo.kl_coef
    point = next((p for p in found["curve"] if p["lam"] == lam), None)
    if point is None:
        raise UserError(f"{place / 'listing.json'} has no λ {lam:g}: run experiments.listing with this --ppo.kl_coef")
    names = {"gain": "gain_sd", "gain_ci95": "gain_sd_ci95", "ratio": "variance_ratio", "ratio_ci95": "listing_ci95"}
    told = {new: point[old] for old, new in names.items()} | {"variance_ratio_pi95": point["ratio_pi95"]}
    return told | {"kl_coef": lam, "requests": listed["requests"], "evaluated_later": listed["evaluated_later"]}


def arms(config: RunConfig, kind: str = "reward") -> dict[str, np.ndarray]:
    """The rewards (N, K, M) of a finished run's arms; kind "gold": the true ones, none where nobody knows them."""
    found = {}
    for stage in ("evaluation_plain", "evaluation"):
        tensors, _ = load_state(Path(config.out) / config.run_name / "checkpoints" / f"{stage}.safetensors")
        found |= {k.removesuffix(f".{kind}"): t.numpy() for k, t in tensors.items() if k.endswith(f".{kind}")}
    return found


def measured(runs: Sequence[dict[str, np.ndarray]], count: int, groups: Groups = None) -> dict:
    """Gain, variance ratio and share of the gap to the oracle over the requests of all runs (`arms` of each)."""
    joint = lambda name, centre: np.concatenate([run[name] - centre * run[name].mean() for run in runs])
    by_request = {name: joint(name, 0).mean((1, 2)) for name in runs[0] if name != "closed_form"}
    gain = by_request["align_pro"] - by_request["no_finetuning"]
    found = ratio_of_variances("variance_ratio", joint("align_pro", 1), joint("no_finetuning", 1), count, groups)
    found |= {"mean_gain": gain.mean(), "mean_gain_ci95": bootstrap_interval(gain, count, groups)}
    found |= dict.fromkeys(("gap_closed", "gap_closed_ci95", "difference_to_oracle", "difference_to_oracle_ci95"))
    if "rlhf_oracle" in by_request:
        best = by_request["rlhf_oracle"] - by_request["no_finetuning"]
        apart = gain - best
        found["difference_to_oracle"] = apart.mean()
        found["difference_to_oracle_ci95"] = bootstrap_interval(apart, count, groups)
        resampled = [resampled_moments(d[:, None, None], count, groups)[0] for d in (gain, best)]
        if np.quantile(resampled[1], 0.025) > 0:  # a share of a gain that was not shown is none
            found |= {"gap_closed": gain.mean() / best.mean(), "gap_closed_ci95": interval(resampled[0] / resampled[1])}
    return {key: value if value is None or isinstance(value, list) else float(value) for key, value in found.items()}


def topics(configs: Sequence[RunConfig]) -> Groups:
    """The group of each request of all runs, for `measured`."""
    worlds = [(pipeline.make_world(config), config.eval.inputs) for config in configs]
    return [label for world, count in worlds for label in world.groups(world.eval_requests[:count])]


def merge(path: Path, name: str, entry: dict) -> None:
    """Set one entry of a JSON file, and keep the others."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, whole | {name: entry})
    print(f"{path}: {name}")


def summarise(configs: Sequence[RunConfig], name: str, to: Path) -> dict:
    """summary.json's entry of these runs, and each run's results beside it."""
    predicted = read(to / "prediction.json", "give --predict before the runs").get(name)
    mend = "train this seed first (train.py with the same options)"
    runs = [read(Path(config.out) / config.run_name / "results.json", mend) for config in configs]
    for config, results in zip(configs, runs):
        write_json(to / f"{name}-seed{config.seed}.json", results)
    groups = topics(configs)
    found = measured([arms(config) for config in configs], configs[0].eval.bootstrap, groups)
    if all(gold := [arms(config, "gold") for config in configs]):
        told = measured(gold, configs[0].eval.bootstrap, groups)
        found |= {f"gold_{key}": told[key] for key in told if key.startswith(("mean_gain", "variance_ratio"))}
    share, half = t_interval(get(run, "theory", "attainable_gain_share") for run in runs)
    found |= {"attainable_gain_share": share, "attainable_gain_share_ci95": half and [share - half, share + half]}
    cut = lambda arm: t_interval(get(run, "arms", arm, "truncated") for run in runs)[0]
    found |= {"truncated": {arm: cut(arm) for arm in runs[0]["arms"]}, "kl_coef": runs[0]["kl_coef"]}
    found |= {"prediction": predicted, "seeds": [config.seed for config in configs]}
    merge(to / "summary.json", name, found)
    print(coefficients(runs))
    for key in [key for key in found if f"{key}_ci95" in found]:
        print(f"{key.replace('_', ' ')} {num(found[key])} {num(found[f'{key}_ci95'])}")
    print(f"truncated answers: {', '.join(f'{ARMS[arm][0]} {num(v, 2)}' for arm, v in found['truncated'].items())}")
    print(f"predicted variance ratio {num(get(found, 'prediction', 'variance_ratio_pi95'))}")
    return found


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--predict", action="store_true", help="write the prediction, before the runs")
        parser.add_argument("--as", dest="called", default="", help="the reward's name in the files")
        parser.add_argument("--to", default="real", help="folder of the files (default: %(default)s)")

    configs, how = parse_command_line(prog=PROG, add=add)
    with one_line_errors(PROG):
        reward = configs[0].reward or "learned"
        name, to = how.called or reward.rpartition(":")[2], Path(how.to)
        to.mkdir(parents=True, exist_ok=True)
        if how.predict:
            merge(to / "prediction.json", name, prediction(configs, reward))
        else:
            summarise(configs, name, to)


if __name__ == "__main__":
    main()

"""Estimators of the policy gradient compared: against the exact gradient, and by the gain that they reach.

    python -m alignpro_mini.experiments.estimators --seed 0-4 --jobs 2         # task quality, one table
    python -m alignpro_mini.experiments.estimators --variants "RLOO, K 4"      # one variant; --resume adds more

Two questions about each variant of `--ppo.*`, at an equal number of rewrites:

    gradient   (`gradient.py`: 31 enumerated rewrites) the direction and the noise of its estimate against the exact
               gradient of J_lam; for the KL penalty alone also against the gradient of the reverse KL(rho_sft || rho)
    gain       (`ablation.py`: the embedded world) the share of the attainable gain that training with it reaches, and
               its difference to PPO with GAE, paired by seed. With --seed 0-4: 95 % t-intervals over the seeds.

All variants of a seed share the frozen LM, the SFT prompter, the reward and the optimum. Learning rate, iterations and
minibatches are those of PPO with GAE: a variant might do better with its own. "GRPO" and "RLOO" name the advantage:
loss, clip and KL penalty are ours. RLOO and GRPO without its std differ by the factor K / (K - 1) only. A KL loss sees
each token's own KL, and on later steps it uses the samples of the older policy as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from alignpro_mini.experiments import ablation, gradient
from alignpro_mini.experiments.frontier import require_enumerable
from alignpro_mini.experiments.gradient import Estimator
from alignpro_mini.experiments.sweep import ARM_OPTIONS, ORACLE_OPTIONS, exit_if_failed, not_read, run_all
from alignpro_mini.lab.cli import chosen, one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.statistics import t_interval
from alignpro_mini.lab.tables import num
from alignpro_mini.options import require
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.weights.tensors import write_json

PROG = "alignpro_mini.experiments.estimators"
AS_IT_IS = "PPO with GAE"
OTHER_DRAWS = "PPO with GAE, other draws"  # how much is chance


def _grouped(variant: str, K: int = 4) -> dict:
    return {"variant": variant, "rewrites_per_request": K}


OPTIONS: dict[str, dict] = {  # variant: the options of PPO that differ
    AS_IT_IS: {},
    OTHER_DRAWS: {},
    "GAE, lambda 1": {"gae_lambda": 1.0},
    "GAE, K 4": {"rewrites_per_request": 4},
    "REINFORCE, batch baseline": {"variant": "reinforce"},
    "REINFORCE++": {"variant": "reinforce++"},
    "RLOO, K 2": _grouped("rloo", 2),
    "RLOO, K 4": _grouped("rloo"),
    "RLOO, K 8": _grouped("rloo", 8),
    "GRPO, K 4": _grouped("grpo"),
    "GRPO without its std, K 4": _grouped("grpo-unscaled"),
    "RLOO, K 4, sequence ratio": _grouped("rloo-sequence"),
    "GRPO, K 4, sequence ratio": _grouped("grpo-sequence"),
    "REINFORCE, sequence ratio": {"variant": "reinforce-sequence"},
    "KL as k2 in the reward": {"variant": "kl-k2"},
    "KL as k3 in the reward": {"variant": "kl-k3"},
    "KL as k1 in the loss": {"variant": "kl-loss-k1"},
    "KL as k2 in the loss": {"variant": "kl-loss-k2"},
    "KL as k3 in the loss": {"variant": "kl-loss-k3"},
    "clip 0.05": {"clip_range": 0.05},
    "clip 0.1": {"clip_range": 0.1},
    "clip 0.4": {"clip_range": 0.4},
}


def variants(names: Sequence[str]) -> ablation.Variants:
    """The named variants as `ablation.ablate` takes them: options of a run, made from its PPO section."""

    def change(name: str, p: PPOConfig) -> dict:
        other = {"seed": ablation.OTHER_DRAWS} if name == OTHER_DRAWS else {}
        return other | {f"ppo.{key}": value for key, value in OPTIONS[name].items()}

    return {name: partial(change, name) for name in names}


def gradients(names: Sequence[str], batches: int, batch: int = 512) -> dict[str, dict]:
    """{variant: how its first step compares with the exact gradient}; in it "later": a later step, "kl": the KL alone.

    A later step estimates the gradient at weights that have moved on from those that sampled.
    """
    found = {}
    for name in names:
        # As it is trained, but for the value head: it has learned nothing yet, and its loss is no part of the estimate.
        options = {"gae_lambda": PPOConfig().gae_lambda, "whiten_advantages": True} | OPTIONS[name]
        found[name] = gradient.compare(*gradient.estimates(Estimator(name, options), batches, batch))
        later = gradient.compare(*gradient.estimates(Estimator(name, options, moved=True), batches, batch))
        found[name]["later"] = later
        if name == AS_IT_IS or name.startswith("KL"):
            plain = {"gae_lambda": 1.0, "whiten_advantages": False} | OPTIONS[name]
            rows, exact = gradient.estimates(Estimator(name, plain, kl_only=True), batches, batch)
            reference, policy, _ = gradient.models()
            reverse = gradient.exact_gradient(policy, reference, gradient.CONFIG.kl_coef, True, reverse=True)
            found[name]["kl"] = gradient.compare(rows, exact)
            found[name]["kl"]["cosine_reverse"] = gradient.compare(rows, reverse)["cosine"]
    return found


def table(runs: list[dict], grads: dict[str, dict]) -> str:
    """A row a variant: its gradient, then its share of the attainable gain with intervals over the seeds."""
    names = [name for name in OPTIONS if any(name in run["variants"] for run in runs)]
    heads = "variant | gradient: cosine, 95 % interval | length | bias | noise / length | cosine, later step"
    heads += f" | share of the attainable gain | minus {AS_IT_IS} | KL | not enumerated"
    lines = [f"| {heads} |", "|---" * 10 + "|"]
    for name in names:
        g = grads[name]
        cells = [f"{num(g['cosine'], 4)} {num(g['cosine_ci95'], 4)}", num(g["length"], 2)]
        cells.append(f"{num(g['bias'], 3)} {num(g['bias_ci95'], 3)}")
        cells += [num(g["noise"] / g["length"], 2), num(g["later"]["cosine"], 3)]
        shares = [run["variants"].get(name, {}).get("attainable_gain_share") for run in runs]
        base = [run["variants"].get(AS_IT_IS, {}).get("attainable_gain_share") for run in runs]
        apart = [a - b for a, b in zip(shares, base) if None not in (a, b)]
        cells += [_mean(shares), "–" if name == AS_IT_IS else _mean(apart, "+")]
        for key, digits in (("kl", 2), ("mass_outside", 3)):
            cells.append(num(t_interval([run["variants"].get(name, {}).get(key) for run in runs])[0], digits))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *kl_lines(runs, grads)])


def _mean(values: Sequence[float | None], sign: str = "") -> str:
    """Mean over the seeds and its 95 % t-interval."""
    mean, half = t_interval(values)
    return num(mean, 3, sign) + ("" if half is None else f" [{num(mean - half, 3)}, {num(mean + half, 3)}]")


def kl_lines(runs: list[dict], grads: dict[str, dict]) -> list[str]:
    """The KL penalty alone, estimator by estimator, and to which optimum the training went."""
    lines = ["the KL penalty alone, score 0", "", "| variant | cosine to the gradient of KL(ρ‖ρ_sft) | length |"]
    lines[-1] += " cosine to that of KL(ρ_sft‖ρ) | KL(ρ̂‖ρ*) |"
    lines[-1] += " KL(ρ̂‖ optimum of the reverse KL, exact for one token) |"
    lines.append("|---" * 6 + "|")
    for name, g in grads.items():
        if "kl" not in g:
            continue
        rows = [run["variants"][name] for run in runs if name in run["variants"]]
        lam = [run["kl_coef"] for run in runs if name in run["variants"]]
        star = [row["lambda_kl_to_optimum"] / each for row, each in zip(rows, lam)]
        ends = _mean(star), _mean([row["kl_to_reverse_optimum"] for row in rows])
        kl = g["kl"]
        told = f"{num(kl['cosine'], 3)} {num(kl['cosine_ci95'], 3)} | {num(kl['length'], 3)}"
        lines.append(f"| {name} | {told} | {num(kl['cosine_reverse'], 3)} | {' | '.join(ends)} |")
    return lines


def compare(config: RunConfig, resume: bool, names: Sequence[str]) -> dict:
    """One task and seed: the named variants, and those that an earlier command left in the same folder."""
    folder = Path(config.out) / config.run_name
    kept = [name for name in OPTIONS if (folder / ablation.folder_of(name) / "stages.json").exists()]
    together = [name for name in OPTIONS if name in names or (resume and name in kept)]
    return ablation.ablate(config, resume, variants(together))


def main() -> None:
    """The command at the top of this module."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--variants", default="all", help="all, or names separated by ; (default: all)")
        parser.add_argument("--batches", type=int, default=200, help="gradient estimates of each variant")

    # The gradients are of a problem of their own, which reads no option of the run.
    varied = ("gamma", "whiten_advantages", *(name for changed in OPTIONS.values() for name in changed))
    unread = not_read(*ARM_OPTIONS, *ORACLE_OPTIONS, varied=[f"ppo.{name}" for name in varied])
    configs, how = parse_command_line(prog=PROG, add=add, unread=unread)
    with one_line_errors(PROG):
        require_enumerable(configs[0])
        require(len({c.task for c in configs}) == 1, "one task at a time: the intervals are over its seeds")
        names = chosen(how.variants, OPTIONS, "variants", ";")
        require(how.batches >= 2, f"--batches is {how.batches}; it must be at least 2")
        configs = [replace(c, name=f"estimators-{c.run_name}") for c in configs]
        results, failed = run_all(["-m", PROG], configs, how, partial(compare, names=names))
        if results and not how.child:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # the model of the gradient is far too small for two
            every = [name for name in OPTIONS if any(name in run["variants"] for run in results)]
            grads = gradients(every, how.batches)
            torch.set_num_threads(threads)
            path = Path(configs[0].out) / "estimators.json"
            write_json(path, {"runs": results, "gradients": grads})
            print(table(results, grads))
            print(f"\nnumbers: {path}")
    exit_if_failed(PROG, configs, failed)


if __name__ == "__main__":
    main()

"""What moves PPO towards the exact optimum, and what does not: one option changed at a time, all else equal.

    python -m alignpro_mini.experiments.ablation                          # task quality, seed 0; a minute a variant
    python -m alignpro_mini.experiments.ablation --task all --seed 0-1    # more of the same, one table

All variants of a task and seed share the frozen LM, the SFT prompter, the reward model and the rewards of all
enumerated rewrites, so that only PPO differs. The measure is the share of the attainable gain,

    (J_lam(rho) - J_lam(rho_sft)) / (J_lam(rho*) - J_lam(rho_sft)),

which is 1 for the closed-form optimum rho* and 0 for the SFT prompter. "As it is, other draws" shows how much of a
difference is chance. What it leaves out: options changed together (but for the value baseline, which needs GAE's lambda
1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alignpro_mini import theory
from alignpro_mini.experiments.frontier import base, require_enumerable
from alignpro_mini.experiments.sweep import ARM_OPTIONS, ORACLE_OPTIONS, exit_if_failed, not_read, run_all
from alignpro_mini.lab import optimum, pipeline
from alignpro_mini.lab.cli import one_line_errors, parse_command_line, with_options
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.tables import num
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.weights.tensors import write_json

PROG = "alignpro_mini.experiments.ablation"

OTHER_DRAWS = 1_000_000  # a seed for PPO alone; what it starts from stays that of --seed
Variants = dict[str, Callable[[PPOConfig], dict]]
VARIANTS: Variants = {  # name: options changed, made from the PPO section p as it is
    "as it is": lambda p: {},
    "as it is, other draws": lambda p: {"seed": OTHER_DRAWS},  # how much is chance
    "learning rate / 3": lambda p: {"ppo.lr": p.lr / 3},
    "learning rate x 3": lambda p: {"ppo.lr": p.lr * 3},
    "no warm-up": lambda p: {"ppo.warmup_ratio": 0.0},
    "half the iterations": lambda p: {"ppo.iterations": max(1, p.iterations // 2)},
    "twice the iterations": lambda p: {"ppo.iterations": p.iterations * 2},
    "batch / 2": lambda p: {"ppo.batch_size": max(p.num_minibatches, p.batch_size // 2)},
    "batch x 2": lambda p: {"ppo.batch_size": p.batch_size * 2},
    "half the epochs": lambda p: {"ppo.ppo_epochs": max(1, p.ppo_epochs // 2)},
    "twice the epochs": lambda p: {"ppo.ppo_epochs": p.ppo_epochs * 2},
    "1 minibatch": lambda p: {"ppo.num_minibatches": 1},
    "twice the minibatches": lambda p: {"ppo.num_minibatches": p.num_minibatches * 2},
    "twice the answers a rewrite": lambda p: {"ppo.answers": p.answers * 2},
    "4 times the answers a rewrite": lambda p: {"ppo.answers": p.answers * 4},
    "other whitening": lambda p: {"ppo.whiten_advantages": not p.whiten_advantages},
    "GAE's lambda 1": lambda p: {"ppo.gae_lambda": 1.0},
    "GAE's lambda 0.8": lambda p: {"ppo.gae_lambda": 0.8},
    "GAE's lambda 1, no value baseline": lambda p: {
        "ppo.gae_lambda": 1.0,
        "ppo.vf_coef": 0.0,
    },  # below 1 it would also lose credit
    "clip / 2": lambda p: {"ppo.clip_range": p.clip_range / 2},
    "clip x 2": lambda p: {"ppo.clip_range": p.clip_range * 2},
}


def folder_of(variant: str) -> str:
    """A variant's name as that of a folder."""
    return variant.replace(" ", "-").replace("/", "by").replace(",", "").replace("'", "")


def ablate(config: RunConfig, resume: bool, variants: Variants | None = None) -> dict:
    """One task and seed: {"task", "seed", "variants": {variant: distance to the optimum, KL and seconds}}.

    Without `variants`: all of VARIANTS.
    """
    folder = Path(config.out) / config.run_name
    world, pi_f, rho_sft, reward, rated = base(config, folder, resume)
    found = {}
    for variant, change in (variants or VARIANTS).items():
        place = {"out": str(folder), "name": folder_of(variant)}
        run = Run(with_options(config, change(config.ppo) | place), resume)
        rho = pipeline.align_pro(run, world, pi_f, rho_sft, reward)
        listing, lam = rated.under(rho_sft, rho), config.ppo.kl_coef
        facts = optimum.describe(listing, lam) | {"kl": float(theory.kl(listing.rho, listing.rho_sft).mean())}
        other = theory.reverse_kl_optimum(listing.rho_sft, listing.R, lam)
        facts["kl_to_reverse_optimum"] = float(theory.kl(listing.rho, other).mean())
        found[variant] = facts | {"seconds": run.stages["align_pro"]["seconds"]}
    results = {"task": config.task, "seed": config.seed, "kl_coef": config.ppo.kl_coef, "variants": found}
    write_json(folder / "results.json", results)
    return results


def table(runs: list[dict]) -> str:
    """A row a variant: the share of the attainable gain in each run, and means of the rest."""
    names = [f"{run['task']} {run['seed']}" for run in runs]
    lines = ["| variant | " + " | ".join(names) + " | not enumerated | seconds |", "|---" * (len(runs) + 3) + "|"]
    for variant in VARIANTS:
        rows = [run["variants"][variant] for run in runs]
        shares = " | ".join(num(row["attainable_gain_share"], 3) for row in rows)
        mass, seconds = (sum(row[key] for row in rows) / len(rows) for key in ("mass_outside", "seconds"))
        lines.append(f"| {variant} | {shares} | {mass:.3f} | {seconds:.0f} |")
    noise = [run["variants"]["as it is"]["optimum_noise"] for run in runs]
    told = ", ".join(f"{name} {value:.4f}" for name, value in zip(names, noise))
    return "\n".join([*lines, "", f"by how much the noise in R raises the optimum, in units of reward: {told}"])


def main() -> None:
    """The command at the top of this module."""
    configs, how = parse_command_line(prog=PROG, unread=not_read(*ARM_OPTIONS, *ORACLE_OPTIONS))
    with one_line_errors(PROG):
        require_enumerable(configs[0])
        configs = [replace(c, name=f"ablation-{c.run_name}") for c in configs]
        results, failed = run_all(["-m", PROG], configs, how, ablate)
    if results:
        print(table(results))
    exit_if_failed(PROG, configs, failed)


if __name__ == "__main__":
    main()

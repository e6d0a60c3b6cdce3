"""What moves PPO towards the exact optimum, and what does not: one option changed at a time, all else equal.

    python tutorials/ppo_ablation.py                           # task quality, seed 0; about a minute a variant on two cores
    python tutorials/ppo_ablation.py --task all --seed 0-1     # more of the same, one table
    python tutorials/ppo_ablation.py --resume                  # goes on where it stopped

All variants of a task and seed share the frozen LM, the SFT prompter, the reward model and the table of what every
listed rewrite earns, so that only PPO differs. The yardstick is the share of the attainable gain,

    (J_lam(rho) - J_lam(rho_sft)) / (J_lam(rho*) - J_lam(rho_sft)),

which is 1 for the closed-form optimum rho* and 0 for the SFT prompter. What is left out: any option changed together
with another one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the package is not installed

from alignpro_mini import assess, optimum, pipeline
from alignpro_mini.cli import parse_command_line, with_options
from alignpro_mini.config import RunConfig
from alignpro_mini.run import Run

VARIANTS = {
    "as it is": {},
    "learning rate / 3": {"ppo.lr": 1.7e-4},
    "learning rate x 3": {"ppo.lr": 1.5e-3},
    "no annealing": {"ppo.anneal": False},
    "half the iterations": {"ppo.iterations": 20},
    "twice the iterations": {"ppo.iterations": 80},
    "batch / 2": {"ppo.batch": 64},
    "batch x 2": {"ppo.batch": 256},
    "1 epoch": {"ppo.epochs": 1},
    "4 epochs": {"ppo.epochs": 4},
    "1 minibatch": {"ppo.minibatches": 1},
    "4 minibatches": {"ppo.minibatches": 4},
    "2 answers a rewrite": {"ppo.answers": 2},
    "4 answers a rewrite": {"ppo.answers": 4},
    "no whitening": {"ppo.whiten": False},
    "GAE's lambda 1": {"ppo.gae_lam": 1.0},
    "GAE's lambda 0.8": {"ppo.gae_lam": 0.8},
    "no value baseline": {"ppo.value_coef": 0.0},
    "clip 0.1": {"ppo.clip": 0.1},
    "clip 0.4": {"ppo.clip": 0.4},
}


def ablate(config: RunConfig, resume: bool) -> dict[str, dict[str, float]]:
    """{variant: its distance to the optimum, its KL and its seconds} for one task and seed."""
    folder = str(Path(config.out) / f"ablation-{config.run_name}")
    task = pipeline.make_task(config)
    base = Run(replace(config, out=folder, name="base"), resume)
    tokenizer, pi_f = pipeline.frozen_lm(base, task)
    rho_sft = pipeline.prompter_sft(base, task, tokenizer, pi_f)
    reward = pipeline.reward_model(base, task, pi_f, rho_sft)
    listing = assess.list_rewrites(base, task, pi_f, rho_sft, rho_sft, reward)
    found = {}
    for variant, options in VARIANTS.items():
        run = Run(with_options(config, options | {"out": folder, "name": variant.replace(" ", "-").replace("/", "by")}), resume)
        rho = pipeline.align_pro(run, task, pi_f, rho_sft, reward)
        ours = replace(listing, p=optimum.probabilities(rho, listing.requests, listing.rewrites))
        found[variant] = optimum.describe(ours, config.ppo.kl_coef) | {"seconds": run.stages["align_pro"]["seconds"]}
    return found


def main() -> None:
    configs, how = parse_command_line()
    runs = {f"{c.task} {c.seed}": ablate(c, how.resume) for c in configs}
    print("\n| variant | " + " | ".join(runs) + " | unlisted | seconds |\n" + "|---" * (len(runs) + 3) + "|")
    for variant in VARIANTS:
        rows = [run[variant] for run in runs.values()]
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("mass_outside", "seconds")}
        shares = " | ".join(f"{row['attainable_gain_share']:.3f}" for row in rows)
        print(f"| {variant} | {shares} | {mean['mass_outside']:.3f} | {mean['seconds']:.0f} |")
    noise = ", ".join(f"{name} {run['as it is']['optimum_noise']:.4f}" for name, run in runs.items())
    print(f"\nby how much the noise in R flatters the optimum, in units of reward: {noise}")


if __name__ == "__main__":
    main()

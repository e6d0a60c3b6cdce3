"""What moves PPO towards the exact optimum, and what does not: one option changed at a time, all else equal.

    python tutorials/ppo_ablation.py                           # task quality, seed 0; about a minute a variant on two cores
    python tutorials/ppo_ablation.py --task all --seed 0-1     # more of the same, one table
    python tutorials/ppo_ablation.py --resume                  # goes on where it stopped

All variants of a task and seed share the frozen LM, the SFT prompter, the reward model and the table of what every
listed rewrite earns, so that only PPO differs. The yardstick is the share of the attainable gain,

    (J_lam(rho) - J_lam(rho_sft)) / (J_lam(rho*) - J_lam(rho_sft)),

which is 1 for the closed-form optimum rho* and 0 for the SFT prompter. "As it is, other draws" tells how much of a
difference is luck. What is left out: options changed together (but for the value baseline, which needs GAE's lambda 1).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the package is not installed

from alignpro_mini import frontier, optimum, pipeline
from alignpro_mini.cli import parse_command_line, with_options
from alignpro_mini.config import RunConfig
from alignpro_mini.run import Run

OTHER_DRAWS = 1_000_000  # a seed for PPO alone; what it starts from stays that of --seed
VARIANTS = {  # name: options changed, made from the PPO section p as it is
    "as it is": lambda p: {},
    "as it is, other draws": lambda p: {"seed": OTHER_DRAWS},  # how much is luck
    "learning rate / 3": lambda p: {"ppo.lr": p.lr / 3},
    "learning rate x 3": lambda p: {"ppo.lr": p.lr * 3},
    "no warm-up": lambda p: {"ppo.warmup": 0.0},
    "other annealing": lambda p: {"ppo.anneal": not p.anneal},
    "half the iterations": lambda p: {"ppo.iterations": max(1, p.iterations // 2)},
    "twice the iterations": lambda p: {"ppo.iterations": p.iterations * 2},
    "batch / 2": lambda p: {"ppo.batch": max(p.minibatches, p.batch // 2)},
    "batch x 2": lambda p: {"ppo.batch": p.batch * 2},
    "half the epochs": lambda p: {"ppo.epochs": max(1, p.epochs // 2)},
    "twice the epochs": lambda p: {"ppo.epochs": p.epochs * 2},
    "1 minibatch": lambda p: {"ppo.minibatches": 1},
    "twice the minibatches": lambda p: {"ppo.minibatches": p.minibatches * 2},
    "twice the answers a rewrite": lambda p: {"ppo.answers": p.answers * 2},
    "4 times the answers a rewrite": lambda p: {"ppo.answers": p.answers * 4},
    "other whitening": lambda p: {"ppo.whiten": not p.whiten},
    "GAE's lambda 1": lambda p: {"ppo.gae_lam": 1.0},
    "GAE's lambda 0.8": lambda p: {"ppo.gae_lam": 0.8},
    "GAE's lambda 1, no value baseline": lambda p: {
        "ppo.gae_lam": 1.0,
        "ppo.value_coef": 0.0,
    },  # below 1 it would also lose credit
    "clip / 2": lambda p: {"ppo.clip": p.clip / 2},
    "clip x 2": lambda p: {"ppo.clip": p.clip * 2},
}


def ablate(config: RunConfig, resume: bool) -> dict[str, dict[str, float]]:
    """{variant: its distance to the optimum, its KL and its seconds} for one task and seed."""
    folder = Path(config.out) / f"ablation-{config.run_name}"
    task, pi_f, rho_sft, reward, rated = frontier.base(config, folder, resume)
    found = {}
    for variant, change in VARIANTS.items():
        options = change(config.ppo) | {
            "out": str(folder),
            "name": variant.replace(" ", "-").replace("/", "by").replace(",", "").replace("'", ""),
        }
        run = Run(with_options(config, options), resume)
        rho = pipeline.align_pro(run, task, pi_f, rho_sft, reward)
        found[variant] = optimum.describe(rated.under(rho_sft, rho), config.ppo.kl_coef) | {
            "seconds": run.stages["align_pro"]["seconds"]
        }
    return found


def share(row: dict[str, float]) -> str:
    """The share of the attainable gain, or a dash where there was nothing to gain."""
    return "–" if row["attainable_gain_share"] is None else f"{row['attainable_gain_share']:.3f}"


def main() -> None:
    configs, how = parse_command_line()
    ppo = configs[0].ppo
    if how.jobs > 1 or how.cells or how.lams:
        sys.exit(
            "ppo_ablation.py: error: it runs one after the other and knows no grid: leave out --jobs, --grid and --frontier"
        )
    if configs[0].preset == "smollm2" or not configs[0].theory.inputs or not ppo.kl_coef or ppo.kl_target:
        sys.exit(
            "ppo_ablation.py: error: the optimum is known for the embedded world and one fixed price of KL above 0 only"
        )
    try:
        runs = {f"{c.task} {c.seed}": ablate(c, how.resume) for c in configs}
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"ppo_ablation.py: error: {error}")
    print("\n| variant | " + " | ".join(runs) + " | unlisted | seconds |\n" + "|---" * (len(runs) + 3) + "|")
    for variant in VARIANTS:
        rows = [run[variant] for run in runs.values()]
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("mass_outside", "seconds")}
        print(f"| {variant} | {' | '.join(map(share, rows))} | {mean['mass_outside']:.3f} | {mean['seconds']:.0f} |")
    noise = ", ".join(f"{name} {run['as it is']['optimum_noise']:.4f}" for name, run in runs.items())
    print(f"\nby how much the noise in R flatters the optimum, in units of reward: {noise}")


if __name__ == "__main__":
    main()

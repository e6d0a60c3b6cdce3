"""PPO's options and variants compared by the gain that they reach, one changed at a time, all else equal.

    python -m alignpro_mini.experiments.estimators --seed 0-4 --jobs 2         # the estimators of the policy gradient
    python -m alignpro_mini.experiments.estimators --variants settings         # learning rate, batch, epochs, ...
    python -m alignpro_mini.experiments.estimators --variants "RLOO, K 4"      # one variant; --resume adds more

All variants of a seed share everything that is not PPO. The measure is the share of the attainable gain,

    (J_lam(rho) - J_lam(rho_sft)) / (J_lam(rho*) - J_lam(rho_sft)),

which is 1 for the closed-form optimum rho* and 0 for the SFT prompter, and its difference to PPO with GAE, paired by
seed. "Other draws" shows how much of a difference is chance. Learning rate, iterations and minibatches are those of PPO
with GAE: an estimator might do better with its own. What it leaves out: options changed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignpro_mini import theory
from alignpro_mini.experiments import study
from alignpro_mini.lab import optimum
from alignpro_mini.lab.cli import chosen
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.options import require
from alignpro_mini.ppo import PPOConfig

AS_IT_IS = "PPO with GAE"
OTHER_DRAWS = "PPO with GAE, other draws"
OTHER_SEED = 1_000_000  # for PPO alone; what it starts from stays that of --seed


def _variant(name: str, K: int = 1) -> dict:
    return {"variant": name, "rewrites_per_request": K}


VARIED: dict[str, dict] = {  # the options of PPO that differ
    AS_IT_IS: {},
    "GAE, lambda 1": {"gae_lambda": 1.0},
    "GAE, K 4": {"rewrites_per_request": 4},
    "REINFORCE, batch baseline": _variant("reinforce"),
    "REINFORCE++": _variant("reinforce++"),
    "RLOO, K 2": _variant("rloo", 2),
    "RLOO, K 4": _variant("rloo", 4),
    "RLOO, K 8": _variant("rloo", 8),
    "GRPO, K 4": _variant("grpo", 4),
    "GRPO without its std, K 4": _variant("grpo-unscaled", 4),
    "RLOO, K 4, sequence ratio": _variant("rloo-sequence", 4),
    "GRPO, K 4, sequence ratio": _variant("grpo-sequence", 4),
    "REINFORCE, sequence ratio": _variant("reinforce-sequence"),
    "KL as k2 in the reward": _variant("kl-k2"),
    "KL as k3 in the reward": _variant("kl-k3"),
    "KL as k1 in the loss": _variant("kl-loss-k1"),
    "KL as k2 in the loss": _variant("kl-loss-k2"),
    "KL as k3 in the loss": _variant("kl-loss-k3"),
    "clip 0.05": {"clip_range": 0.05},
    "clip 0.1": {"clip_range": 0.1},
    "clip 0.4": {"clip_range": 0.4},
}
SETTINGS: dict[str, Callable[[PPOConfig], dict]] = {  # options that differ, made from the preset's PPO
    "learning rate / 3": lambda p: {"lr": p.lr / 3},
    "learning rate x 3": lambda p: {"lr": p.lr * 3},
    "no warm-up": lambda p: {"warmup_ratio": 0.0},
    "half the iterations": lambda p: {"iterations": max(1, p.iterations // 2)},
    "twice the iterations": lambda p: {"iterations": p.iterations * 2},
    "batch / 2": lambda p: {"batch_size": max(p.num_minibatches, p.batch_size // 2)},
    "batch x 2": lambda p: {"batch_size": p.batch_size * 2},
    "half the epochs": lambda p: {"ppo_epochs": max(1, p.ppo_epochs // 2)},
    "twice the epochs": lambda p: {"ppo_epochs": p.ppo_epochs * 2},
    "1 minibatch": lambda p: {"num_minibatches": 1},
    "twice the minibatches": lambda p: {"num_minibatches": p.num_minibatches * 2},
    "twice the answers a rewrite": lambda p: {"answers": p.answers * 2},
    "4 times the answers a rewrite": lambda p: {"answers": p.answers * 4},
    "other whitening": lambda p: {"whiten_advantages": not p.whiten_advantages},
    "GAE, lambda 0.8": lambda p: {"gae_lambda": 0.8},
    "GAE, lambda 1, no value baseline": lambda p: {"gae_lambda": 1.0, "vf_coef": 0.0},  # below 1 it would lose credit
}
GROUPS = {"estimators": [AS_IT_IS, OTHER_DRAWS, *VARIED], "settings": [AS_IT_IS, OTHER_DRAWS, *SETTINGS]}
NAMES = list(dict.fromkeys([*GROUPS["estimators"], *GROUPS["settings"]]))


def changes(name: str, ppo: PPOConfig) -> dict[str, object]:
    """The options of a run that a variant changes: {"ppo.clip_range": 0.1}."""
    if name == OTHER_DRAWS:
        return {"seed": OTHER_SEED}
    options = VARIED[name] if name in VARIED else SETTINGS[name](ppo)
    return {f"ppo.{key}": value for key, value in options.items()}


def variants_of(text: str, option: str) -> list[str]:
    """'settings' -> all of these; 'RLOO, K 4; clip 0.1' -> these two. Raises UserError for an unknown name."""
    return GROUPS.get(text) or chosen(text, NAMES, option, ";")


def folder_of(variant: str) -> str:
    """A variant's name as that of a folder."""
    return variant.replace(" ", "-").replace("/", "by").replace(",", "")


def run_variants(config: RunConfig, resume: bool, variants: Sequence[str]) -> dict:
    """One task and seed: {"task", "seed", "kl_coef", "variants": {variant: distance to the optimum, KL}}.

    With `resume` those that an earlier command left in the same folder come along.
    """
    shared = study.Stages(config, resume)
    lam = config.ppo.kl_coef
    begun = lambda name: resume and (study.folder(config) / folder_of(name) / "stages.json").exists()
    results = {}
    for name in [name for name in NAMES if name in variants or begun(name)]:
        run = study.part(config, resume, folder_of(name), changes(name, config.ppo))
        listing = shared.rated.under(shared.rho_sft, shared.align_pro(run))
        results[name] = optimum.describe(listing, lam) | {"kl": float(theory.kl(listing.rho, listing.rho_sft).mean())}
    return {"task": config.task, "seed": config.seed, "kl_coef": lam, "variants": results}


COLUMNS = {
    "share of the attainable gain": lambda v: v["attainable_gain_share"],
    f"minus {AS_IT_IS}": lambda v: v["apart"],
    "KL(ρ̂‖ρ_sft)": lambda v: v["kl"],
    "KL(ρ̂‖ρ*)": lambda v: v["lambda_kl_to_optimum"] / v["lam"],
    "not enumerated": lambda v: v["mass_outside"],
}


def table(content: dict) -> str:
    """A row a variant: its share of the attainable gain, KLs, and what is not enumerated; means over the seeds."""
    rows: dict[tuple, list[dict]] = {}
    for run in content["runs"]:
        plain = run["variants"].get(AS_IT_IS, {}).get("attainable_gain_share")
        for name, values in run["variants"].items():
            share = values["attainable_gain_share"]
            apart = share - plain if None not in (share, plain) and name != AS_IT_IS else None
            rows.setdefault((name,), []).append(values | {"apart": apart, "lam": run["kl_coef"]})
    in_order = {(name,): rows[name,] for name in NAMES if (name,) in rows}
    return study.seed_table(("variant",), in_order, COLUMNS, digits=3)


def check(configs: Sequence[RunConfig], **own) -> None:
    """Raises UserError where there is no closed form, and for several tasks."""
    study.require_enumerable(configs)
    require(len({c.task for c in configs}) == 1, "one task at a time: the intervals are over its seeds")


STUDY = study.Study(
    "estimators",
    cell=run_variants,
    table=table,
    options=(
        study.Option("variants", "estimators", "estimators, settings, all, or names separated by ;", variants_of),
    ),
    varies=tuple(f"ppo.{key}" for key in ("gamma", *sorted({key for options in VARIED.values() for key in options}))),
    ignores=(*study.ARM_OPTIONS, *study.ORACLE_OPTIONS),
    check=check,
)

if __name__ == "__main__":
    study.main(STUDY)

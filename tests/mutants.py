"""Break the source on purpose, one known defect at a time, and check that the tests notice.

    python tests/mutants.py                 # every mutant: about 4 s each on one core
    python tests/mutants.py k1-swapped ...  # these only

A test that passes on broken code tests nothing. Each mutant is a defect that a well-known project really had
(or one our own code could easily grow). The runner copies the package and its tests to a temporary directory,
replaces a snippet there, runs the named tests against *that copy* and demands that every one of them fails;
first it demands that the same tests pass unbroken. Exit status 1 if one survives.

To add a mutant of, say, ppo.py, append to MUTANTS

    mutant("ppo.py", "its-name", ("exact source", "what to put there"), "test_that_must_fail")

with as many (source, replacement) pairs as it takes, each source found exactly once, and as many tests: bare names
live in test_ppo.py, others are `test_file.py::test`, and `test[param]` names a single case. Take the snippet as
short as it can be while unique: tests/test_bug_zoo.py fails once the source has moved on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("alignpro_mini", "tests", "pyproject.toml")
TIMEOUT_S = 600  # a mutant may loop for ever


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str  # relative to the repository
    edits: tuple[tuple[str, str], ...]  # (exact source, found exactly once; its replacement)
    killed_by: tuple[str, ...]  # pytest node ids below tests/; each must fail


def mutant(module: str, name: str, *edits_and_tests: str | tuple[str, str]) -> Mutant:
    """One line of the table: the edits are pairs, the tests are strings; a bare test lives in test_<module>."""
    edits = tuple(item for item in edits_and_tests if isinstance(item, tuple))
    tests = [item for item in edits_and_tests if isinstance(item, str)]
    return Mutant(name, f"alignpro_mini/{module}", edits,
                  tuple(node if "::" in node else f"test_{module}::{node}" for node in tests))


_rl = partial(mutant, "rl_math.py")


PADDING = "test_padding_never_reaches_a_result"
PAD_GRAD = "test_gradient_is_finite_and_exactly_zero_on_padding"
SHAPES = "test_column_against_row_is_refused_not_broadcast"

MUTANTS: tuple[Mutant, ...] = (
    # KL ratio swapped: k1 averages -KL, k3 estimates another divergence
    _rl("k1-swapped", ('if kind == "k1":\n        return d\n', 'if kind == "k1":\n        return -d\n'),
        "test_k1_and_k3_average_to_the_kl_under_p[k1-p0-q0]", "test_kl_estimates_by_hand",
        "test_k1_in_the_reward_has_the_gradient_of_the_kl"),
    _rl("k3-swapped", ("torch.expm1(-d) + d", "torch.expm1(d) - d"),
        "test_k1_and_k3_average_to_the_kl_under_p[k3-p0-q0]", "test_kl_estimates_by_hand",
        "test_what_each_estimator_would_do_inside_the_loss[k3]"),
    _rl("exact-kl-swapped", ("logp.exp() * (logp - logq)", "logq.exp() * (logq - logp)"),
        "test_exact_kl_and_entropy_against_sums_over_the_vocabulary"),
    _rl("kl-bonus-for-penalty", ("mask, -lam * kl", "mask, lam * kl"),
        "test_the_score_lands_on_the_last_sampled_token", "test_k1_in_the_reward_has_the_gradient_of_the_kl",
        "test_policy_gradient_of_score_and_kl_points_to_the_closed_form"),

    # k1 inside the loss, whose expected gradient is zero: the half of it that lives here, no KL in the reward
    _rl("k1-not-in-the-reward", ("torch.where(mask, -lam * kl, 0.0)", "torch.zeros_like(kl)"),
        "test_k1_in_the_reward_has_the_gradient_of_the_kl", "test_the_score_lands_on_the_last_sampled_token",
        "test_k1_summed_over_a_sequence_averages_to_the_kl_of_the_sequences",
        "test_policy_gradient_of_score_and_kl_points_to_the_closed_form"),

    # clip inverted for negative advantages; the ratio upside down; the minimum turned optimistic
    _rl("clip-inverted-for-negative-advantages", ("-torch.minimum(plain, limited)",
        "-torch.where(advantages > 0, torch.minimum(plain, limited), torch.maximum(plain, limited))"),
        "test_policy_loss_sign_table[-2.0-0.5-1.6-0.0-True]", "test_policy_loss_sign_table[-2.0-1.5-3.0-3.0-False]"),
    _rl("clip-without-the-minimum", ("-torch.minimum(plain, limited)", "-limited"),
        "test_policy_loss_sign_table[2.0-0.5--1.0--1.0-False]", "test_policy_loss_sign_table[-2.0-1.5-3.0-3.0-False]"),
    _rl("ratio-upside-down", ("logp - logp_old, 0.0", "logp_old - logp, 0.0"),
        "test_policy_loss_sign_table", "test_first_step_is_the_policy_gradient"),
    _rl("padding-overflows-the-ratio", ("torch.where(mask, logp - logp_old, 0.0)", "logp - logp_old"),
        f"{PAD_GRAD}[policy_loss-nan]", f"{PAD_GRAD}[policy_loss--inf]"),
    _rl("padding-counted-as-clipped", ("(limited < plain) & mask", "limited != plain"),
        f"{PADDING}[policy_loss-nan]"),

    # metrics averaged over pads; a sentinel in the padding summed
    _rl("mean-over-pads", ("/ count.clamp(min=1)", "/ (x.numel() if dim is None else x.shape[dim])"),
        "test_masked_mean_by_hand_and_without_a_token", f"{PADDING}[masked_mean-0.0]",
        f"{PADDING}[masked_mean dim=1-0.0]"),
    _rl("pads-in-the-mean", ("kept = torch.where(mask, x, 0.0)", "kept = x"),
        f"{PADDING}[masked_mean-7.0]", "test_masked_mean_sum_and_variance_against_python_loops"),
    _rl("pads-in-the-sum", ("return torch.where(mask, x, 0.0).sum(-1)", "return x.sum(-1)"),
        f"{PADDING}[masked_sum-7.0]", "test_masked_mean_sum_and_variance_against_python_loops"),
    _rl("mask-by-product", ("kept = torch.where(mask, x, 0.0)", "kept = x * mask"),
        f"{PADDING}[masked_mean-nan]", f"{PADDING}[masked_mean-inf]"),

    # whitening over pads
    _rl("whiten-over-pads", ("mean, var = masked_mean(x, mask), masked_var(x, mask)", "var, mean = torch.var_mean(x)"),
        "test_whiten_against_the_statistics_module", f"{PADDING}[whiten-7.0]"),
    _rl("whiten-fills-pads", ("torch.where(mask, white if shift_mean else white + mean, 0.0)",
        "white if shift_mean else white + mean"),
        f"{PADDING}[whiten-7.0]", "test_whiten_against_the_statistics_module"),
    _rl("whiten-always-shifts", ("white if shift_mean else white + mean", "white"),
        "test_whiten_against_the_statistics_module", "test_whiten_ignores_scale_and_offset_and_survives_a_constant"),

    # score written one slot after EOS, or always in the last column
    _rl("score-one-after-eos", ("scatter_add(1, last[:, None]", "scatter_add(1, (last[:, None] + 1).clamp(max=T - 1)"),
        "test_the_score_lands_on_the_last_sampled_token", f"{PADDING}[assemble_rewards-0.0]"),
    _rl("score-in-the-last-column",
        ("scatter_add(1, last[:, None]", "scatter_add(1, torch.full_like(last[:, None], T - 1)"),
        "test_the_score_lands_on_the_last_sampled_token", f"{PADDING}[assemble_rewards-0.0]"),
    _rl("score-of-an-empty-row", ("if not bool(mask.any(dim=1).all()):", "if False:"),
        "test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores"),

    # [B, 1] against [B] broadcast
    _rl("no-shape-check", ("if len(set(shapes.values())) > 1:", "if False:"), SHAPES),
    _rl("no-shape-check-of-scores", ("if scores.shape != mask.shape[:1]:", "if scores.shape[:1] != mask.shape[:1]:"),
        "test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores"),

    # GAE: bootstrapping past the end; returns without the mask; the recursion itself
    _rl("gae-bootstraps-from-padding",
        ("values = torch.where(mask, values, 0.0)", "raw, values = values, torch.where(mask, values, 0.0)"),
        ("torch.cat((values[:, 1:]", "torch.cat((raw[:, 1:]"),
        "test_gae_by_hand[ragged]", f"{PADDING}[gae-7.0]", "test_gae_against_the_sum_of_the_definition"),
    _rl("gae-bootstraps-past-a-full-row", ("torch.zeros_like(values[:, :1])", "values[:, -1:]"),
        "test_gae_by_hand[plain]", "test_gae_against_the_sum_of_the_definition",
        "test_gae_with_lam_one_returns_the_discounted_rewards_to_go_whatever_the_critic_says"),
    _rl("returns-without-mask",
        ("values = torch.where(mask, values, 0.0)", "raw, values = values, torch.where(mask, values, 0.0)"),
        ("advantages, advantages + values", "advantages, advantages + raw"),
        "test_gae_by_hand[ragged]", f"{PADDING}[gae-7.0]"),
    _rl("gae-pays-rewards-of-padding", ("rewards = torch.where(mask, rewards, 0.0)", "rewards = rewards + 0.0"),
        "test_gae_by_hand[ragged]", f"{PADDING}[gae-nan]"),
    _rl("gae-without-gamma-in-the-decay", ("gamma * lam * running", "lam * running"),
        "test_gae_by_hand[gamma-and-lam]", "test_gae_by_hand[halves]"),
    _rl("gae-without-gamma-in-the-error", ("gamma * next_value", "next_value"),
        "test_gae_by_hand[one-step]", "test_gae_by_hand[halves]"),

    # value clip: minimum instead of maximum
    _rl("value-clip-optimistic", ("torch.maximum(plain_error", "torch.minimum(plain_error"),
        "test_value_loss_table[0.5-1.0-0.32-0.0-True]", "test_value_loss_table[0.5--1.0-1.125-1.5-False]"),
    _rl("value-clip-counts-rounding", ("values.clamp(values_old - clip, values_old + clip)",
        "values_old + (values - values_old).clamp(-clip, clip)"),
        "test_value_loss_does_not_take_rounding_for_clipping"),
    _rl("value-padding-squared",
        ("torch.where(mask, values - returns, 0.0) ** 2", "torch.where(mask, (values - returns) ** 2, 0.0)"),
        f"{PAD_GRAD}[value_loss-nan]", f"{PAD_GRAD}[value_loss-inf]"),
    _rl("clipped-value-padding-squared",
        ("torch.where(mask, limited - returns, 0.0) ** 2", "torch.where(mask, (limited - returns) ** 2, 0.0)"),
        f"{PAD_GRAD}[value_loss-nan]", f"{PAD_GRAD}[value_loss-inf]"),

    # entropy divided twice; forbidden tokens turn the entropy bonus into NaN
    _rl("entropy-divided-twice", ("-(logp.exp() * logp.masked_fill(logp.isinf(), 0.0)).sum(-1)",
        "-(logp.exp() * logp.masked_fill(logp.isinf(), 0.0)).mean(-1)"),
        "test_entropy_of_the_uniform_distribution_is_ln_v[7]",
        "test_exact_kl_and_entropy_against_sums_over_the_vocabulary"),
    _rl("entropy-gradient-nan", ("-(logp.exp() * logp.masked_fill(logp.isinf(), 0.0))",
        "-torch.where(logp.isinf(), 0.0, logp.exp() * logp)"), "test_forbidden_tokens_leave_kl_and_entropy_finite"),
    _rl("exact-kl-gradient-nan", ("(logp.exp() * (logp - logq).masked_fill(logp.isinf(), 0.0))",
        "torch.where(logp.isinf(), 0.0, logp.exp() * (logp - logq))"),
        "test_forbidden_tokens_leave_kl_and_entropy_finite"),

    # adaptive KL controller: the coefficient that only decays, or runs the wrong way
    _rl("controller-wrong-way", ("max(kl / target - 1", "max(1 - kl / target"),
        "test_adaptive_kl_coef_by_hand[4.4-10.1]", "test_adaptive_kl_coef_steers_the_kl_to_its_target"),
    _rl("controller-only-decays", ("min(max(kl / target - 1, -0.2), 0.2)", "min(max(kl / target - 1, -0.2), 0.0)"),
        "test_adaptive_kl_coef_by_hand[4.4-10.1]", "test_adaptive_kl_coef_steers_the_kl_to_its_target[0.001]"),

    # the rest of the file
    _rl("preference-swapped", ("logsigmoid(chosen - rejected)", "logsigmoid(rejected - chosen)"),
        "test_bradley_terry_by_hand"),
    _rl("explained-variance-of-the-values", ("masked_var(returns - values, mask)", "masked_var(values, mask)"),
        "test_explained_variance_known_cases"),
    # Rows of the zoo that live in generation.py, ppo.py, config.py, sft.py, data loading: to be added with those files.
)


def mutate(m: Mutant, source: str) -> str:
    """The source with the mutant's edits; ValueError unless each snippet stands there exactly once."""
    for before, after in m.edits:
        if (found := source.count(before)) != 1:
            raise ValueError(f"mutant {m.name}: found {found} times, not once, in {m.file}:\n{before}")
        source = source.replace(before, after)
    return source


# `python -c` puts the working directory, the copy, first on sys.path, before the editable install. Trust, but verify.
DRIVER = """
import importlib, pathlib, sys, pytest
copy = pathlib.Path.cwd().resolve()
for name in sys.argv.pop(1).split(','):
    path = pathlib.Path(importlib.import_module(name).__file__).resolve()
    assert path.is_relative_to(copy), f'{path} is imported, not the copy in {copy}'
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_tests(nodes: Iterable[str], broken: Mutant | None = None) -> tuple[dict[str, str], str]:
    """Run tests in a copy of the repository, broken by a mutant. Returns ({node: outcome}, pytest's output).

    A node's outcome is `failed` if one of its cases failed, else `passed` if one passed, else `not run`.
    """
    nodes = list(nodes)
    module = Path(broken.file).with_suffix("").as_posix().replace("/", ".") if broken else "alignpro_mini"
    if not module.startswith("alignpro_mini"):
        module = "alignpro_mini"  # a script is no module: its tests start it from the copy
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        copy = Path(name)
        for item in COPIED:
            source = ROOT / item
            if source.is_dir():
                shutil.copytree(source, copy / item, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copy / item)
        if broken:
            path = copy / broken.file
            path.write_text(mutate(broken, path.read_text()))
        env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
        env.pop("PYTEST_ADDOPTS", None)
        # -m "" : a mutant may name a slow test, which pyproject.toml deselects
        flags = ["-m", "", "-rA", "--tb=line", "-p", "no:cacheprovider", "--rootdir", str(copy)]
        command = [sys.executable, "-c", DRIVER, module, *flags, *(f"tests/{n}" for n in nodes)]
        try:
            done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return dict.fromkeys(nodes, "not run"), f"no end after {TIMEOUT_S} s"
    summary = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("PASSED ", "FAILED "))]

    def outcome(node: str) -> str:
        own = (f"tests/{node} ", f"tests/{node}[")  # the whole id, or one case of it, not a longer name
        seen = {status for status, rest in summary if f"{rest} ".startswith(own)}
        return "failed" if "FAILED" in seen else "passed" if "PASSED" in seen else "not run"

    return {node: outcome(node) for node in nodes}, done.stdout + done.stderr


# A mutant that crashes on a name it does not have proves nothing about the tests.
BROKEN = ("NameError", "UnboundLocalError", "SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError")


def verdict(m: Mutant) -> tuple[str, str]:
    """(killed | SURVIVED | BROKEN, what to look at)."""
    try:
        outcomes, output = run_tests(m.killed_by, m)
    except (ValueError, OSError) as error:  # the snippet has gone, or the file
        return "BROKEN", str(error)
    if crash := [error for error in BROKEN if error in output]:
        return "BROKEN", f"the mutant does not run: {crash[0]}"
    if alive := [node for node, outcome in outcomes.items() if outcome == "passed"]:
        return "SURVIVED", "passes: " + ", ".join(alive)
    if lost := [node for node, outcome in outcomes.items() if outcome == "not run"]:
        return "BROKEN", f"not run: {', '.join(lost)}\n{output[-1500:]}"
    return "killed", f"{len(outcomes)} tests"


def main(names: list[str], mutants: tuple[Mutant, ...] = MUTANTS) -> int:
    known = {m.name: m for m in mutants}
    if unknown := [n for n in names if n not in known]:
        print(f"no mutant {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[n] for n in names] if names else list(mutants)
    baseline, output = run_tests(dict.fromkeys(node for m in chosen for node in m.killed_by))
    if bad := [f"{node}: {outcome}" for node, outcome in baseline.items() if outcome != "passed"]:
        print("these must pass on the unbroken source:", *bad, output[-1500:], sep="\n", file=sys.stderr)
        return 1
    print(f"{len(baseline)} tests pass on the unbroken source\n\n| mutant | file | verdict | |\n|---|---|---|---|")
    survivors = 0
    for m in chosen:
        result, detail = verdict(m)
        survivors += result != "killed"
        print(f"| {m.name} | {Path(m.file).name} | {result} | {detail} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

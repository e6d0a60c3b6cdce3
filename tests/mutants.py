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
COPIED = ("alignpro_mini", "tests", "tutorials", "pyproject.toml")
TIMEOUT_S = 600  # a mutant may loop for ever


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str  # relative to the repository
    edits: tuple[tuple[str, str], ...]  # (exact source, found exactly once; its replacement)
    killed_by: tuple[str, ...]  # pytest node ids below tests/; each must fail


# The file that tests a module, where it is not test_<module>.py.
TESTED_IN = {
    "training": "sft",
    "rollout": "ppo",
    "pretrained": "checkpoint",
    "tensors": "checkpoint",
    "towns": "toyworld",
}
TESTED_IN |= {"sums": "toyworld", "toy": "toyworld", "world": "toyworld", "files": "data", "callables": "reward"}
TESTED_IN |= {
    "cli": "config",
    "options": "config",
    "statistics": "evaluation",
    "assess": "end_to_end",
    "grid_report": "grid",
}


def mutant(module: str, name: str, *edits_and_tests: str | tuple[str, str]) -> Mutant:
    """One line of the table: the edits are pairs, the tests are strings; a bare test lives in the module's test file."""
    edits = tuple(item for item in edits_and_tests if isinstance(item, tuple))
    tests = [item for item in edits_and_tests if isinstance(item, str)]
    stem = Path(module).stem
    own = f"test_{TESTED_IN.get(stem, stem)}.py"
    return Mutant(
        name, f"alignpro_mini/{module}", edits, tuple(node if "::" in node else f"{own}::{node}" for node in tests)
    )


_rl = partial(mutant, "rl_math.py")
_generation, _ppo, _rollout, _training, _sft, _reward, _theory = (
    partial(mutant, f"{name}.py") for name in ("generation", "ppo", "rollout", "training", "sft", "reward", "theory")
)
_transformer = partial(mutant, "transformer.py")
_optimum, _frontier = partial(mutant, "lab/optimum.py"), partial(mutant, "experiments/frontier.py")


FRONTIER = "test_a_frontier_end_to_end_and_again_with_resume"
SHARED = "test_grid.py::test_every_cell_has_its_results_and_the_cells_of_a_model_share_its_arms"
PADDING = "test_padding_never_reaches_a_result"
PAD_GRAD = "test_gradient_is_finite_and_exactly_zero_on_padding"
SHAPES = "test_column_against_row_is_refused_not_broadcast"
GREEDY = "test_greedy_equals_each_row_alone_without_a_cache"
BATCHING = "test_neither_compaction_nor_the_batching_changes_what_a_row_samples"
FIXED = "test_steps_of_fixed_shapes_give_the_same_answers[1.0-True-llama]"
LOGPROBS = "test_logprobs_are_those_of_the_distribution_sampled_from"
EACH_ROW = "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone"
VISIBLE = "(real & (key <= query)) | (key == query)"  # source
PADDED, LATER = "test_a_padded_row_equals_the_row_alone", "test_a_later_token_does_not_change_earlier_logits"
LOGITS, CACHE = "test_logits_equal_those_of_transformers", "test_cache_equals_recompute"
WRITTEN_OUT = "test_attention_equals_attention_written_out"
PADDED_QUERY = "test_a_padded_query_sees_itself"
ROPE, ROPE_DTYPE = "test_rope_is_multiplication_by_a_unit_complex_number", "test_rope_keeps_the_dtype"
COMMON = "test_what_all_prompts_begin_with_goes_through_the_model_once"
SAVES_LITTLE = "test_a_beginning_that_saves_little_gets_no_pass_of_its_own"
PAD_BY_HAND, PAIRS_BY_HAND = "test_padding_by_hand", "test_pairs_are_padded_by_hand"
FIRST_RATIO = "test_ppo.py::test_the_first_ratio_is_one_against_the_sampling_logprobs"
PPO_EOS = "test_ppo.py::test_eos_is_a_sampled_token_and_carries_the_score"
PPO_METRICS = "test_metrics_are_over_sampled_tokens_only"
PPO_RESUME = "test_ppo.py::test_a_killed_run_goes_on_bit_for_bit"
CONTROLLER = "test_the_controller_is_fed_the_kl_to_the_reference"
SFT_LOSS = (
    "test_sft.py::test_the_loss_is_the_mean_over_answer_tokens_row_by_row",
    "test_sft.py::test_the_loss_by_hand_counts_the_eos_and_no_prompt_token",
)
RATED_AT_EOS = "test_the_reward_is_read_at_the_eos_whoever_shares_the_batch"

MUTANTS: tuple[Mutant, ...] = (
    # KL ratio swapped: k1 averages -KL, k3 estimates another divergence
    _rl(
        "k1-swapped",
        ('if kind == "k1":\n        return d\n', 'if kind == "k1":\n        return -d\n'),
        "test_k1_and_k3_average_to_the_kl_under_p[k1-p0-q0]",
        "test_kl_estimates_by_hand",
        "test_k1_in_the_reward_has_the_gradient_of_the_kl",
    ),
    _rl(
        "k3-swapped",
        ("torch.expm1(-d) + d", "torch.expm1(d) - d"),
        "test_k1_and_k3_average_to_the_kl_under_p[k3-p0-q0]",
        "test_kl_estimates_by_hand",
        "test_what_each_estimator_would_do_inside_the_loss[k3]",
    ),
    _rl(
        "exact-kl-swapped",
        ("logp.exp() * (logp - logq)", "logq.exp() * (logq - logp)"),
        "test_exact_kl_and_entropy_against_sums_over_the_vocabulary",
    ),
    _rl(
        "kl-bonus-for-penalty",
        ("mask, -lam * kl", "mask, lam * kl"),
        "test_the_score_lands_on_the_last_sampled_token",
        "test_k1_in_the_reward_has_the_gradient_of_the_kl",
        "test_policy_gradient_of_score_and_kl_points_to_the_closed_form",
    ),
    # k1 inside the loss, whose expected gradient is zero: the half of it that lives here, no KL in the reward
    _rl(
        "k1-not-in-the-reward",
        ("torch.where(mask, -lam * kl, 0.0)", "torch.zeros_like(kl)"),
        "test_k1_in_the_reward_has_the_gradient_of_the_kl",
        "test_the_score_lands_on_the_last_sampled_token",
        "test_k1_summed_over_a_sequence_averages_to_the_kl_of_the_sequences",
        "test_policy_gradient_of_score_and_kl_points_to_the_closed_form",
    ),
    # clip inverted for negative advantages; the ratio upside down; the minimum turned optimistic
    _rl(
        "clip-inverted-for-negative-advantages",
        (
            "-torch.minimum(plain, limited)",
            "-torch.where(advantages > 0, torch.minimum(plain, limited), torch.maximum(plain, limited))",
        ),
        "test_policy_loss_sign_table[-2.0-0.5-1.6-0.0-True]",
        "test_policy_loss_sign_table[-2.0-1.5-3.0-3.0-False]",
    ),
    _rl(
        "clip-without-the-minimum",
        ("-torch.minimum(plain, limited)", "-limited"),
        "test_policy_loss_sign_table[2.0-0.5--1.0--1.0-False]",
        "test_policy_loss_sign_table[-2.0-1.5-3.0-3.0-False]",
    ),
    _rl(
        "ratio-upside-down",
        ("logp - logp_old, 0.0", "logp_old - logp, 0.0"),
        "test_policy_loss_sign_table",
        "test_first_step_is_the_policy_gradient",
    ),
    _rl(
        "padding-overflows-the-ratio",
        ("torch.where(mask, logp - logp_old, 0.0)", "logp - logp_old"),
        f"{PAD_GRAD}[policy_loss-nan]",
        f"{PAD_GRAD}[policy_loss--inf]",
    ),
    _rl("padding-counted-as-clipped", ("(limited < plain) & mask", "limited != plain"), f"{PADDING}[policy_loss-nan]"),
    # metrics averaged over pads; a sentinel in the padding summed
    _rl(
        "mean-over-pads",
        ("/ count.clamp(min=1)", "/ (x.numel() if dim is None else x.shape[dim])"),
        "test_masked_mean_by_hand_and_without_a_token",
        f"{PADDING}[masked_mean-0.0]",
        f"{PADDING}[masked_mean dim=1-0.0]",
    ),
    _rl(
        "pads-in-the-mean",
        ("kept = torch.where(mask, x, 0.0)", "kept = x"),
        f"{PADDING}[masked_mean-7.0]",
        "test_masked_mean_sum_and_variance_against_python_loops",
    ),
    _rl(
        "pads-in-the-sum",
        ("return torch.where(mask, x, 0.0).sum(-1)", "return x.sum(-1)"),
        f"{PADDING}[masked_sum-7.0]",
        "test_masked_mean_sum_and_variance_against_python_loops",
    ),
    _rl(
        "mask-by-product",
        ("kept = torch.where(mask, x, 0.0)", "kept = x * mask"),
        f"{PADDING}[masked_mean-nan]",
        f"{PADDING}[masked_mean-inf]",
    ),
    # whitening over pads
    _rl(
        "whiten-over-pads",
        ("mean, var = masked_mean(x, mask), masked_var(x, mask)", "var, mean = torch.var_mean(x)"),
        "test_whiten_against_the_statistics_module",
        f"{PADDING}[whiten-7.0]",
    ),
    _rl(
        "whiten-fills-pads",
        ("torch.where(mask, white if shift_mean else white + mean, 0.0)", "white if shift_mean else white + mean"),
        f"{PADDING}[whiten-7.0]",
        "test_whiten_against_the_statistics_module",
    ),
    _rl(
        "whiten-always-shifts",
        ("white if shift_mean else white + mean", "white"),
        "test_whiten_against_the_statistics_module",
        "test_whiten_ignores_scale_and_offset_and_survives_a_constant",
    ),
    # score written one slot after EOS, or always in the last column
    _rl(
        "score-one-after-eos",
        ("scatter_add(1, last[:, None]", "scatter_add(1, (last[:, None] + 1).clamp(max=T - 1)"),
        "test_the_score_lands_on_the_last_sampled_token",
        f"{PADDING}[assemble_rewards-0.0]",
    ),
    _rl(
        "the-score-replaces-the-penalty",
        ("rewards.scatter_add(1, last[:, None]", "rewards.scatter(1, last[:, None]"),
        "test_the_score_lands_on_the_last_sampled_token",
    ),
    _rl(
        "score-in-the-last-column",
        ("scatter_add(1, last[:, None]", "scatter_add(1, torch.full_like(last[:, None], T - 1)"),
        "test_the_score_lands_on_the_last_sampled_token",
        f"{PADDING}[assemble_rewards-0.0]",
    ),
    _rl(
        "score-of-an-empty-row",
        ("if not bool(mask.any(dim=1).all()):", "if False:"),
        "test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores",
    ),
    # [B, 1] against [B] broadcast
    _rl("no-shape-check", ("if len(set(shapes.values())) > 1:", "if False:"), SHAPES),
    _rl(
        "no-shape-check-of-scores",
        ("if scores.shape != mask.shape[:1]:", "if scores.shape[:1] != mask.shape[:1]:"),
        "test_assemble_rewards_refuses_an_empty_row_and_misshapen_scores",
    ),
    # GAE: bootstrapping past the end; returns without the mask; the recursion itself
    _rl(
        "gae-bootstraps-from-padding",
        ("values = torch.where(mask, values, 0.0)", "raw, values = values, torch.where(mask, values, 0.0)"),
        ("torch.cat((values[:, 1:]", "torch.cat((raw[:, 1:]"),
        "test_gae_by_hand[ragged]",
        f"{PADDING}[gae-7.0]",
        "test_gae_against_the_sum_of_the_definition",
    ),
    _rl(
        "gae-bootstraps-past-a-full-row",
        ("torch.zeros_like(values[:, :1])", "values[:, -1:]"),
        "test_gae_by_hand[plain]",
        "test_gae_against_the_sum_of_the_definition",
        "test_gae_with_lam_one_returns_the_discounted_rewards_to_go_whatever_the_critic_says",
    ),
    _rl(
        "returns-without-mask",
        ("values = torch.where(mask, values, 0.0)", "raw, values = values, torch.where(mask, values, 0.0)"),
        ("advantages, advantages + values", "advantages, advantages + raw"),
        "test_gae_by_hand[ragged]",
        f"{PADDING}[gae-7.0]",
    ),
    _rl(
        "gae-pays-rewards-of-padding",
        ("rewards = torch.where(mask, rewards, 0.0)", "rewards = rewards + 0.0"),
        "test_gae_by_hand[ragged]",
        f"{PADDING}[gae-nan]",
    ),
    _rl(
        "gae-without-gamma-in-the-decay",
        ("gamma * lam * running", "lam * running"),
        "test_gae_by_hand[gamma-and-lam]",
        "test_gae_by_hand[halves]",
    ),
    _rl(
        "gae-without-gamma-in-the-error",
        ("gamma * next_value", "next_value"),
        "test_gae_by_hand[one-step]",
        "test_gae_by_hand[halves]",
    ),
    # value clip: minimum instead of maximum
    _rl(
        "value-clip-optimistic",
        ("torch.maximum(plain_error", "torch.minimum(plain_error"),
        "test_value_loss_table[0.5-1.0-0.32-0.0-True]",
        "test_value_loss_table[0.5--1.0-1.125-1.5-False]",
    ),
    _rl(
        "value-clip-counts-rounding",
        ("values.clamp(values_old - clip, values_old + clip)", "values_old + (values - values_old).clamp(-clip, clip)"),
        "test_value_loss_does_not_take_rounding_for_clipping",
    ),
    _rl(
        "value-padding-squared",
        ("torch.where(mask, values - returns, 0.0) ** 2", "torch.where(mask, (values - returns) ** 2, 0.0)"),
        f"{PAD_GRAD}[value_loss-nan]",
        f"{PAD_GRAD}[value_loss-inf]",
    ),
    _rl(
        "clipped-value-padding-squared",
        ("torch.where(mask, limited - returns, 0.0) ** 2", "torch.where(mask, (limited - returns) ** 2, 0.0)"),
        f"{PAD_GRAD}[value_loss-nan]",
        f"{PAD_GRAD}[value_loss-inf]",
    ),
    # entropy divided twice; forbidden tokens turn the entropy bonus into NaN
    _rl(
        "entropy-divided-twice",
        (
            "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)",
            "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).mean(-1)",
        ),
        "test_entropy_of_the_uniform_distribution_is_ln_v[7]",
        "test_exact_kl_and_entropy_against_sums_over_the_vocabulary",
    ),
    _rl(
        "entropy-gradient-nan",
        (
            "-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0))",
            "-torch.where(logp.isinf(), 0.0, logp.exp() * logp)",
        ),
        "test_forbidden_tokens_leave_kl_and_entropy_finite",
    ),
    _rl(
        "exact-kl-gradient-nan",
        (
            "(logp.exp() * (logp - logq).masked_fill(logp == -torch.inf, 0.0))",
            "torch.where(logp.isinf(), 0.0, logp.exp() * (logp - logq))",
        ),
        "test_forbidden_tokens_leave_kl_and_entropy_finite",
    ),
    # adaptive KL controller: the coefficient that only decays, or runs the wrong way
    _rl(
        "controller-wrong-way",
        ("max(kl / target - 1", "max(1 - kl / target"),
        "test_adaptive_kl_coef_by_hand[4.4-10.1]",
        "test_adaptive_kl_coef_steers_the_kl_to_its_target",
    ),
    _rl(
        "controller-only-decays",
        ("min(max(kl / target - 1, -0.2), 0.2)", "min(max(kl / target - 1, -0.2), 0.0)"),
        "test_adaptive_kl_coef_by_hand[4.4-10.1]",
        "test_adaptive_kl_coef_steers_the_kl_to_its_target[0.001]",
    ),
    # the rest of the file
    _rl(
        "preference-swapped",
        ("logsigmoid(chosen - rejected)", "logsigmoid(rejected - chosen)"),
        "test_bradley_terry_by_hand",
    ),
    _rl(
        "preference-loss-without-its-sign",
        ("return -torch.nn.functional.logsigmoid(", "return torch.nn.functional.logsigmoid("),
        "test_bradley_terry_by_hand",
    ),
    _rl(
        "log-of-the-sigmoid",
        ("-torch.nn.functional.logsigmoid(chosen - rejected)", "-torch.sigmoid(chosen - rejected).log()"),
        "test_bradley_terry_by_hand",
    ),
    _rl(
        "preference-loss-is-a-mean",
        ("logsigmoid(chosen - rejected)", "logsigmoid(chosen - rejected).mean()"),
        "test_bradley_terry_by_hand",
    ),
    _rl("no-shape-check-of-preferences", ("    _same_shape(chosen=chosen, rejected=rejected)\n", ""), SHAPES),
    _rl(
        "explained-variance-of-the-values",
        ("masked_var(returns - values, mask)", "masked_var(values, mask)"),
        "test_explained_variance_known_cases",
    ),
    _rl(
        "explained-variance-counts-an-offset",
        ("masked_var(returns - values, mask)", "masked_mean((returns - values) ** 2, mask)"),
        "test_explained_variance_known_cases[values1-1.0]",
    ),
    # ------------------------------------------------------------ generation.py
    # sampled with temperature / a nucleus, scored without
    _generation(
        "greedy-scored-at-another-temperature",
        (
            "if temperature not in (0.0, 1.0):\n        logits = logits / temperature",
            "logits = logits / (temperature or 0.5)",
        ),
        f"{LOGPROBS}[0.0-1.0-llama]",
        "test_temperature_by_hand_and_before_the_nucleus",
    ),
    _generation(
        "temperature-ignored",
        ("logits = logits / temperature", "pass"),
        "test_temperature_by_hand_and_before_the_nucleus",
        f"{LOGPROBS}[0.7-1.0-llama]",
        "test_sampled_frequencies_match_the_probabilities[0.5-1.0-want1]",
    ),
    _generation(
        "noted-without-the-temperature",
        ("logps[rows[part], t] = logp.gather", "logps[rows[part], t] = sampling_logprobs(logits[which[part]]).gather"),
        f"{LOGPROBS}[0.7-1.0-gpt2]",
        f"{LOGPROBS}[1.5-0.8-llama]",
        "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone[0.7-llama]",
        f"{FIRST_RATIO}[options1-llama]",
    ),
    _generation(
        "nucleus-too-small",
        ("before >= top_p", "before + ordered.softmax(-1) >= top_p"),
        "test_nucleus_by_hand[0.51-want2]",
        "test_nucleus_by_hand[0.76-want4]",
    ),
    _generation(
        "nucleus-not-put-back-in-place",
        ("torch.empty_like(logits).scatter_(-1, index, ordered)", "ordered"),
        "test_nucleus_by_hand[0.76-want4]",
        f"{LOGPROBS}[1.5-0.8-gpt2]",
    ),
    _generation(
        "nucleus-not-scaled-to-1",
        (
            "ordered = ordered.masked_fill(before >= top_p, -torch.inf)",
            "ordered = ordered.log_softmax(-1).masked_fill(before >= top_p, -torch.inf)\n"
            "        return torch.empty_like(logits).scatter_(-1, index, ordered)",
        ),
        "test_nucleus_by_hand[0.76-want4]",
        f"{LOGPROBS}[1.5-0.8-gpt2]",
    ),
    _generation(
        "nucleus-before-the-temperature",
        (
            "ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)",
            "(p := (temperature * ordered).softmax(-1)).cumsum(-1) - p",
        ),
        "test_temperature_by_hand_and_before_the_nucleus",
    ),
    _generation(
        "nucleus-of-the-greedy",
        ("if top_p < 1.0 and temperature > 0:", "if top_p < 1.0:"),
        "test_temperature_by_hand_and_before_the_nucleus",
    ),
    # padding
    _generation(
        "mask-on-the-other-side",
        (
            "column >= width - lengths if left else column < lengths",
            "column < lengths if left else column >= width - lengths",
        ),
        f"{PAD_BY_HAND}[pad_left-ids0-mask0]",
        f"{PAD_BY_HAND}[pad_right-ids1-mask1]",
    ),
    _generation(
        "padded-on-the-other-side",
        ("[*pads, *row] if left else [*row, *pads]", "[*row, *pads] if left else [*pads, *row]"),
        f"{PAD_BY_HAND}[pad_left-ids0-mask0]",
        f"{PAD_BY_HAND}[pad_right-ids1-mask1]",
    ),
    _generation(
        "a-token-like-the-padding-is-padding",
        (
            "mask = column >= width - lengths if left else column < lengths",
            "mask = torch.tensor(padded, dtype=torch.long).view(len(rows), width) != pad_id",
        ),
        PAD_BY_HAND,
    ),
    _generation("padded-with-zeros", ("[[pad_id] *", "[[0] *"), PAD_BY_HAND),
    _generation("no-rows-to-pad", ("max(map(len, rows), default=0)", "max(map(len, rows))"), PAD_BY_HAND),
    _generation(
        "last-prompt-token-counts-as-an-answer",
        ("pad_right([p for p, _ in pairs], 0, device)", "pad_right([p[:-1] for p, _ in pairs], 0, device)"),
        *SFT_LOSS,
        PAIRS_BY_HAND,
    ),
    _generation(
        "a-token-0-is-no-answer",
        ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:, : prompt.shape[1]] &= ~prompt\n    mask &= ids != 0"),
        PAIRS_BY_HAND,
    ),
    # compaction writes to the wrong rows, or gives a row another row's draws
    _generation(
        "compaction-writes-to-the-wrong-rows",
        ("tokens[rows, t] = new", "tokens[torch.arange(len(new)), t] = new"),
        f"{GREEDY}[1-llama]",
        BATCHING,
    ),
    _generation(
        "compaction-notes-logprobs-in-the-wrong-rows",
        ("logps[rows[part], t] =", "logps[part, t] ="),
        BATCHING,
        f"{LOGPROBS}[1.0-1.0-llama]",
    ),
    _generation(
        "compaction-mixes-up-the-draws", ("uniforms[rows[part], t]", "uniforms[part, t]"), f"{BATCHING}[1.0-llama]"
    ),
    _generation(
        "compaction-keeps-the-wrong-cache",
        ("cache.keep(source)", "cache.keep(torch.arange(len(source), device=device))"),
        f"{GREEDY}[1-llama]",
        BATCHING,
    ),
    _generation(
        "compaction-drops-a-living-row", ("(~done).nonzero()", "done.nonzero()"), f"{GREEDY}[1-llama]", BATCHING
    ),
    _generation(
        "equal-prompts-mixed-up",
        ("place[tuple(prompt)] for prompt in prompts]", "place[tuple(prompt)] for prompt in prompts[::-1]]"),
        f"{GREEDY}[1-llama]",
    ),
    _generation(
        "rows-that-draw-different-tokens-stay-one",
        ("(which * model.config.vocab_size + new)[alive]", "which[alive]"),
        f"{BATCHING}[1.0-llama]",
    ),
    _generation(
        "rows-part-at-once",
        ("which * model.config.vocab_size + new", "rows"),
        "test_rows_go_through_the_model_once_as_long_as_they_are_the_same",
    ),
    _generation(
        "rows-in-no-order",
        ("in_order = which.argsort()", "in_order = torch.arange(len(which))"),
        f"{BATCHING}[1.0-llama]",
    ),
    _generation(
        "finished-rows-stay",
        ("len(alive) <= (0.5 * len(rows) - 64 if fixed else 0.9 * len(rows))", "False"),
        "test_finished_rows_leave_and_a_few_are_carried_along",
    ),
    # steps that a GPU replays
    _generation("empty-slots-of-any-content", ("self.whole[..., cache.length :, :] = 0", "pass"), FIXED),
    _generation("empty-slots-are-attended-to", ("self.mask[:, cache.length : -1] = False", "pass"), FIXED),
    _generation("a-token-is-forgotten", ("self.mask.index_fill_(1, self.slots[:1], True)", "pass"), FIXED),
    _generation("one-slot-for-all-tokens", ("self.slots[:1] += 1", "pass"), FIXED),
    _generation("slots-stay-where-padding-left", ("self.slots -= before - self.length", "pass"), FIXED),
    _generation(
        "recorded-anew-for-each-row-that-leaves",
        ("(0.5 * len(rows) - 64 if fixed else 0.9 * len(rows))", "0.9 * len(rows)"),
        FIXED,
    ),
    _generation(
        "a-batch-that-never-grows",
        ("min(max_batch * len(chunk) // most, 4 * max_batch)", "max_batch"),
        "test_more_rows_at_once_where_they_share_the_models",
    ),
    _generation(
        "a-batch-that-grows-for-ever",
        ("min(max_batch * len(chunk) // most, 4 * max_batch)", "max_batch * len(chunk) // most"),
        "test_more_rows_at_once_where_they_share_the_models",
    ),
    _generation(
        "every-prompt-anew",
        ("enumerate(dict.fromkeys(map(tuple, prompts)))", "enumerate(map(tuple, prompts))"),
        "test_rows_go_through_the_model_once_as_long_as_they_are_the_same",
    ),
    _generation(
        "draws-follow-the-batch",
        ("uniforms[chunk].to(", "uniforms[: len(chunk)].to("),
        "test_another_companion_does_not_change_what_a_row_samples",
    ),
    _generation(
        "results-in-sorted-order",
        ("results[i] = Completion", "results[results.index(None)] = Completion"),
        "test_completions_come_back_in_the_order_of_the_prompts",
        f"{GREEDY}[1-llama]",
    ),
    _generation(
        "prompts-padded-on-the-right",
        ("pad_left([prompt[C:] for", "pad_right([prompt[C:] for"),
        f"{GREEDY}[1-llama]",
        f"{GREEDY}[1-gpt2]",
    ),
    _generation(
        "common-beginning-run-twice",
        ("pad_left([prompt[C:] for", "pad_left([prompt[C - bool(C) :] for"),
        f"{COMMON}[False-llama]",
        f"{COMMON}[True-gpt2]",
    ),
    _generation(
        "nothing-left-of-the-shortest-prompt",
        ("min(map(len, place)) - 1)", "min(map(len, place)))"),
        f"{COMMON}[False-llama]",
    ),
    _generation(
        "padding-after-the-common-beginning-is-seen",
        ("    cache.mask[:, C:] = mask\n", "    cache.mask[:, C:] = mask | (C > 0)\n"),
        f"{COMMON}[False-llama]",
        f"{COMMON}[False-gpt2]",
    ),
    _generation(
        "a-pass-of-its-own-for-a-few-tokens",
        ("C if C >= 16 and len(place) > 1 else 0", "C"),
        f"{SAVES_LITTLE}[one]",
        f"{SAVES_LITTLE}[few]",
    ),
    _generation(
        "all-rows-drawn-at-once",
        ("max(1, 2**20 // model.config.vocab_size)", "N"),
        "test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time",
    ),
    _generation(
        "drawn-with-the-first-rows-numbers",
        ("uniforms[rows[part], t]", "uniforms[rows[: len(part)], t]"),
        "test_a_large_vocabulary_is_drawn_from_a_few_rows_at_a_time",
    ),
    # EOS lost; the draw takes what it must not; the seed; a wait in the loop; the mode
    _generation(
        "eos-dropped-from-the-completion",
        ("row.index(eos_id) + 1 if", "row.index(eos_id) if"),
        "test_eos_is_kept_as_the_last_token_and_the_limit_cuts",
        f"{PPO_EOS}[own]",
        f"{PPO_EOS}[pad-is-eos]",
    ),
    _generation(
        "first-token-of-no-probability",
        ("u, right=True", "u, right=False"),
        "test_a_token_of_probability_zero_is_never_drawn",
    ),
    _generation(
        "draw-beyond-the-end",
        ("uniform.clamp(max=1 - 2**-20)", "uniform"),
        "test_a_token_of_probability_zero_is_never_drawn",
    ),
    _generation(
        "draw-not-scaled-to-the-mass",
        ("uniform.clamp(max=1 - 2**-20)[:, None] * cdf[:, -1:]", "uniform.clamp(max=1 - 2**-20)[:, None]"),
        "test_a_token_of_probability_zero_is_never_drawn",
    ),
    _generation(
        "draw-one-token-late",
        ("torch.searchsorted(cdf, u", "torch.searchsorted(cdf - logp.exp(), u"),
        "test_a_token_of_probability_zero_is_never_drawn",
        "test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability",
    ),
    _generation(
        "one-draw-for-the-whole-batch",
        ("uniform.clamp(max=1 - 2**-20)[:, None] *", "uniform[:1].clamp(max=1 - 2**-20)[:, None] *"),
        "test_the_uniform_interval_of_a_token_is_as_wide_as_its_probability",
    ),
    _generation(
        "seed-ignored",
        ("max_new_tokens, generator=generator, device=draw_on", "max_new_tokens, device=draw_on"),
        "test_the_generator_decides_everything",
    ),
    _generation(
        "one-draw-for-all-rows",
        ("_draw(logp, uniforms[rows[part], t])", "_draw(logp, uniforms[rows[part] * 0, t])"),
        "test_the_generator_decides_everything",
    ),
    _generation(
        "a-wait-in-the-token-loop",
        (
            "            new = draw(model.hidden(new[:, None], ",
            "            new = draw(model.hidden(new[:, None] + 0 * new[0].item(), ",
        ),
        "test_the_token_loop_never_waits_for_a_number",
    ),
    _generation(
        "left-in-eval-mode",
        ("    model.train(was_training)\n", ""),
        "test_the_models_mode_is_put_back_and_no_gradient_is_kept[True]",
    ),
    # positions not counted along the mask: old against new with left padding
    mutant(
        "transformer.py",
        "positions-along-the-columns",
        ("return (mask.cumsum(1) - 1).clamp(min=0)", "return torch.arange(T, device=x.device).expand(B, T)"),
        "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone[1.0-gpt2]",
        f"{FIRST_RATIO}[options0-gpt2]",
        "test_transformer.py::test_a_padded_row_equals_the_row_alone",
    ),
    mutant(
        "transformer.py",
        "positions-along-the-columns-of-the-cache",
        (
            "(cache.mask[:, : cache.length + T].cumsum(1) - 1).clamp(min=0)[:, cache.length :]",
            "torch.arange(cache.length, cache.length + T, device=x.device).expand(B, T)",
        ),
        f"test_generation.py::{GREEDY}[1-gpt2]",
        f"{FIRST_RATIO}[options0-gpt2]",
    ),
    _transformer(
        "positions-of-new-tokens-from-0",
        (
            "(cache.mask[:, : cache.length + T].cumsum(1) - 1).clamp(min=0)[:, cache.length :]",
            "(cache.mask[:, cache.length : cache.length + T].cumsum(1) - 1).clamp(min=0)",
        ),
        f"{CACHE}[llama-chunks1]",
        f"{CACHE}[gpt2-chunks1]",
    ),
    _transformer(
        "positions-from-1",
        ("return (mask.cumsum(1) - 1).clamp(min=0)", "return mask.cumsum(1)"),
        f"{PADDED}[gpt2]",
        f"{LOGITS}[gpt2]",
    ),
    _transformer(
        "padding-at-position-minus-1",
        ("return (mask.cumsum(1) - 1).clamp(min=0)", "return mask.cumsum(1) - 1"),
        f"{PADDED}[gpt2]",
    ),
    # who may look at whom
    _transformer(
        "query-sees-the-future", (VISIBLE, "real | (key == query)"), f"{LOGITS}[llama]", f"{LATER}[gpt2]", WRITTEN_OUT
    ),
    _transformer(
        "query-sees-the-next-token", (VISIBLE, "(real & (key <= query + 1)) | (key == query)"), LATER, WRITTEN_OUT
    ),
    _transformer(
        "query-without-itself", (VISIBLE, "real & (key < query)"), f"{LOGITS}[llama]", f"{PADDED}[gpt2]", WRITTEN_OUT
    ),
    _transformer(
        "padding-attended-to",
        (VISIBLE, "(key <= query).expand(len(real), 1, T, S)"),
        f"{LOGITS}[gpt2]",
        f"{PADDED}[llama]",
        WRITTEN_OUT,
    ),
    _transformer("padded-query-without-itself", (VISIBLE, "real & (key <= query)"), PADDED_QUERY),
    _transformer(
        "queries-from-0-beside-a-cache",
        ("torch.arange(S - T, S, device", "torch.arange(T, device"),
        f"{CACHE}[llama-chunks1]",
        f"{CACHE}[gpt2-chunks3]",
        f"test_generation.py::{GREEDY}[1-llama]",
    ),
    _transformer("no-axis-for-the-heads", (f"return {VISIBLE}", f"return ({VISIBLE})[:, 0]"), LOGITS, PADDED_QUERY),
    # RoPE
    _transformer("rotated-the-wrong-way", ("pairs * rope)", "pairs * rope.conj())"), ROPE),
    _transformer(
        "halves-rotated-for-neighbouring-pairs",
        ("x.float().unflatten(-1, (-1, 2))", "x.float().unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()"),
        (
            "torch.view_as_real(pairs * rope).flatten(-2)",
            "torch.view_as_real(pairs * rope).transpose(-1, -2).flatten(-2)",
        ),
        ROPE,
        f"{LOGITS}[llama]",
    ),
    _transformer(
        "rotated-parts-one-after-the-other",
        (
            "torch.view_as_real(pairs * rope).flatten(-2)",
            "torch.view_as_real(pairs * rope).transpose(-1, -2).flatten(-2)",
        ),
        ROPE,
    ),
    _transformer("rotation-loses-the-dtype", (".flatten(-2).to(x.dtype)", ".flatten(-2)"), ROPE_DTYPE),
    _transformer(
        "only-queries-rotated", ("rotate(q, rope), rotate(k, rope)", "rotate(q, rope), k"), f"{LOGITS}[llama]"
    ),
    _transformer(
        "values-rotated",
        ("q, k = rotate(q, rope), rotate(k, rope)", "q, k, v = rotate(q, rope), rotate(k, rope), rotate(v, rope)"),
        f"{LOGITS}[llama]",
        f"{LOGITS}[qwen2]",
    ),
    # the cache
    _transformer(
        "cache-writes-from-slot-0",
        ("self.k[layer, :, :, self.length : end] = k", "self.k[layer, :, :, : k.shape[2]] = k"),
        ("self.v[layer, :, :, self.length : end] = v", "self.v[layer, :, :, : v.shape[2]] = v"),
        f"{CACHE}[llama-chunks1]",
        f"test_generation.py::{GREEDY}[1-gpt2]",
    ),
    _transformer(
        "cache-returns-empty-slots",
        ("return self.k[layer, :, :, :end], self.v[layer, :, :, :end]", "return self.k[layer], self.v[layer]"),
        CACHE,
    ),
    _transformer(
        "cache-returns-the-new-ones-only",
        ("return self.k[layer, :, :, :end], self.v[layer, :, :, :end]", "return k, v"),
        f"{CACHE}[llama-chunks1]",
    ),
    _transformer(
        "cache-moves-on-in-every-layer",
        (
            "        return self.k[layer, :, :, :end]",
            "        self.length = end\n        return self.k[layer, :, :, :end]",
        ),
        CACHE,
    ),
    _transformer(
        "every-layer-in-the-first-ones-cache",
        ("cache.append(layer, k, v)", "cache.append(0, k, v)"),
        f"{CACHE}[llama-chunks1]",
    ),
    # heads
    _transformer(
        "heads-not-transposed-back",
        ("y.transpose(1, 2).reshape(B, T, -1)", "y.reshape(B, T, -1)"),
        f"{LOGITS}[gpt2]",
        WRITTEN_OUT,
    ),
    _transformer(
        "tokens-cut-into-heads",
        (
            "self.q_norm(q.view(B, T, self.heads, self.head_dim)).transpose(1, 2)",
            "self.q_norm(q.view(B, self.heads, T, self.head_dim))",
        ),
        f"{LOGITS}[gpt2]",
        WRITTEN_OUT,
    ),
    _transformer(
        "scores-without-their-scale",
        ("attn_mask=allowed, is_causal=", "attn_mask=allowed, scale=1.0, is_causal="),
        f"{LOGITS}[llama]",
        WRITTEN_OUT,
    ),
    _transformer(
        "scores-scaled-by-the-width-of-the-model",
        ("attn_mask=allowed, is_causal=", "attn_mask=allowed, scale=D**-0.5, is_causal="),
        f"{LOGITS}[llama]",
        WRITTEN_OUT,
    ),
    _transformer(
        "grouped-heads-in-the-wrong-order",
        (
            "q, k, v, attn_mask=allowed",
            "q, *(x.repeat(1, self.heads // self.kv_heads, 1, 1) for x in (k, v)), attn_mask=allowed",
        ),
        f"{LOGITS}[llama]",
        f"{WRITTEN_OUT}[2]",
    ),
    _transformer(
        "allowed-ignored",
        ("attn_mask=allowed, is_causal=allowed is None", "is_causal=True"),
        PADDED,
        f"{WRITTEN_OUT}[4]",
    ),
    _transformer("not-causal-without-a-mask", ("is_causal=allowed is None", "is_causal=False"), LATER, WRITTEN_OUT),
    _transformer(
        "no-output-matrix",
        ("return self.out(y.transpose(1, 2).reshape(B, T, -1))", "return y.transpose(1, 2).reshape(B, T, -1)"),
        f"{LOGITS}[gpt2]",
        WRITTEN_OUT,
    ),
    # ------------------------------------------------------------ ppo.py
    # sampled with temperature, scored without; token t's log-prob from logits[t]
    _ppo(
        "trained-without-the-temperature",
        ("sampling_logprobs(logits, c.temperature)", "sampling_logprobs(logits)"),
        f"{FIRST_RATIO}[options1-llama]",
        f"{FIRST_RATIO}[options2-gpt2]",
    ),
    _ppo(
        "reference-without-the-temperature",
        (
            "self.reference.unembed(states[part.action]), self.config.temperature)",
            "self.reference.unembed(states[part.action]))",
        ),
        f"{EACH_ROW}[0.7-llama]",
        "test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio",
    ),
    _ppo(
        "rolled-out-without-the-temperature",
        ('"temperature": self.config.temperature, "eos_id"', '"eos_id"'),
        f"{EACH_ROW}[0.7-llama]",
        f"{FIRST_RATIO}[options1-llama]",
    ),
    _rollout(
        "logits-one-to-the-right",
        ("[:, -T - 1 : -1]", "[:, -T:]"),
        f"{EACH_ROW}[1.0-llama]",
        f"{FIRST_RATIO}[options0-llama]",
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    # left padding without positions: the model is not told which columns are padding
    _rollout(
        "states-without-the-mask",
        ("lm.top(features, mask, self.train_layers)", "lm.top(features, None, self.train_layers)"),
        f"{EACH_ROW}[1.0-llama]",
    ),
    _rollout(
        "the-reference-is-the-policy-itself",
        ("lm.top(features, mask, self.train_layers)", "self.lm.top(features, mask, self.train_layers)"),
        f"{EACH_ROW}[1.0-llama]",
    ),
    # the prompt cut to the response's length
    _ppo(
        "prompt-cut-to-the-response",
        (
            "chats = [self.tokenizer.chat(p) for p in prompts]",
            "chats = [self.tokenizer.chat(p)[-self.config.max_new_tokens :] for p in prompts]",
        ),
        "test_a_long_prompt_is_not_cut_to_the_completion",
        f"{EACH_ROW}[1.0-llama]",
    ),
    _rollout(
        "prompt-columns-cut-from-minibatches",
        ("int(self.mask[index].any(0).float().argmax())", "max(0, P - T)"),
        "test_rows_cuts_the_columns_that_are_padding_in_all_of_them",
        f"{EACH_ROW}[1.0-gpt2]",
    ),
    # pad == eos: EOS drops out of the action mask
    _ppo(
        "eos-dropped-from-the-action-mask",
        (
            "ids, mask = torch.cat((prompt_ids, tokens), 1)",
            "action = action & ((tokens != self.tokenizer.pad_id) | (action.cumsum(1) == 1))\n"
            "        for c, on in zip(completions, action.tolist()):\n"
            "            c.logprobs[:] = [p for p, keep in zip(c.logprobs, on) if keep]\n"
            "        ids, mask = torch.cat((prompt_ids, tokens), 1)",
        ),
        f"{PPO_EOS}[pad-is-eos]",
    ),
    # missing-EOS penalty ignores a custom stop token, or is not there
    _ppo(
        "penalty-ignores-a-custom-stop",
        (
            "torch.tensor([c.finished for c in completions], device=device)",
            "torch.tensor([3 in c.tokens for c in completions], device=device)",
        ),
        "test_the_missing_eos_penalty_knows_a_custom_stop_token",
    ),
    _ppo(
        "penalty-for-the-finished",
        ("missing_eos_penalty * (~rollout.finished)", "missing_eos_penalty * rollout.finished"),
        "test_the_missing_eos_penalty_knows_a_custom_stop_token",
        "test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio",
    ),
    # adaptive KL controller fed the old-vs-new KL: the coefficient only decays
    _ppo(
        "controller-fed-old-vs-new",
        ('metrics["kl_k1"], len(prompts)', 'metrics["approx_kl_update"], len(prompts)'),
        f"{CONTROLLER}[0.01-1.02]",
    ),
    _ppo("controller-counts-rounds", ('metrics["kl_k1"], len(prompts)', 'metrics["kl_k1"], 1'), CONTROLLER),
    _ppo(
        "reward-kl-against-the-old-policy",
        (
            "rl_math.kl_estimate(rollout.logp, rollout.logp_ref, self.config.kl_estimator)",
            "rl_math.kl_estimate(rollout.logp, rollout.logp, self.config.kl_estimator)",
        ),
        "test_rewards_of_a_row_sum_to_its_score_minus_lambda_times_its_log_ratio",
        "test_a_high_price_on_kl_holds_the_policy_at_the_reference",
    ),
    # metrics averaged over pads; each row's numbers in another row's slots
    _ppo(
        "entropy-over-pads",
        ("rl_math.masked_mean(rollout.entropy, mask).item()", "rollout.entropy.mean().item()"),
        PPO_METRICS,
    ),
    _ppo(
        "update-kl-over-pads",
        (
            'rl_math.kl_estimate(part.logp[part.action], chosen.detach(), "k3")',
            'rl_math.kl_estimate(part.logp, logp.detach(), "k3")',
        ),
        "test_longer_companions_change_nothing",
    ),
    _ppo(
        "numbers-in-other-rows-slots",
        ("yield part.sort().values", "yield part"),
        f"{EACH_ROW}[1.0-llama]",
        f"{EACH_ROW}[0.7-gpt2]",
    ),
    _ppo(
        "whitened-over-pads",
        ("rl_math.whiten(advantages, mask)", "rl_math.whiten(advantages, torch.ones_like(mask))"),
        "test_advantages_are_whitened_over_the_tokens_but_returns_are_not",
    ),
    _ppo(
        "returns-of-whitened-advantages",
        (
            "rollout.advantages = rl_math.whiten(advantages, mask) if c.whitens else advantages",
            "rollout.advantages = rl_math.whiten(advantages, mask) if c.whitens else advantages\n"
            '        if c.advantage == "gae":\n'
            "            rollout.returns = torch.where(mask, rollout.advantages + rollout.values, 0.0)",
        ),
        "test_advantages_are_whitened_over_the_tokens_but_returns_are_not",
    ),
    _ppo(
        "groups-are-whitened",
        ("rl_math.whiten(advantages, mask) if c.whitens", "rl_math.whiten(advantages, mask) if c.whiten_advantages"),
        "test_advantages_of_a_group_are_not_whitened[rloo]",
    ),
    _ppo(
        "the-spread-after-whitening",
        ("masked_var(advantages, mask).sqrt()", "masked_var(rl_math.whiten(advantages, mask), mask).sqrt()"),
        "test_advantages_of_a_group_are_not_whitened[rloo]",
    ),
    _ppo(
        "a-mean-over-the-padded-batch",
        ("total = policy.sum()\n", "total = policy.mean()\n"),
        "test_longer_companions_change_nothing",
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    _ppo(
        "the-value-loss-without-its-weight",
        ("c.vf_coef * value.sum()", "value.sum()"),
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    _ppo(
        "the-kl-loss-of-the-old-policy",
        ("rl_math.kl_estimate(logp, part.logp_ref, c.kl", "rl_math.kl_estimate(part.logp, part.logp_ref, c.kl"),
        "test_the_gradient_of_a_kl_loss_is_that_of_the_policy_now",
    ),
    _ppo(
        "the-rewards-ignore-the-controller",
        ("coef = self.kl_coef if", "coef = self.config.kl_coef if"),
        "test_the_adapted_coefficient_is_the_one_that_is_paid[reward]",
    ),
    _ppo(
        "the-loss-ignores-the-controller",
        ("scale * self.kl_coef * rl", "scale * c.kl_coef * rl"),
        "test_the_adapted_coefficient_is_the_one_that_is_paid[loss]",
    ),
    _ppo(
        "weights-by-micro-batch",
        (
            "tokens = int(rollout.action[minibatch].sum())",
            "tokens = int(rollout.action[minibatch][: self.config.micro_batch].sum())",
        ),
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    # no gradient clipping though an option promises it; [B, 1] against [B]; NaN
    _ppo(
        "no-gradient-clipping",
        ("self.parameters, self.config.max_grad_norm", "self.parameters, 1e9"),
        "test_the_gradient_is_clipped_to_the_promised_norm[0.05]",
    ),
    _ppo(
        "held-to-itself",
        ("require(lm is not reference,", "require(True,"),
        "test_one_model_as_policy_and_reference_and_no_prompts_are_refused",
    ),
    _ppo(
        "any-shape-of-score",
        ("if scores.shape != rollout.finished.shape:", "if False:"),
        "test_a_bad_score_stops_the_round_before_any_weight_moves",
    ),
    _ppo(
        "nan-scores-train",
        ("if not bool(torch.isfinite(scores).all()):", "if False:"),
        "test_a_bad_score_stops_the_round_before_any_weight_moves",
    ),
    _ppo(
        "everything-trains-over-the-trunk",
        ("*trainable(lm, config.train_layers)", "*trainable(lm, 0)"),
        "test_only_the_top_block_the_last_norm_and_the_value_head_train",
    ),
    # resume repeats the data order, or forgets the controller
    _ppo(
        "resume-repeats-the-draws",
        (
            "stage.restore(trainer.policy, trainer.optimizer, trainer.generator)",
            "stage.restore(trainer.policy, trainer.optimizer)",
        ),
        PPO_RESUME,
    ),
    _ppo("resume-forgets-the-price", ('meta.get("kl_coef", trainer.kl_coef)', "trainer.kl_coef"), PPO_RESUME),
    _ppo(
        "resume-forgets-the-moments",
        (
            "stage.restore(trainer.policy, trainer.optimizer, trainer.generator)",
            "stage.restore(trainer.policy, make_optimizer(trainer.parameters, c.lr, 0.0), trainer.generator)",
        ),
        PPO_RESUME,
    ),
    _ppo(
        "warm-up-forgotten",
        ("return config.lr * rise * (", "return config.lr * ("),
        "test_learning_rate_by_hand[0.4-False-want2]",
    ),
    _ppo(
        "reference-is-the-policy",
        ("self.reference = reference.eval()", "self.reference = lm.eval()"),
        f"{EACH_ROW}[1.0-llama]",
    ),
    # ------------------------------------------------------------ sft.py
    _generation("prompt-in-the-loss", ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:, :1] = False"), *SFT_LOSS),
    _sft("loss-one-to-the-right", ("hidden[:, :-1][is_answer[:, 1:]]", "hidden[:, 1:][is_answer[:, 1:]]"), *SFT_LOSS),
    _generation(
        "loss-over-pads",
        ("mask[:, : prompt.shape[1]] &= ~prompt", "mask[:] = True\n    mask[:, : prompt.shape[1]] &= ~prompt"),
        *SFT_LOSS,
    ),
    _sft(
        "eos-not-learned",
        (
            "ids, is_answer = pad_pairs(batch, model.device)",
            "ids, is_answer = pad_pairs(batch, model.device)\n    is_answer &= ids != 3",
        ),
        *SFT_LOSS,
    ),
    _sft(
        "loss-on-the-prompt",
        ("= pad_pairs(batch, model.device)", "= pad_pairs(batch, model.device)\n    is_answer |= ids != 0"),
        *SFT_LOSS,
    ),
    _sft(
        "loss-mask-not-shifted",
        ("hidden[:, :-1][is_answer[:, 1:]]", "hidden[:, :-1][is_answer[:, :-1]]"),
        ("ids[:, 1:][is_answer[:, 1:]]", "ids[:, 1:][is_answer[:, :-1]]"),
        *SFT_LOSS,
    ),
    _sft(
        "loss-of-a-batch-is-a-sum",
        ("ids[:, 1:][is_answer[:, 1:]])", 'ids[:, 1:][is_answer[:, 1:]], reduction="sum")'),
        *SFT_LOSS,
    ),
    _sft(
        "loss-of-a-row-weighs-the-same",
        (
            "    return F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]])",
            '    nats = F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]], reduction="none")\n'
            "    return torch.stack([row.mean() for row in nats.split(is_answer.sum(1).tolist())]).mean()",
        ),
        SFT_LOSS[0],
        "test_a_token_weighs_the_same_in_a_short_answer_and_in_a_long_one",
    ),
    _sft(
        "padding-told-by-its-id",
        ("= pad_pairs(batch, model.device)", "= pad_pairs(batch, model.device)\n    is_answer &= ids != 0"),
        "test_a_token_with_the_id_of_the_padding_is_learned",
    ),
    _sft(
        "all-layers-take-a-gradient",
        ("model.top(model.trunk(ids, None, train_layers), None, train_layers)", "model.hidden(ids)"),
        "test_nothing_below_the_trained_layers_takes_a_gradient",
    ),
    _sft("loss-in-the-precision-of-the-model", ("(logits.float(), ids", "(logits, ids"), "test_the_loss_is_float32"),
    _sft(
        "sft-prompt-cut",
        (
            "ids = tokenizer.chat_with_answer(prompt, answer)",
            "p, a = tokenizer.chat_with_answer(prompt, answer)\n        ids = (p[-len(a) :], a)",
        ),
        "test_a_long_prompt_is_not_cut_and_one_that_does_not_fit_is_named",
    ),
    _training(
        "clip-forgotten",
        ("nn.utils.clip_grad_norm_(parameters, max_grad_norm)", "nn.utils.clip_grad_norm_(parameters, 1e9)"),
        "test_optimizer_step_clips_to_the_norm_and_reports_what_it_was",
        "test_ppo.py::test_the_gradient_is_clipped_to_the_promised_norm[0.05]",
    ),
    _training(
        "nan-gradient-steps",
        ("if not bool(torch.isfinite(norm)):", "if False:"),
        "test_nothing_moves_when_the_gradient_is_not_finite",
    ),
    _sft(
        "micro-batches-weigh-the-same",
        ("yield part, sum(len(answer) for _, answer in part) / tokens", "yield part, len(part) / len(examples)"),
        "test_cutting_a_batch_into_micro_batches_changes_nothing",
    ),
    _training(
        "loader-ignores-the-seed",
        (
            "torch.randperm(count, generator=generator)",
            "torch.randperm(count, generator=torch.Generator().manual_seed(0))",
        ),
        "test_batches_cover_everything_each_pass_in_a_fresh_order",
        "test_the_seed_decides_the_order_of_the_data",
    ),
    _training(
        "loader-repeats-one-order",
        (
            "    while True:\n        order = torch.randperm(count, generator=generator).tolist()\n",
            "    order = torch.randperm(count, generator=generator).tolist()\n    while True:\n",
        ),
        "test_batches_cover_everything_each_pass_in_a_fresh_order",
    ),
    _sft(
        "resume-repeats-the-data",
        ("for _ in range(start):\n        next(batches)", "for _ in range(0):\n        next(batches)"),
        "test_a_killed_run_goes_on_bit_for_bit",
    ),
    _sft(
        "heldout-in-training",
        ("if tuple(example[0]) not in prompts]", "]"),
        ("in examples[count:]", "in examples"),
        "test_the_heldout_examples_are_not_trained_on",
    ),
    _training(
        "copy-of-a-frozen-model-stays-frozen",
        ("model.requires_grad_(train_layers == 0)", "model.requires_grad_(False) if train_layers else None"),
        "test_ppo.py::test_a_copy_of_a_frozen_model_trains_and_the_reference_does_not",
    ),
    # ------------------------------------------------------------ reward.py, frozen.py, alignpro.py
    _reward(
        "reward-read-in-the-last-column",
        ("last = mask.sum(1) - 1", "last = mask.sum(1) * 0 + mask.shape[1] - 1"),
        RATED_AT_EOS,
    ),
    _reward("reward-read-before-the-eos", ("last = mask.sum(1) - 1", "last = mask.sum(1) - 2"), RATED_AT_EOS),
    _reward(
        "reward-of-the-mean-state",
        (
            "ends = hidden[torch.arange(len(last), device=last.device), last]",
            "ends = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
        ),
        RATED_AT_EOS,
    ),
    _reward("rewards-in-a-column", (".squeeze(-1).float()", ".float()"), RATED_AT_EOS),
    _reward(
        "raw-rewards-are-normalised",
        ("return self.head(ends", "return (lambda r: (r - self.mean) / self.std)(self.head(ends"),
        (".squeeze(-1).float()", ".squeeze(-1).float())"),
        "test_normalise_gives_mean_zero_and_std_one_and_keeps_the_order",
    ),
    _reward(
        "rewards-in-the-precision-of-the-model", (".squeeze(-1).float()", ".squeeze(-1)"), "test_rewards_are_float32"
    ),
    _reward("rewards-in-sorted-order", ("rewards[part] = ", "rewards[: len(part)] = "), RATED_AT_EOS),
    _reward(
        "prefers-the-rejected",
        ("rl_math.bradley_terry_loss(chosen, rejected)", "rl_math.bradley_terry_loss(rejected, chosen)"),
        "test_bradley_terry_training_learns_a_preference",
    ),
    _reward(
        "micro-batches-add-up",
        ("(loss.sum() / len(batch))", "loss.mean()"),
        "test_cutting_a_batch_into_micro_batches_changes_nothing",
    ),
    _reward(
        "labels-without-noise",
        ("torch.rand(len(prompts), generator=generator) < p_first", "p_first > 0.5"),
        "test_preferences_follow_bradley_terry",
    ),
    _reward(
        "labels-upside-down",
        ("generator=generator) < p_first", "generator=generator) > p_first"),
        "test_preferences_follow_bradley_terry",
    ),
    _reward(
        "labels-without-their-scale",
        ("torch.sigmoid(scale * difference.float())", "torch.sigmoid(difference.float())"),
        "test_preferences_follow_bradley_terry",
    ),
    _reward("certainty-of-the-first", ("(b, a, 1 - p)", "(b, a, p)"), "test_preferences_follow_bradley_terry"),
    _reward(
        "labels-ignore-their-generator",
        ("torch.rand(len(prompts), generator=generator)", "torch.rand(len(prompts))"),
        "test_the_generator_decides_the_labels",
    ),
    _reward(
        "the-mismatch-is-not-marked",
        ("(b, a, 1 - p)), mismatched)", "(b, a, 1 - p)))"),
        "test_pipeline.py::test_preferences_are_between_answers_that_ppo_would_get",
    ),
    _reward(
        "prompts-on-both-sides",
        ("if p.prompt not in kept_out], heldout", "], heldout"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    _reward(
        "sides-of-the-split-swapped",
        (
            "return [p for p in pairs if p.prompt not in kept_out], heldout",
            "return heldout, [p for p in pairs if p.prompt not in kept_out]",
        ),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    _reward(
        "a-small-share-holds-out-nothing",
        ("max(1, round(share * len(prompts)))", "round(share * len(prompts))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    _reward(
        "share-of-the-pairs",
        ("round(share * len(prompts))", "round(share * len(pairs))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    _reward(
        "split-ignores-its-generator",
        ("torch.randperm(len(prompts), generator=generator)", "torch.randperm(len(prompts))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    _reward(
        "the-first-prompts-are-held-out",
        ("torch.randperm(len(prompts), generator=generator).tolist()", "list(range(len(prompts)))"),
        "test_no_prompt_is_on_both_sides_of_the_split",
    ),
    _reward(
        "ties-count-as-right",
        ("((chosen > rejected).float() + 0.5 * (chosen == rejected).float())", "(chosen >= rejected).float()"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    _reward(
        "ties-count-as-wrong",
        ("((chosen > rejected).float() + 0.5 * (chosen == rejected).float())", "(chosen > rejected).float()"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    _reward(
        "accuracy-of-the-rejected",
        ("((chosen > rejected).float() + 0.5", "((chosen < rejected).float() + 0.5"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    _reward(
        "accuracy-is-a-mean-margin",
        ("((chosen > rejected).float() + 0.5 * (chosen == rejected).float())", "(chosen - rejected)"),
        "test_accuracy_counts_a_tie_as_half",
    ),
    _reward(
        "cache-mixes-up-rows",
        ("found[tuple(row)] for row in self.ids", "found[row] for row in found"),
        "test_the_trunk_cache_gives_the_direct_rewards[1]",
    ),
    _reward(
        "resume-repeats-the-pairs",
        ("for _ in range(start):\n        next(batches)", "for _ in range(0):\n        next(batches)"),
        "test_a_killed_run_goes_on_bit_for_bit",
    ),
    mutant(
        "worlds/callables.py",
        "own-reward-unchecked",
        ("if rewards.shape != (len(prompts),):", "if False:"),
        "test_wrong_rewards_are_refused_when_they_come",
    ),
    mutant(
        "frozen.py",
        "checksum-of-the-shapes-only",
        (
            "        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())\n",
            "",
        ),
        "test_one_bit_changes_the_checksum",
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    mutant(
        "frozen.py",
        "checksum-without-buffers",
        ("sorted(model.state_dict().items())", "sorted(model.named_parameters())"),
        "test_names_shapes_and_buffers_count_too",
    ),
    mutant(
        "frozen.py",
        "checksum-without-names",
        ('f"{name} {tensor.dtype} {', 'f"{tensor.dtype} {'),
        "test_names_shapes_and_buffers_count_too",
    ),
    mutant(
        "frozen.py",
        "checksum-without-shapes",
        (' {tuple(tensor.shape)}".encode()', '".encode()'),
        "test_names_shapes_and_buffers_count_too",
    ),
    mutant(
        "frozen.py",
        "checksum-without-dtypes",
        ("{name} {tensor.dtype} {", "{name} {"),
        "test_dtypes_and_places_count_too",
    ),
    mutant(
        "frozen.py",
        "checksum-of-the-first-numbers",
        (".contiguous().flatten().view(", ".contiguous().flatten()[:8].view("),
        "test_one_bit_changes_the_checksum",
    ),
    mutant(
        "frozen.py",
        "checksum-of-the-printed-weights",
        ("tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()", "str(tensor).encode()"),
        "test_one_bit_changes_the_checksum",
    ),
    mutant(
        "frozen.py",
        "checksum-of-the-sums",
        (
            "tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()",
            "str(tensor.double().sum().item()).encode()",
        ),
        "test_dtypes_and_places_count_too",
    ),
    mutant(
        "frozen.py",
        "checksum-of-rounded-weights",
        ("tensor.detach().cpu().contiguous()", "tensor.detach().cpu().half().contiguous()"),
        "test_one_bit_changes_the_checksum",
    ),
    mutant(
        "frozen.py",
        "a-change-is-not-looked-for",
        ("if checksum(self.model) != self._checksum:", "if False:"),
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    mutant(
        "frozen.py",
        "a-change-is-noticed-once",
        (
            '            raise RuntimeError(f"the frozen LM changed',
            '            self._checksum = checksum(self.model)\n            raise RuntimeError(f"the frozen LM changed',
        ),
        "test_a_changed_model_stays_changed",
    ),
    mutant(
        "frozen.py",
        "a-change-without-its-stage",
        ('f"the frozen LM changed during {after}: its', 'f"the frozen LM changed: its'),
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    mutant(
        "frozen.py",
        "a-change-is-an-assertion",
        ('raise RuntimeError(f"the frozen LM changed', 'raise AssertionError(f"the frozen LM changed'),
        "test_a_changed_model_is_noticed_and_the_stage_named",
    ),
    mutant(
        "frozen.py",
        "gradients-are-not-looked-for",
        ("if any(p.requires_grad for p in self.model.parameters()):", "if False:"),
        "test_a_model_set_free_is_noticed",
    ),
    mutant(
        "frozen.py",
        "only-a-whole-model-set-free-is-noticed",
        ("if any(p.requires_grad for", "if all(p.requires_grad for"),
        "test_a_model_set_free_is_noticed",
    ),
    mutant(
        "frozen.py",
        "a-model-set-free-without-its-stage",
        ('f"after {after} the frozen LM has', 'f"the frozen LM has'),
        "test_a_model_set_free_is_noticed",
    ),
    mutant(
        "frozen.py",
        "not-frozen",
        ("model.eval().requires_grad_(False)", "model"),
        "test_no_gradient_and_no_training_mode",
    ),
    mutant(
        "frozen.py",
        "cut-counted-as-finished",
        ("not c.finished, c.tokens", "c.finished, c.tokens"),
        "test_texts_in_answers_out_and_the_truncated_ones_marked",
    ),
    mutant(
        "alignpro.py",
        "the-rewrite-is-rated",
        ("self.x = [x for x in requests for _", "self.x = [x for x in self.x_prime for _"),
        "test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite",
    ),
    mutant(
        "alignpro.py",
        "the-request-is-sent",
        ("[x_prime for x_prime in self.x_prime for _", "[x_prime for x_prime in requests for _"),
        "test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite",
        "test_the_prompter_learns_what_makes_the_frozen_lm_earn_a_reward",
    ),
    mutant(
        "alignpro.py",
        "answers-averaged-across-requests",
        ("view(len(requests), self.answers)", "view(self.answers, len(requests)).T"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    mutant(
        "alignpro.py",
        "any-shape-of-reward",
        ("if r.shape != (len(self.x),):", "if False:"),
        "test_a_reward_that_is_not_one_number_for_each_answer_is_named",
    ),
    mutant(
        "alignpro.py",
        "scores-are-sums-over-answers",
        ("return self.r.mean(1)", "return self.r.sum(1)"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    mutant(
        "alignpro.py",
        "the-first-answer-is-the-score",
        ("return self.r.mean(1)", "return self.r[:, 0]"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    mutant(
        "alignpro.py",
        "the-best-answer-is-the-score",
        ("return self.r.mean(1)", "return self.r.amax(1)"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    mutant(
        "alignpro.py",
        "answers-in-turns",
        (
            "[x_prime for x_prime in self.x_prime for _ in range(self.answers)]",
            "[x_prime for _ in range(self.answers) for x_prime in self.x_prime]",
        ),
        "test_m_answers_are_averaged_for_each_request",
    ),
    mutant(
        "alignpro.py",
        "requests-in-turns",
        ("[x for x in requests for _ in range(self.answers)]", "[x for _ in range(self.answers) for x in requests]"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    mutant(
        "alignpro.py",
        "answers-ignore-their-generator",
        ("self.frozen.answer(asked, self.generator)", "self.frozen.answer(asked)"),
        "test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite",
    ),
    mutant(
        "alignpro.py",
        "all-rewrites-are-sent",
        (
            "self.x_prime, self.fallbacks = usable_rewrites(requests, rewrites, self.frozen.fits)",
            "self.x_prime, self.fallbacks = list(rewrites), 0",
        ),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "fallbacks-are-not-counted",
        ("self.x_prime, self.fallbacks = usable", "self.x_prime, _ = usable"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "fallbacks-add-up",
        (
            "        self.x_prime, self.fallbacks = usable_rewrites(requests, rewrites, self.frozen.fits)\n",
            "        self.x_prime, more = usable_rewrites(requests, rewrites, self.frozen.fits)\n        self.fallbacks += more\n",
        ),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "empty-rewrites-are-sent",
        ("x_prime.strip() and fits(x_prime)", "fits(x_prime)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "too-long-rewrites-are-sent",
        ("x_prime.strip() and fits(x_prime)", "x_prime.strip()"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "white-space-is-sent",
        ("x_prime.strip() and fits", "x_prime and fits"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "the-same-words-count-as-a-fallback",
        ("a != b for a, b in zip(sent, rewrites)", "a == b for a, b in zip(sent, requests)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "usable-rewrites-are-counted",
        ("a != b for a, b in zip(sent, rewrites)", "a == b for a, b in zip(sent, rewrites)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "a-missing-rewrite-is-not-noticed",
        ("zip(requests, rewrites, strict=True)]\n    return sent", "zip(requests, rewrites)]\n    return sent"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    mutant(
        "alignpro.py",
        "the-reference-is-trained",
        ("copy.deepcopy(rho_sft), rho_sft", "rho_sft, copy.deepcopy(rho_sft)"),
        "test_training_the_prompter_leaves_the_frozen_lm_and_rho_sft_alone",
    ),
    mutant(
        "alignpro.py",
        "the-oracle-trains-the-frozen-lm",
        ("copy.deepcopy(pi_f), pi_f", "pi_f, copy.deepcopy(pi_f)"),
        "test_the_oracle_trains_a_copy_of_the_lm",
    ),
    _theory(
        "optimum-multiplied-by-lam",
        ("(rho_sft.log() + R / lam)", "(rho_sft.log() + R * lam)"),
        "test_the_optimum_by_hand",
        "test_nothing_beats_the_optimum_and_gradient_ascent_arrives_there",
    ),
    _theory(
        "objective-with-the-kl-swapped",
        ("lam * _kl_logs(rho, rho_sft.log()).mean()", "lam * _kl_logs(rho_sft, rho.log()).mean()"),
        "test_values_equal_sums_written_out",
        "test_master_identity_holds_for_every_prompter",
    ),
    _theory(
        "objective-without-lam",
        ("- lam * _kl_logs(rho, rho_sft.log()).mean()", "- _kl_logs(rho, rho_sft.log()).mean()"),
        "test_values_equal_sums_written_out",
    ),
    _theory(
        "objective-summed-over-inputs",
        (
            "(rho * R).sum(-1).mean() - lam * _kl_logs(rho, rho_sft.log()).mean()",
            "(rho * R).sum(-1).sum() - lam * _kl_logs(rho, rho_sft.log()).sum()",
        ),
        "test_values_equal_sums_written_out",
    ),
    _theory(
        "table-kl-nan-at-zero",
        ("return _kl_logs(p, q.log())", "return (p * (p.log() - q.log())).sum(-1)"),
        "test_total_variation_and_kl_by_hand",
    ),
    _theory(
        "table-kl-swapped",
        ("return _kl_logs(p, q.log())", "return _kl_logs(q, p.log())"),
        "test_total_variation_and_kl_by_hand",
    ),
    _theory(
        "table-kl-with-an-epsilon",
        ("return _kl_logs(p, q.log())", "return _kl_logs(p, q.clamp(min=1e-12).log())"),
        "test_total_variation_and_kl_by_hand",
    ),
    _theory(
        "optimum-without-rho-sft",
        ("_log_optimum(rho_sft, R, lam).exp()", "(R / lam).softmax(-1)"),
        "test_the_optimum_by_hand",
        "test_a_rewrite_that_is_never_offered_stays_so_and_a_small_price_does_not_overflow",
    ),
    _theory(
        "optimum-with-lam-upside-down",
        ("_log_optimum(rho_sft, R, lam).exp()", "_log_optimum(rho_sft, R, 1 / lam).exp()"),
        "test_the_optimum_by_hand",
        "test_nothing_beats_the_optimum_and_gradient_ascent_arrives_there",
    ),
    _theory(
        "optimum-overflows",
        (
            "return _log_optimum(rho_sft, R, lam).exp()",
            "weight = rho_sft * (R / lam).exp()\n    return weight / weight.sum(-1, keepdim=True)",
        ),
        "test_a_rewrite_that_is_never_offered_stays_so_and_a_small_price_does_not_overflow",
    ),
    _theory(
        "optimum-of-any-table",
        (
            "R, rho_sft = _tables(lam, R, rho_sft=rho_sft)\n    return _log_optimum(",
            "R, rho_sft = (torch.as_tensor(x, dtype=torch.float64) for x in (R, rho_sft))\n    return _log_optimum(",
        ),
        "test_tables_that_cannot_be_meant_are_refused",
    ),
    _theory(
        "gap-without-lam",
        ("lam * float(_kl_logs(rho, _log", "float(_kl_logs(rho, _log"),
        "test_master_identity_holds_for_every_prompter",
    ),
    _theory(
        "gap-with-the-kl-swapped",
        ("_kl_logs(rho, _log_optimum(rho_sft, R, lam))", "_kl_logs(_log_optimum(rho_sft, R, lam).exp(), rho.log())"),
        "test_master_identity_holds_for_every_prompter",
    ),
    _theory(
        "sharp-bound-counts-the-kls-twice",
        ("- lam * (kl_star + kl_back)", "- 2 * lam * (kl_star + kl_back)"),
        "test_no_bound_is_ever_violated",
    ),
    _theory(
        "sharp-bound-without-its-kls",
        ("- lam * (kl_star + kl_back)", "- lam * (kl_star + kl_back) * 0"),
        "test_the_bounds_are_not_idle",
    ),
    _theory(
        "half-the-total-variation",
        (".abs().sum(-1) / 2", ".abs().sum(-1) / 4"),
        "test_no_bound_is_ever_violated",
        "test_total_variation_and_kl_by_hand",
    ),
    _theory(
        "skewness-forgotten",
        ('"d_between_rewrites": each(off**3)', '"d_between_rewrites": each(off**2)'),
        "test_derivatives_along_eta_equal_finite_differences",
    ),
    _optimum(
        "listed-mass-not-scaled-to-one",
        ("return self.log_rho.softmax(1)", "return self.log_rho.exp()"),
        "test_mass_outside_is_told_and_the_rest_scaled_to_one",
    ),
    _optimum(
        "listed-reward-sees-the-rewrite",
        ("_rate_once(reward, x, frozen", "_rate_once(reward, asked, frozen"),
        "test_each_rewrite_is_asked_and_rates_against_the_request",
    ),
    _optimum(
        "listed-at-another-temperature",
        ("*zip(*pairs), prompter.temperature)", "*zip(*pairs))"),
        "test_probabilities_are_products_over_the_tokens_and_the_eos[0.6]",
    ),
    _optimum("noise-without-lam", ("/ (2 * lam)", "/ 2"), "test_the_noise_in_R_flatters_the_optimum_by_what_is_told"),
    _optimum("tv-may-be-negative", (".clamp(min=0)", ""), "test_deltas_and_bounds_equal_the_enumerated_ones"),
    _optimum(
        "tv-of-the-plain-request-for-the-mixture",
        ("short(samples.own, log_mixture)", "short(samples.own, samples.oracle_under[:, :, 0])"),
        "test_deltas_and_bounds_equal_the_enumerated_ones",
    ),
    _optimum(
        "bounds-at-another-temperature",
        ("how = (model.sampling.temperature, ", "how = (1.0, "),
        "test_deltas_and_bounds_equal_the_enumerated_ones[0.7]",
    ),
    _optimum(
        "bounds-without-the-nucleus",
        ("model.sampling.top_p if nucleus else 1.0", "1.0"),
        "test_a_nucleus_counts_as_what_it_is",
    ),
    _optimum(
        "cost-of-leaving-the-list-swapped",
        ("theory.kl(two(ours), two(start))", "theory.kl(two(start), two(ours))"),
        "test_what_moving_mass_off_the_list_costs_is_told",
    ),
    _frontier(
        "frontier-of-the-untrained-prompter",
        ("        ours = rated.under(rho_sft, rho)\n", "        ours = untrained\n"),
        FRONTIER,
    ),
    _frontier("frontier-against-another-rewrite", ("float(rated.R[:, 0]", "float(rated.R[:, 1]"), FRONTIER),
    _frontier("oracle-against-another-rewrite", ("- rated.R[:, 0]", "- rated.R[:, 1]"), FRONTIER),
    _frontier(
        "best-of-n-rated-by-what-chose-it",
        (
            "rated_by = listing.r[:, :, : M // 2], listing.r[:, :, M // 2 :]",
            "rated_by = listing.r[:, :, : M // 2], listing.r[:, :, : M // 2]",
        ),
        "test_picks_are_rated_by_answers_that_did_not_choose_them",
    ),
    _frontier(
        "rlhf-in-other-units",
        ("pi_f, reward.train, None, many", "pi_f, reward.report, None, many"),
        "test_frontier.py::test_a_callable_is_drawn_in_the_units_of_lambda",
    ),
    _frontier(
        "held-out-curve-rated-by-what-chose-it",
        ("theory.value(other, rates)", "theory.value(other, chose)"),
        "test_the_two_curves_lie_on_either_side_of_the_truth",
    ),
    mutant(
        "experiments/grid.py",
        "every-cell-rated-by-the-first-model",
        ("rated[F], samples[F])", "rated[min(rated)], samples[F])"),
        SHARED,
    ),
    mutant(
        "experiments/grid.py",
        "every-oracle-the-first",
        ("rated[F], samples[F])", "rated[F], samples[min(samples)])"),
        SHARED,
    ),
    mutant(
        "experiments/grid.py",
        "earlier-cells-forgotten",
        ("if cell in cells or parts.finished(cell)]", "if cell in cells]"),
        "test_grid.py::test_cells_of_two_commands_end_up_in_one_file",
    ),
    mutant(
        "experiments/grid.py",
        "earlier-groups-not-drawn",
        ("(*others, *groups)", "groups"),
        "test_grid.py::test_the_figures_hold_what_earlier_commands_left_beside_them",
    ),
    mutant(
        "experiments/sweep.py",
        "children-outlive-the-command",
        ("(subprocess.Popen.terminate, subprocess.Popen.wait)", "()"),
        "test_what_ends_the_command_ends_its_runs",
    ),
    mutant(
        "lab/pipeline.py",
        "empty-rewrites-in-the-preferences",
        (
            "rewrites, _ = usable_rewrites(requests, prompter.rewrite(requests, g), pi_f.fits)",
            "rewrites = prompter.rewrite(requests, g)",
        ),
        "test_preferences_are_between_answers_that_ppo_would_get",
    ),
    mutant(
        "lab/pipeline.py",
        "vocabulary-of-a-failed-start",
        ('if run.leads and "frozen_lm" not in run.stages:', "if not path.exists():"),
        "test_a_vocabulary_that_a_failed_start_left_behind_is_not_used",
    ),
    mutant(
        "weights/pretrained.py",
        "rotary-rows-the-wrong-way-back",
        ("where), (2, -1))", "where), (-1, 2))"),
        "test_smollm2.py::test_a_files_rows_become_the_models_rows",
    ),
    mutant(
        "weights/pretrained.py",
        "rotary-rows-as-published",
        (".flatten(0, 2) if heads else rows", ".flatten(0, 2) if False else rows"),
        "test_transformer.py::test_logits_equal_those_of_transformers[llama]",
    ),
    mutant(
        "weights/chat.py",
        "system-prompt-lost",
        ("tokenizer.with_system(system)", "tokenizer"),
        "test_checkpoint.py::test_the_system_prompt_comes_back",
    ),
    mutant(
        "lab/evaluation.py",
        "closed-form-with-the-kl-swapped",
        ("(rho.gather(1, picks) / rho_sft.gather(1, picks))", "(rho_sft.gather(1, picks) / rho.gather(1, picks))"),
        "test_listed_rewrites_are_drawn_from_the_table_for_the_first_requests",
    ),
    mutant(
        "lab/evaluation.py",
        "fewer-inputs-compared-with-all",
        ("base.reward[:n].mean((1, 2))  # (n,)", "base.reward.mean()  # (n,)"),
        "test_an_arm_over_fewer_inputs_is_compared_on_its_own_inputs",
    ),
    mutant(
        "lab/cli.py",
        "type-from-the-presets-value",
        ("_parse(text, f.default)", "_parse(text, reduce(getattr, name.split('.'), base))"),
        "test_config.py::test_values_become_the_type_of_their_field",
    ),
)

# ---------------------------------------------------------------- configuration, files, world, evaluation, runs

UNKNOWN = "test_config.py::test_an_unknown_option_is_an_error_that_names_the_nearest"
REFUSED = "test_config.py::test_what_cannot_be_is_refused_in_one_line"
LEAK = "test_no_evaluation_request_reaches_the_training_data"
TO_THE_BIT = "test_weights_moments_and_generator_come_back_to_the_bit"
BY_HAND = "test_gap_closed_variance_ratio_and_differences_by_hand"

MUTANTS += (
    # config typo silently ignored; an impossible combination found only after the training
    mutant(
        "lab/cli.py",
        "unknown-option-ignored",
        ('raise UserError(f"unknown option --{name}{_hint(name, known)}")', "continue"),
        UNKNOWN,
    ),
    mutant(
        "lab/cli.py",
        "unknown-argument-ignored",
        ("for word in unknown:", "for word in []:"),
        UNKNOWN,
        "test_config.py::test_an_option_is_not_abbreviated_and_a_stray_word_is_refused",
    ),
    mutant(
        "lab/cli.py",
        "whole-never-validated",
        (".validate() for t in tasks", " for t in tasks"),
        f"{REFUSED}[argv16---eval.inputs is 601, but --world.eval_requests keeps only 600]",
    ),
    _ppo(
        "more-minibatches-than-rows",
        ("require(parts <= rows, f", "require(True, f"),
        "test_config.py::test_impossible_values_stop_at_once_not_after_the_training",
    ),
    # the split leaks evaluation requests; the loader ignores the seed
    mutant(
        "worlds/files.py",
        "eval-requests-trained-on",
        ("requests[eval_inputs:]", "requests"),
        "test_the_split_has_no_overlap_and_counts_what_it_left_out",
        LEAK,
    ),
    mutant(
        "worlds/files.py",
        "eval-requests-in-the-preferences",
        ("if x and x not in left_out and a != b", "if x and a != b"),
        LEAK,
    ),
    mutant(
        "worlds/files.py",
        "eval-requests-in-the-rewrites",
        ("if x and x not in held_out][:count]", "if x][:count]"),
        LEAK,
    ),
    mutant(
        "worlds/files.py",
        "dialogues-hide-eval-requests",
        ('((single_turn(row["prompt"]), row[field])', '((row["prompt"], row[field])'),
        LEAK,
    ),
    mutant(
        "worlds/files.py",
        "split-ignores-the-seed",
        ('random.Random(f"requests {seed}")', "random.Random(0)"),
        "test_two_seeds_split_differently_and_one_seed_the_same",
    ),
    mutant(
        "worlds/sentences.py",
        "an-end-is-invented",
        ("Truncated(text[: ends[-1]]) if ends", "text[: ends[-1]] if ends"),
        "test_where_the_last_whole_sentence_ends",
    ),
    mutant(
        "worlds/sentences.py",
        "a-list-number-ends-a-sentence",
        (r"(?:(?<!\s\d)(?<!^\d)\.|[!?])", "[.!?]"),
        "test_where_the_last_whole_sentence_ends",
    ),
    mutant(
        "worlds/sentences.py",
        "rewards-beside-other-requests",
        ("score([prompts[i] for i in kept],", "score(list(prompts)[: len(kept)],"),
        "test_each_answer_keeps_its_request",
    ),
    mutant(
        "worlds/sentences.py",
        "an-empty-answer-is-unfinished",
        ("if y or not isinstance(y, Truncated)]", "if y]"),
        "test_a_text_without_a_whole_sentence_gets_the_low_reward",
    ),
    mutant(
        "experiments/listing.py",
        "described-by-the-half-that-chose",
        ("under(optimum(chose, lam), rates)", "under(optimum(rates, lam), rates)"),
        "test_the_half_that_chose_does_not_describe",
    ),
    mutant(
        "experiments/listing.py",
        "later-answers-from-the-plain-request",
        ("for which in (endings, 0))", "for which in (0, 0))"),
        "test_a_later_measurement_of_a_known_ratio",
    ),
    mutant(
        "experiments/listing.py",
        "a-prediction-without-the-noise-of-the-evaluation",
        (" * noise / noise.mean()", ""),
        "test_the_prediction_interval_is_wider_than_the_listings_own_and_holds_the_noise_of_the_evaluation",
    ),
    mutant(
        "experiments/listing.py",
        "seeds-in-the-units-of-the-first",
        ("for listing, u in zip(listings, units)]", "for listing, u in zip(listings, units[:1] * len(units))]"),
        "test_several_seeds_are_described_together_each_reward_in_its_own_units",
    ),
    mutant(
        "worlds/gold.py",
        "long-sentences-are-good",
        ('- z(m, "length")', '+ z(m, "length")'),
        "test_the_formula_with_equal_weights_and_its_scales",
    ),
    mutant("worlds/gold.py", "common-words-are-a-topic", (" if word not in COMMON}", "}"), "test_measures_by_hand"),
    mutant(
        "training.py",
        "steps-in-bfloat16",
        ("p.data = p.data.float()", "pass"),
        "test_precision.py::test_what_trains_has_float32_weights_and_computes_as_before[llama]",
    ),
    mutant(
        "ppo.py",
        "ratios-to-the-samplers-own-log-probs",
        ('found["logp"] = ours', 'found["values"] = 0 * ours'),
        "test_precision.py::test_the_first_ratios_are_1_and_the_kl_starts_at_0",
    ),
    mutant(
        "ppo.py",
        "the-policy-is-rounded-to-sample",
        ("copy.deepcopy(lm).to(lm.embed", "lm.to(lm.embed"),
        "test_precision.py::test_the_first_ratios_are_1_and_the_kl_starts_at_0",
    ),
    mutant(
        "reward.py",
        "a-mean-over-padding",
        ("(hidden * mask[..., None]).float().sum(1) / mask", "hidden.float().sum(1) / mask"),
        "test_the_mean_of_the_rows_states_whoever_shares_the_batch[1]",
    ),
    mutant(
        "experiments/summary.py",
        "each-seeds-level-enters",
        ("run[name] - centre * run[name].mean()", "run[name]"),
        "test_the_ratio_is_that_of_the_mean_variances_and_no_seeds_level_enters",
    ),
    mutant(
        "experiments/summary.py",
        "a-share-of-no-gain",
        ("if np.quantile(resampled[1], 0.025) > 0:", "if True:"),
        "test_a_share_of_an_oracle_that_gains_nothing_is_none",
    ),
    mutant(
        "reward.py",
        "loaded-weights-are-rounded",
        ("        training.trainable(lm, train_layers)  # their dtype, also where finished weights are loaded\n", ""),
        "test_precision.py::test_a_reward_model_rates_the_same_after_it_is_loaded",
    ),
    mutant(
        "lab/optimum.py",
        "answers-to-one-request-counted-as-independent",
        ("self.r.mean(2).T[None]", "self.r.transpose(0, 1).flatten(1)[None]"),
        "test_listing.py::test_pooled_answers_make_one_table_for_all_requests",
    ),
    mutant(
        "lab/assess.py",
        "answers-sampled-in-another-way",
        ('"dtype", "sampling", "world"', '"dtype", "world"'),
        "test_listing.py::test_the_answers_of_a_real_model_serve_every_reward_but_no_other_sampling",
    ),
    mutant(
        "lab/assess.py",
        "answers-for-one-reward-only",
        ("place = Run(replace(c, name", "place = Run(replace(config, name"),
        "test_listing.py::test_the_answers_of_a_real_model_serve_every_reward_but_no_other_sampling",
    ),
    # ------------------------------------------------------------ models behind an API, and in use
    mutant(
        "remote/client.py",
        "every-draw-is-the-same-answer",
        ("for name in self.__slots__}", 'for name in self.__slots__ if name != "draw"}'),
        "test_remote.py::test_repeated_prompts_get_independent_answers_that_a_resumed_run_finds_again",
    ),
    mutant(
        "remote/client.py",
        "the-budget-forgets-what-is-under-way",
        ("self._reserved += question.most_tokens", "pass"),
        "test_remote.py::test_a_budget_holds_for_requests_under_way_together",
    ),
    mutant(
        "remote/client.py",
        "an-error-is-paid-for-by-all",
        ("self._stop.set()  # the others", "pass  # the others"),
        "test_remote.py::test_each_failure_that_stays_is_one_clear_line[404-is 'm' a model of this server?]",
    ),
    mutant(
        "remote/client.py",
        "half-a-reply-ends-the-run",
        ("for attempt in range(1 + self.config.retries):", "for attempt in range(1):"),
        "test_remote.py::test_200_faults_lose_no_answer_and_none_is_paid_for_twice",
    ),
    mutant(
        "remote/client.py",
        "answers-in-the-order-of-arrival",
        ("return [self._known[key] for key in keys]", "return list(self._known.values())[-len(keys) :]"),
        "test_remote.py::test_answers_come_in_the_order_of_the_questions_and_are_paid_for_once",
    ),
    mutant(
        "remote/client.py",
        "the-key-is-printed",
        ('return told.replace(self._key, "...") if len(self._key) >= 8 else told', "return told"),
        "test_remote.py::test_a_server_that_repeats_the_key_does_not_get_it_printed",
    ),
    mutant(
        "remote/lm.py",
        "one-order-only",
        ('ours="AB"[i % 2]', 'ours="A"'),
        "test_remote.py::test_a_judge_asks_both_orders_and_compares_with_the_plain_answer",
    ),
    mutant(
        "remote/proxy.py",
        "an-earlier-turn-is-rewritten",
        ("messages[users[-1]].get", "messages[users[0]].get"),
        ("if i == users[-1] else m", "if i == users[0] else m"),
        "test_use.py::test_what_of_a_turn_is_rewritten",
    ),
    mutant(
        "remote/proxy.py",
        "no-off-switch",
        ("if off else self._rewrite", "if False else self._rewrite"),
        "test_use.py::test_the_openai_client_talks_through_the_proxy",
    ),
    mutant(
        "weights/chat.py",
        "control-tokens-as-text",
        ("[[self._special[part]] if part in self._special else self._encode(part)", "[self._encode(part)"),
        "test_chat.py::test_chatml_by_its_template",
    ),
    mutant(
        "weights/chat.py",
        "the-end-of-a-text-ends-an-answer",
        ("end if found is None else found", "end"),
        (
            'end = tokenizer.backend.token_to_id(names.get("eos_token", ""))',
            'end = tokenizer.backend.token_to_id("<|end_of_text|>")',
        ),
        "test_chat.py::test_headers_by_their_template",
    ),
    mutant(
        "transformer.py",
        "slow-rotations-stay",
        ("frequency * (keep + (1 - keep) / factor)", "frequency * (keep + (1 - keep))"),
        f"{LOGITS}[llama3]",
    ),
    mutant(
        "guards.py",
        "a-translation-is-sent",
        ('return "content"', "pass"),
        "test_objections[Comment puis-je planter des légumes chez moi ?-content]",
    ),
    mutant(
        "guards.py",
        "one-outlier-ends-a-training",
        ("least = {key: min(", "least = {key: max("),
        "test_a_training_that_runs_away[changed1-the KL is above 100 nats]",
    ),
    mutant(
        "lab/run.py",
        "a-resumed-stage-forgets-that-it-ended",
        ('self.run.config.stop and any("stopped" in row for row in self._ppo)', "False"),
        "test_guards.py::test_a_killed_stage_ends_at_the_same_step[8]",
    ),
    mutant(
        "lab/processes.py",
        "shares-are-averaged-away",
        ("return total * self.processes, parts", "return total, parts"),
        "test_the_update_is_that_of_one_process",
    ),
    mutant(
        "lab/processes.py",
        "every-process-does-it-all",
        ("index[self.rank :: self.processes] if self._updating else index", "index"),
        "test_the_update_is_that_of_one_process",
    ),
    mutant(
        "lab/processes.py",
        "all-processes-sample-alike",
        ("seed * self.processes + self.rank", "seed"),
        "test_the_update_is_that_of_one_process",
    ),
    mutant(
        "lab/assess.py",
        "rated-against-the-rewrite",
        (
            'return [row["x"] for row in rows for _ in row["y"]]',
            'return [row["rewrites"][0] + "!" for row in rows for _ in row["y"]]',
        ),
        "test_listing.py::test_answers_are_rated_against_the_request_and_keep_their_missing_end",
    ),
    mutant(
        "lab/assess.py",
        "the-missing-end-is-forgotten",
        ("[Answer(y, cut).text for row", "[y for row"),
        "test_listing.py::test_answers_are_rated_against_the_request_and_keep_their_missing_end",
    ),
    mutant(
        "lab/assess.py",
        "a-resumed-listing-draws-again",
        ("world.train_requests[len(rows) : count]", "world.train_requests[:count]"),
        "test_listing.py::test_a_listing_that_was_killed_goes_on_and_ends_the_same",
    ),
    mutant(
        "lab/assess.py",
        "one-draw-for-all-requests",
        ('place.generator(f"listing {len(rows)}")', 'place.generator("listing")'),
        "test_listing.py::test_every_request_has_draws_of_its_own",
    ),
    mutant(
        "worlds/everyday.py",
        "held-out-topics-are-trained-on",
        ("requests_about(TOPICS), ", "requests_about(TOPICS + UNSEEN_TOPICS), "),
        "test_thousands_of_requests_and_the_held_out_ones_are_about_other_topics",
    ),
    mutant(
        "worlds/everyday.py",
        "everyday-seed-ignored",
        ('random.Random(f"everyday {seed}")', "random.Random(0)"),
        "test_thousands_of_requests_and_the_held_out_ones_are_about_other_topics",
    ),
    mutant(
        "worlds/everyday.py",
        "a-rewrite-that-is-not-listed",
        ("rng.choice(self.rewrites(x))", 'rng.choice(["Please. " + x, *self.rewrites(x)])'),
        "test_every_rewrite_to_imitate_is_listed_and_each_ending_comes_as_often",
    ),
    mutant(
        "worlds/everyday.py",
        "rewrites-beside-other-requests",
        ("zip(requests[::each], rewrites)", "zip(requests, rewrites)"),
        "test_rewrites_that_keep_the_request_are_counted",
    ),
    mutant(
        "worlds/toy.py",
        "world-split-leaks",
        ("[x for x in requests if x not in held_out]", "list(requests)"),
        "test_enough_distinct_requests_and_a_clean_split",
    ),
    mutant(
        "worlds/toy.py",
        "world-ignores-the-seed",
        ('random.Random(f"requests {seed}")', "random.Random(0)"),
        "test_one_seed_one_world_two_seeds_two_worlds",
    ),
    mutant(
        "worlds/toy.py",
        "corpus-from-eval-requests",
        ("rng.choice(self.corpus_requests)", "rng.choice(self.eval_requests)"),
        "test_corpus_and_rewrite_pairs_use_training_requests_only",
    ),
    mutant(
        "worlds/toy.py",
        "unseen-towns-are-seen",
        ('if self.fills[x].get("town") not in unseen]', "]"),
        "test_unseen_towns_are_read_about_by_the_frozen_lm_alone[quality]",
    ),
    # the gold reward
    mutant(
        "worlds/sums.py",
        "clock-wraps-to-zero",
        ("(a + n - 1) % 12 + 1", "(a + n) % 12"),
        "test_every_sum_of_the_world_is_what_its_english_says",
    ),
    mutant(
        "worlds/sums.py",
        "first-number-counts",
        ("stated[-1] ==", "stated[0] =="),
        "test_reasoning_by_hand_with_the_turn_past_twelve",
    ),
    mutant(
        "worlds/towns.py",
        "repeating-pays",
        (" and SENTENCES[sentence][0] not in seen:", ":"),
        "test_quality_by_hand[a fact repeated is malformed]",
    ),
    mutant(
        "worlds/towns.py",
        "facts-of-another-town-pay",
        ("for ok, _ in seen.values()) if on_topic else 0", "for ok, _ in seen.values())"),
        "test_quality_by_hand[no town named]",
    ),
    mutant(
        "worlds/towns.py",
        "verbosity-pays",
        ('"verbosity": -0.4', '"verbosity": 0.4'),
        "test_attributes_by_hand[three fillers]",
    ),
    mutant(
        "worlds/sums.py",
        "direct-answers-taught-wrong",
        (
            "shows {fill['shown'][-1]}.\"\n        if",
            "shows {fill['shown'][-1] if rng.random() < 0.9 else 12}.\"\n        if",
        ),
        "test_the_corpus_never_teaches_a_wrong_sum_whether_worked_or_not",
    ),
    # evaluation: the winner's first answer counted; r(x', y); the wrong divisor; unpaired intervals
    mutant(
        "lab/evaluation.py",
        "best-of-n-counts-the-winning-answer",
        (
            "        bound = np.full(",
            "        reward = first.max(1).values.numpy().astype(float).reshape(-1, K, 1).repeat(self.config.answers, 2)\n        bound = np.full(",
        ),
        "test_best_of_n_counts_fresh_answers_not_the_winning_ones",
        "test_best_of_n_of_pure_noise_gains_nothing",
    ),
    mutant(
        "lab/evaluation.py",
        "best-of-n-takes-the-first",
        ("view(-1, n).argmax(1).tolist()", "view(-1, n).argmax(1).mul(0).tolist()"),
        "test_best_of_n_picks_by_the_first_answers",
    ),
    mutant(
        "lab/evaluation.py",
        "reward-sees-the-rewrite",
        ("np.asarray(self.reward(x, y)", "np.asarray(self.reward(asked, y)"),
        "test_the_prompters_rewrites_reach_the_model_and_the_request_reaches_the_reward",
    ),
    mutant(
        "lab/evaluation.py",
        "gold-sees-the-rewrite",
        ("np.array(self.gold(x, y)", "np.array(self.gold(asked, y)"),
        "test_the_true_reward_sees_the_request_and_never_the_rewrite",
    ),
    mutant(
        "lab/evaluation.py",
        "variance-divided-by-n",
        ("float(arm.reward.var(ddof=1))", "float(arm.reward.var())"),
        BY_HAND,
    ),
    mutant(
        "lab/statistics.py",
        "inputs-divided-by-n",
        (".sum() / (N - 1)", ".sum() / N"),
        "test_variance_parts_by_hand",
        "test_variance_parts_find_the_parts_that_made_the_data_and_are_unbiased",
    ),
    mutant(
        "lab/statistics.py",
        "within-divided-by-n",
        ("(N * K * (M - 1))", "(N * K * M)"),
        "test_variance_parts_by_hand",
        "test_variance_parts_against_anova_by_loops",
    ),
    mutant(
        "lab/statistics.py",
        "noise-counted-as-rewrites",
        ("(ms_rewrites - ms_within) / M", "ms_rewrites / M"),
        "test_variance_parts_by_hand",
        "test_headroom_is_none_when_the_reward_ignores_the_rewrite",
    ),
    mutant(
        "lab/statistics.py",
        "between-inputs-not-corrected",
        ("(ms_inputs - ms_rewrites) / (K * M)", "ms_inputs / (K * M)"),
        "test_variance_parts_by_hand",
    ),
    mutant(
        "lab/statistics.py",
        "no-part-is-negative",
        ("float(rewrites)", "max(float(rewrites), 0.0)"),
        "test_variance_parts_find_the_parts_that_made_the_data_and_are_unbiased",
    ),
    mutant(
        "lab/statistics.py",
        "interval-of-ninety-percent",
        (
            "return interval(resampled_moments(per_input[:, None, None], resamples, groups)[0])",
            "means = resampled_moments(per_input[:, None, None], resamples, groups)[0]\n"
            "    return [float(q) for q in np.quantile(means, (0.05, 0.95))]",
        ),
        "test_bootstrap_agrees_with_the_normal_interval",
    ),
    mutant(
        "lab/statistics.py",
        "interval-of-twice-the-inputs",
        ("resampled_moments(per_input[:, None", "resampled_moments(np.tile(per_input, 2)[:, None"),
        "test_bootstrap_covers_the_truth_about_95_times_in_100",
        "test_bootstrap_agrees_with_the_normal_interval",
    ),
    mutant(
        "lab/statistics.py",
        "interval-of-the-values",
        ("interval(resampled_moments(per_input[:, None, None], resamples, groups)[0])", "interval(per_input)"),
        "test_bootstrap_agrees_with_the_normal_interval",
    ),
    mutant(
        "lab/evaluation.py",
        "unpaired-interval",
        ("bootstrap_interval(difference", "bootstrap_interval(arm.reward.mean((1, 2))"),
        BY_HAND,
    ),
    mutant(
        "lab/statistics.py",
        "bootstrap-resamples-half",
        ("multinomial(n, np.full", "multinomial(2 * n, np.full"),
        "test_bootstrap_covers_the_truth_about_95_times_in_100",
        "test_bootstrap_agrees_with_the_normal_interval",
    ),
    mutant("lab/statistics.py", "ties-are-wins", ("tie.mean(1) / 2,", "tie.mean(1),"), "test_win_rate_by_hand"),
    mutant("lab/statistics.py", "ties-are-losses", ("+ tie.mean(1) / 2,", ","), "test_win_rate_by_hand"),
    mutant(
        "lab/statistics.py",
        "rounding-decides-ties",
        ("np.isclose(a, b, rtol=0, atol=1e-9)", "a == b"),
        "test_win_rate_by_hand",
    ),
    mutant(
        "lab/statistics.py",
        "ties-of-large-rewards",
        ("np.isclose(a, b, rtol=0, atol=1e-9)", "np.isclose(a, b)"),
        "test_a_tie_is_a_tie_at_any_size_of_the_rewards",
    ),
    mutant(
        "lab/evaluation.py",
        "headroom-of-the-lucky-answers",
        ("picked, M // 2 :]", "picked, : M // 2]"),
        "test_headroom_is_none_when_the_reward_ignores_the_rewrite",
    ),
    mutant(
        "lab/evaluation.py",
        "headroom-picked-by-every-answer",
        ("rewards[:, :, : M // 2].mean(2)", "rewards.mean(2)"),
        "test_headroom_is_none_when_the_reward_ignores_the_rewrite",
    ),
    mutant(
        "lab/evaluation.py",
        "headroom-of-every-request",
        ("evaluator.requests[: evaluator.config.headroom_inputs]", "evaluator.requests"),
        "test_headroom_looks_at_no_more_requests_than_asked",
    ),
    mutant(
        "lab/evaluation.py",
        "icc-of-the-whole-variance",
        ('spread / max(spread + parts["within"], 1e-12)', "spread / max(sum(parts.values()), 1e-12)"),
        "test_the_icc_leaves_the_inputs_out",
    ),
    mutant(
        "lab/evaluation.py",
        "icc-below-zero",
        ('spread = max(parts["between_rewrites"], 0.0)', 'spread = parts["between_rewrites"]'),
        "test_the_icc_leaves_the_inputs_out",
    ),
    _generation(
        "scorer-states-one-to-the-right",
        ("model.hidden(ids)[:, :-1][action]", "model.hidden(ids)[:, 1:][action]"),
        "test_evaluation.py::test_sequence_kl_against_each_row_alone",
        "test_scorer_gives_the_samplers_log_probs",
    ),
    _generation(
        "scorer-ignores-the-temperature",
        ("model.unembed(s), temperature, top_p)", "model.unembed(s))"),
        "test_evaluation.py::test_sequence_kl_against_each_row_alone",
        "test_scorer_gives_the_samplers_log_probs",
    ),
    _generation(
        "scorer-forgets-the-order",
        ("found[chunk] = logp", "found[sorted(chunk)] = logp"),
        "test_scorer_gives_the_samplers_log_probs",
    ),
    _generation(
        "scorer-takes-the-mean",
        ("found[chunk] = logp.sum(1).cpu()", "found[chunk] = (logp.sum(1) / action.sum(1).clamp(min=1)).cpu()"),
        "test_evaluation.py::test_sequence_kl_against_each_row_alone",
        "test_scorer_gives_the_samplers_log_probs",
    ),
    _generation(
        "scorer-lets-the-lists-differ",
        ("zip(prompts, completions, strict=True)", "zip(prompts, completions)"),
        "test_bad_prompts_are_refused_by_number",
    ),
    mutant(
        "lab/evaluation.py",
        "kl-of-arms-swapped",
        ("(ours - theirs)", "(theirs - ours)"),
        "test_sequence_kl_against_each_row_alone",
        "test_sequence_kl_averages_to_the_enumerated_kl",
    ),
    mutant(
        "lab/run.py",
        "freed-memory-kept",
        ("        trim(0)", "        pass"),
        "test_memory_that_a_step_freed_goes_back_to_the_system",
    ),
    # runs: a stage redone; a resume without the optimiser or the random stream; log lines twice, or lost
    mutant(
        "lab/run.py",
        "stage-redone",
        ("if name in self.stages:", "if False:"),
        "test_a_finished_stage_is_loaded_not_done_again",
    ),
    mutant(
        "lab/run.py",
        "resume-without-the-optimiser",
        ('thing.load_state_dict({"state": state, "param_groups": saved["groups"][str(i)]})', "pass"),
        TO_THE_BIT,
    ),
    mutant("lab/run.py", "resume-without-the-generator", ('thing.set_state(mine["state"])', "pass"), TO_THE_BIT),
    mutant(
        "lab/run.py",
        "log-lines-twice",
        ('self.run.forget_after(self.name, saved["step"])', "pass"),
        "test_restore_drops_the_log_after_the_state",
    ),
    mutant(
        "lab/run.py",
        "samples-twice",
        ("self.forget_after(name, -1)", "pass"),
        "test_a_stage_without_a_state_starts_with_a_clean_log",
    ),
    mutant(
        "lab/run.py",
        "odd-line-breaks-cut-the-log",
        ('.removesuffix("\\n").split("\\n")', ".splitlines()"),
        "test_a_text_with_odd_line_breaks_is_one_row",
    ),
    mutant(
        "lab/run.py",
        "other-options-resumed",
        ("if changed:", "if False:"),
        "test_other_options_on_resume_are_named_and_nothing_is_overwritten",
    ),
    mutant(
        "lab/run.py",
        "nan-logged",
        ("raise FloatingPointError(f", "print(f"),
        "test_a_metric_that_is_not_finite_stops_the_run_by_name",
    ),
    mutant(
        "weights/tensors.py",
        "json-written-in-place",
        ('beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")', "beside = path"),
        "test_run.py::test_write_json_killed_before_the_rename_keeps_the_old_file",
    ),
    # defects that this project once had (tests/test_regressions.py)
    mutant(
        "lab/evaluation.py",
        "constant-reward-divides-by-zero",
        ("not base.std() > 1e-9 * max(1.0, float(np.abs(base).max()))", "not base.std() > 0"),
        "test_regressions.py::test_a_constant_reward_of_no_fine_tuning_does_not_end_the_run",
    ),
    # a reward that does not read x; a truncated answer with an EOS that nobody wrote
    _reward(
        "eos-on-a-truncated-answer",
        ("answer_ids[:-1] if isinstance(completion, Truncated) else answer_ids", "answer_ids"),
        "test_a_truncated_answer_is_read_at_its_last_token_without_an_eos",
    ),
    mutant(
        "frozen.py",
        "a-truncated-answer-is-a-plain-text",
        ("        if self.truncated:\n", "        if False:\n"),
        "test_reward.py::test_a_truncated_answer_is_read_at_its_last_token_without_an_eos",
    ),
    _reward(
        "mismatched-pairs-held-out",
        ("if p.prompt in kept_out and not p.mismatched]", "if p.prompt in kept_out]"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    _reward(
        "mismatched-pairs-teach-nothing",
        ("if p.prompt not in kept_out], heldout", "if p.prompt not in kept_out and not p.mismatched], heldout"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    _reward(
        "mismatched-pairs-move-the-split",
        ("{p.prompt for p in pairs if not p.mismatched}", "{p.prompt for p in pairs}"),
        "test_mismatched_pairs_teach_but_are_not_held_out",
    ),
    _reward(
        "equal-texts-count-as-swaps",
        ("strict=True) if y != other]\n    if not kept", "strict=True)]\n    if not kept"),
        "test_swap_accuracy_by_hand",
    ),
    mutant(
        "worlds/towns.py",
        "a-swap-to-the-same-town",
        (' if town != fill["town"]]', "]"),
        "test_toyworld.py::test_a_swapped_answer_belongs_to_another_request[quality]",
    ),
    # an oracle at another KL coefficient; a share of a gap that is not there
    mutant(
        "lab/cli.py",
        "the-oracle-keeps-its-own-options",
        ("(options | _oracle_options(options)).items()", "options.items()"),
        "test_config.py::test_the_oracle_is_the_same_ppo_unless_it_is_told_otherwise",
    ),
    mutant(
        "lab/evaluation.py",
        "a-share-of-a-gap-that-is-not-shown",
        ('["rlhf_oracle"]["difference"]["ci95"][0] > 0', '["rlhf_oracle"]["difference"]["mean"] > 0'),
        "test_gap_closed_is_not_told_without_an_oracle_or_when_it_gained_nothing",
    ),
    # intervals over answers instead of requests; an optimum that rates itself; more answers for the worst rewrites
    mutant(
        "lab/statistics.py",
        "sums-of-squares-lose-their-square",
        ("(off**2).sum(1)", "(off.sum(1) ** 2)"),
        "test_resampled_moments_are_those_of_the_resampled_requests",
    ),
    mutant(
        "lab/statistics.py",
        "requests-of-a-topic-drawn-apart",
        ("slice(None) if alone else place", "np.arange(len(place)) % len(labels)"),
        "test_requests_of_one_group_are_drawn_together",
    ),
    mutant(
        "lab/statistics.py",
        "variance-without-its-mean",
        ("- size * mean**2)", ")"),
        "test_resampled_moments_are_those_of_the_resampled_requests",
    ),
    _optimum(
        "the-optimum-rated-by-the-answers-that-chose-it",
        (
            "for chose, rates in (listing.halves, listing.halves[::-1])",
            "for chose, rates in zip(listing.halves, listing.halves)",
        ),
        "test_the_truth_lies_between_the_two_optima",
    ),
    _optimum(
        "the-kl-of-one-rewrite-for-that-of-all",
        ("each).logsumexp(2)  # (N, S)\n    return float", "each).amax(2)  # (N, S)\n    return float"),
        "test_the_kl_of_the_answers_is_the_enumerated_one",
    ),
    mutant(
        "experiments/frontier_report.py",
        "matched-kl-from-the-reward",
        ('((p["rlhf_kl"], p["rlhf_mean"])', '((p["rlhf_mean"], p["rlhf_mean"])'),
        "test_frontier.py::test_the_oracle_is_met_at_equal_coefficient_and_at_equal_kl_of_answers",
    ),
    mutant(
        "theory.py",
        "the-reverse-optimum-is-the-forward-one",
        ("found = lam * rho_sft / (high + behind)", "found = rho_sft * (-behind / lam).exp()"),
        "test_experiments.py::test_the_reverse_optimum_beats_its_neighbours",
    ),
    mutant(
        "experiments/variance.py",
        "noise-of-R-passes-for-variance",
        (".mean() - noise\n", ".mean()\n"),
        "test_experiments.py::test_noise_in_R_does_not_pass_for_variance",
    ),
    _optimum(
        "the-answers-that-choose-count-too",
        ("best = rated(rewrites, PILOT)", "best = first"),
        "test_the_answers_that_choose_are_not_counted",
    ),
    _ppo(
        "the-kl-loss-weighs-more-beside-whitened-advantages",
        ("scale = 1 / max(self.advantage_std, 1e-4) if c.whitens else 1.0", "scale = 1.0"),
        "test_a_kl_loss_keeps_its_weight_beside_whitened_advantages",
    ),
    _optimum(
        "more-answers-for-the-worst-rewrites",
        ("topk(max(1, first.shape[1] // 3))", "topk(max(1, first.shape[1] // 3), largest=False)"),
        "test_the_best_third_gets_more_answers_and_every_table_counts_them",
    ),
    # advantages without a value head
    _rl("rloo-counts-itself", (" * K / (K - 1)", ""), "test_rloo_against_the_mean_of_the_others"),
    _rl(
        "grpo-divides-by-the-variance",
        ("(rewards.std(1, keepdim=True) + eps)", "(rewards.var(1, keepdim=True) + eps)"),
        "test_grpo_by_hand_with_and_without_its_standard_deviation",
    ),
    _rl(
        "groups-across-prompts",
        ("total.view(-1, group)", "total.view(group, -1).T"),
        "test_every_token_gets_the_advantage_of_its_completion[rloo]",
    ),
    _rl(
        "reinforce-plus-plus-without-what-follows",
        ("torch.zeros_like(rewards), mask, 1.0, 1.0)[0]", "torch.zeros_like(rewards), mask, 1.0, 0.0)[0]"),
        "test_reinforce_plus_plus_sums_the_rewards_from_each_token_on",
    ),
    _rl(
        "the-ratio-of-a-row-is-a-sum",
        ("masked_mean(log_ratio, mask, dim=1)", "log_ratio.sum(1)"),
        "test_one_ratio_a_row_is_the_geometric_mean_of_its_tokens",
        "test_the_gradient_of_one_ratio_a_row_is_that_of_the_whole_sequence",
    ),
    _ppo(
        "the-value-head-trains-without-gae",
        ('        if c.advantage == "gae":  # the others', "        if True:  # the others"),
        "test_without_gae_the_value_head_does_not_train[rloo]",
    ),
    _ppo(
        "the-kl-penalty-counts-twice",
        ('coef = self.kl_coef if self.config.kl_placement == "reward" else 0.0', "coef = self.kl_coef"),
        "test_the_kl_penalty_is_in_the_reward_or_in_the_loss[k1]",
    ),
    _ppo(
        "more-prompts-than-the-batch-has",
        ("(c.batch_size // K,)", "(c.batch_size,)"),
        "test_a_batch_holds_each_prompt_k_times_side_by_side",
    ),
    mutant(
        "weights/tensors.py",
        "one-temporary-name-for-all",
        ('f".{path.name}.{os.getpid()}.tmp"', 'f".{path.name}.tmp"'),
        "test_regressions.py::test_two_processes_may_write_one_file",
    ),
    _sft(
        "held-out-prompts-trained-on",
        (" if tuple(example[0]) not in prompts]", "]"),
        "test_regressions.py::test_no_held_out_prompt_is_trained_on",
    ),
    mutant(
        "lab/run.py",
        "silent-between-tenths",
        (" or now - printed >= 60", ""),
        "test_regressions.py::test_without_a_terminal_a_line_is_printed_every_tenth_and_every_minute[40-61.0-40]",
    ),
    _ppo(
        "penalty-in-the-score",
        ("        return scores\n", "        return scores - self.config.missing_eos_penalty * (~rollout.finished)\n"),
        "test_regressions.py::test_the_mean_score_holds_no_penalty",
    ),
    _ppo(
        "no-penalty-for-a-missing-eos",
        ("rollout.scores - self.config.missing_eos_penalty * (~rollout.finished)", "rollout.scores"),
        "test_the_missing_eos_penalty_knows_a_custom_stop_token",
    ),
    mutant(
        "alignpro.py",
        "answers-measured-without-eos",
        ("[len(a.tokens) for a", "[len(a.tokens) - 1 for a"),
        "test_regressions.py::test_rewrites_and_answers_are_measured_alike",
    ),
    mutant(
        "lab/cli.py",
        "every-value-error-is-shortened",
        ("except (UserError, OSError", "except (ValueError, OSError"),
        "test_regressions.py::test_only_what_a_user_can_mend_is_shortened_to_a_line",
    ),
    _rollout(
        "rows-of-some-fields",
        ("value and [value[i] for i in index.tolist()]", "value"),
        "test_regressions.py::test_rows_of_a_rollout_are_rows_of_every_field",
    ),
    _generation(
        "all-logits-at-once",
        ("max(1, 2**24 // model.config.vocab_size)", "10**9"),
        "test_regressions.py::test_logits_of_a_large_vocabulary_are_made_a_few_tokens_at_a_time",
    ),
    mutant(
        "weights/pretrained.py",
        "a-saved-model-is-overwritten",
        ("    check_new(directory)\n", ""),
        "test_a_folder_that_holds_files_is_not_overwritten",
    ),
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

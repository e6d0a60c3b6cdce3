"""Results of runs that never were, for tables and plots."""

PNG = b"\x89PNG\r\n\x1a\n"


def arm(mean: float, variance: float, parts=(0.3, 0.1, 0.6), **more) -> dict:
    return {
        "mean": mean,
        "variance": variance,
        "variance_parts": dict(zip(("between_inputs", "between_rewrites", "within"), parts)),
        "ci95": [mean - 0.05, mean + 0.05],
        "variance_ci95": [variance - 0.1, variance + 0.1],
        "variance_within_requests": parts[1] + parts[2],
        "gold_mean": mean / 2,
        "gold_variance": 0.5,
        "gold_variance_ci95": [0.4, 0.6],
        "kl": 1.25,
        "win_rate": 0.62,
        "win_rate_ci95": [0.58, 0.66],
        "tie_rate": 0.11,
        "difference": None,
        "rewrite_length": 12.3,
        "answer_length": 45.6,
        "truncated": 0.07,
        "fallback_rate": 0.0,
    } | more


def make_results(
    base=1.0, pro=1.8, oracle: float | None = 2.0, ci=(0.7, 0.9), ratio=0.625, task="quality", seed=0
) -> dict:
    arms = {
        "no_finetuning": arm(base, 1.6, (0.4, 0.0, 1.2), kl=0.0, win_rate=None, tie_rate=None, rewrite_length=None),
        "untrained_prompter": arm(base + 0.1, 1.7, difference={"mean": 0.1, "ci95": [-0.1, 0.3]}),
        "align_pro": arm(pro, 1.0, (0.35, 0.05, 0.6), difference={"mean": pro - base, "ci95": list(ci)}),
    }
    if oracle is not None:
        arms["rlhf_oracle"] = arm(oracle, 1.3, difference={"mean": oracle - base, "ci95": [0.9, 1.1]})
    return {
        "task": task,
        "preset": "laptop",
        "seed": seed,
        "n_eval": 500,
        "arms": arms,
        "variance_ratio": ratio,
        "variance_ratio_ci95": None if ratio is None else [ratio - 0.1, ratio + 0.1],
        "gold_variance_ratio": 0.8,
        "gold_variance_ratio_ci95": [0.7, 1.1],
        "variance_ratio_within_requests": 0.42,
        "variance_ratio_within_requests_ci95": [0.36, 0.48],
        "gold_variance_ratio_within_requests": 0.93,
        "gold_variance_ratio_within_requests_ci95": [0.84, 1.07],
        "gap_closed": None if oracle is None else (pro - base) / (oracle - base),
        "gap_closed_ci95": None if oracle is None else [0.75, 0.85],
        "difference_to_oracle": None if oracle is None else {"mean": pro - oracle, "ci95": [-0.3, -0.1]},
        "kl_coef": {"ppo": 0.1, "oracle": 0.1},
        "judge": "gold",
        "wall_s": {"frozen_lm": 70.0, "align_pro": 50.0},
        "reward_model": {
            "accuracy": 0.712,
            "accuracy_ci95": None,
            "ceiling": 0.781,
            "always_longer": 0.553,
            "length_matched": None,
            "length_matched_pairs": 0,
            "truncated_accuracy": None,
            "swap_accuracy": {"subject": 0.941, "wish": 0.874},
            "swap_ceiling": {"subject": 0.952, "wish": 1.0},
        },
        "headroom": {
            "icc": 0.123,
            "between_rewrites": 0.12,
            "within": 0.86,
            "between_inputs": 0.3,
            "best_rewrite_gain": 0.44,
        },
        "config": {"ppo": {"lr": 1e-4}, "note": "</pre><b>"},
    }


def with_fixed(
    results: dict, over=(0.25, 0.125, 0.375), gold=(0.1, -0.05, 0.25), share: tuple | None = (0.9, 0.8, 1.0)
) -> dict:
    """The same results with a fixed rewrite; Align-Pro's lead over it, also of the gold reward, and the share of what
    reading the request can gain: value, low and high end of the interval."""
    lead = over[0]
    results["arms"]["fixed_rewrite"] = arm(results["arms"]["align_pro"]["mean"] - lead, 1.2)
    found = {"x": "What is Ashby like?", "text": "What is Ashby like? Be precise.", "answers": 12345, "kind": 3}
    results["fixed_rewrite"] = found | {"rounds": []}
    for key, value in {"over_fixed": over, "gold_over_fixed": gold, "request_share": share}.items():
        results |= {key: value and value[0], f"{key}_ci95": value and list(value[1:])}
    return results

"""Known mistakes of theory.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "theory.py")

MUTANTS: tuple[Mutant, ...] = (
    of(
        "optimum-multiplied-by-lam",
        ("(rho_sft.log() + R / lam)", "(rho_sft.log() + R * lam)"),
        "test_the_optimum_by_hand",
        "test_nothing_beats_the_optimum_and_gradient_ascent_arrives_there",
    ),
    of(
        "objective-with-the-kl-swapped",
        ("lam * _kl_logs(rho, rho_sft.log()).mean()", "lam * _kl_logs(rho_sft, rho.log()).mean()"),
        "test_values_equal_sums_written_out",
        "test_master_identity_holds_for_every_prompter",
    ),
    of(
        "objective-without-lam",
        ("- lam * _kl_logs(rho, rho_sft.log()).mean()", "- _kl_logs(rho, rho_sft.log()).mean()"),
        "test_values_equal_sums_written_out",
    ),
    of(
        "objective-summed-over-inputs",
        (
            "(rho * R).sum(-1).mean() - lam * _kl_logs(rho, rho_sft.log()).mean()",
            "(rho * R).sum(-1).sum() - lam * _kl_logs(rho, rho_sft.log()).sum()",
        ),
        "test_values_equal_sums_written_out",
    ),
    of(
        "table-kl-nan-at-zero",
        ("return _kl_logs(p, q.log())", "return (p * (p.log() - q.log())).sum(-1)"),
        "test_total_variation_and_kl_by_hand",
    ),
    of(
        "table-kl-swapped",
        ("return _kl_logs(p, q.log())", "return _kl_logs(q, p.log())"),
        "test_total_variation_and_kl_by_hand",
    ),
    of(
        "table-kl-with-an-epsilon",
        ("return _kl_logs(p, q.log())", "return _kl_logs(p, q.clamp(min=1e-12).log())"),
        "test_total_variation_and_kl_by_hand",
    ),
    of(
        "optimum-without-rho-sft",
        ("_log_optimum(rho_sft, R, lam).exp()", "(R / lam).softmax(-1)"),
        "test_the_optimum_by_hand",
        "test_a_rewrite_that_is_never_offered_stays_so_and_a_small_price_does_not_overflow",
    ),
    of(
        "optimum-with-lam-upside-down",
        ("_log_optimum(rho_sft, R, lam).exp()", "_log_optimum(rho_sft, R, 1 / lam).exp()"),
        "test_the_optimum_by_hand",
        "test_nothing_beats_the_optimum_and_gradient_ascent_arrives_there",
    ),
    of(
        "optimum-overflows",
        (
            "return _log_optimum(rho_sft, R, lam).exp()",
            "weight = rho_sft * (R / lam).exp()\n    return weight / weight.sum(-1, keepdim=True)",
        ),
        "test_a_rewrite_that_is_never_offered_stays_so_and_a_small_price_does_not_overflow",
    ),
    of(
        "optimum-of-any-table",
        (
            "R, rho_sft = _tables(lam, R, rho_sft=rho_sft)\n    return _log_optimum(",
            "R, rho_sft = (torch.as_tensor(x, dtype=torch.float64) for x in (R, rho_sft))\n    return _log_optimum(",
        ),
        "test_tables_that_cannot_be_meant_are_refused",
    ),
    of(
        "gap-without-lam",
        ("lam * float(_kl_logs(rho, _log", "float(_kl_logs(rho, _log"),
        "test_master_identity_holds_for_every_prompter",
    ),
    of(
        "gap-with-the-kl-swapped",
        ("_kl_logs(rho, _log_optimum(rho_sft, R, lam))", "_kl_logs(_log_optimum(rho_sft, R, lam).exp(), rho.log())"),
        "test_master_identity_holds_for_every_prompter",
    ),
    of(
        "sharp-bound-counts-the-kls-twice",
        ("- lam * (kl_star + kl_back)", "- 2 * lam * (kl_star + kl_back)"),
        "test_no_bound_is_ever_violated",
    ),
    of(
        "sharp-bound-without-its-kls",
        ("- lam * (kl_star + kl_back)", "- lam * (kl_star + kl_back) * 0"),
        "test_the_bounds_are_not_idle",
    ),
    of(
        "half-the-total-variation",
        (".abs().sum(-1) / 2", ".abs().sum(-1) / 4"),
        "test_no_bound_is_ever_violated",
        "test_total_variation_and_kl_by_hand",
    ),
    of(
        "skewness-forgotten",
        ('"d_between_rewrites": expected(off**3)', '"d_between_rewrites": expected(off**2)'),
        "test_derivatives_along_eta_equal_finite_differences",
    ),
    of(
        "the-reverse-optimum-is-the-forward-one",
        ("rho = lam * rho_sft / (high + behind)", "rho = rho_sft * (-behind / lam).exp()"),
        "test_the_reverse_optimum_beats_its_neighbours",
    ),
)

"""Known mistakes of experiments/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

FRONTIER = "test_a_frontier_end_to_end_and_again_with_resume"
SHARED = "test_grid.py::test_every_cell_has_its_results_and_the_cells_of_a_model_share_its_arms"

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "experiments/frontier.py",
        "frontier-of-the-untrained-prompter",
        ("        ours = rated.under(rho_sft, rho)\n", "        ours = untrained\n"),
        FRONTIER,
    ),
    mutant(
        "experiments/frontier.py",
        "frontier-against-another-rewrite",
        ("float(rated.R[:, 0]", "float(rated.R[:, 1]"),
        FRONTIER,
    ),
    mutant(
        "experiments/frontier.py", "oracle-against-another-rewrite", ("- rated.R[:, 0]", "- rated.R[:, 1]"), FRONTIER
    ),
    mutant(
        "experiments/frontier.py",
        "best-of-n-rated-by-what-chose-it",
        (
            "rated_by = listing.r[:, :, : M // 2], listing.r[:, :, M // 2 :]",
            "rated_by = listing.r[:, :, : M // 2], listing.r[:, :, : M // 2]",
        ),
        "test_picks_are_rated_by_answers_that_did_not_choose_them",
    ),
    mutant(
        "experiments/frontier.py",
        "rlhf-in-other-units",
        ("pi_f, reward.train, None, many", "pi_f, reward.report, None, many"),
        "test_frontier.py::test_a_callable_is_drawn_in_the_units_of_lambda",
    ),
    mutant(
        "experiments/frontier.py",
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
        "experiments/frontier_report.py",
        "matched-kl-from-the-reward",
        ('((p["rlhf_kl"], p["rlhf_mean"])', '((p["rlhf_mean"], p["rlhf_mean"])'),
        "test_frontier.py::test_the_oracle_is_met_at_equal_coefficient_and_at_equal_kl_of_answers",
    ),
    mutant(
        "experiments/variance.py",
        "noise-of-R-passes-for-variance",
        (".mean() - noise\n", ".mean()\n"),
        "test_experiments.py::test_noise_in_R_does_not_pass_for_variance",
    ),
)

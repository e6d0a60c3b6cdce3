"""Known mistakes of experiments/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

FRONTIER = "test_a_frontier_end_to_end_and_again_with_resume"
SHARED = "test_every_cell_has_its_results_and_the_cells_of_a_model_share_its_arms"

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "experiments/study.py",
        "children-draw-the-common-figures",
        ("if results and not given.child:", "if results:"),
        "test_a_process_of_jobs_leaves_the_common_files_to_its_parent",
    ),
    mutant(
        "experiments/study.py",
        "not-what-the-guard-would-send",
        ("run.generator(purpose), run.config.guard)", "run.generator(purpose))"),
        "test_what_is_measured_is_what_the_guard_would_send",
    ),
    mutant(
        "experiments/study.py",
        "measured-in-other-units",
        ("self.reward.train, self.world.gold", "self.reward.report, self.world.gold"),
        "test_frontier.py::test_a_callable_is_drawn_in_the_units_of_lambda",
    ),
    mutant(
        "experiments/study.py",
        "options-of-another-step",
        ("for option in study.options:", "for option in [o for s in studies for o in s.options]:"),
        "test_of_several_steps_one_is_named",
    ),
    mutant(
        "experiments/frontier.py",
        "frontier-of-the-untrained-prompter",
        (
            "shared.rated.under(shared.rho_sft, shared.align_pro(run))",
            "shared.rated.under(shared.rho_sft, shared.rho_sft)",
        ),
        FRONTIER,
    ),
    mutant(
        "experiments/frontier.py",
        "frontier-against-another-rewrite",
        ("float(untrained.R[:, 0]", "float(untrained.R[:, 1]"),
        FRONTIER,
    ),
    mutant(
        "experiments/frontier.py", "oracle-against-another-rewrite", ("- rated.R[:, 0]", "- rated.R[:, 1]"), FRONTIER
    ),
    mutant(
        "experiments/frontier.py",
        "held-out-curve-rated-by-what-chose-it",
        ("theory.value(star, rates.nanmean(2))", "theory.value(star, chose.nanmean(2))"),
        "test_the_two_curves_lie_on_either_side_of_the_truth",
    ),
    mutant(
        "experiments/frontier.py",
        "matched-kl-from-the-reward",
        ('((p["rlhf_kl"], p["rlhf_mean"])', '((p["rlhf_mean"], p["rlhf_mean"])'),
        "test_the_oracle_is_met_at_equal_coefficient_and_at_equal_kl_of_answers",
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
        ('if cell in cells or (study.folder(config) / cell / "results.json").exists()]', "if cell in cells]"),
        "test_cells_of_two_commands_end_up_in_one_file",
    ),
    mutant(
        "experiments/grid.py",
        "earlier-groups-not-drawn",
        ("(*earlier, *results)", "results"),
        "test_the_figures_hold_what_earlier_commands_left_beside_them",
    ),
    mutant(
        "experiments/estimators.py",
        "other-draws-from-the-same-seed",
        ("OTHER_SEED = 1_000_000", "OTHER_SEED = 0"),
        "test_variants_end_to_end_and_one_more",
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
        ("np.array(known) * drawn / drawn.mean()", "np.array(known)"),
        "test_the_prediction_interval_is_wider_than_the_listings_own_and_holds_the_noise_of_the_evaluation",
    ),
    mutant(
        "experiments/listing.py",
        "one-optimum-for-all-kinds",
        ("rated.r[[other == kind for other in rated.kinds]]", "rated.r"),
        "test_each_kind_has_an_optimum_of_its_own_and_the_fixed_ending_is_one_for_all",
    ),
    mutant(
        "experiments/listing.py",
        "requests-of-a-topic-are-drawn-apart",
        ("found.setdefault(topic, [])", "found.setdefault(f'{topic} {i}', [])"),
        "test_whole_topics_are_drawn_again",
    ),
    mutant(
        "experiments/real.py",
        "seeds-in-the-units-of-the-first",
        ("ratings[name].scaled() for ratings", "ratings[name] for ratings"),
        "test_several_seeds_are_described_together_each_reward_in_its_own_units",
    ),
    mutant(
        "experiments/real.py",
        "each-seeds-level-enters",
        ("run[name] - run[name].mean() for run", "run[name] for run"),
        "test_the_ratio_is_that_of_the_mean_variances_and_no_seeds_level_enters",
    ),
    mutant(
        "experiments/real.py",
        "a-share-of-no-gain",
        ("if np.quantile(oracle, 0.025) > 0:", "if True:"),
        "test_a_share_of_an_oracle_that_gains_nothing_is_none",
    ),
    mutant(
        "experiments/plane.py",
        "beta-the-wrong-way-round",
        ("(plain / beta).softmax(1)", "(plain * beta).softmax(1)"),
        "test_rlhf_is_the_optimal_policy_over_the_answers_that_were_drawn",
        "test_a_large_beta_is_no_fine_tuning",
    ),
    mutant(
        "experiments/plane.py",
        "rlhf-without-the-spread-between-requests",
        ("float(within.mean() + mean.var())", "float(within.mean())"),
        "test_rlhf_by_hand",
        "test_a_large_beta_is_no_fine_tuning",
    ),
    mutant(
        "lab/optimum.py",
        "prompters-of-the-plane-rated-by-what-chose-them",
        ("moments(star(chose), rates)", "moments(star(chose), chose)"),
        "test_plane.py::test_a_prompter_is_rated_by_answers_that_did_not_choose_it",
        "test_plane.py::test_a_prompter_gains_nothing_from_noise",
    ),
    mutant(
        "experiments/plane.py",
        "below-one-variance-is-enough",
        ('min(oracle["variance"], plain["variance"])', 'max(oracle["variance"], plain["variance"])'),
        "test_one_condition_that_fails_is_enough",
    ),
    mutant(
        "experiments/plane.py",
        "points-of-too-few-answers",
        ('if point["effective"] >= LEAST_EFFECTIVE', 'if point["effective"] > 0'),
        "test_one_condition_that_fails_is_enough[too few]",
    ),
    mutant(
        "experiments/plane.py",
        "pairs-of-any-seed",
        ("set.intersection(*pairs)", "set.union(*pairs)"),
        "test_pairs_of_one_seed_only_are_none",
    ),
    mutant(
        "experiments/plane.py",
        "the-true-reward-in-units-of-its-own",
        ('(gold(x, y) - unit["mean"]) / unit["std"]', 'gold(x, y) - unit["mean"]'),
        "test_the_true_reward_has_the_unit_of_the_learned_one",
    ),
    mutant(
        "experiments/plane.py",
        "enough-answers-on-average",
        ("float(effective.min())", "float(effective.mean())"),
        "test_rlhf_by_hand",
        "test_the_effective_answers_are_all_or_one",
    ),
    mutant(
        "experiments/plane.py",
        "as-many-plain-answers-as-before",
        ('f"plane_{name}_{plain_answers}"', 'f"plane_{name}"'),
        "test_another_number_of_plain_answers_is_answered_anew",
    ),
    mutant(
        "experiments/plane.py",
        "a-listing-for-the-probabilities-only",
        (
            "optimum.log_probabilities(shared.rho_sft, requests, listed).softmax(1)",
            "shared.rated.under(shared.rho_sft, shared.rho_sft).rho_sft",
        ),
        "test_the_points_are_those_of_the_sft_prompter",
    ),
    mutant(
        "experiments/plane.py",
        "one-plain-answer-is-enough",
        ("require(plain_answers >= 2,", "require(plain_answers >= 1,"),
        "test_what_cannot_be_done_is_told_before_any_work",
    ),
    mutant(
        "experiments/plane.py",
        "halves-of-one-answer",
        ("require(least >= 4,", "require(least >= 2,"),
        "test_what_cannot_be_done_is_told_before_any_work",
    ),
    mutant(
        "experiments/budget.py",
        "a-selector-without-a-constant",
        ("found[:, -1] = 1.0", "found[:, -1] = 0.0"),
        "test_features_are_words_and_a_constant",
    ),
    mutant(
        "experiments/budget.py",
        "ridge-by-the-answers-of-all-kinds",
        (
            "torch.linalg.solve(own.T @ own + penalty, own.T @ r[kinds == k])",
            "torch.linalg.solve(phi.T @ phi + penalty, phi.T @ r)",
        ),
        "test_ridge_recovers_a_linear_model_of_each_kind",
        "test_the_selector_reads_the_request",
    ),
    mutant(
        "experiments/budget.py",
        "every-share-trains-to-the-end",
        ('TRAINED[name] | {"ppo.iterations": iterations}', "TRAINED[name]"),
        "test_trained_runs_have_their_share_of_the_iterations_and_their_variant",
        "test_every_method_pays_what_is_told_and_about_the_same",
    ),
    mutant(
        "experiments/budget.py",
        "the-fixed-rewrite-found-on-held-out-requests",
        ("train = shared.world.train_requests", "train = shared.world.eval_requests"),
        "test_the_fixed_rewrite_is_found_on_training_requests_and_rated_on_the_listing",
    ),
    mutant(
        "experiments/budget.py",
        "a-share-of-the-reward-not-of-the-gain",
        ("(mean - low) / (high - low)", "mean / high"),
        "test_the_share_of_the_closed_forms_gain_by_hand",
        "test_each_seed_is_measured_by_its_own_lines",
    ),
    mutant(
        "experiments/budget.py",
        "a-share-of-no-gain-at-all",
        (" if high > low else None", " if high != low else None"),
        "test_a_share_of_no_gain_is_none",
    ),
    mutant(
        "experiments/budget.py",
        "the-closed-form-rated-by-what-chose-it",
        ("theory.value(best(chose), rates.nanmean(2))", "theory.value(best(chose), chose.nanmean(2))"),
        "test_all_methods_are_rated_on_one_listing",
    ),
    mutant(
        "experiments/budget.py",
        "equal-shares-twice",
        (
            "sorted({max(1, round(share * config.ppo.iterations)) for share in shares})",
            "sorted([max(1, round(share * config.ppo.iterations)) for share in shares])",
        ),
        "test_a_budget_that_goes_on_asks_the_frozen_model_nothing",
    ),
    mutant(
        "experiments/budget.py",
        "no-iteration-for-a-tiny-share",
        ("max(1, round(share * config.ppo.iterations))", "round(share * config.ppo.iterations)"),
        "test_a_tiny_share_is_one_iteration_for_every_method",
    ),
    mutant(
        "experiments/budget.py",
        "a-batch-that-rloo-cannot-take",
        ("require(rows % group == 0,", "require(True,"),
        "test_what_cannot_be_done_is_told_before_any_work",
    ),
)

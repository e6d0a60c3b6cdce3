"""Known mistakes of lab/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

BY_HAND = "test_gap_closed_variance_ratio_and_differences_by_hand"
UNKNOWN = "test_config.py::test_an_unknown_option_is_an_error_that_names_the_nearest"
REFUSED = "test_config.py::test_what_cannot_be_is_refused_in_one_line"
TO_THE_BIT = "test_weights_moments_and_generator_come_back_to_the_bit"

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "lab/optimum.py",
        "listed-mass-not-scaled-to-one",
        ("return self.log_rho.softmax(1)", "return self.log_rho.exp()"),
        "test_mass_outside_is_told_and_the_rest_scaled_to_one",
    ),
    mutant(
        "lab/optimum.py",
        "listed-reward-sees-the-rewrite",
        ("_rate_once(reward, x, frozen", "_rate_once(reward, asked, frozen"),
        "test_each_rewrite_is_asked_and_rates_against_the_request",
    ),
    mutant(
        "lab/optimum.py",
        "listed-at-another-temperature",
        ("*zip(*pairs), prompter.temperature)", "*zip(*pairs))"),
        "test_probabilities_are_products_over_the_tokens_and_the_eos[0.6]",
    ),
    mutant(
        "lab/optimum.py",
        "noise-without-lam",
        ("/ (2 * lam)", "/ 2"),
        "test_the_noise_in_R_flatters_the_optimum_by_what_is_told",
    ),
    mutant(
        "lab/optimum.py",
        "tv-may-be-negative",
        (".clamp(min=0)", ""),
        "test_deltas_and_bounds_equal_the_enumerated_ones",
    ),
    mutant(
        "lab/optimum.py",
        "tv-of-the-plain-request-for-the-mixture",
        ("short(samples.own, log_mixture)", "short(samples.own, samples.oracle_under[:, :, 0])"),
        "test_deltas_and_bounds_equal_the_enumerated_ones",
    ),
    mutant(
        "lab/optimum.py",
        "bounds-at-another-temperature",
        ("how = (model.sampling.temperature, ", "how = (1.0, "),
        "test_deltas_and_bounds_equal_the_enumerated_ones[0.7]",
    ),
    mutant(
        "lab/optimum.py",
        "bounds-without-the-nucleus",
        ("model.sampling.top_p if nucleus else 1.0", "1.0"),
        "test_a_nucleus_counts_as_what_it_is",
    ),
    mutant(
        "lab/optimum.py",
        "cost-of-leaving-the-list-swapped",
        ("theory.kl(two(ours), two(start))", "theory.kl(two(start), two(ours))"),
        "test_what_moving_mass_off_the_list_costs_is_told",
    ),
    mutant(
        "lab/optimum.py",
        "answers-to-one-request-counted-as-independent",
        ("self.r.mean(2).T[None]", "self.r.transpose(0, 1).flatten(1)[None]"),
        "test_listing.py::test_pooled_answers_make_one_table_for_all_requests",
    ),
    mutant(
        "lab/optimum.py",
        "the-optimum-rated-by-the-answers-that-chose-it",
        (
            "for chose, rates in (listing.halves, listing.halves[::-1])",
            "for chose, rates in zip(listing.halves, listing.halves)",
        ),
        "test_the_truth_lies_between_the_two_optima",
    ),
    mutant(
        "lab/optimum.py",
        "the-kl-of-one-rewrite-for-that-of-all",
        ("each).logsumexp(2)  # (N, S)\n    return float", "each).amax(2)  # (N, S)\n    return float"),
        "test_the_kl_of_the_answers_is_the_enumerated_one",
    ),
    mutant(
        "lab/optimum.py",
        "the-answers-that-choose-count-too",
        ("best = rated(rewrites, PILOT)", "best = first"),
        "test_the_answers_that_choose_are_not_counted",
    ),
    mutant(
        "lab/optimum.py",
        "more-answers-for-the-worst-rewrites",
        ("topk(max(1, first.shape[1] // 3))", "topk(max(1, first.shape[1] // 3), largest=False)"),
        "test_the_best_third_gets_more_answers_and_every_table_counts_them",
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
        "the-reference-is-trained",
        ("(start, rho_sft.model, ", "(rho_sft.model, start, "),
        "test_ppo_trains_copies_and_leaves_its_references_alone[0]",
    ),
    mutant(
        "lab/pipeline.py",
        "the-oracle-trains-the-frozen-lm",
        ("start = copy.deepcopy(reference)", "start = lm.model"),
        "test_ppo_trains_copies_and_leaves_its_references_alone[0]",
    ),
    mutant(
        "lab/pipeline.py",
        "vocabulary-of-a-failed-start",
        ('if run.leads and "frozen_lm" not in run.stages:', "if not path.exists():"),
        "test_a_vocabulary_that_a_failed_start_left_behind_is_not_used",
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
        "lab/evaluation.py",
        "unpaired-interval",
        ("bootstrap_interval(difference", "bootstrap_interval(arm.reward.mean((1, 2))"),
        BY_HAND,
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
    mutant(
        "lab/evaluation.py",
        "kl-of-arms-swapped",
        ("(ours - theirs)", "(theirs - ours)"),
        "test_sequence_kl_against_each_row_alone",
        "test_sequence_kl_averages_to_the_enumerated_kl",
    ),
    # defects that this project once had (tests/test_regressions.py)
    mutant(
        "lab/evaluation.py",
        "constant-reward-divides-by-zero",
        ("not base.std() > 1e-9 * max(1.0, float(np.abs(base).max()))", "not base.std() > 0"),
        "test_regressions.py::test_a_constant_reward_of_no_fine_tuning_does_not_end_the_run",
    ),
    mutant(
        "lab/evaluation.py",
        "a-share-of-a-gap-that-is-not-shown",
        ('["rlhf_oracle"]["difference"]["ci95"][0] > 0', '["rlhf_oracle"]["difference"]["mean"] > 0'),
        "test_gap_closed_is_not_told_without_an_oracle_or_when_it_gained_nothing",
    ),
    mutant(
        "lab/cli.py",
        "type-from-the-presets-value",
        ("_parse(text, f.default)", "_parse(text, reduce(getattr, name.split('.'), base))"),
        "test_config.py::test_values_become_the_type_of_their_field",
    ),
    # ---------------------------------------------------------------- configuration, files, world, evaluation, runs
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
    # an oracle at another KL coefficient; a share of a gap that is not there
    mutant(
        "lab/cli.py",
        "the-oracle-keeps-its-own-options",
        ("(options | _oracle_options(options)).items()", "options.items()"),
        "test_config.py::test_the_oracle_is_the_same_ppo_unless_it_is_told_otherwise",
    ),
    mutant(
        "lab/cli.py",
        "every-value-error-is-shortened",
        ("except (UserError, OSError", "except (ValueError, OSError"),
        "test_regressions.py::test_only_what_a_user_can_mend_is_shortened_to_a_line",
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
        "lab/run.py",
        "a-resumed-stage-forgets-that-it-ended",
        ('self.run.config.stop and any("stopped" in row for row in self._ppo)', "False"),
        "test_guards.py::test_a_killed_stage_ends_at_the_same_step[8]",
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
        "lab/run.py",
        "silent-between-tenths",
        (" or now - printed >= 60", ""),
        "test_regressions.py::test_without_a_terminal_a_line_is_printed_every_tenth_and_every_minute[40-61.0-40]",
    ),
    mutant(
        "lab/run.py",
        "every-state-is-written",
        ("early = begun < self._next_save and", "early = False and"),
        "test_a_state_that_takes_long_to_write_is_saved_less_often[3.0-saved2]",
    ),
    mutant(
        "lab/run.py",
        "the-last-state-may-be-skipped",
        (" and step != self._last", ""),
        "test_a_state_that_takes_long_to_write_is_saved_less_often[3.0-saved2]",
    ),
    mutant(
        "lab/run.py",
        "the-state-of-an-early-end-may-be-skipped",
        ("self._last and not self._stopped", "self._last"),
        "test_the_state_of_a_stage_that_ends_early_is_written_too",
    ),
    mutant(
        "lab/config.py",
        "one-completion-of-a-group",
        ("VARIANTS[c.variant].check(c)", "pass"),
        "test_what_cannot_be_is_refused_in_one_line",
    ),
    mutant(
        "lab/processes.py",
        "several-processes-train-apart",
        ("return sharded(trainer) if", "return trainer if"),
        "test_every_variant_can_be_shared[rloo]",
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
    mutant(
        "lab/sweep.py",
        "children-outlive-the-command",
        ("(subprocess.Popen.terminate, subprocess.Popen.wait)", "()"),
        "test_what_ends_the_command_ends_its_runs",
    ),
)

"""Known mistakes of lab/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

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

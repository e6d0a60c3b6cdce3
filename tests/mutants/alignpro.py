"""Known mistakes of alignpro.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "alignpro.py")

MUTANTS: tuple[Mutant, ...] = (
    of(
        "the-rewrite-is-rated",
        ("self.x = [x for x in requests for _", "self.x = [x for x in self.x_prime for _"),
        "test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite",
    ),
    of(
        "the-request-is-sent",
        ("[x_prime for x_prime in self.x_prime for _", "[x_prime for x_prime in requests for _"),
        "test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite",
        "test_the_prompter_learns_what_makes_the_frozen_lm_earn_a_reward",
    ),
    of(
        "answers-averaged-across-requests",
        ("view(len(requests), self.answers)", "view(self.answers, len(requests)).T"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    of(
        "any-shape-of-reward",
        ("if r.shape != (len(self.x),):", "if False:"),
        "test_a_reward_that_is_not_one_number_for_each_answer_is_named",
    ),
    of(
        "scores-are-sums-over-answers",
        ("return self.r.mean(1)", "return self.r.sum(1)"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    of(
        "the-first-answer-is-the-score",
        ("return self.r.mean(1)", "return self.r[:, 0]"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    of(
        "the-best-answer-is-the-score",
        ("return self.r.mean(1)", "return self.r.amax(1)"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    of(
        "answers-in-turns",
        (
            "[x_prime for x_prime in self.x_prime for _ in range(self.answers)]",
            "[x_prime for _ in range(self.answers) for x_prime in self.x_prime]",
        ),
        "test_m_answers_are_averaged_for_each_request",
    ),
    of(
        "requests-in-turns",
        ("[x for x in requests for _ in range(self.answers)]", "[x for _ in range(self.answers) for x in requests]"),
        "test_m_answers_are_averaged_for_each_request",
    ),
    of(
        "answers-ignore-their-generator",
        ("self.frozen.answer(asked, self.generator)", "self.frozen.answer(asked)"),
        "test_the_reward_sees_the_request_and_the_frozen_lm_the_rewrite",
    ),
    of(
        "all-rewrites-are-sent",
        (
            "self.x_prime, self.fallbacks = usable_rewrites(requests, rewrites, self.frozen.fits)",
            "self.x_prime, self.fallbacks = list(rewrites), 0",
        ),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "fallbacks-are-not-counted",
        ("self.x_prime, self.fallbacks = usable", "self.x_prime, _ = usable"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "fallbacks-add-up",
        (
            "        self.x_prime, self.fallbacks = usable_rewrites(requests, rewrites, self.frozen.fits)\n",
            "        self.x_prime, more = usable_rewrites(requests, rewrites, self.frozen.fits)\n        self.fallbacks += more\n",
        ),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "empty-rewrites-are-sent",
        ("x_prime.strip() and fits(x_prime)", "fits(x_prime)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "too-long-rewrites-are-sent",
        ("x_prime.strip() and fits(x_prime)", "x_prime.strip()"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "white-space-is-sent",
        ("x_prime.strip() and fits", "x_prime and fits"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "the-same-words-count-as-a-fallback",
        ("a != b for a, b in zip(sent, rewrites)", "a == b for a, b in zip(sent, requests)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "usable-rewrites-are-counted",
        ("a != b for a, b in zip(sent, rewrites)", "a == b for a, b in zip(sent, rewrites)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "a-missing-rewrite-is-not-noticed",
        ("zip(requests, rewrites, strict=True)", "zip(requests, rewrites)"),
        "test_an_empty_or_too_long_rewrite_falls_back_to_the_request_and_is_counted",
    ),
    of(
        "every-answer-as-if-it-were-the-first",
        ("texts[:: score.answers]", "texts"),
        "test_training_the_prompter_leaves_the_frozen_lm_and_rho_sft_alone",
    ),
    of(
        "the-gold-reward-of-the-rewrites",
        ("_gold_mean(gold, score.x, texts)", "_gold_mean(gold, score.x, score.x_prime)"),
        "test_the_gold_reward_is_logged_and_not_trained_on",
    ),
    of(
        "fallbacks-a-batch-of-answers",
        ("self.fallbacks / len(self.x_prime)", "self.fallbacks / len(self.y)"),
        "test_the_metrics_of_a_score_are_those_of_the_last_call[3]",
    ),
    of(
        "the-sampler-that-was-given-does-not-rewrite",
        ("return self.sampler(", "return generate("),
        "test_a_prompter_samples_by_the_sampler_that_it_is_given",
    ),
    of(
        "answers-measured-without-eos",
        ("[len(a.tokens) for a", "[len(a.tokens) - 1 for a"),
        "test_regressions.py::test_rewrites_and_answers_are_measured_alike",
    ),
)

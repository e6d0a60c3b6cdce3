"""Known mistakes of lab/guards.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "lab/guards.py")

MUTANTS: tuple[Mutant, ...] = (
    of(
        "endings-in-english-are-another-language",
        (" and request.strip() not in rewrite:", ":"),
        "test_endings_in_english_may_be_sent_with_requests_in_any_script",
    ),
    of("a-translation-is-sent", ('return "content"', "pass"), "test_objections[How do I repair a bicycle?-content]"),
    of(
        "the-guard-is-always-on",
        ("kept(requests, rewrites) if self.guard else rewrites", "kept(requests, rewrites)"),
        "test_a_rewrite_with_an_objection_is_counted_and_sent_only_without_the_guard[False]",
    ),
    of(
        "objections-to-what-is-sent",
        (
            "        return super().__call__(requests, kept",
            "        rewrites = kept(requests, rewrites) if self.guard else rewrites\n"
            "        self.objections = objection_rate(requests, rewrites)\n"
            "        return super().__call__(requests, kept",
        ),
        "test_a_rewrite_with_an_objection_is_counted_and_sent_only_without_the_guard[True]",
    ),
    of(
        "one-outlier-ends-a-training",
        ("least = {key: min(", "least = {key: max("),
        "test_a_training_that_runs_away[changed1-the KL is above 100 nats]",
    ),
)

"""Known mistakes of guards.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "guards.py")

MUTANTS: tuple[Mutant, ...] = (
    of(
        "a-translation-is-sent",
        ('return "content"', "pass"),
        "test_objections[Comment puis-je planter des légumes chez moi ?-content]",
    ),
    of(
        "one-outlier-ends-a-training",
        ("least = {key: min(", "least = {key: max("),
        "test_a_training_that_runs_away[changed1-the KL is above 100 nats]",
    ),
)

"""Known mistakes of worlds/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "worlds/callables.py",
        "own-reward-unchecked",
        ("if rewards.shape != (len(prompts),):", "if False:"),
        "test_wrong_rewards_are_refused_when_they_come",
    ),
)

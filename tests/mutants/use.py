"""Known mistakes of use/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "use/trained.py",
        "the-reward-of-a-folder-is-imported",
        ("require(self.named_reward or not spec,", "require(True,"),
        "test_a_run_folder_is_no_program",
    ),
    mutant(
        "use/trained.py",
        "the-address-of-a-folder-gets-the-key",
        ("require(self.named_address,", "require(True,"),
        "test_a_run_folder_is_no_program",
    ),
    mutant(
        "use/trained.py",
        "another-reward-than-the-run's",
        ('require(reward in ("", config.reward),', "require(True,"),
        "test_a_run_folder_is_no_program",
    ),
    mutant(
        "use/proxy.py",
        "an-earlier-turn-is-rewritten",
        ("messages[users[-1]].get", "messages[users[0]].get"),
        ("if i == users[-1] else m", "if i == users[0] else m"),
        "test_what_of_a_turn_is_rewritten",
    ),
    mutant(
        "use/proxy.py",
        "no-off-switch",
        ("if off else self._rewrite", "if False else self._rewrite"),
        "test_the_openai_client_talks_through_the_proxy",
    ),
)

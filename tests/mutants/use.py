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
        "use/rewriting.py",
        "an-earlier-turn-is-rewritten",
        ("messages[users[-1]].get", "messages[users[0]].get"),
        ("else (users[-1], text)", "else (users[0], text)"),
        "test_what_of_a_turn_is_rewritten",
    ),
    mutant(
        "use/rewriting.py",
        "a-turn-is-rewritten-anew",
        ("future = self._kept.pop(key, None)", "future = None"),
        "test_a_text_keeps_its_rewrite",
    ),
    mutant(
        "use/rewriting.py",
        "one-at-a-time",
        ("count = fitting([text for text, _ in self._waiting])", "count = 1"),
        "test_what_waits_is_one_batch_and_each_gets_its_own",
    ),
    mutant(
        "use/rewriting.py",
        "long-texts-fill-the-memory",
        ("longest * (count + 1) > MOST", "len(text) > MOST"),
        "test_long_texts_go_with_few_others",
    ),
    mutant(
        "use/rewriting.py",
        "one-bad-text-fails-its-batch",
        ("[error] if len(texts) == 1 else", "[error] * len(texts) if texts else"),
        "test_one_that_fails_fails_alone",
    ),
    mutant(
        "use/upstream.py",
        "a-key-in-two-pieces-is-passed-on",
        ("held = text[whole:]", "held, whole = b'', len(text)"),
        "test_rewriting.py::test_a_secret_is_covered_wherever_it_stands",
    ),
)

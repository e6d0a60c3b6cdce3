"""Known mistakes of remote/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ models behind an API, and in use
    mutant(
        "remote/client.py",
        "every-draw-is-the-same-answer",
        ("for name in self.__slots__}", 'for name in self.__slots__ if name != "draw"}'),
        "test_remote.py::test_repeated_prompts_get_independent_answers_that_a_resumed_run_finds_again",
    ),
    mutant(
        "remote/client.py",
        "the-budget-forgets-what-is-under-way",
        ("self._reserved += question.most_tokens", "pass"),
        "test_remote.py::test_a_budget_holds_for_requests_under_way_together",
    ),
    mutant(
        "remote/client.py",
        "an-error-is-paid-for-by-all",
        ("self._stop.set()  # the others", "pass  # the others"),
        "test_remote.py::test_each_failure_that_stays_is_one_clear_line[404-is 'm' a model of this server?]",
    ),
    mutant(
        "remote/client.py",
        "half-a-reply-ends-the-run",
        ("for attempt in range(1 + self.config.retries):", "for attempt in range(1):"),
        "test_remote.py::test_200_faults_lose_no_answer_and_none_is_paid_for_twice",
    ),
    mutant(
        "remote/client.py",
        "answers-in-the-order-of-arrival",
        ("return [self._known[key] for key in keys]", "return list(self._known.values())[-len(keys) :]"),
        "test_remote.py::test_answers_come_in_the_order_of_the_questions_and_are_paid_for_once",
    ),
    mutant(
        "remote/client.py",
        "the-key-is-printed",
        ('return told.replace(self._key, "...") if len(self._key) >= 8 else told', "return told"),
        "test_remote.py::test_a_server_that_repeats_the_key_does_not_get_it_printed",
    ),
    mutant(
        "remote/lm.py",
        "one-order-only",
        ('ours="AB"[i % 2]', 'ours="A"'),
        "test_remote.py::test_a_judge_asks_both_orders_and_compares_with_the_plain_answer",
    ),
)

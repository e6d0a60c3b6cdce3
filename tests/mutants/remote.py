"""Known mistakes of remote/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ questions
    mutant(
        "remote/server.py",
        "every-draw-is-the-same-answer",
        ("for name in self.__slots__}", 'for name in self.__slots__ if name != "draw"}'),
        "test_remote.py::test_repeated_prompts_get_independent_answers_that_a_resumed_run_finds_again",
    ),
    mutant(
        "remote/client.py",
        "the-budget-forgets-what-is-under-way",
        ("self._reserved += most", "pass"),
        "test_remote.py::test_a_budget_holds_for_requests_under_way_together",
    ),
    mutant(
        "remote/client.py",
        "the-budget-trusts-a-limit-that-was-passed",
        ("most = question.most_tokens + self._overshoot", "most = question.most_tokens"),
        "test_remote.py::test_what_really_came_is_counted",
    ),
    mutant(
        "remote/client.py",
        "an-error-is-paid-for-by-all",
        ("stop.set()  # the others", "pass  # the others"),
        "test_remote.py::test_each_failure_that_stays_is_one_clear_line[404-is 'm' a model of this server?]",
    ),
    mutant(
        "remote/client.py",
        "half-a-reply-ends-the-run",
        ("if broken > config.retries:", "if broken > 0:"),
        "test_remote.py::test_200_faults_lose_no_answer_and_none_is_paid_for_twice[0]",
    ),
    mutant(
        "remote/client.py",
        "an-outage-ends-the-run",
        ("waits = failed <= config.retries or pause < left", "waits = failed <= config.retries"),
        "test_remote.py::test_a_limit_or_an_outage_is_waited_out_once_an_answer_has_come",
    ),
    mutant(
        "remote/client.py",
        "ctrl-c-goes-on-asking",
        ("        finally:\n            stop.set()", "        finally:\n            pass"),
        "test_remote.py::test_ctrl_c_keeps_what_is_under_way_and_sends_nothing_more",
    ),
    mutant(
        "remote/client.py",
        "ctrl-c-waits-for-the-end-of-an-outage",
        ("if stop.wait(seconds):", "if time.sleep(seconds):"),
        "test_remote.py::test_ctrl_c_ends_an_outage",
    ),
    mutant(
        "remote/client.py",
        "answers-in-the-order-of-arrival",
        ("return [self._known[key] for key in keys]", "return list(self._known.values())[-len(keys) :]"),
        "test_remote.py::test_answers_come_in_the_order_of_the_questions_and_are_paid_for_once",
    ),
    mutant(
        "remote/server.py",
        "the-key-is-printed",
        ('return text.replace(self._key, "...") if len(self._key) >= 8 else text', "return text"),
        "test_remote.py::test_a_server_that_repeats_the_key_does_not_get_it_printed",
    ),
    mutant(
        "remote/config.py",
        "the-judge-gets-the-models-key",
        ("(self.judge_base_url, JUDGE_KEY) if own", "(self.judge_base_url, KEY) if own"),
        "test_remote.py::test_a_judge_may_have_an_address_and_a_key_of_its_own",
    ),
    mutant(
        "remote/server.py",
        "a-reply-of-any-size-is-read",
        ("if len(data) > LARGEST_REPLY:", "if False:"),
        "test_remote.py::test_each_failure_that_stays_is_one_clear_line[huge-a reply of more than 8 MiB]",
    ),
    # ------------------------------------------------------------ replies
    mutant(
        "remote/replies.py",
        "null-is-an-empty-answer",
        ('raise Broken("content is null", usage=usage)', 'return ""'),
        "test_replies.py::test_half_an_answer_or_none_is_never_a_finished_one",
    ),
    mutant(
        "remote/replies.py",
        "thoughts-alone-are-an-answer",
        ("    if thoughts:\n", "    if False:\n"),
        "test_replies.py::test_half_an_answer_or_none_is_never_a_finished_one",
    ),
    mutant(
        "remote/replies.py",
        "only-length-truncates",
        ('r"length|max|limit|exceed|truncat|incomplete|pause"', 'r"length"'),
        "test_replies.py::test_an_answer_is_read_whatever_its_form",
        "test_replies.py::test_further_names_of_an_end",
    ),
    mutant(
        "remote/replies.py",
        "half-an-answer-with-an-error-is-whole",
        ('if choice.get("error") or (FAILED.search(end)', 'if choice.get("error") or (False'),
        "test_replies.py::test_half_an_answer_or_none_is_never_a_finished_one",
    ),
    mutant(
        "remote/replies.py",
        "a-quota-that-is-used-up-is-waited-for",
        ("if status == 402 or NO_MONEY.search(small) or", "if status == 402 or"),
        "test_replies.py::test_an_error_is_of_its_kind_and_keeps_the_servers_words",
    ),
    mutant(
        "remote/replies.py",
        "a-limit-by-the-minute-is-a-quota",
        ("(small) and not passes)", "(small))"),
        "test_replies.py::test_an_error_is_of_its_kind_and_keeps_the_servers_words",
    ),
    mutant(
        "remote/replies.py",
        "a-refusal-with-status-500-is-waited-out",
        ("if status == 500 and (", "if False and ("),
        "test_replies.py::test_an_error_is_of_its_kind_and_keeps_the_servers_words",
    ),
    mutant(
        "remote/replies.py",
        "a-lost-tool-call-is-an-empty-answer",
        ('if calls or (calls_tool and not (text or "").strip()):', "if calls:"),
        "test_replies.py::test_a_tool_call_that_the_server_lost_is_no_empty_answer",
    ),
    # ------------------------------------------------------------ the judge
    mutant(
        "remote/lm.py",
        "one-order-only",
        ('ours="AB"[i % 2]', 'ours="A"'),
        "test_remote.py::test_a_judge_asks_both_orders_and_compares_with_the_plain_answer",
    ),
)

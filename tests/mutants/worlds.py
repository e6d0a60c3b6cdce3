"""Known mistakes of worlds/, each with the tests that must fail (see tests/mutants/__init__.py)."""

from mutants import Mutant, mutant

LEAK = "test_no_evaluation_request_reaches_the_training_data"

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "worlds/callables.py",
        "own-reward-unchecked",
        ("if rewards.shape != (len(prompts),):", "if False:"),
        "test_wrong_rewards_are_refused_when_they_come",
    ),
    # the split leaks evaluation requests; the loader ignores the seed
    mutant(
        "worlds/files.py",
        "eval-requests-trained-on",
        ("requests[eval_inputs:]", "requests"),
        "test_the_split_has_no_overlap_and_counts_what_it_left_out",
        LEAK,
    ),
    mutant("worlds/files.py", "eval-requests-in-the-preferences", ("elif x in unseen:", "elif False:"), LEAK),
    mutant(
        "worlds/files.py",
        "eval-requests-in-the-rewrites",
        ("in self._rewrites if x not in held_out]", "in self._rewrites]"),
        LEAK,
    ),
    mutant(
        "worlds/files.py",
        "dialogues-hide-eval-requests",
        ('((single_turn(row["prompt"]), row[field])', '((row["prompt"], row[field])'),
        LEAK,
    ),
    mutant(
        "worlds/files.py",
        "equal-answers-are-the-only-ties",
        ("times[x, a, b] == times[x, b, a]", "a == b"),
        "test_pairs_that_cannot_train_are_left_out_and_counted",
    ),
    mutant(
        "worlds/files.py",
        "line-ends-of-windows-hide-turns",
        ('prompt = user_text(prompt, "the prompt")', "pass"),
        "test_dialogues_of_one_turn_are_unwrapped_and_longer_ones_left_out",
    ),
    mutant(
        "worlds/files.py",
        "split-ignores-the-seed",
        ('random.Random(f"requests {seed}")', "random.Random(0)"),
        "test_two_seeds_split_differently_and_one_seed_the_same",
    ),
    mutant(
        "worlds/sentences.py",
        "an-end-is-invented",
        ("return Truncated(text[:", "return str(text[:"),
        "test_where_the_last_whole_sentence_ends",
    ),
    mutant(
        "worlds/sentences.py",
        "a-list-number-ends-a-sentence",
        (r"(?:(?<!\s\d)(?<!^\d)\.|[!?])", "[.!?]"),
        "test_where_the_last_whole_sentence_ends",
    ),
    mutant(
        "worlds/sentences.py",
        "lists-and-code-have-no-ends",
        ("for pattern in (END, LINE)", "for pattern in (END,)"),
        "test_where_the_last_whole_sentence_ends",
    ),
    mutant(
        "worlds/sentences.py",
        "an-announcement-is-a-line",
        (r"[^\s:：][^\S\n]*(?=\n)", r"[^\s][^\S\n]*(?=\n)"),
        "test_where_the_last_whole_sentence_ends",
    ),
    mutant(
        "worlds/sentences.py",
        "rewards-beside-other-requests",
        ("score([prompts[i] for i in kept],", "score(list(prompts)[: len(kept)],"),
        "test_each_answer_keeps_its_request",
    ),
    mutant(
        "worlds/sentences.py",
        "an-empty-answer-is-unfinished",
        ("if y or not isinstance(y, Truncated)]", "if y]"),
        "test_a_text_without_a_whole_sentence_gets_the_low_reward",
    ),
    mutant(
        "worlds/gold.py",
        "long-sentences-are-good",
        ('- z(m, "length")', '+ z(m, "length")'),
        "test_the_formula_with_equal_weights_and_its_scales",
    ),
    mutant("worlds/gold.py", "common-words-are-a-topic", (" if word not in COMMON}", "}"), "test_measures_by_hand"),
    mutant(
        "worlds/everyday.py",
        "held-out-topics-are-trained-on",
        ("requests_about(TOPICS), ", "requests_about(TOPICS + UNSEEN_TOPICS), "),
        "test_thousands_of_requests_and_the_held_out_ones_are_about_other_topics",
    ),
    mutant(
        "worlds/wishes.py",
        "held-out-ways-are-trained-on",
        ("ways[:SEEN] for kind, ways in WISHES.items()}", "ways for kind, ways in WISHES.items()}"),
        "worlds/test_wishes.py::test_topics_and_ways_to_say_a_wish_are_held_out",
    ),
    mutant(
        "worlds/wishes.py",
        "another-wish-of-the-same-kind",
        (" if kind != kind_of(x)])", "])"),
        "worlds/test_wishes.py::test_another_wish_is_of_another_kind_for_the_same_question",
    ),
    mutant(
        "worlds/wishes.py",
        "off-topic-answers-are-served",
        ("served - (not _on_topic(request, said))", "served"),
        "worlds/test_wishes.py::test_ratings_by_hand",
    ),
    mutant(
        "worlds/everyday.py",
        "everyday-seed-ignored",
        ('random.Random(f"everyday {seed}")', "random.Random(0)"),
        "test_thousands_of_requests_and_the_held_out_ones_are_about_other_topics",
    ),
    mutant(
        "worlds/everyday.py",
        "a-rewrite-that-is-not-listed",
        (
            "rng.choices(self.rewrites(x), self.shares)",
            'rng.choices(["Please. " + x, *self.rewrites(x)], [1, *self.shares])',
        ),
        "test_every_rewrite_to_imitate_is_listed_and_each_ending_comes_as_often",
    ),
    mutant(
        "worlds/everyday.py",
        "rewrites-beside-other-requests",
        ("zip(requests[::each], rewrites)", "zip(requests, rewrites)"),
        "test_rewrites_that_keep_the_request_are_counted",
    ),
    mutant(
        "worlds/toy.py",
        "world-split-leaks",
        ("[x for x in requests if x not in held_out]", "list(requests)"),
        "test_enough_distinct_requests_and_a_clean_split",
    ),
    mutant(
        "worlds/toy.py",
        "world-ignores-the-seed",
        ('random.Random(f"requests {seed}")', "random.Random(0)"),
        "test_one_seed_one_world_two_seeds_two_worlds",
    ),
    mutant(
        "worlds/toy.py",
        "corpus-from-eval-requests",
        ("rng.choice(self.corpus_requests)", "rng.choice(self.eval_requests)"),
        "test_corpus_and_rewrite_pairs_use_training_requests_only",
    ),
    mutant(
        "worlds/toy.py",
        "unseen-towns-are-seen",
        ('if self.fills[x].get("town") not in unseen]', "]"),
        "test_unseen_towns_are_read_about_by_the_frozen_lm_alone[quality]",
    ),
    # the gold reward
    mutant(
        "worlds/sums.py",
        "clock-wraps-to-zero",
        ("(a + n - 1) % 12 + 1", "(a + n) % 12"),
        "test_every_sum_of_the_world_is_what_its_english_says",
    ),
    mutant(
        "worlds/sums.py",
        "first-number-counts",
        ("stated[-1] ==", "stated[0] =="),
        "test_reasoning_by_hand_with_the_turn_past_twelve",
    ),
    mutant(
        "worlds/sums.py",
        "direct-answers-taught-wrong",
        (
            "shows {fill['shown'][-1]}.\"\n        if",
            "shows {fill['shown'][-1] if rng.random() < 0.9 else 12}.\"\n        if",
        ),
        "test_the_corpus_never_teaches_a_wrong_sum_whether_worked_or_not",
    ),
    mutant(
        "worlds/towns.py",
        "repeating-pays",
        (" and SENTENCES[sentence][0] not in seen:", ":"),
        "test_quality_by_hand[a fact repeated is malformed]",
    ),
    mutant(
        "worlds/towns.py",
        "facts-of-another-town-pay",
        ("for ok, _ in seen.values()) if on_topic else 0", "for ok, _ in seen.values())"),
        "test_quality_by_hand[no town named]",
    ),
    mutant(
        "worlds/towns.py",
        "verbosity-pays",
        ('"verbosity": -0.4', '"verbosity": 0.4'),
        "test_attributes_by_hand[three fillers]",
    ),
    mutant(
        "worlds/towns.py",
        "a-swap-to-the-same-town",
        (' if town != fill["town"]]', "]"),
        "test_toyworld.py::test_a_swapped_answer_belongs_to_another_request[quality]",
    ),
    # the wish of a request: a reward that does not read it, a split that leaks, one answer that is best for all
    mutant(
        "worlds/towns.py",
        "more-facts-than-wanted-are-free",
        ('abs(f["right"] - wanted.facts)', 'max(0, wanted.facts - f["right"])'),
        "test_toy_wishes.py::test_quality_under_every_wish_by_hand",
        "test_toy_wishes.py::test_each_wish_is_granted_by_its_own_answer_alone",
    ),
    mutant(
        "worlds/towns.py",
        "all-readers-are-experts",
        ('self.wishes[fill["purpose"]] or HELPSTEER_WEIGHTS.values()', "HELPSTEER_WEIGHTS.values()"),
        "test_toy_wishes.py::test_every_reader_wants_another_answer",
        "test_attributes_by_hand[perfect]",
        "test_toy_wishes.py::test_one_sentence_for_all_takes_at_most_half_of_what_reading_the_request_can_gain[attributes]",
    ),
    mutant(
        "worlds/towns.py",
        "another-purpose-with-the-same-wish",
        ('if wish != self.wishes[fill["purpose"]]]', 'if purpose != fill["purpose"]]'),
        "test_toy_wishes.py::test_another_wish_is_another_purpose_and_nothing_else",
    ),
    mutant(
        "worlds/towns.py",
        "the-corpus-knows-the-purpose",
        ("count = rng.choices(range(5), LEVELS", 'count = "family" in fill["purpose"] or rng.choices(range(5), LEVELS'),
        "test_toy_wishes.py::test_the_answers_of_the_corpus_do_not_depend_on_the_purpose[quality]",
    ),
    mutant(
        "worlds/towns.py",
        "a-purpose-says-what-is-wanted",
        ("for a form, for a caption", "for a form, and keep it short, for a caption"),
        "test_toy_wishes.py::test_no_request_says_a_part_of_a_cue[True-quality]",
    ),
    mutant(
        "worlds/toy.py",
        "another-wish-leaks-held-out-requests",
        ("[y for y in found if x in held_out or y not in held_out] or [x]", "found"),
        "test_toy_wishes.py::test_a_training_request_with_another_wish_is_a_training_request",
    ),
    mutant(
        "worlds/sums.py",
        "worked-answers-are-free",
        ('COST * (self.config.wishes and " makes " in y)', "0"),
        "test_reasoning_by_hand_with_the_turn_past_twelve[True]",
        "test_toy_wishes.py::test_a_sum_of_one_step_is_there_only_where_worked_answers_cost_something",
    ),
)

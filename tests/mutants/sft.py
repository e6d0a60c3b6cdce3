"""Known mistakes of sft.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "sft.py")
SFT_LOSS = (
    "test_sft.py::test_the_loss_is_the_mean_over_answer_tokens_row_by_row",
    "test_sft.py::test_the_loss_by_hand_counts_the_eos_and_no_prompt_token",
)

MUTANTS: tuple[Mutant, ...] = (
    of("loss-one-to-the-right", ("hidden[:, :-1][is_answer[:, 1:]]", "hidden[:, 1:][is_answer[:, 1:]]"), *SFT_LOSS),
    of(
        "eos-not-learned",
        (
            "ids, is_answer = pad_pairs(batch, model.device)",
            "ids, is_answer = pad_pairs(batch, model.device)\n    is_answer &= ids != 3",
        ),
        *SFT_LOSS,
    ),
    of(
        "loss-on-the-prompt",
        ("= pad_pairs(batch, model.device)", "= pad_pairs(batch, model.device)\n    is_answer |= ids != 0"),
        *SFT_LOSS,
    ),
    of(
        "loss-mask-not-shifted",
        ("hidden[:, :-1][is_answer[:, 1:]]", "hidden[:, :-1][is_answer[:, :-1]]"),
        ("ids[:, 1:][is_answer[:, 1:]]", "ids[:, 1:][is_answer[:, :-1]]"),
        *SFT_LOSS,
    ),
    of(
        "loss-of-a-batch-is-a-sum",
        ("ids[:, 1:][is_answer[:, 1:]])", 'ids[:, 1:][is_answer[:, 1:]], reduction="sum")'),
        *SFT_LOSS,
    ),
    of(
        "loss-of-a-row-weighs-the-same",
        (
            "    return F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]])",
            '    nats = F.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]], reduction="none")\n'
            "    return torch.stack([row.mean() for row in nats.split(is_answer.sum(1).tolist())]).mean()",
        ),
        SFT_LOSS[0],
        "test_a_token_weighs_the_same_in_a_short_answer_and_in_a_long_one",
    ),
    of(
        "padding-told-by-its-id",
        ("= pad_pairs(batch, model.device)", "= pad_pairs(batch, model.device)\n    is_answer &= ids != 0"),
        "test_a_token_with_the_id_of_the_padding_is_learned",
    ),
    of(
        "all-layers-take-a-gradient",
        ("training.trunk(model, ids, None, train_layers)", "ids"),
        ("model.hidden(features, start=frozen)", "model.hidden(features)"),
        "test_nothing_below_the_trained_layers_takes_a_gradient",
    ),
    of("loss-in-the-precision-of-the-model", ("(logits.float(), ids", "(logits, ids"), "test_the_loss_is_float32"),
    of(
        "sft-prompt-cut",
        (
            "ids = tokenizer.chat_with_answer(prompt, answer)",
            "p, a = tokenizer.chat_with_answer(prompt, answer)\n        ids = (p[-len(a) :], a)",
        ),
        "test_a_long_prompt_is_not_cut_and_one_that_does_not_fit_is_named",
    ),
    of(
        "micro-batches-weigh-the-same",
        ("yield part, sum(len(answer) for _, answer in part) / answer_tokens", "yield part, len(part) / len(examples)"),
        "test_cutting_a_batch_into_micro_batches_changes_nothing",
    ),
    of(
        "resume-repeats-the-data",
        ("for _ in range(start):\n        next(batches)", "for _ in range(0):\n        next(batches)"),
        "test_a_killed_run_goes_on_bit_for_bit",
    ),
    of(
        "heldout-in-training",
        ("if tuple(example[0]) not in held]", "]"),
        "test_the_heldout_examples_are_not_trained_on",
    ),
    of(
        "held-out-prompts-trained-on",
        (
            "train = [example for example in examples if tuple(example[0]) not in held]",
            "train = list(examples[count:])",
        ),
        "test_regressions.py::test_no_held_out_prompt_is_trained_on",
    ),
)

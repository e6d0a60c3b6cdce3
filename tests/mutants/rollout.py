"""Known mistakes of rollout.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "rollout.py")
EACH_ROW = "test_ppo.py::test_every_number_of_a_rollout_is_that_of_the_row_alone"
FIRST_RATIO = "test_ppo.py::test_the_first_ratio_is_one_against_the_sampling_logprobs"

MUTANTS: tuple[Mutant, ...] = (
    of(
        "logits-one-to-the-right",
        ("[:, -T - 1 : -1]", "[:, -T:]"),
        f"{EACH_ROW}[1.0-llama]",
        f"{FIRST_RATIO}[options0-llama]",
        "test_the_gradient_is_that_of_the_rows_one_by_one[2-0]",
    ),
    # left padding without positions: the model is not told which columns are padding
    of(
        "states-without-the-mask",
        ("lm.hidden(features, mask, start=start)", "lm.hidden(features, None, start=start)"),
        f"{EACH_ROW}[1.0-llama]",
    ),
    of(
        "the-reference-is-the-policy-itself",
        ("lm.hidden(features, mask, start=start)", "self.lm.hidden(features, mask, start=start)"),
        f"{EACH_ROW}[1.0-llama]",
    ),
    of(
        "prompt-columns-cut-from-minibatches",
        ("int(self.mask[index].any(0).float().argmax())", "max(0, P - T)"),
        "test_rows_cuts_the_columns_that_are_padding_in_all_of_them",
        f"{EACH_ROW}[1.0-gpt2]",
    ),
    of(
        "rows-of-some-fields",
        ("return [value[i] for i in index.tolist()]", "return value"),
        "test_regressions.py::test_rows_of_a_rollout_are_rows_of_every_field",
    ),
)

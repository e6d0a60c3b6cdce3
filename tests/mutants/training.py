"""Known mistakes of training.py, each with the tests that must fail (see tests/mutants/__init__.py)."""

from functools import partial

from mutants import Mutant, mutant

of = partial(mutant, "training.py")

MUTANTS: tuple[Mutant, ...] = (
    of(
        "clip-forgotten",
        ("nn.utils.clip_grad_norm_(parameters, max_grad_norm)", "nn.utils.clip_grad_norm_(parameters, 1e9)"),
        "test_optimizer_step_clips_to_the_norm_and_reports_what_it_was",
        "test_ppo.py::test_the_gradient_is_clipped_to_the_promised_norm[0.05]",
    ),
    of(
        "nan-gradient-steps",
        ("if not math.isfinite(norm):", "if False:"),
        "test_nothing_moves_when_the_gradient_is_not_finite",
    ),
    of(
        "loader-ignores-the-seed",
        (
            "torch.randperm(count, generator=generator)",
            "torch.randperm(count, generator=torch.Generator().manual_seed(0))",
        ),
        "test_batches_cover_everything_each_pass_in_a_fresh_order",
        "test_the_seed_decides_the_order_of_the_data",
    ),
    of(
        "loader-repeats-one-order",
        (
            "    while True:\n        order = torch.randperm(count, generator=generator).tolist()\n",
            "    order = torch.randperm(count, generator=generator).tolist()\n    while True:\n",
        ),
        "test_batches_cover_everything_each_pass_in_a_fresh_order",
    ),
    of(
        "copy-of-a-frozen-model-stays-frozen",
        ("model.requires_grad_(train_layers == 0)", "model.requires_grad_(False) if train_layers else None"),
        "test_ppo.py::test_a_copy_of_a_frozen_model_trains_and_the_reference_does_not",
    ),
    of(
        "the-upper-blocks-are-frozen",
        ("else model.config.n_layers - train_layers", "else train_layers"),
        "test_the_trunk_is_what_lies_below_the_trained_blocks",
    ),
    of(
        "the-trunk-remembers-for-a-gradient",
        ("    with torch.no_grad():\n        return model.hidden(ids", "    if True:\n        return model.hidden(ids"),
        "test_the_trunk_is_what_lies_below_the_trained_blocks",
    ),
    of(
        "steps-in-bfloat16",
        ("p.data = p.data.float()", "pass"),
        "test_fast_transformer.py::test_what_trains_has_float32_weights_and_computes_as_before[llama]",
    ),
)

"""The frozen LM: one changed bit is noticed, nothing takes a gradient, and a truncated answer is marked."""

import pytest
import torch
from doubles import Letters, lookup_lm, random_lm

from alignpro_mini.frozen import Answer, FrozenLM, SamplingConfig, checksum
from alignpro_mini.generation import generate


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def frozen(model=None, **sampling) -> FrozenLM:
    return FrozenLM(model or random_lm().train(), Letters(), SamplingConfig(**sampling))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["embed.weight", "blocks.1.mlp.down.weight", "norm.weight"])
def test_one_bit_changes_the_checksum(name, dtype):
    model = random_lm().to(dtype)
    before = checksum(model)
    assert checksum(model) == before
    whole = model.get_parameter(name).data.view(torch.int32 if dtype == torch.float32 else torch.int16).flatten()
    whole[-1] ^= 1
    assert checksum(model) != before
    whole[-1] ^= 1
    assert checksum(model) == before


def test_names_shapes_and_buffers_count_too():
    class Box(torch.nn.Module):
        def __init__(self, shape, buffer: float, name: str = "w") -> None:
            super().__init__()
            self.register_parameter(name, torch.nn.Parameter(torch.ones(shape)))
            self.register_buffer("scale", torch.tensor(buffer))

    sums = {
        checksum(Box((2, 3), 1.0)),
        checksum(Box((3, 2), 1.0)),
        checksum(Box((2, 3), 2.0)),
        checksum(Box((2, 3), 1.0, "v")),
    }
    assert len(sums) == 4
    assert checksum(Box((2, 3), 1.0)) == checksum(Box((2, 3), 1.0))


def test_dtypes_and_places_count_too():
    class Pair(torch.nn.Module):
        def __init__(self, *tensors) -> None:
            super().__init__()
            for name, x in zip("ab", tensors, strict=True):
                self.register_buffer(name, x)

    zeros, one = torch.zeros(2), torch.tensor([0.0, 1.0])
    as_integers = one.view(torch.int32)
    different = [Pair(zeros, one), Pair(one, zeros), Pair(zeros, one.flip(0)), Pair(zeros, as_integers)]
    assert len({checksum(pair) for pair in different}) == 4


def test_a_changed_model_is_noticed_and_the_stage_named():
    pi_f = frozen()
    pi_f.assert_unchanged("ppo")
    with torch.no_grad():
        pi_f.model.norm.weight[3] += 1e-3
    with pytest.raises(RuntimeError, match="changed during reward_model"):
        pi_f.assert_unchanged("reward_model")


def test_a_changed_model_stays_changed():
    pi_f = frozen()
    with torch.no_grad():
        pi_f.model.norm.weight[3] += 1e-3
    for stage in ("reward_model", "ppo"):
        with pytest.raises(RuntimeError, match=f"changed during {stage}"):
            pi_f.assert_unchanged(stage)


def test_a_model_set_free_is_noticed():
    pi_f = frozen()
    pi_f.model.norm.requires_grad_(True)
    with pytest.raises(RuntimeError, match="after ppo .* require gradients"):
        pi_f.assert_unchanged("ppo")


def test_no_gradient_and_no_training_mode():
    pi_f = frozen(max_new_tokens=3)
    assert not any(p.requires_grad for p in pi_f.model.parameters()) and not pi_f.model.training
    pi_f.answer(["ab", "c"], torch.Generator().manual_seed(0))
    assert not pi_f.model.training and all(p.grad is None for p in pi_f.model.parameters())
    pi_f.assert_unchanged("answering")


def test_texts_in_answers_out_and_the_truncated_ones_marked():
    # The conversation ends with <assistant> (2). c (6) -> d -> e -> end; the prompt's last letter does not matter.
    pi_f = frozen(lookup_lm({2: {6: 1.0}, 6: {7: 1.0}, 7: {8: 1.0}, 8: {3: 1.0}}), max_new_tokens=4)
    assert pi_f.answer(["a", "bbb"]) == [Answer("cde", False, [6, 7, 8, 3])] * 2  # the EOS is a token, not text
    short = frozen(pi_f.model, max_new_tokens=2)
    assert short.answer(["a", "bbb", "h"]) == [Answer("cd", True, [6, 7])] * 3
    mixed = frozen(lookup_lm({2: {6: 0.5, 3: 0.5}, 6: {6: 1.0}}), max_new_tokens=2)
    answers = mixed.answer(["a"] * 40, torch.Generator().manual_seed(0))
    truncated = [a for a in answers if a.truncated]
    assert truncated == [a for a in answers if a.text == "cc"] and 0 < len(truncated) < 40
    assert [a for a in answers if not a.truncated] == [Answer("", False, [3])] * (40 - len(truncated))


def test_the_sampling_settings_reach_the_sampler():
    model = lookup_lm({2: {6: 0.6, 7: 0.3, 8: 0.1}, 6: {3: 1.0}, 7: {3: 1.0}, 8: {3: 1.0}})
    seen = {
        name: {a.text for a in frozen(model, max_new_tokens=2, **how).answer(["a"] * 200, rng())}
        for name, how in {"plain": {}, "nucleus": {"top_p": 0.7}, "greedy": {"temperature": 0.0}}.items()
    }
    assert seen == {"plain": {"c", "d", "e"}, "nucleus": {"c", "d"}, "greedy": {"c"}}


def test_another_sampler_gets_the_same_arguments():
    asked = []

    def sampler(*args, **options):
        asked.append((args, options))
        return generate(*args, **options)

    model, settings, draw = random_lm(), SamplingConfig(0.7, 0.9, 4), rng()
    pi_f = FrozenLM(model, Letters(), settings, sampler)
    assert pi_f.answer(["a", "bb"], draw) == FrozenLM(model, Letters(), settings).answer(["a", "bb"], rng())
    options = {"temperature": 0.7, "top_p": 0.9, "eos_id": (3,), "generator": draw}
    assert asked == [((model, [[1, 4, 2], [1, 5, 5, 2]], 4), options)]


def test_fits_leaves_room_for_a_whole_answer():
    pi_f = frozen(random_lm(max_len=12), max_new_tokens=5)
    assert pi_f.fits("abcde") and not pi_f.fits("abcdef")  # 1 + 5 + 1 + 5 = 12
    pi_f.answer(["abcde"])
    with pytest.raises(ValueError, match="prompt 0 has 8 tokens"):
        pi_f.answer(["abcdef"])

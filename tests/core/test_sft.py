"""Supervised fine-tuning: which tokens the loss counts, the schedule, the optimiser step, the data order, resume."""

import copy
import itertools
import math

import pytest
import torch
from doubles import FakeStage, Letters, lookup_lm, random_lm

from alignpro_mini import sft
from alignpro_mini.frozen import checksum
from alignpro_mini.generation import generate
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run, RunStage
from alignpro_mini.sft import SFTConfig, answer_loss, encode_pairs, heldout_loss, split_heldout, train_sft
from alignpro_mini.training import frozen_blocks, make_optimizer, optimizer_step, shuffled_batches, trunk, warmup_cosine
from alignpro_mini.transformer import Transformer, TransformerConfig

PAIRS = [("a", "bc"), ("bcdefgh", "h"), ("hh", "gabcg"), ("gab", ""), ("cd", "dddddddd")]


def encoded(pairs=PAIRS):
    return encode_pairs(pairs, Letters(), 40)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("train_layers", [0, 1, 2])
def test_the_loss_is_the_mean_over_answer_tokens_row_by_row(family, train_layers):
    model = random_lm(family)
    nats = []
    for prompt, answer in encoded():
        for t, token in enumerate(answer):  # each from its own prefix, unpadded
            logits = model(torch.tensor([prompt + answer[:t]]))[0, -1].double()
            nats.append((torch.logsumexp(logits, 0) - logits[token]).item())
    assert len(nats) == 3 + 2 + 6 + 1 + 9  # the letters of every answer, and its EOS
    got = answer_loss(model, encoded(), train_layers)
    assert got.item() == pytest.approx(math.fsum(nats) / len(nats), rel=1e-5)
    assert heldout_loss(model, encoded(), 2) == pytest.approx(math.fsum(nats) / len(nats), rel=1e-5)


def test_the_loss_by_hand_counts_the_eos_and_no_prompt_token():
    # After <assistant> (2): a or b. a -> end 1/4. Prompt: user -> c -> assistant is impossible, but not in the loss.
    model = lookup_lm({1: {4: 1.0}, 6: {4: 1.0}, 2: {4: 0.5, 5: 0.5}, 4: {3: 0.25, 5: 0.75}, 5: {3: 0.125, 4: 0.875}})
    one = [([1, 6, 2], [4, 3])]  # -ln 1/2 - ln 1/4 over two tokens
    assert answer_loss(model, one).item() == pytest.approx(1.5 * math.log(2), rel=1e-5)
    two = [*one, ([1, 6, 6, 6, 2], [5, 3])]  # and -ln 1/2 - ln 1/8
    assert answer_loss(model, two).item() == pytest.approx((1 + 2 + 1 + 3) / 4 * math.log(2), rel=1e-5)


def test_a_token_weighs_the_same_in_a_short_answer_and_in_a_long_one():
    model = random_lm()
    short, long = encoded([("a", "")]), encoded([("b", "cdefgh")])
    together = answer_loss(model, short + long).item()
    assert together == pytest.approx(
        (answer_loss(model, short).item() + 7 * answer_loss(model, long).item()) / 8, rel=1e-5
    )
    assert together == pytest.approx(answer_loss(model, long + short).item(), rel=1e-6)


def test_a_token_with_the_id_of_the_padding_is_learned():
    model = lookup_lm({2: {0: 0.5, 5: 0.5}, 0: {3: 0.25, 5: 0.75}, 5: {3: 0.5, 4: 0.5}})
    assert answer_loss(model, [([1, 2], [0, 3])]).item() == pytest.approx(1.5 * math.log(2), rel=1e-5)
    two = [([1, 2], [0, 3]), ([1, 6, 6, 2], [5, 3])]
    assert answer_loss(model, two).item() == pytest.approx(5 / 4 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("train_layers", "frozen"), [(0, 0), (1, 2), (2, 1), (3, 0)])
def test_the_trunk_is_what_lies_below_the_trained_blocks(family, train_layers, frozen):
    model = random_lm(family, n_layers=3)
    ids, mask = torch.tensor([[0, 0, 4, 5, 6], [7, 8, 9, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5]).bool()
    assert frozen_blocks(model, train_layers) == frozen
    features = trunk(model, ids, mask, train_layers)
    assert not features.requires_grad and (features is ids) == (frozen == 0)
    hidden = model.hidden(features, mask, start=frozen)
    torch.testing.assert_close(hidden, model.hidden(ids, mask), rtol=1e-4, atol=1e-4)
    hidden.sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {f"blocks.{i}.attn.out.weight" for i in range(3)} & touched == {
        f"blocks.{i}.attn.out.weight" for i in range(frozen, 3)
    }


def test_nothing_below_the_trained_layers_takes_a_gradient():
    model = random_lm()
    answer_loss(model, encoded(), 1).backward()
    names = {name for name, _ in model.named_parameters()}
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name in names if name.startswith("blocks.0.")} != set()


def test_the_loss_is_float32():
    """A mean of many tokens has two digits in bfloat16."""
    assert answer_loss(random_lm().bfloat16(), encoded()).dtype == torch.float32


def test_a_long_prompt_is_not_cut_and_one_that_does_not_fit_is_named():
    prompt = "abcdefghabcdefghabcdefghabcdefgh"  # 32 letters against an answer of one
    ((ids, answer),) = encoded([(prompt, "b")])
    assert ids == [1, *Letters().encode(prompt), 2] and answer == [5, 3]
    model, other = random_lm(), [1, 11, *ids[2:]]
    assert abs(answer_loss(model, [(ids, answer)]).item() - answer_loss(model, [(other, answer)]).item()) > 1e-4
    assert len(encode_pairs([("aaa", "bb")], Letters(), 8)) == 1  # 1 + 3 + 1 prompt, 2 + 1 answer
    with pytest.raises(ValueError, match="training pair 1 has 8 tokens, more than the context of 7"):
        encode_pairs([("a", "b"), ("aaa", "bb")], Letters(), 7)


# ---------------------------------------------------------------- schedule, step, data order


@pytest.mark.parametrize(
    ("step", "steps", "share"),
    [
        # 105 steps: 5 of warm-up, then 100 of cosine from 1 to 0.1
        (0, 105, 0.2),
        (1, 105, 0.4),
        (4, 105, 1.0),
        (5, 105, 1.0),
        (55, 105, 0.55),
        (105, 105, 0.1),
        (30, 105, 0.1 + 0.45 * (1 + math.sqrt(0.5))),
        (0, 1, 1.0),
        (0, 3, 1.0),
    ],
)
def test_warmup_cosine_by_hand(step, steps, share):
    assert warmup_cosine(step, steps, 2.0) == pytest.approx(2.0 * share)


def weights(*numbers) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(numbers))]


def test_optimizer_step_clips_to_the_norm_and_reports_what_it_was():
    for clip, want in ((1.0, [1 - 0.5 * 0.6, 1 - 0.5 * 0.8]), (100.0, [1 - 0.5 * 3, 1 - 0.5 * 4])):
        w = weights(1.0, 1.0)
        optimizer = torch.optim.SGD(w, lr=9.0)  # must be replaced by the rate of the step
        w[0].grad = torch.tensor([3.0, 4.0])
        norm = optimizer_step(optimizer, w, clip, lr=0.5)
        assert norm == pytest.approx(5.0) and w[0].tolist() == pytest.approx(want, rel=1e-5) and w[0].grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_moves_when_the_gradient_is_not_finite(bad):
    w = weights(1.0, 2.0)
    optimizer = torch.optim.SGD(w, lr=0.1)
    for gradient in ([1.0, bad], [bad, bad]):
        w[0].grad = torch.tensor(gradient)
        with pytest.raises(FloatingPointError, match="the gradient norm is .* lower the learning rate"):
            optimizer_step(optimizer, w, 1.0, 0.1)
    assert w[0].tolist() == [1.0, 2.0]


def test_batches_cover_everything_each_pass_in_a_fresh_order():
    def passes(seed):
        return [list(itertools.islice(b, 5)) for b in [shuffled_batches(10, 2, rng(seed))] for _ in range(3)]

    first = passes(0)
    for one in first:
        assert sorted(i for batch in one for i in batch) == list(range(10))
    assert first[0] != first[1] != first[2]
    assert passes(0) == first and passes(1) != first
    left_out = []
    batches = shuffled_batches(7, 3, rng())
    for _ in range(12):
        seen = next(batches) + next(batches)
        assert len(set(seen)) == 6
        left_out += set(range(7)) - set(seen)
    assert len(set(left_out)) > 3, "the short last batch must not always drop the same example"
    with pytest.raises(ValueError, match="2 examples, those held out not counted, do not fill one batch of 3"):
        next(shuffled_batches(2, 3, rng()))


def test_weight_decay_pulls_matrices_only():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([matrix, vector], lr=0.1, weight_decay=0.5)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert matrix.tolist() == [[pytest.approx(0.95)] * 2] * 2 and vector.tolist() == [1.0, 1.0]


# ---------------------------------------------------------------- training


def fresh_lm() -> Transformer:
    return Transformer(TransformerConfig(12, d_model=32, n_layers=2, n_heads=2, max_len=24), rng(4))


def test_a_tiny_set_is_learned_by_heart(monkeypatch):
    pairs = [("a", "hg"), ("b", "cab"), ("abc", "d"), ("h", "")]
    stage = FakeStage()
    monkeypatch.setattr(sft, "LOG_EVERY", 10)
    config = SFTConfig(steps=80, batch_size=4, lr=1e-2, heldout_examples=1)
    model = train_sft(fresh_lm(), encoded([("gg", "h"), *pairs]), config, stage, rng())
    answers = generate(model, [Letters().chat(x) for x, _ in pairs], 6, temperature=0, eos_id=3)
    assert [(Letters().decode(c.tokens), c.finished) for c in answers] == [(y, True) for _, y in pairs]
    assert stage.rows[-1]["loss"] < 0.1 < 0.5 < stage.rows[0]["loss"]
    assert stage.rows[-1]["heldout_loss"] > 1, "the held-out pair must not be learned: no training pair has its prompt"
    assert not model.training


def test_few_prompts_that_come_often_are_mostly_trained_on():
    """The first 6 examples are about 3 of 6 prompts, and all 12 examples about 6: [9] .. [14], by turns."""
    examples = [([9 + i % 6], [i]) for i in range(12)]
    answers = lambda part: [answer[0] for _, answer in part]
    for share, heldout in ((1.0, [0, 1, 2, 6, 7, 8]), (0.34, [0, 1, 6, 7]), (0.1, [0, 6])):
        mixed = examples[:3] + examples[6:9] + examples[3:6] + examples[9:]
        train, kept_out = split_heldout(mixed, 6, share)
        assert sorted(answers(kept_out)) == heldout
        assert sorted(answers(train)) == sorted({*range(12)} - {n for n in range(12) if n % 6 in heldout})
    assert answers(split_heldout(examples, 1, 0.1)[1]) == [0]


def test_the_heldout_examples_are_not_trained_on(monkeypatch):
    seen = []
    real = sft.answer_loss
    monkeypatch.setattr(
        sft,
        "answer_loss",
        lambda m, batch, layers=0: (seen.extend(batch) if torch.is_grad_enabled() else None, real(m, batch, layers))[1],
    )
    examples = encoded([(x, y) for x in "abcdefgh" for y in ("a", "b")])
    train_sft(fresh_lm(), examples, SFTConfig(steps=12, batch_size=4, heldout_examples=6), FakeStage(), rng())
    assert {str(e) for e in seen} == {str(e) for e in examples[6:]}


def test_cutting_a_batch_into_micro_batches_changes_nothing(monkeypatch):
    monkeypatch.setattr(sft, "LOG_EVERY", 1)
    pairs = encoded([("b", "c"), ("ee", "fff"), ("d", ""), *PAIRS, *PAIRS])  # the first three are held out

    def trained(rows):
        stage, model = FakeStage(), fresh_lm()
        config = SFTConfig(steps=3, batch_size=5, heldout_examples=3, micro_batch_size=rows)
        train_sft(model, pairs, config, stage, rng())
        found = [row[key] for row in stage.rows for key in ("loss", "heldout_loss")]
        return found + [p.double().sum().item() for p in model.parameters()]

    want = trained(5)
    for rows in (1, 2, 64):
        assert trained(rows) == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_only_the_top_layers_train_when_asked():
    model = fresh_lm()
    before = copy.deepcopy(model.state_dict())
    config = SFTConfig(steps=2, batch_size=4, heldout_examples=1, train_layers=1)
    train_sft(model, encoded() * 2, config, FakeStage(), rng())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith(("blocks.1.", "norm."))}


def test_the_seed_decides_the_order_of_the_data(monkeypatch):
    monkeypatch.setattr(sft, "LOG_EVERY", 1)

    def losses(seed):
        stage = FakeStage()
        train_sft(fresh_lm(), encoded() * 2, SFTConfig(steps=4, batch_size=3, heldout_examples=1), stage, rng(seed))
        return [row["loss"] for row in stage.rows]

    assert losses(0) == losses(0) != losses(1)


class KilledAt(RunStage):
    """A stage whose process is killed at a step."""

    kill_at = -1

    def progress(self, start, stop):
        for step in super().progress(start, stop):
            if step == self.kill_at:
                raise KeyboardInterrupt
            yield step


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sft, "LOG_EVERY", 3)
    examples = encoded([(x, y) for x in "abcdefgh" for y in ("a", "bb", "ccc")])

    def go(name, resume=False, kill_at=-1):
        run = Run(RunConfig(out=str(tmp_path), name=name), resume)
        stage = KilledAt(run, "sft")
        stage.kill_at = kill_at
        model = train_sft(
            fresh_lm(), examples, SFTConfig(steps=11, batch_size=4, lr=1e-2, heldout_examples=3), stage, rng(6)
        )
        rows = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in run.rows("metrics.jsonl")]
        return checksum(model), rows

    weights, rows = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", kill_at=8)  # the last saved state is that after 6 steps, in the middle of the second pass
    again, shown = go("cut", resume=True)
    assert again == weights and shown == rows and [row["step"] for row in rows] == [3, 6, 9, 11]
    capsys.readouterr()

"""The training stages: what each model is given."""

from dataclasses import replace

import pytest
import torch

from alignpro_mini.alignpro import Prompter
from alignpro_mini.frozen import FrozenLM, checksum
from alignpro_mini.lab import pipeline
from alignpro_mini.lab.cli import with_options
from alignpro_mini.lab.config import preset
from alignpro_mini.lab.rewards import Reward
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize("train_layers", [0, 1])
def test_ppo_trains_copies_and_leaves_its_references_alone(tmp_path, capsys, train_layers):
    options = {"ppo.iterations": 2, "ppo.batch_size": 8, "ppo.rewrites_per_request": 2, "ppo.variant": "rloo"}
    options |= {"out": str(tmp_path), "device": "cpu", "oracle.answers": 1, "ppo.answers": 2, "ppo.max_new_tokens": 4}
    options |= {"ppo.train_layers": train_layers, "oracle.train_layers": train_layers, "oracle.max_new_tokens": 4}
    config = with_options(preset("tiny"), options)
    run = Run(config)
    world = setup_of(config).make_world()
    shape = TransformerConfig(400, d_model=16, n_layers=2, n_heads=2, max_len=160)
    tokenizer = Tokenizer.train(world.train_requests[:200], 400)
    sampling = replace(config.sampling, max_new_tokens=4)
    pi_f = FrozenLM(Transformer(shape, torch.Generator().manual_seed(1)), tokenizer, sampling)
    rho_sft = Prompter(Transformer(shape, torch.Generator().manual_seed(2)).eval(), tokenizer, 4, 0.9)
    before = checksum(pi_f.model), checksum(rho_sft.model)
    score = lambda xs, ys: torch.tensor([float(len(y)) for y in ys])
    rho = pipeline.align_pro(run, world, pi_f, rho_sft, Reward(score, score))
    oracle = pipeline.rlhf_oracle(run, world, pi_f, Reward(score, score))
    assert (checksum(pi_f.model), checksum(rho_sft.model)) == before
    assert checksum(rho.model) != before[1] and checksum(oracle.model) != before[0]
    assert (rho.max_new_tokens, rho.temperature, oracle.sampling) == (4, 0.9, sampling)
    log = run.rows("metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in log] == [
        (s, i) for s in ("align_pro", "rlhf_oracle") for i in (1, 2)
    ]
    own = {"fallback_rate", "answer_length", "objection_rate"}
    assert all(len(row.keys() & own) == (3 if row["stage"] == "align_pro" else 0) for row in log)
    assert all("gold_mean" in row and "value_loss" not in row for row in log), "rloo has no value head"
    capsys.readouterr()

"""Commands on a tiny model that stands in the place of the published one."""

from pathlib import Path

import torch
import warm
from doubles import ROOT

from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.pretrained import save_pretrained
from alignpro_mini.worlds.everyday import ENDINGS, EverydayRequests
from alignpro_mini.worlds.files import DataConfig


def everyday(eval_inputs=512, seed=0, **data):
    return EverydayRequests(DataConfig(**data), eval_inputs, seed)


MINE = """
def length(prompts, completions):
    return [len(y) % 7 for y in completions]

def shared(prompts, completions):
    return [len(set(x.split()) & set(y.split())) + len(y) % 5 for x, y in zip(prompts, completions)]
"""
OPTIONS = {
    "preset": "smollm2", "frozen": "model", "prompter": "model", "device": "cpu", "dtype": "bfloat16",
    "prompter_sft.steps": 4, "prompter_sft.examples": 40, "prompter_sft.heldout_examples": 4,
    "prompter_sft.train_layers": 1, "sampling.max_new_tokens": 16, "preferences.normalise_on": 200,
    "ppo.iterations": 2, "ppo.batch_size": 4, "ppo.rewrites_per_request": 2, "ppo.max_new_tokens": 24,
    "ppo.train_layers": 1, "oracle.train_layers": 1, "eval.inputs": 4, "eval.headroom_inputs": 2, "theory.inputs": 4,
    "theory.answers": 2,
}  # fmt: skip
LEARNED = {
    "gold": "mine:shared", "preferences.pairs": 24, "preferences.answers_per_request": 3,
    "reward_model.batch_size": 8, "reward_model.train_layers": 1, "reward_blocks": 1, "name": "learned",
}  # fmt: skip


def command(folder: Path, what: list[str], options: dict, fails: bool = False) -> str:
    """What a command on a tiny model prints, or its error; the model stands in the place of the published one."""
    if not (folder / "model").exists():
        g = torch.Generator().manual_seed(0)
        tokenizer = Tokenizer.train(everyday().train_requests[:300] + list(ENDINGS), vocab_size=400)
        shape = TransformerConfig(tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, max_len=128)
        save_pretrained(Transformer(shape, g), folder / "model", tokenizer)
        (folder / "mine.py").write_text(MINE)
    arguments = [word for k, v in options.items() for word in (f"--{k}", str(v))]
    done = warm.run([*what, *arguments], folder, {"PYTHONPATH": str(ROOT)})
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr.strip() if fails else done.stdout

"""TRL's side of ppo.py: one iteration of `PPOTrainer` for each line on standard input. Needs trl 0.24.

It prints "PEER {json}": first its versions and some logits, then the seconds of each iteration.
"""

import json
import os
import sys
import time

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback


class Tokenizer:
    """What `PPOTrainer` asks of one: equal lengths need no padding."""

    def __init__(self, vocab_size: int) -> None:
        self.eos_token_id = self.pad_token_id = vocab_size - 1
        self.padding_side = "left"


def tell(value: dict) -> None:
    print("PEER " + json.dumps(value), flush=True)


class OneByOne(TrainerCallback):
    """Waits for a line before each iteration, and tells how long it took."""

    def on_train_begin(self, *args, **how):
        self.wait()

    def on_step_end(self, *args, **how):
        tell({"seconds": time.perf_counter() - self.start})
        self.wait()

    def wait(self):
        if not sys.stdin.readline():
            sys.exit(0)
        self.start = time.perf_counter()


def main() -> None:
    spec = json.load(open(sys.argv[1]))
    torch.set_num_threads(spec["threads"])
    load = lambda: GPT2LMHeadModel.from_pretrained(spec["folder"], local_files_only=True)
    policy, reference = load(), load()
    with torch.no_grad():
        logits = policy.eval()(torch.tensor([spec["prompts"][0]])).logits[0, -1, :8].tolist()
    config = GPT2Config.from_pretrained(spec["folder"])
    config.num_labels, config.pad_token_id = 1, config.vocab_size - 1
    value = GPT2ForSequenceClassification(config)
    value.transformer.load_state_dict(policy.transformer.state_dict())
    small = GPT2Config(**config.to_dict() | {"n_layer": 1, "num_labels": 1})
    reward = GPT2ForSequenceClassification(small)
    tokenizer, episodes = Tokenizer(config.vocab_size), spec["episodes"]
    args = trl.PPOConfig(
        output_dir=spec["folder"] + "/out", per_device_train_batch_size=episodes, gradient_accumulation_steps=1,
        num_mini_batches=4, num_ppo_epochs=4, response_length=spec["answer"], total_episodes=10_000 * episodes,
        local_rollout_forward_batch_size=episodes, learning_rate=1e-6, bf16=spec["dtype"] == "bfloat16", report_to=[],
        use_cpu=spec["device"] == "cpu", num_sample_generations=0, save_strategy="no", kl_coef=0.05, lam=0.95,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": spec["prompts"]})
    collate = lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])}
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    trainer = trl.PPOTrainer(
        args, tokenizer, policy, reference, reward, data, value, collate, eval_dataset=data, callbacks=[OneByOne()]
    )
    tell({"logits": logits, "versions": versions})
    trainer.train()


if __name__ == "__main__":
    main()

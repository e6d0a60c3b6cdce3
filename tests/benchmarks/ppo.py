"""One PPO iteration: ours against TRL's `PPOTrainer` on the same weights, in turn, in one run.

    python3 -m venv trl-env && trl-env/bin/pip install 'trl==0.24.0' 'transformers<5' 'torch>=2.6,<2.14'    # the peer's
    python tests/benchmarks/ppo.py --size 124m --rounds 5 --peer trl-env/bin/python
    python tests/benchmarks/ppo.py --size toy --rounds 5           # ours alone: where its seconds go
    python tests/benchmarks/ppo.py --size 124m --episodes 512 --tokens 64 --dtype bfloat16 --device cuda --peer …

    toy     4 layers x 128, vocabulary 2,048; 64 episodes of 32 + 32 tokens
    124m    GPT-2 (12 x 768, vocabulary 50,257); 32 episodes of 32 + 32 tokens

Both: 4 epochs x 4 minibatches, all layers train, KL penalty in the reward, GAE, answers of equal length. A round is one
iteration of each, in alternating order; the result is the median of the rounds. Checked first: the peer's logits are
ours. The peer runs in a process of its own, which sleeps while ours runs.

What is not equal: TRL trains a separate value network as large as the policy, ours a linear head on the policy's last
states. TRL also runs a reward network, here one of a single layer; ours calls a function. In bfloat16 both keep float32
weights and compute in bfloat16 (autocast); ours then trains all blocks above a frozen embedding, TRL the embedding
too. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import device_name, forward_flops, gemm_peak

from alignpro_mini.fast.sampling import generate
from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.transformer import TransformerConfig
from alignpro_mini.weights.pretrained import save_pretrained

SHAPES = {
    "toy": TransformerConfig(2_048, d_model=128, n_layers=4, n_heads=4, max_len=128, family="gpt2"),
    "124m": TransformerConfig(50_257, d_model=768, n_layers=12, n_heads=12, max_len=1024, family="gpt2"),
}
EPISODES = {"toy": 64, "124m": 32}


class Numbers:
    """A tokenizer for texts such as "5 17 3": the ids themselves."""

    def __init__(self, vocab_size: int) -> None:
        self.eos_id = self.pad_id = vocab_size - 1

    def chat(self, prompt: str) -> list[int]:
        return [int(word) for word in prompt.split()]

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def prompts(size: str, count: int, tokens: int) -> list[str]:
    draw, vocabulary = random.Random(0), SHAPES[size].vocab_size
    return [" ".join(str(draw.randrange(vocabulary - 1)) for _ in range(tokens)) for _ in range(count)]


def score(requests, answers) -> list[float]:
    return [len(set(words)) / max(1, len(words)) for words in map(str.split, answers)]


def our_trainer(model: FastTransformer, episodes: int, tokens: int, dtype: str, device: str) -> PPOTrainer:
    """Our PPO at the sizes of the benchmark, with the fast sampler, as `train.py` has it."""
    coarse = dtype == "bfloat16"
    reference = copy.deepcopy(model).to(device, getattr(torch, dtype))
    how = {"num_minibatches": 4, "ppo_epochs": 4, "max_new_tokens": tokens, "lr": 1e-6, "kl_coef": 0.05}
    layers = model.config.n_layers if coarse else 0
    config = PPOConfig(batch_size=episodes, micro_batch_size=episodes, train_layers=layers, **how)
    draw = torch.Generator().manual_seed(0)
    tokenizer = Numbers(model.config.vocab_size)
    return PPOTrainer(copy.deepcopy(reference), reference, tokenizer, score, config, draw, generate)


class Peer:
    """TRL in a process of its own: it makes one iteration each time it is asked to."""

    def __init__(self, python: str, folder: Path, asked: list[str], dtype: str, device: str) -> None:
        rows = [[int(word) for word in text.split()] for text in asked]
        spec = {"folder": str(folder), "prompts": rows, "episodes": len(rows), "answer": len(rows[0])}
        spec |= {"dtype": dtype, "device": device, "threads": torch.get_num_threads()}
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [python, str(Path(__file__).with_name("ppo_peer.py")), str(folder / "spec.json")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()

    def _read(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("PEER "):
                return json.loads(line[5:])
        sys.exit(f"the peer ended with {self.process.wait()}")

    def iteration(self) -> float:
        """Seconds of the next iteration."""
        print("go", file=self.process.stdin, flush=True)
        return self._read()["seconds"]

    def close(self) -> None:
        self.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="one PPO iteration, ours against TRL's")
    parser.add_argument("--size", choices=tuple(SHAPES), default="toy")
    parser.add_argument("--rounds", type=int, default=5, help="timed iterations of each (default 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer", help="the Python of an environment that has trl 0.24; without it ours alone")
    parser.add_argument("--episodes", type=int, help="of an iteration, a multiple of 4 (default: the size's)")
    parser.add_argument("--tokens", type=int, default=32, help="of a prompt, and of its answer (default 32)")
    args = parser.parse_args()
    rows, tokens = args.episodes or EPISODES[args.size], args.tokens
    if min(args.rounds, rows, tokens) < 1 or rows % 4:
        parser.error("--rounds and --tokens must be at least 1, --episodes a multiple of 4")
    torch.manual_seed(0)
    model = FastTransformer(SHAPES[args.size], torch.Generator().manual_seed(0)).eval()
    batch = prompts(args.size, rows, tokens)
    trainer = our_trainer(model, rows, tokens, args.dtype, args.device)
    with tempfile.TemporaryDirectory() as place:
        peer = None
        if args.peer:
            save_pretrained(model, Path(place) / "model")
            peer = Peer(args.peer, Path(place) / "model", batch, args.dtype, args.device)
            ids = torch.tensor([trainer.tokenizer.chat(batch[0])])
            with torch.no_grad():
                logits = model(ids)[0, -1, :8].tolist()
            if max(abs(a - b) for a, b in zip(logits, peer.about["logits"])) > 1e-3:
                sys.exit(f"the peer's logits differ: {peer.about['logits']}, ours {logits}")
            print("same logits", flush=True)
        seconds: dict[str, list[float]] = {"ours": [], "trl": []}
        parts: list[dict] = []
        trainer.step(batch)  # warm up: the first iteration allocates
        if peer:
            peer.iteration()
        for round_ in range(args.rounds):
            for side in ("ours", "trl")[:: 1 if round_ % 2 == 0 else -1]:
                if side == "ours":
                    start = time.perf_counter()
                    parts.append(trainer.step(batch))
                    seconds[side].append(time.perf_counter() - start)
                elif peer:
                    seconds[side].append(peer.iteration())
                else:
                    continue
                print(f"round {round_ + 1}: {side:5} {seconds[side][-1]:8.3f} s", flush=True)
        if peer:
            peer.close()
    median = {side: statistics.median(values) if values else None for side, values in seconds.items()}
    spent = {name: round(statistics.median(part[name] for part in parts), 3) for name in ("rollout_s", "update_s")}
    config, epochs = model.config, trainer.config.ppo_epochs
    flops = 3 * epochs * forward_flops(config, [2 * tokens] * rows, tokens * rows)  # forward and backward
    shape = rows // trainer.config.num_minibatches * 2 * tokens, config.d_model, config.d_ff
    bound = flops / gemm_peak(getattr(torch, args.dtype), args.device, *shape)
    print(f"update: {spent['update_s']:.2f} s; its matrix products at the peak of this shape, {shape}: {bound:.2f} s")
    result = {
        "benchmark": "ppo",
        "ratio": median["trl"] and round(median["trl"] / median["ours"], 2),
        "ours_s": round(median["ours"], 3),
        "trl_s": median["trl"] and round(median["trl"], 3),
        **spent,
        "update_share_of_bound": round(bound / spent["update_s"], 3),
        "size": args.size,
        "episodes": rows,
        "tokens": tokens,
        "dtype": args.dtype,
        "device": device_name(args.device),
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "versions": {"torch": torch.__version__} | (peer.about["versions"] if peer else {}),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

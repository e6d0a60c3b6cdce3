"""The model nobody may touch: texts in, texts out, and proof that its weights never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from alignpro_mini.config import SamplingConfig
from alignpro_mini.generation import Completion, generate
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.transformer import Transformer


def checksum(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer: names, dtypes, shapes and bytes. Equal means bit for bit equal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FrozenLM:
    """pi_F behind its only interface, `answer`. In eval mode, without gradients, in no optimiser.

    Counts how many answers were given and how many were cut at the token limit (a cut answer is rated as it stands,
    which can fake a result, so the report tells the share).
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, sampling: SamplingConfig = SamplingConfig()) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.sampling = tokenizer, sampling
        self.answered = self.cut = 0
        self._checksum = checksum(self.model)

    def answer(self, prompts: Sequence[str], generator: torch.Generator | None = None) -> list[str]:
        """One sampled answer for each prompt. Raises ValueError for a prompt that does not fit the context."""
        return [self.tokenizer.decode(c.tokens) for c in self.complete(prompts, generator)]

    def complete(self, prompts: Sequence[str], generator: torch.Generator | None = None) -> list[Completion]:
        """Like `answer`, as tokens with their log-probs."""
        completions = generate(
            self.model,
            [self.tokenizer.chat(p) for p in prompts],
            self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            eos_id=self.tokenizer.eos_id,
            generator=generator,
        )
        self.answered += len(completions)
        self.cut += sum(not c.finished for c in completions)
        return completions

    def fits(self, prompt: str) -> bool:
        """Whether the prompt leaves room in the context for a whole answer."""
        return len(self.tokenizer.chat(prompt)) + self.sampling.max_new_tokens <= self.model.config.max_len

    def assert_unchanged(self, after: str) -> None:
        """Compare the checksum with the one taken at construction. Raises RuntimeError naming the stage `after`."""
        if checksum(self.model) != self._checksum:
            raise RuntimeError(f"the frozen LM changed during {after}: its weights must stay as they were")
        if any(p.requires_grad for p in self.model.parameters()):
            raise RuntimeError(f"after {after} the frozen LM has parameters that require gradients")

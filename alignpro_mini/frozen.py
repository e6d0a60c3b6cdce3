"""The frozen LLM pi_F: prompts in, answers out, and a check that its weights never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from alignpro_mini.generation import Sampler, generate
from alignpro_mini.options import check_ranges, option, require
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Truncated
from alignpro_mini.transformer import Transformer


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the frozen LM answers, the same in training and in every comparison."""

    temperature: float = option(1.0, "sampling temperature of the frozen LM; 0 is greedy", least=0)
    top_p: float = option(1.0, "nucleus mass of the frozen LM's sampling")
    max_new_tokens: int = option(72, "longest answer, in tokens", least=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must lie in (0, 1]")


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer; `tokens` (EOS included) is None for a model that returns text only.

    The text of a truncated answer is a `Truncated`: a reward can see that it was cut.
    """

    text: str
    truncated: bool  # it ended at the token limit, without an EOS
    tokens: list[int] | None = None

    def __post_init__(self) -> None:
        if self.truncated:
            object.__setattr__(self, "text", Truncated(self.text))


class FrozenModel(Protocol):
    """What Align-Pro needs of the frozen model; a model behind an API has it too.

    Only the RLHF oracle, and what compares the prompter with it, need weights: a `FrozenLM`.
    """

    def answer(
        self, prompts: Sequence[str], generator: torch.Generator | None = None
    ) -> list[Answer]:
        """One sampled answer for each prompt."""

    def fits(self, prompt: str) -> bool:
        """Whether the prompt leaves room for a whole answer."""


def checksum(model: nn.Module) -> str:
    """SHA-256 over the state_dict (parameters, persistent buffers), equal only for equal bits.

    Names, dtypes, shapes and bytes count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        numbers = tensor.detach().cpu().contiguous().flatten()
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FrozenLM:
    """A `FrozenModel` whose weights are here: in eval mode, without gradients, in no optimiser.

    `model`, `tokenizer`, `sampling` and `sampler` may be read (the oracle starts as a copy of
    `model`); `assert_unchanged` checks that nothing wrote to the weights.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        sampling: SamplingConfig = SamplingConfig(),
        sampler: Sampler = generate,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.sampler = sampler
        self._checksum = checksum(self.model)

    def answer(
        self, prompts: Sequence[str], generator: torch.Generator | None = None
    ) -> list[Answer]:
        """One sampled answer for each prompt.

        Raises UserError for a prompt that does not fit the context.
        """
        completions = self.sampler(
            self.model,
            [self.tokenizer.chat(prompt) for prompt in prompts],
            self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            eos_id=self.tokenizer.end_ids,
            generator=generator,
        )
        return [
            Answer(self.tokenizer.decode(c.tokens), not c.finished, c.tokens) for c in completions
        ]

    def fits(self, prompt: str) -> bool:
        """Whether the prompt leaves room in the context for a whole answer."""
        needed = len(self.tokenizer.chat(prompt)) + self.sampling.max_new_tokens
        return needed <= self.model.config.max_len

    def assert_unchanged(self, after: str) -> None:
        """Compare the checksum with the one taken at construction.

        Raises RuntimeError naming the stage `after`.
        """
        if checksum(self.model) != self._checksum:
            advice = "its weights must stay as they were"
            raise RuntimeError(f"the frozen LM changed during {after}: {advice}")
        if any(p.requires_grad for p in self.model.parameters()):
            raise RuntimeError(f"after {after} the frozen LM has parameters that require gradients")

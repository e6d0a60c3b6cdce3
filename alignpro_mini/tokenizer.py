"""Text to token ids and back. A user's text can never become a control token.

A conversation of ours:

    <|user|> prompt <|assistant|>  answer <|end|>

Control tokens are put there by number, never by writing their names into the text: a user's
"<|end|>" is encoded as ordinary text and does not end the turn. Published models have other shapes
of conversation, and some end an answer in several ways: `weights.chat.PublishedTokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from alignpro_mini.options import UserError, one_line, require

PAD = "<|pad|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SPECIAL = (PAD, USER, ASSISTANT, END)  # ids 0..3


class Tokenizer:
    """A byte-level BPE vocabulary; `encode`, `decode`, and the ids of a conversation.

    Make one with `Tokenizer.train(texts, vocab_size)` or `Tokenizer.load("tokenizer.json")`.
    `eos_id` ends an answer as it is taught, any of `end_ids` one that is sampled; `pad_id` fills a
    batch. Raises UserError for a vocabulary without the control tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # A tokenizer.json may ask for both, and would truncate prompts silently.
        backend.no_truncation()
        backend.no_padding()
        # "Encode control tokens like any text": a typed "<|end|>" stays text.
        backend.encode_special_tokens = True
        self.backend = backend
        self.eos_id, self.pad_id = self._control_ids()
        self.end_ids: tuple[int, ...] = (self.eos_id,)

    def _control_ids(self) -> tuple[int, int]:
        """The ids that end an answer and that fill a batch."""
        missing = [name for name in SPECIAL if self.backend.token_to_id(name) is None]
        require(not missing, f"the vocabulary has no {', '.join(missing)}: not one of ours")
        return self.backend.token_to_id(END), self.backend.token_to_id(PAD)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn at most `vocab_size` tokens from `texts`; the same texts give the same tokens.

        Every byte has a token (any text can be written). Ids 0..3 are <|pad|>, <|user|>,
        <|assistant|>, <|end|>. Raises UserError when the 4 control tokens and 256 bytes do not fit.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        least = len(SPECIAL) + len(alphabet)
        require(
            vocab_size >= least,
            f"vocab_size is {vocab_size}; the control tokens and the bytes alone need {least}",
        )
        backend = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json` that `save` wrote.

        Raises FileNotFoundError, or UserError for a file that is not one.
        """
        return cls(read_backend(path))

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that `load`, and every Hugging Face library, can read."""
        self.backend.save(str(path))

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control token's, whatever it says."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def chat(self, prompt: str) -> list[int]:
        """The ids of the conversation up to where the model must answer.

        Example: "2+2" -> [1, id("2"), id("+"), id("2"), 2].
        """
        user = self.backend.token_to_id(USER)
        assistant = self.backend.token_to_id(ASSISTANT)
        return [user, *self.encode(prompt), assistant]

    def chat_with_answer(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """(prompt ids, answer ids), the answer with its EOS: what fine-tuning learns."""
        return self.chat(prompt), [*self.encode(answer), self.eos_id]


def byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` around `model` that reads bytes, and splits words as GPT-2 does."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def read_backend(path: str | Path) -> tokenizers.Tokenizer:
    """The vocabulary in a `tokenizer.json`.

    Raises FileNotFoundError, or UserError for a file that is not one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; name a tokenizer.json, or train one with Tokenizer.train"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception or, outside of it, its own panic
        raise UserError(
            f"{path}: not a usable tokenizer.json ({one_line(error)}); copy it again"
        ) from None

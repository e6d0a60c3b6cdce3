"""Text to token ids and back: `tokenizers` wrapped so that a user's text can never become a control token.

The control tokens that a vocabulary holds choose the shape of a conversation (`Tokenizer.chat`):

    ours      <|user|> prompt <|assistant|>  answer <|end|>
    ChatML    <|im_start|>system\\n...<|im_end|>\\n<|im_start|>user\\nprompt<|im_end|>\\n
              <|im_start|>assistant\\n  answer <|im_end|>
    GPT-2     prompt\\n\\n  answer <|endoftext|>

A published chat template takes the place of these (`Around`). Ids are put there by number, never by writing their names
into the text: a user's "<|end|>" is encoded as ordinary text and does not end the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from alignpro_mini.options import UserError

PAD, USER, ASSISTANT, END = SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")  # ids 0..3
ENDS = (END, "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>")  # the first there is ends answers
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around the user's words: ids, text that is encoded together with them, and ids again."""

    before: list[int]
    lead: str
    tail: str
    after: list[int]
    strip: bool = False  # whether the template strips the user's words


class Tokenizer:
    """A byte-level BPE vocabulary; `encode`, `decode`, and the ids of a conversation.

    Make one with `Tokenizer.train(texts, vocab_size)` or `Tokenizer.load("tokenizer.json")`. `around(system)` is a
    published conversation's shape, `end` the token that ends its answers; without them the vocabulary decides.
    Raises UserError when the vocabulary has no token that ends an answer.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        system: str | None = None,
        around: Callable[[str | None], Around] | None = None,
        end: int | None = None,
    ) -> None:
        self.backend, self.around, self._end = backend, around, end
        self.system = system  # what `chat` puts before every prompt by default
        backend.no_truncation()  # a tokenizer.json may carry both, and would truncate prompts silently
        backend.no_padding()
        backend.encode_special_tokens = True  # "encode them like any text": a typed "<|end|>" stays text
        ends = [end, *(backend.token_to_id(name) for name in ENDS)]
        self.eos_id: int = next((i for i in ends if i is not None), -1)
        if self.eos_id < 0:
            raise UserError(f"the vocabulary has none of {', '.join(ENDS)}: add one, it ends an answer")
        pad = backend.token_to_id(PAD)
        self.pad_id: int = self.eos_id if pad is None else pad  # masks, not ids, tell padding

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn at most `vocab_size` tokens from `texts`; the same texts give the same tokens.

        Every byte has a token (any text can be written). Ids 0..3 are <|pad|>, <|user|>, <|assistant|>, <|end|>.
        Raises UserError when the 4 control tokens and 256 bytes do not fit.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(SPECIAL) + len(alphabet):
            raise UserError(f"vocab_size is {vocab_size}; the control tokens and the bytes alone need 260")
        backend = byte_level(models.BPE(), split_digits=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet), show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path, end: str = "") -> Tokenizer:
        """Read a `tokenizer.json`; `end` names the token that ends an answer, where it is none of `ENDS`.

        Raises FileNotFoundError, or UserError for a file that is not one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; name a tokenizer.json, or train one with Tokenizer.train")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
            return cls(backend, end=backend.token_to_id(end))
        except Exception as error:  # the library raises bare Exception for a file that it cannot parse
            raise UserError(f"{path}: not a usable tokenizer.json ({one_line(error)}); copy it again") from None

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that `load`, and every Hugging Face library, can read."""
        self.backend.save(str(path))

    def with_system(self, system: str) -> Tokenizer:
        """The same vocabulary with another default system prompt."""
        return Tokenizer(self.backend, system, self.around, self._end)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control token's, whatever it says."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def chat(self, prompt: str, system: str | None = None) -> list[int]:
        """The ids of the conversation up to where the model must answer.

        `system` None means `self.system`; if that is None too, SmolLM2's own system prompt in ChatML (other
        ChatML models have other defaults: pass theirs) and none elsewhere. Outside ChatML a given one is put
        before the prompt as a paragraph.

            ours, "2+2":  [1, id("2"), id("+"), id("2"), 2]
        """
        id_of = self.backend.token_to_id
        system = self.system if system is None else system
        if self.around is not None:
            shape = self.around(system)
            said = prompt.strip() if shape.strip else prompt
            return [*shape.before, *self.encode(f"{shape.lead}{said}{shape.tail}"), *shape.after]
        user, assistant = id_of(USER), id_of(ASSISTANT)
        start, end = id_of("<|im_start|>"), id_of("<|im_end|>")
        if user is None and start is not None and end is not None:
            newline = self.encode("\n")
            ids: list[int] = []
            for role, text in (("system", SMOLLM2_SYSTEM if system is None else system), ("user", prompt)):
                ids += [start, *self.encode(f"{role}\n{text}"), end, *newline]
            return [*ids, start, *self.encode("assistant\n")]
        text = prompt if system is None else f"{system}\n\n{prompt}"
        if user is not None and assistant is not None:
            return [user, *self.encode(text), assistant]
        return self.encode(f"{text}\n\n")

    def chat_with_answer(self, prompt: str, answer: str, system: str | None = None) -> tuple[list[int], list[int]]:
        """`(prompt ids, answer ids)`, the answer with the token that ends it: what fine-tuning learns."""
        return self.chat(prompt, system), [*self.encode(answer), self.eos_id]


def byte_level(model: models.Model, special: Iterable[str] = (), split_digits: bool = True) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` around `model` that splits words as GPT-2 does, and digits singly if asked to."""
    backend = tokenizers.Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if split_digits else words
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return backend


def one_line(error: BaseException) -> str:
    """The first line of an error's message: what a user is shown of a library's complaint."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

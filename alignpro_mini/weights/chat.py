"""Published tokenizers: a vocabulary, the shape of its conversations, and the tokens that end an answer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from alignpro_mini.options import UserError, one_line
from alignpro_mini.tokenizer import END, PAD, Tokenizer
from alignpro_mini.weights import vocabulary
from alignpro_mini.weights.template import Shape, base_shape, template_shape, usual_shape
from alignpro_mini.weights.tensors import read_json
from alignpro_mini.weights.vocabulary import CONFIG, TOKENIZER_CONFIG, VOCABULARY

SYSTEM, TEMPLATE = "system_prompt", "chat_template.jinja"
# The tokens that end an answer where no file says which; the first one that a vocabulary has.
ENDS = (END, "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>")


class PublishedTokenizer(Tokenizer):
    """A published vocabulary, with the shape of its conversations and the system message of all of them.

    Without `shape` the vocabulary decides (`usual_shape`). `ends` are the tokens that end an answer, the first one as
    it is taught; without them it is the first of `ENDS`. Raises UserError when the vocabulary has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        system: str | None = None,
        shape: Shape | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self.ends = tuple(dict.fromkeys(ends))
        super().__init__(backend)
        self.end_ids = tuple(dict.fromkeys((self.eos_id, *self.ends)))
        self.system = system
        self.shape = shape or usual_shape(backend)
        self._size = 1 + max(backend.get_vocab().values())

    def _control_ids(self) -> tuple[int, int]:
        taught = (i for i in self.ends if self.backend.id_to_token(i) is not None)
        named = (self.backend.token_to_id(name) for name in ENDS)
        eos_id = next((i for i in (*taught, *named) if i is not None), None)
        if eos_id is None:
            raise UserError(f"the vocabulary has none of {', '.join(ENDS)}: add one, it ends an answer")
        pad_id = self.backend.token_to_id(PAD)
        return eos_id, eos_id if pad_id is None else pad_id  # masks, not ids, tell padding

    @property
    def vocab_size(self) -> int:
        """The ids' number, those of a hole included: what a model must have rows for."""
        return self._size

    def with_system(self, system: str) -> PublishedTokenizer:
        """The same vocabulary with another system message."""
        return PublishedTokenizer(self.backend, system, self.shape, self.ends)

    def encode(self, text: str) -> list[int]:
        return self.shape.words.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(i for i in ids if i not in self.shape.words.control)

    def chat(self, prompt: str) -> list[int]:
        return [*self.shape.first, *self.encode(self.shape.text(self.system, prompt))]

    def chat_with_answer(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """As `Tokenizer` does, the answer as it is read after the prompt, where its first tokens join nothing."""
        shape = self.shape
        before = self.chat(prompt)
        said = answer if answer.startswith(shape.lead) else f"{shape.lead}{answer}"
        whole = [*shape.first, *self.encode(f"{shape.text(self.system, prompt)}{said}")]
        joins = whole[: len(before)] != before
        return before, [*(self.encode(said) if joins else whole[len(before) :]), self.eos_id]


def load_tokenizer(directory: Path) -> PublishedTokenizer | None:
    """The tokenizer of a folder, with the system prompt it was saved with and its chat template; None without one.

    A chat template is what the model was trained on; a published model without one is a base model, which continues
    text; where no file but the vocabulary is there, its tokens tell the shape. Raises UserError for files that cannot
    be used, FileNotFoundError for a missing config.json. Warns of settings of generation_config.json that nothing
    follows.
    """
    system = read_json(directory / CONFIG).get(SYSTEM)
    if not (directory / VOCABULARY).exists():
        return None
    backend, names, settings = vocabulary.read_vocabulary(directory)
    template = read_template(directory, settings)
    if template is not None:
        shape = template_shape(backend, template, names, str(directory))
    elif any((directory / file).exists() for file in (TOKENIZER_CONFIG, vocabulary.NAMES)):
        shape = base_shape(backend, names)
    else:
        shape = usual_shape(backend)
    ends = [shape.end, backend.token_to_id(names.get("eos_token", "")), *vocabulary.end_ids(directory)]
    try:
        tokenizer = PublishedTokenizer(
            backend, system if isinstance(system, str) else None, shape, [i for i in ends if i is not None]
        )
    except UserError as error:
        raise UserError(f"{directory / VOCABULARY}: {error}") from None
    if unread := vocabulary.unread_settings(directory):
        file = directory / vocabulary.GENERATION
        warnings.warn(f"{file}: {', '.join(unread)} is not followed: --sampling decides", stacklevel=2)
    return tokenizer


def read_template(folder: Path, settings: dict) -> str | None:
    """The chat template of a folder: a file of its own, or in tokenizer_config.json. None for a base model."""
    text, file = settings.get("chat_template"), folder / TEMPLATE
    if file.exists():
        try:
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({one_line(error)}); copy the file again") from None
    if isinstance(text, list):  # several named ones
        text = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
    if isinstance(text, dict):
        if "default" not in text:
            message = f"of the chat templates ({', '.join(map(str, text))}) none is called default"
            raise UserError(f"{folder / TOKENIZER_CONFIG}: {message}; put the right one into {TEMPLATE}")
        text = text["default"]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{folder / TOKENIZER_CONFIG}: chat_template is {text!r:.60}; it must be text: copy the file again"
        )
    return text


def save_template(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what `load_tokenizer` reads besides the vocabulary, if the tokenizer came from there."""
    shape = tokenizer.shape if isinstance(tokenizer, PublishedTokenizer) else None
    if shape is None or shape.names is None:
        return
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(shape.names) + "\n", encoding="utf-8")
    if shape.template is not None:
        (folder / TEMPLATE).write_text(shape.template, encoding="utf-8")

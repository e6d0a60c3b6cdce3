"""Published tokenizers: the shape of their conversations, given by a chat template or by the vocabulary.

A chat template is Jinja text that turns a conversation into the text that a model was trained on. It is rendered once per system message, with a placeholder in the user's place. Around the placeholder the
control tokens become ids; the ordinary text next to the user's words is kept as text, because tokens may join across
that border (Llama 2: " [INST] " and the first word). So a user's words never become control tokens, whatever they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tokenizers

from alignpro_mini.options import UserError, one_line
from alignpro_mini.tokenizer import ASSISTANT, END, PAD, USER, Tokenizer, read_backend
from alignpro_mini.weights.tensors import read_json

CONFIG, VOCABULARY, SYSTEM = "config.json", "tokenizer.json", "system_prompt"
TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
WORDS, ANSWER = "<<the user's words>>", "<<the answer>>"
# The tokens that end an answer; the first one that a vocabulary has.
ENDS = (END, "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>")
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around the user's words: ids, text that is encoded together with them, and ids again."""

    before: list[int]
    lead: str
    tail: str
    after: list[int]
    strip: bool = False  # whether the template strips the user's words


Shape = Callable[[str | None], Around]  # of a conversation: system message -> what stands around the user's words


class PublishedTokenizer(Tokenizer):
    """A published vocabulary, with the shape of its conversations and the system message of all of them.

    `around` is the shape; without it the vocabulary decides (`usual_shape`). `end` names the token that ends an answer,
    where it is none of `ENDS`. Raises UserError when the vocabulary has no such token.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, system: str | None = None, around: Shape | None = None, end: str = ""
    ) -> None:
        self.end = end
        super().__init__(backend)
        self.system = system
        self.around = around or usual_shape(self)

    def _control_ids(self) -> tuple[int, int]:
        ends = [self.backend.token_to_id(name) for name in (self.end, *ENDS)]
        eos_id = next((i for i in ends if i is not None), None)
        if eos_id is None:
            raise UserError(f"the vocabulary has none of {', '.join(ENDS)}: add one, it ends an answer")
        pad_id = self.backend.token_to_id(PAD)
        return eos_id, eos_id if pad_id is None else pad_id  # masks, not ids, tell padding

    def with_system(self, system: str) -> PublishedTokenizer:
        """The same vocabulary with another system message."""
        return PublishedTokenizer(self.backend, system, self.around, self.end)

    def chat(self, prompt: str) -> list[int]:
        shape = self.around(self.system)
        words = prompt.strip() if shape.strip else prompt
        return [*shape.before, *self.encode(f"{shape.lead}{words}{shape.tail}"), *shape.after]


def usual_shape(tokenizer: Tokenizer) -> Shape:
    """The shape of conversations that a vocabulary's control tokens tell, where no template does.

        ours      <|user|> prompt <|assistant|>  answer <|end|>
        ChatML    <|im_start|>system\\n...<|im_end|>\\n<|im_start|>user\\nprompt<|im_end|>\\n
                  <|im_start|>assistant\\n  answer <|im_end|>
        GPT-2     prompt\\n\\n  answer <|endoftext|>

    Without a system message ChatML has SmolLM2's own one; elsewhere a given one stands before the prompt as a paragraph.
    """
    id_of = tokenizer.backend.token_to_id
    user, assistant = id_of(USER), id_of(ASSISTANT)
    start, end = id_of("<|im_start|>"), id_of("<|im_end|>")
    paragraph = lambda system: "" if system is None else f"{system}\n\n"
    if user is not None and assistant is not None:
        return lambda system: Around([user], paragraph(system), "", [assistant])
    if start is None or end is None:
        return lambda system: Around([], paragraph(system), "\n\n", [])
    newline = tokenizer.encode("\n")

    def chatml(system: str | None) -> Around:
        message = SMOLLM2_SYSTEM if system is None else system
        before = [start, *tokenizer.encode(f"system\n{message}"), end, *newline, start]
        return Around(before, "user\n", "", [end, *newline, start, *tokenizer.encode("assistant\n")])

    return chatml


class ChatTemplate:
    """`template(system)` is what stands around the user's words; `text` and `names` are kept to be saved again."""

    def __init__(self, text: str, names: dict[str, str], backend: tokenizers.Tokenizer, where: str) -> None:
        self.text, self.names, self.where = text, names, where
        special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._special = special
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
        self._encode = lambda part: backend.encode(part, add_special_tokens=False).ids
        self._around = cache(self._make)

    def __call__(self, system: str | None) -> Around:
        """The parts for this system message (None: the template's own default)."""
        return self._around(system)

    @property
    def end(self) -> str:
        """The control token that ends an answer, by the template; "" where no such token follows it."""
        messages = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": ANSWER}]
        after = self._split.split(self._render(messages, answer_next=False).partition(ANSWER)[2])
        return next((part for part in after if part in self._special), "")

    def _turn(self, system: str | None, said: str) -> str:
        user = {"role": "user", "content": said}
        try:
            return self._render([user] if system is None else [{"role": "system", "content": system}, user])
        except UserError:  # some templates refuse a system message
            return self._render([user | {"content": f"{system}\n\n{said}"}])

    def _make(self, system: str | None) -> Around:
        text = self._turn(system, WORDS)
        strips = f"{WORDS}\n\n" not in self._turn(system, f"{WORDS}\n\n")
        before, found, after = text.partition(WORDS)
        if not found or WORDS in after:
            raise UserError(f"{self.where}: the chat template does not say the user's words exactly once")
        *head, lead = self._split.split(before)
        tail, *rest = self._split.split(after)
        return Around(self._ids(head), lead, tail, self._ids(rest), strips)

    def _ids(self, parts: list[str]) -> list[int]:
        ids = [[self._special[part]] if part in self._special else self._encode(part) for part in parts if part]
        return [i for some in ids for i in some]

    def _render(self, messages: list[dict[str, str]], answer_next: bool = True) -> str:
        import jinja2.ext
        import jinja2.sandbox  # comes with torch; a template is somebody else's program

        def refuse(message: str):
            raise jinja2.TemplateError(message)

        class Generation(jinja2.ext.Extension):  # a mark for training, without effect on the text
            tags = {"generation"}

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(["name:endgeneration"], drop_needle=True)

        how = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [jinja2.ext.loopcontrols, Generation]}
        world = jinja2.sandbox.ImmutableSandboxedEnvironment(**how)
        world.globals |= {"raise_exception": refuse, "strftime_now": lambda form: ""}
        how = {"messages": messages, "add_generation_prompt": answer_next, "enable_thinking": False, "tools": None}
        try:
            return world.from_string(self.text).render(**how, **self.names)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(f"{self.where}: the chat template fails ({one_line(error)})") from None


def token_names(raw: dict) -> dict[str, str]:
    """`bos_token` and `eos_token` of a tokenizer_config.json, written as a text or as an object."""
    name = lambda key: raw[key].get("content") if isinstance(raw.get(key), dict) else raw.get(key)
    return {key: name(key) for key in ("bos_token", "eos_token") if isinstance(name(key), str)}


def load_tokenizer(directory: Path) -> PublishedTokenizer | None:
    """The tokenizer of a folder, with the system prompt it was saved with and its chat template; None without one.

    Raises UserError for files that cannot be used, FileNotFoundError for a missing config.json.
    """
    vocabulary, file = directory / VOCABULARY, directory / TOKENIZER_CONFIG
    system = read_json(directory / CONFIG).get(SYSTEM)
    if not vocabulary.exists():
        return None
    raw = read_json(file) if file.exists() else {}
    names = token_names(raw)
    backend = read_backend(vocabulary)
    try:
        tokenizer = PublishedTokenizer(backend, end=names.get("eos_token", ""))
    except UserError as error:
        raise UserError(f"{vocabulary}: {error}") from None
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        if not token.special and re.fullmatch(r"</?[\w|]+>", token.content):  # Qwen's <think>, <tool_call>
            tokenizer.backend.add_special_tokens([tokenizers.AddedToken(token.content, special=True, normalized=False)])
    if isinstance(system, str):
        tokenizer = tokenizer.with_system(system)
    templated = file.exists() or (directory / TEMPLATE).exists()
    return with_template(tokenizer, directory, raw, names) if templated else tokenizer


def with_template(tokenizer: PublishedTokenizer, folder: Path, raw: dict, names: dict[str, str]) -> PublishedTokenizer:
    """The tokenizer with the published chat template of its folder; without one (a base model) it continues text.

    `raw` is what tokenizer_config.json holds, `names` its `token_names`. The token that ends an answer is the
    template's, or `eos_token`.
    """
    text, file = raw.get("chat_template"), folder / TEMPLATE
    if file.exists():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({one_line(error)}); copy the file again") from None
    if isinstance(text, list):  # several named ones
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
        text = named.get("default")
    end = names.get("eos_token", "")
    if not isinstance(text, str):
        around = Continuation(names, tokenizer.backend)
        return PublishedTokenizer(tokenizer.backend, tokenizer.system, around, end)
    space = tokenizer.backend.pre_tokenizer
    if isinstance(space, tokenizers.pre_tokenizers.Metaspace) and space.prepend_scheme == "first":
        space.prepend_scheme = "never"  # a control token comes first, and no text
        tokenizer.backend.pre_tokenizer = space
    template = ChatTemplate(text, names, tokenizer.backend, str(folder))
    return PublishedTokenizer(tokenizer.backend, tokenizer.system, template, template.end or end)


class Continuation:
    """What a base model gets: its first token, where its own post-processing adds one, and the text to go on from."""

    def __init__(self, names: dict[str, str], backend: tokenizers.Tokenizer) -> None:
        self.names, self._first = names, backend.encode("", add_special_tokens=True).ids[:1]

    def __call__(self, system: str | None) -> Around:
        return Around(self._first, f"{system}\n\n" if system else "", "\n\n", [])


def save_template(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what `with_template` reads, if the tokenizer came from there."""
    around = tokenizer.around if isinstance(tokenizer, PublishedTokenizer) else None
    if isinstance(around, ChatTemplate):
        (folder / TEMPLATE).write_text(around.text, encoding="utf-8")
    if isinstance(around, (ChatTemplate, Continuation)):
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(around.names) + "\n", encoding="utf-8")

"""Published chat templates: Jinja text that turns a conversation into the text that a model was trained on.

A template is rendered once per system message, with a placeholder in the user's place. Around the placeholder the
control tokens become ids; the ordinary text next to the user's words is kept as text, because tokens may join across
that border (Llama 2: " [INST] " and the first word). So a user's words never become control tokens, whatever they say.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import tokenizers

from alignpro_mini.options import UserError
from alignpro_mini.tokenizer import Around, Tokenizer, one_line
from alignpro_mini.weights.tensors import read_json

CONFIG, VOCABULARY, SYSTEM = "config.json", "tokenizer.json", "system_prompt"
TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
USER, ANSWER = "<<the user's words>>", "<<the answer>>"


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
    def end(self) -> int | None:
        """The control token that ends an answer, by the template; None where no such token follows it."""
        said = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
        after = self._split.split(self._render(said, answer_next=False).partition(ANSWER)[2])
        return next((self._special[part] for part in after if part in self._special), None)

    def _turn(self, system: str | None, said: str) -> str:
        user = {"role": "user", "content": said}
        try:
            return self._render([user] if system is None else [{"role": "system", "content": system}, user])
        except UserError:  # some templates refuse a system message
            return self._render([user | {"content": f"{system}\n\n{said}"}])

    def _make(self, system: str | None) -> Around:
        text = self._turn(system, USER)
        strips = f"{USER}\n\n" not in self._turn(system, f"{USER}\n\n")
        before, found, after = text.partition(USER)
        if not found or USER in after:
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


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a folder, with the system prompt it was saved with and its chat template; None without one.

    Raises UserError for files that cannot be used, FileNotFoundError for a missing config.json.
    """
    vocabulary, file = directory / VOCABULARY, directory / TOKENIZER_CONFIG
    system = read_json(directory / CONFIG).get(SYSTEM)
    if not vocabulary.exists():
        return None
    raw = read_json(file) if file.exists() else {}
    names = token_names(raw)
    tokenizer = Tokenizer.load(vocabulary, names.get("eos_token", ""))
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        if not token.special and re.fullmatch(r"</?[\w|]+>", token.content):  # Qwen's <think>, <tool_call>
            tokenizer.backend.add_special_tokens([tokenizers.AddedToken(token.content, special=True, normalized=False)])
    if isinstance(system, str):
        tokenizer = tokenizer.with_system(system)
    templated = file.exists() or (directory / TEMPLATE).exists()
    return with_template(tokenizer, directory, raw, names) if templated else tokenizer


def with_template(tokenizer: Tokenizer, folder: Path, raw: dict, names: dict[str, str]) -> Tokenizer:
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
    end = tokenizer.backend.token_to_id(names.get("eos_token", ""))
    if not isinstance(text, str):
        around = Continuation(names, tokenizer.backend)
        return Tokenizer(tokenizer.backend, tokenizer.system, around, end)
    space = tokenizer.backend.pre_tokenizer
    if isinstance(space, tokenizers.pre_tokenizers.Metaspace) and space.prepend_scheme == "first":
        space.prepend_scheme = "never"  # a control token comes first, and no text
        tokenizer.backend.pre_tokenizer = space
    template = ChatTemplate(text, names, tokenizer.backend, str(folder))
    found = template.end
    return Tokenizer(tokenizer.backend, tokenizer.system, template, end if found is None else found)


class Continuation:
    """What a base model gets: its first token, where its own post-processing adds one, and the text to go on from."""

    def __init__(self, names: dict[str, str], backend: tokenizers.Tokenizer) -> None:
        self.names, self._first = names, backend.encode("", add_special_tokens=True).ids[:1]

    def __call__(self, system: str | None) -> Around:
        return Around(self._first, f"{system}\n\n" if system else "", "\n\n", [])


def save_template(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what `with_template` reads, if the tokenizer came from there."""
    if isinstance(tokenizer.around, ChatTemplate):
        (folder / TEMPLATE).write_text(tokenizer.around.text, encoding="utf-8")
    if isinstance(tokenizer.around, (ChatTemplate, Continuation)):
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(tokenizer.around.names) + "\n", encoding="utf-8")

"""What stands around the user's words in a conversation: by a chat template, or by the vocabulary.

A chat template is Jinja text that turns a conversation into the text that a model was trained on. It is rendered once,
with placeholders for what the system and the user say. Around these it is our text, whose control tokens `Words.mark`
names; what is said later takes the placeholders' place as words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tokenizers

from alignpro_mini.options import UserError
from alignpro_mini.tokenizer import ASSISTANT, USER
from alignpro_mini.weights.child import Conversation, render
from alignpro_mini.weights.vocabulary import Words, as_published, control_tokens, first_ids

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SYSTEM, WORDS, ANSWER = (f"zqxj{kind}jxqz" for kind in ("sys", "usr", "ans"))  # placeholders, all letters
SPACES = (" ", "\n", "\t")
# A template must say words as they are, whatever they are
ODD = "\"'<b>&amp;{{ x }}{% y %}\\n\\\t\r\n``` Aa ÄÖß 漢字 😀 " + "long " * 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """`text(system, words)` is the conversation up to where the model answers, as `words.encode` reads it.

    `first` are ids before it, `end` is the control token after an answer, `lead` the spaces before one. `template` and
    `names` are kept to be saved again, None where no file told them.
    """

    words: Words
    text: Callable[[str | None, str], str]
    first: tuple[int, ...] = ()
    end: int | None = None
    lead: str = ""
    template: str | None = None
    names: dict[str, str] | None = None


def usual_shape(backend: tokenizers.Tokenizer) -> Shape:
    """The shape of conversations that a vocabulary's control tokens tell, where no template does.

        ours      <|user|> prompt <|assistant|>  answer <|end|>
        ChatML    <|im_start|>system\\n...<|im_end|>\\n<|im_start|>user\\nprompt<|im_end|>\\n
                  <|im_start|>assistant\\n  answer <|im_end|>
        GPT-2     prompt\\n\\n  answer <|endoftext|>

    Without a system message ChatML has SmolLM2's own one; elsewhere a given one stands before the prompt as a paragraph.
    """
    words = Words(backend, control_tokens(backend))
    there = lambda *names: all(backend.token_to_id(name) in words.control for name in names)
    if there(USER, ASSISTANT):
        user, assistant = words.mark(USER), words.mark(ASSISTANT)
        return Shape(words, lambda system, prompt: f"{user}{paragraph(system)}{prompt}{assistant}")
    if not there("<|im_start|>", "<|im_end|>"):
        return continuation(words)
    before = words.mark("<|im_start|>system\n")
    between = words.mark("<|im_end|>\n<|im_start|>user\n")
    after = words.mark("<|im_end|>\n<|im_start|>assistant\n")
    said = lambda system: SMOLLM2_SYSTEM if system is None else system
    return Shape(words, lambda system, prompt: f"{before}{said(system)}{between}{prompt}{after}")


def continuation(words: Words, first: list[int] = (), names: dict[str, str] | None = None) -> Shape:
    """What a base model gets: its first token, where the library puts one, and the text to go on from."""
    return Shape(words, lambda system, prompt: f"{paragraph(system)}{prompt}\n\n", tuple(first), names=names)


def paragraph(system: str | None) -> str:
    return f"{system}\n\n" if system else ""


def base_shape(backend: tokenizers.Tokenizer, names: dict[str, str]) -> Shape:
    """The shape of a published model without a chat template."""
    return continuation(Words(backend, control_tokens(backend)), first_ids(backend), names)


def template_shape(backend: tokenizers.Tokenizer, template: str, names: dict[str, str], where: str) -> Shape:
    """The shape that a chat template tells. Raises UserError, beginning with `where`, for one that cannot be used."""
    user, system = ({"role": role, "content": said} for role, said in (("user", WORDS), ("system", SYSTEM)))
    answer = {"role": "assistant", "content": ANSWER}
    asked: dict[str, Conversation] = {
        "plain": ([user], True),
        "system": ([system, user], True),
        "no system": ([system | {"content": ""}, user], True),
        "answer": ([user, answer], False),
        "dialogue": ([system, user, answer, user], True),
    }
    odd = lambda message, space: message | {"content": f"{space}{message['content']}{ODD}{message['content']}{space}"}
    asked |= {f"{space}user": ([odd(user, space)], True) for space in SPACES}
    asked |= {f"{space}system": ([odd(system, space), user], True) for space in SPACES}
    reply = render(template, names, list(asked.values()), where)
    said = dict(zip(asked, reply["texts"]))
    if "error" in said["plain"]:
        raise UserError(f"{where}: the chat template fails ({said['plain']['error']})")
    text = {name: one["text"] for name, one in said.items() if "text" in one}
    if text["plain"].count(WORDS) != 1:
        raise UserError(f"{where}: the chat template does not say the user's words exactly once")
    words = Words(backend, control_tokens(backend, _written(backend, text.values(), reply["literals"])))
    marked = {name: words.mark(one) for name, one in text.items() if name[0] not in SPACES}
    strip = _strip(text, "plain", "user", WORDS, f"{where}: the chat template changes the user's words")
    _check_neighbours(words, text["plain"], marked["plain"], where)
    system_text = marked.get("system", "")
    if system_text.count(SYSTEM) == 1 == system_text.count(WORDS):
        changes = f"{where}: the chat template changes the system message"
        strip_system = _strip(text, "system", "system", SYSTEM, changes)
    else:
        strip_system = None

    def conversation(system: str | None, prompt: str) -> str:
        if system and strip_system is None:  # the template has no place for it, so it goes before the request
            system, prompt = None, f"{system}\n\n{prompt}"
        if system is None or strip_system is None:
            return marked["plain"].replace(WORDS, strip(prompt))
        shape = marked.get("no system", system_text) if not system else system_text
        before, after = shape.split(WORDS) if shape.count(WORDS) == 1 else system_text.split(WORDS)
        return f"{before.replace(SYSTEM, strip_system(system))}{strip(prompt)}{after}"

    before, _, after = marked.get("answer", "").partition(ANSWER)
    lead = before.removeprefix(marked["plain"])
    lead = lead if before.startswith(marked["plain"]) and lead.isspace() else ""
    end = next(iter(words.marked(after)), None)
    return Shape(words, conversation, (), end, lead, template, names)


def _written(backend: tokenizers.Tokenizer, texts, literals: list[str]) -> set[int]:
    """The added tokens that a template writes: those in its texts, and those in parts that were not rendered."""
    added = backend.get_added_tokens_decoder()
    written = set()
    for text in (*texts, *literals):
        for said in (SYSTEM, WORDS, ANSWER, ODD, ODD.strip()):
            text = text.replace(said, "\n")
        written |= {i for i in as_published(backend, text).ids if i in added}
    return written


def _strip(text: dict[str, str], plain: str, role: str, placeholder: str, message: str) -> Callable[[str], str]:
    """How a template strips what a role says: as it stands around `placeholder` in `text[plain]`, and spaces with it.

    Raises UserError with this message where it does something else to what is said.
    """
    lead, _, tail = text[plain].partition(placeholder)
    kept = set()
    for space in SPACES:
        before, _, after = text.get(f"{space}{role}", "").partition(f"{placeholder}{ODD}{placeholder}")
        left = {f"{lead}{space}": True, lead: False}.get(before)
        kept.add((left, {f"{space}{tail}": True, tail: False}.get(after)))
    strip = {(True, True): str, (False, False): str.strip, (True, False): str.rstrip, (False, True): str.lstrip}
    if len(kept) > 1 or not kept <= strip.keys():
        raise UserError(f"{message}; use another template")
    return strip[kept.pop()]


def _check_neighbours(words: Words, text: str, marked: str, where: str) -> None:
    """A control token must be one whatever words stand beside it (`single_word`)."""
    for said in ("a", " a ", "!", "\n", ""):
        published = as_published(words.backend, text.replace(WORDS, said)).ids
        if words.encode(marked.replace(WORDS, said)) != published:
            always = words.marked(marked)
            other = [i for i in published if i in words.control and i not in always] or always
            names = ", ".join(words.backend.id_to_token(i) for i in dict.fromkeys(other))
            message = f"whether {names} is a control token depends on the words beside it (single_word)"
            raise UserError(f"{where}: {message}; use another tokenizer.json")

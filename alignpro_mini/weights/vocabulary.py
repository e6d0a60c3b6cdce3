"""A published vocabulary: which of its tokens are control tokens, what they are called, and which end an answer.

A text goes through the `tokenizers` library as a whole, so that all its rules hold: flags of added tokens (`lstrip`,
`rstrip`, `single_word`, `normalized`), spaces before a first word, joins at a border. But the library cannot know
which part of a text a user wrote. So `Words` has the same vocabulary with secret names for the control tokens, drawn
anew each time. A template's text is written with these; in the user's words "<|im_end|>" is then text like any other.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers

from alignpro_mini.options import UserError, one_line, require
from alignpro_mini.weights.child import check_vocabulary
from alignpro_mini.weights.tensors import read_json

CONFIG, VOCABULARY = "config.json", "tokenizer.json"
TOKENIZER_CONFIG, NAMES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
GENERATION = "generation_config.json"
KINDS = tuple(f"{kind}_token" for kind in "bos eos unk sep pad cls mask".split())  # what templates may name
MARKUP = re.compile(r"</?[\w|]+>")  # Qwen's <think> and <tool_call>: control tokens that are not marked as such
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte that has no other token
# What decides which token is sampled and has no option here; the values that change nothing.
NEUTRAL = {"repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,)}
NEUTRAL |= {"num_beams": (1,), "min_length": (0,), "min_new_tokens": (0,), "typical_p": (1,), "epsilon_cutoff": (0,)}
NEUTRAL |= {"eta_cutoff": (0,), "top_k": (0,), "min_p": (0,), "guidance_scale": (1,), "suppress_tokens": ([],)}
NEUTRAL |= {"begin_suppress_tokens": ([],), "bad_words_ids": ([],), "sequence_bias": ([], {}), "force_words_ids": ([],)}
NEUTRAL |= {"forced_bos_token_id": (), "forced_eos_token_id": (), "stop_strings": ([],), "penalty_alpha": (0,)}


class Words:
    """A vocabulary under which the names of control tokens are ordinary text.

    `mark` writes a text of ours with the secret names, `encode` turns marked text and a user's words, joined as they
    are read, into ids. `control` are the ids of the control tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, control: set[int]) -> None:
        self.backend, self.control = backend, frozenset(control)
        added = backend.get_added_tokens_decoder()
        secret = letters(16)
        self.names = {i: secret_name(added[i].content, secret, i) for i in control}
        self._name = re.compile("|".join(map(re.escape, self.names.values())) or "(?!)")
        self._id = {name: i for i, name in self.names.items()}
        raw = json.loads(backend.to_str())
        rename(raw, {added[i].content: self.names[i] for i in control})
        self._renamed = tokenizers.Tokenizer.from_str(json.dumps(raw))
        moved = [added[i].content for i in control if self._renamed.token_to_id(self.names[i]) != i]
        require(not moved, f"token {moved[:1]} has another id in a copy of the vocabulary; use another tokenizer.json")

    def encode(self, text: str) -> list[int]:
        return self._renamed.encode(text, add_special_tokens=False).ids

    def mark(self, text: str) -> str:
        """`text` with the secret names of the control tokens that the library finds in it."""
        found = as_published(self.backend, text)
        normal = self.backend.normalizer.normalize_str if self.backend.normalizer else str
        at, parts = 0, []
        for i, (start, end) in zip(found.ids, found.offsets):
            name, span = self.backend.id_to_token(i), text[start:end]  # with the spaces that a flag takes in
            if i in self.control and normal(name) in normal(span):  # "<unk>" also stands for letters without a token
                written = name if name in span else span.strip()
                start += span.index(written)
                parts += [text[at:start], self.names[i]]
                at = start + len(written)
        marked = "".join([*parts, text[at:]])
        if self.encode(marked) != found.ids:
            raise UserError(f"control tokens cannot be told from words in {text[:60]!r}; use another tokenizer.json")
        return marked

    def marked(self, text: str) -> list[int]:
        """The control tokens of marked text, in order."""
        return [self._id[name] for name in self._name.findall(text)]


def letters(count: int) -> str:
    """A word that nobody can guess."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(count))


def secret_name(name: str, secret: str, i: int) -> str:
    """Another name for token i: what stands beside it sees the same first and last character (`single_word`).

    Between these are letters only, of one length: no rule changes them, and no name is the beginning of another.
    """
    number = f"{i:08x}".translate(str.maketrans(string.digits, "ghijklmnop"))
    return f"{name[0]}{secret}{number}{name[-1]}"


def as_published(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """A text as the library reads it, names of control tokens included."""
    before, backend.encode_special_tokens = backend.encode_special_tokens, False
    try:
        return backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before


def rename(raw: dict, names: dict[str, str]) -> None:
    """Give tokens other names throughout a tokenizer.json, and take out what would make them from parts."""
    raw |= {"truncation": None, "padding": None, "post_processor": None}
    raw["added_tokens"] = [t | {"content": names.get(t["content"], t["content"])} for t in raw["added_tokens"]]
    model, other = raw["model"], lambda token: names.get(token, token)
    if isinstance(model["vocab"], list):  # Unigram
        model["vocab"] = [[other(token), score] for token, score in model["vocab"]]
        return
    if not names.keys() & model["vocab"].keys():
        return
    model["vocab"] = {other(token): i for token, i in model["vocab"].items()}
    if model.get("unk_token"):
        model["unk_token"] = other(model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        made = lambda pair: {*pair, pair[0] + pair[1].removeprefix(prefix)}
        model["merges"] = [pair for pair in pairs if not names.keys() & made(pair)]


def control_tokens(backend: tokenizers.Tokenizer, written: set[int] = frozenset()) -> set[int]:
    """The ids of the control tokens: marked as special, named like one, or `written` by the chat template.

    Spaces and line ends that have a token of their own are no control tokens, whoever writes them; nor are a byte and
    a letter of the vocabulary, which words need (a `pad_token` may be "!").
    """
    spelling = {name for name in backend.get_vocab(with_added_tokens=False) if len(name) == 1 or BYTE.fullmatch(name)}
    control = lambda i, token: token.special or MARKUP.fullmatch(token.content) or i in written
    words = lambda token: token.content.isspace() or token.content in spelling
    return {i for i, token in backend.get_added_tokens_decoder().items() if control(i, token) and not words(token)}


# ---------------------------------------------------------------- what the files of a folder say


def read_vocabulary(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str], dict]:
    """The vocabulary with all that the folder says of its tokens, their names, and tokenizer_config.json.

    Raises UserError for files that contradict one another or cannot be used.
    """
    file = folder / VOCABULARY
    raw = read_json(file)
    check_vocabulary(file)
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a file that it cannot parse
        raise UserError(f"{file}: not a usable tokenizer.json ({one_line(error)}); copy it again") from None
    backend.no_truncation()  # as in `Tokenizer`, before anything is read
    backend.no_padding()
    there = lambda name: read_json(folder / name) if (folder / name).exists() else {}
    settings, mapped = there(TOKENIZER_CONFIG), there(NAMES)
    decoder = settings.get("added_tokens_decoder")
    # Newer folders have the flags in tokenizer_config.json, and what stands there counts.
    said = mapped | settings if decoder else settings | {k: v for k, v in mapped.items() if v is not None}
    flags = _flags(folder / TOKENIZER_CONFIG, decoder or {})
    if not decoder:
        known = {token["content"] for token in raw.get("added_tokens", ())}
        flags |= {name: ({"normalized": True}, i) for name, i in there(ADDED).items() if name not in known}
    _check_ids(file, backend, raw)
    _follow_settings(folder, backend, raw, settings)
    names = token_names(folder, said)
    special = [*names.values(), *_more(said)]
    for name, (flag, _) in flags.items():
        backend.add_tokens([AddedToken(name, **{"special": name in special} | flag)])
    _add_named(folder, backend, special, (names.get("bos_token"), names.get("eos_token")))
    for name, (_, i) in flags.items():
        found = backend.token_to_id(name)
        if found != i:
            raise UserError(
                f"{folder}: token {name!r} has the id {i!r}, but {VOCABULARY} gives it {found}; copy both again"
            )
    _post_process(backend, names, settings)
    return backend, names, settings


def _add_named(folder: Path, backend: tokenizers.Tokenizer, special: list[str], needed: tuple) -> None:
    """Make the named tokens special, as `transformers` does; unknown ones get new ids where the model has rows for them.

    A token to fill with that nobody has a row for is not needed here; one that is `needed` is added all the same, and
    the model then does not fit.
    """
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    new = [name for name in dict.fromkeys(special) if name not in added]
    rows, size = read_json(folder / CONFIG).get("vocab_size"), backend.get_vocab_size()
    unknown = [name for name in new if backend.token_to_id(name) is None]
    if type(rows) is int and size + len(unknown) > rows:
        new = [name for name in new if name in needed or name not in unknown]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in new])


def _check_ids(file: Path, backend: tokenizers.Tokenizer, raw: dict) -> None:
    """Each token's id must be the one that the file says: the library counts on, and would fill a hole."""
    for token in raw.get("added_tokens", ()):
        if backend.token_to_id(token["content"]) != token["id"]:
            found = backend.token_to_id(token["content"])
            message = f"token {token['content']!r} has the id {token['id']}, but the vocabulary leads to {found}"
            raise UserError(f"{file}: {message}; a token before it is missing: copy the file again")
    ids = [*backend.get_vocab(with_added_tokens=False).values()]
    if len(set(ids)) != len(ids):
        raise UserError(f"{file}: two tokens of the vocabulary have the same id; copy the file again")


def _follow_settings(folder: Path, backend: tokenizers.Tokenizer, raw: dict, settings: dict) -> None:
    """What tokenizer_config.json says of spaces, as `transformers` 5 reads it. Raises UserError for what is not done."""
    split = json.dumps(raw.get("pre_tokenizer"))
    by_bytes, kind, space = '"ByteLevel"' in split, type(backend.model).__name__, settings.get("add_prefix_space")
    contrary = type(space) is bool and f'"add_prefix_space": {json.dumps(not space)}' in split
    unlike = {
        "split_special_tokens": settings.get("split_special_tokens"),
        "clean_up_tokenization_spaces": settings.get("clean_up_tokenization_spaces") and kind != "BPE",
        "add_prefix_space": by_bytes and contrary,
    }
    if key := next((key for key, is_unlike in unlike.items() if is_unlike), None):
        message = f"{key} is {settings[key]}, and nothing here follows that"
        raise UserError(f"{folder / TOKENIZER_CONFIG}: {message}; use a tokenizer without it")
    if str(settings.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer" and kind == "BPE" and not by_bytes:
        scheme = "never" if space is False else "always" if settings.get("legacy") else "first"
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
        strip = [decoders.Strip(" ", 1, 0)] * (space is not False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )


def _flags(file: Path, decoder: dict) -> dict[str, tuple[dict, int]]:
    """name -> (flags, id) of `added_tokens_decoder`."""
    known = ("lstrip", "rstrip", "single_word", "normalized", "special")
    flags = {}
    try:
        for i, token in decoder.items():
            named = {key: bool(token[key]) for key in known if key in token}
            flags[str(token["content"])] = named, int(i)
    except (AttributeError, TypeError, ValueError, LookupError):
        raise UserError(f"{file}: added_tokens_decoder is no table of tokens; copy the file again") from None
    return flags


def token_names(where: Path, said: dict) -> dict[str, str]:
    """`bos_token`, `eos_token` and others, written as a text or as an object."""
    name = lambda key: said[key].get("content") if isinstance(said[key], dict) else said[key]
    names = {key: name(key) for key in KINDS if said.get(key) not in (None, "")}
    if wrong := next((key for key, value in names.items() if not isinstance(value, str)), None):
        raise UserError(
            f"{where}: {wrong} is {said[wrong]!r:.60}; it must be the text of a token: copy the files again"
        )
    return names


def _more(said: dict) -> list[str]:
    """The names of special tokens that have no kind."""
    more = said.get("extra_special_tokens", said.get("additional_special_tokens")) or []
    tokens = more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    named = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    return [name for name in named if isinstance(name, str) and name]


def _post_process(backend: tokenizers.Tokenizer, names: dict[str, str], settings: dict) -> None:
    """`add_bos_token` and `add_eos_token` replace what tokenizer.json says of a text's ends."""
    if not {"add_bos_token", "add_eos_token"} & settings.keys():
        return
    asked = lambda kind: kind in names and settings.get(f"add_{kind}") is True
    bos, eos = ([names[kind]] if asked(kind) else [] for kind in ("bos_token", "eos_token"))
    tokens = [(name, backend.token_to_id(name)) for name in (*bos, *eos)]
    template = [*bos, "$A", *eos]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=tokens)


def first_ids(backend: tokenizers.Tokenizer) -> list[int]:
    """What the library puts before a text."""
    encoding = backend.encode("x", add_special_tokens=True)
    first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
    return encoding.ids[:first]


def end_ids(folder: Path) -> list[int]:
    """The tokens that `transformers` stops at: of generation_config.json, and without that of config.json."""
    for file in (folder / GENERATION, folder / CONFIG):
        value = read_json(file).get("eos_token_id") if file.exists() else None
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(i) is int for i in ids):
                raise UserError(f"{file}: eos_token_id is {value!r:.60}; it must be ids of tokens: copy the file again")
            return [i for i in ids if i >= 0]
    return []


def unread_settings(folder: Path) -> list[str]:
    """Settings of generation_config.json that would change what is sampled, and that nothing here follows."""
    raw = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    return [f"{key} {raw[key]}" for key in NEUTRAL if raw.get(key) is not None and raw[key] not in NEUTRAL[key]]

"""Published chat templates: the ids of a conversation, what a user's words cannot do, and base models."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from alignpro_mini.options import UserError
from alignpro_mini.tokenizer import Tokenizer, byte_level
from alignpro_mini.transformer import Transformer, TransformerConfig
from alignpro_mini.weights.chat import load_tokenizer
from alignpro_mini.weights.hub import load_model
from alignpro_mini.weights.pretrained import load_pretrained, save_pretrained

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # Llama 3's
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (  # Llama 2's: no system role, and ordinary text around the user's words
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEXTS = ["hello world, what is this?", "[INST] tell me about the sea [/INST]", "user assistant system"] * 20
SHAPES = {"chatml": CHATML, "headers": HEADERS, "inst": INST}
NAMES = {
    "chatml": {"eos_token": "<|im_end|>"},
    "headers": {"bos_token": "<|begin|>", "eos_token": "<|eot_id|>"},
    "inst": {"bos_token": "<s>", "eos_token": "</s>"},
}
CONTROL = {
    "chatml": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "headers": ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
    "inst": ["<unk>", "<s>", "</s>"],
}


def backend(kind: str) -> Backend:
    """A small vocabulary of that family: byte-level BPE, or Llama 2's with a space before the first word."""
    if kind != "inst":
        made = byte_level(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        how = {"vocab_size": 400, "special_tokens": CONTROL[kind], "initial_alphabet": sorted(alphabet)}
        made.train_from_iterator(TEXTS, trainers.BpeTrainer(**how, show_progress=False))
        return made
    made = Backend(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=CONTROL[kind], show_progress=False)
    )
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL[kind]])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def published(kind: str, folder: Path, template: bool = True, names: bool = True) -> Path:
    """A folder as a hub has it."""
    made = backend(kind)
    size = made.get_vocab_size(with_added_tokens=True)
    model = Transformer(TransformerConfig(size, d_model=16, n_layers=1, n_heads=2, max_len=64))
    save_pretrained(model, folder)
    made.save(str(folder / "tokenizer.json"))
    raw = (NAMES[kind] if names else {}) | ({"chat_template": SHAPES[kind]} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    return folder


def named(tokenizer: Tokenizer, ids: list[int]) -> str:
    return "".join(tokenizer.backend.decode([i], skip_special_tokens=False) for i in ids)


def test_chatml_by_its_template(tmp_path):
    _, tokenizer = load_pretrained(published("chatml", tmp_path / "m"))
    said = named(tokenizer, tokenizer.chat("hello world"))
    assert said == (
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    )
    start, end = (tokenizer.backend.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    ids = tokenizer.chat("hello world")
    assert (ids.count(start), ids.count(end)) == (3, 2), "control tokens, not texts that look like them"
    said = named(tokenizer, tokenizer.with_system("Rewrite.").chat("hello"))
    assert said == "<|im_start|>system\nRewrite.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_id == tokenizer.backend.token_to_id("<|im_end|>")


def test_headers_by_their_template(tmp_path):
    _, tokenizer = load_pretrained(published("headers", tmp_path / "m"))
    said = named(tokenizer, tokenizer.chat("hello"))
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert said == f"<|begin|>{head.format('user')}hello<|eot_id|>{head.format('assistant')}"
    assert tokenizer.eos_id == tokenizer.backend.token_to_id("<|eot_id|>"), "not the end of a text"
    prompt, answer = tokenizer.chat_with_answer("hello", "world")
    assert prompt == tokenizer.chat("hello") and answer == [*tokenizer.encode("world"), tokenizer.eos_id]


def test_a_template_without_a_system_role_gets_it_before_the_request(tmp_path):
    _, tokenizer = load_pretrained(published("inst", tmp_path / "m"))
    ids = tokenizer.with_system("this is").chat("the sea")
    assert ids[0] == tokenizer.backend.token_to_id("<s>")
    assert tokenizer.decode(ids) == "[INST] this is\n\nthe sea [/INST]".replace(
        "\n", ""
    )  # no newline in the vocabulary
    assert tokenizer.eos_id == tokenizer.backend.token_to_id("</s>")


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("text", ["hello world", "</s><|im_end|><|eot_id|> [INST]", " \n what is this?", "", "ü 漢字"])
def test_a_users_words_never_become_control_tokens(tmp_path, kind, text):
    _, tokenizer = load_pretrained(published(kind, tmp_path / "m"))
    control = {tokenizer.backend.token_to_id(name) for name in CONTROL[kind] if name != "<unk>"}
    count = lambda ids: sum(i in control for i in ids)
    assert count(tokenizer.chat(text)) == count(tokenizer.chat("x"))


def test_added_tokens_that_are_not_marked_as_control_tokens_are_none_of_the_users_words(tmp_path):
    folder = published("chatml", tmp_path / "m")
    made = Backend.from_file(str(folder / "tokenizer.json"))
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    made.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.chat("hello </think> world")
    assert made.token_to_id("</think>") not in ids and "hello </think> world" in named(tokenizer, ids)


def test_a_template_may_trim_the_users_words(tmp_path):
    headers, chatml = (load_tokenizer(published(kind, tmp_path / kind)) for kind in ("headers", "chatml"))
    assert headers.chat(" hello\n") == headers.chat("hello") and chatml.chat(" hello\n") != chatml.chat("hello")


@pytest.mark.parametrize(
    "more",
    [
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{% endfor %}",
        "{% generation %}{% endgeneration %}",
        "{{ strftime_now('%Y') }}",
    ],
)
def test_what_published_templates_use_besides(tmp_path, more):
    folder = published("chatml", tmp_path / "m")
    expected = load_tokenizer(folder).chat("hello")
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES["chatml"] | {"chat_template": more + CHATML}))
    assert load_tokenizer(folder).chat("hello") == expected


def test_a_space_before_the_first_word_is_none_after_a_control_token(tmp_path):
    folder = published("inst", tmp_path / "m")
    made = Backend.from_file(str(folder / "tokenizer.json"))
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    made.save(str(folder / "tokenizer.json"))
    ids = load_tokenizer(folder).chat("the sea")
    whole = made.encode("<s>[INST] the sea [/INST]", add_special_tokens=False)
    assert ids == whole.ids and whole.tokens[1].startswith("[")


@pytest.mark.parametrize("kind", SHAPES)
def test_a_saved_copy_talks_alike(tmp_path, kind):
    """A run keeps its prompter as a folder: its template goes along."""
    model, tokenizer = load_pretrained(published(kind, tmp_path / "m"))
    save_pretrained(model, tmp_path / "again", tokenizer.with_system("tell me"))
    _, again = load_pretrained(tmp_path / "again")
    assert again.chat("the sea") == tokenizer.with_system("tell me").chat("the sea")
    assert again.eos_id == tokenizer.eos_id and again.system == "tell me"


@pytest.mark.parametrize("kind", SHAPES)
def test_a_base_model_continues_text(tmp_path, kind):
    model, tokenizer = load_pretrained(published(kind, tmp_path / "m", template=False))
    first = [tokenizer.backend.token_to_id("<s>")] if kind == "inst" else []
    assert tokenizer.chat("the sea") == first + tokenizer.encode("the sea\n\n")
    assert tokenizer.eos_id == tokenizer.backend.token_to_id(NAMES[kind]["eos_token"])
    save_pretrained(model, tmp_path / "again", tokenizer)
    assert load_pretrained(tmp_path / "again")[1].chat("the sea") == tokenizer.chat("the sea")


def test_a_template_in_a_file_of_its_own_and_one_of_several(tmp_path):
    folder = published("chatml", tmp_path / "m", template=False)
    expected = load_pretrained(published("chatml", tmp_path / "n"))[1].chat("hello")
    for text in (CHATML, f"\ufeff{CHATML}", CHATML.replace("\n", "\r\n")):  # a mark or line ends of Windows say nothing
        (folder / "chat_template.jinja").write_bytes(text.encode())
        assert load_pretrained(folder)[1].chat("hello") == expected
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES["chatml"] | {"chat_template": several}))
    assert load_pretrained(folder)[1].chat("hello") == expected


@pytest.mark.parametrize(
    "template, said",
    [
        ("{% for m in messages %}", "fails"),
        ("{{ messages[7]['content'] }}", "fails"),
        ("{{ nothing }}", "exactly once"),
        ("{{ messages[0]['content'] + messages[0]['content'] }}", "exactly once"),
        ("{{ raise_exception('never') }}", "fails (never)"),
        ("{{ ''.__class__.__mro__ }}", "fails"),  # a sandbox: no way out
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(tmp_path, template, said):
    folder = published("chatml", tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(UserError) as told:
        load_pretrained(folder)[1].chat("hello")
    assert said in str(told.value) and str(folder) in str(told.value) and "\n" not in str(told.value)


def test_names_of_tokens_may_be_objects(tmp_path):
    folder = published("headers", tmp_path / "m")
    raw = {"bos_token": {"content": "<|begin|>"}, "eos_token": {"content": "<|eot_id|>"}, "chat_template": HEADERS}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    _, tokenizer = load_pretrained(folder)
    assert tokenizer.chat("x")[0] == tokenizer.backend.token_to_id("<|begin|>")


def test_a_model_by_folder_by_name_and_without_a_tokenizer(tmp_path, monkeypatch):
    folder = published("chatml", tmp_path / "m")
    model, tokenizer = load_model(str(folder), dtype=torch.bfloat16)
    assert model.embed.weight.dtype == torch.bfloat16 and tokenizer.chat("x")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer.json; copy it"):
        load_model(str(folder))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_model(str(tmp_path / "nowhere"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as told:
        load_model("nobody/nothing-here")
    assert "safetensors files of https://huggingface.co/nobody/nothing-here into a folder" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "text", ["hello world, what is this?", "the sea", "what\nis this", "a [INST] b", " trim me \n"]
)
def test_the_ids_are_those_of_transformers(tmp_path, kind, text):
    transformers = pytest.importorskip("transformers")
    folder = published(kind, tmp_path / "m")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **NAMES[kind], chat_template=SHAPES[kind]
    )
    _, tokenizer = load_pretrained(folder)
    for system in (None,) if kind == "inst" else (None, "tell me"):
        said = [{"role": "user", "content": text}]
        said = said if system is None else [{"role": "system", "content": system}, *said]
        ids = theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        asked = tokenizer if system is None else tokenizer.with_system(system)
        assert asked.chat(text) == list(ids)

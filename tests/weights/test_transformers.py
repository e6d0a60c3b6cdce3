"""Ids and greedy answers equal to those of `transformers`: templates x vocabularies x conversations.

The default test compares with ids that `transformers` gave (tests/fixtures/chat_ids.json), the slow ones ask it.
`python tests/weights/test_transformers.py` writes the fixture anew.
"""

import itertools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from published import SILENT_ABOUT_SYSTEM, TEMPLATES, VOCABULARIES, bytes_of, published, table_lm, write
from tokenizers import Tokenizer as Backend

from alignpro_mini.frozen import FrozenLM, SamplingConfig
from alignpro_mini.weights.chat import load_tokenizer
from alignpro_mini.weights.pretrained import load_pretrained

FIXTURE = Path(__file__).parents[1] / "fixtures" / "chat_ids.json"
KEPT = ("gpt2", "qwen", "rstrip", "llama2", "first", "unigram")  # vocabularies of the fixture, template by template
SAID = [
    "hello world",
    " two spaces before, and after \n",
    "what\nis\n\nthis?  [x] <b> {{ y }} 12 3.5",
    "über 漢字 😀 ﬁ",
    "\n",
]
SYSTEM = ["be kind", " Tell me\n\nabout it \n"]


def messages(template: str, said: str, system: str | None) -> list[dict]:
    if system is not None and template in SILENT_ABOUT_SYSTEM:
        return [{"role": "user", "content": f"{system}\n\n{said}"}]
    first = [{"role": "system", "content": system}] * (system is not None)
    return [*first, {"role": "user", "content": said}]


def their_ids(theirs, said: list[dict], **options) -> list[int]:
    return list(theirs.apply_chat_template(said, return_dict=False, enable_thinking=False, **options))


def our_ids(tokenizer, said: str, system: str | None) -> list[int]:
    return (tokenizer if system is None else tokenizer.with_system(system)).chat(said)


@pytest.mark.parametrize(
    "entry", json.loads(FIXTURE.read_text()) if FIXTURE.exists() else [], ids=lambda e: e["template"]
)
def test_ids_are_those_that_transformers_gave(tmp_path, entry):
    text, names, _ = TEMPLATES[entry["template"]]
    made = Backend.from_str(json.dumps(entry["tokenizer"]))
    tokenizer = load_tokenizer(write(tmp_path / "m", made, names | {"chat_template": text}))
    for said, system, ids in entry["conversations"]:
        assert our_ids(tokenizer, said, system) == ids, (said, system)


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_transformers(tmp_path, template, vocabulary):
    transformers = pytest.importorskip("transformers")
    folder = published(tmp_path / "m", vocabulary, template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = load_tokenizer(folder)
    for said, system in itertools.product(SAID, [None, *SYSTEM]):
        expected = their_ids(theirs, messages(template, said, system), add_generation_prompt=True)
        assert our_ids(ours, said, system) == expected, (said, system)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}])
@pytest.mark.parametrize("vocabulary", ["llama2", "first", "always", "never", "gpt2"])
def test_ids_are_those_of_the_class_that_a_folder_names(tmp_path, vocabulary, settings):
    transformers = pytest.importorskip("transformers", minversion="5")
    for template in TEMPLATES:
        folder = published(tmp_path / template, vocabulary, template)
        raw = json.loads((folder / "tokenizer_config.json").read_text())
        raw |= {"tokenizer_class": "LlamaTokenizer"} | settings
        (folder / "tokenizer_config.json").write_text(json.dumps(raw))
        theirs, ours = transformers.AutoTokenizer.from_pretrained(str(folder)), load_tokenizer(folder)
        for said in SAID[:2]:
            expected = their_ids(theirs, messages(template, said, None), add_generation_prompt=True)
            assert our_ids(ours, said, None) == expected, (template, said)
            assert ours.decode(expected[3:]) == theirs.decode(expected[3:], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", ["gpt2", "llama3", "qwen", "not special"])
@pytest.mark.parametrize("template", ["chatml", "headers", "no thinking", "inst as tokens", "full width", "line ends"])
def test_what_is_learned_is_the_conversation_of_transformers(tmp_path, template, vocabulary):
    transformers = pytest.importorskip("transformers")
    folder = published(tmp_path / "m", vocabulary, template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world, this is it."}]
    asked, learned = load_tokenizer(folder).chat_with_answer("hello", "world, this is it.")
    whole = their_ids(theirs, said)
    if template == "no thinking":  # the empty thoughts stand in the prompt alone
        assert whole[: len(whole) - 1][-len(learned) :] == learned
    else:
        assert whole[: len(asked) + len(learned)] == asked + learned


@pytest.mark.slow
@pytest.mark.parametrize(
    "files",
    [
        {"generation_config": ["<|im_end|>", "<|endoftext|>"]},
        {"config": ["<|im_end|>", "<|endoftext|>"]},
        {"generation_config": ["<|endoftext|>"], "config": ["<|im_end|>"]},
    ],
)
def test_greedy_answers_are_those_of_transformers(tmp_path, files):
    transformers = pytest.importorskip("transformers")
    made = bytes_of(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    of = made.token_to_id
    rows = {of("Ċ"): of("Y"), of("Y"): of("e"), of("e"): of("<|endoftext|>"), of("<|endoftext|>"): of("X")}
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATES["chatml"][0]}
    ends = {name: {"eos_token_id": [of(one) for one in value]} for name, value in files.items()}
    folder = write(tmp_path / "m", made, settings, table_lm(made.get_vocab_size(), rows), **ends)
    model, tokenizer = load_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    prompt = torch.tensor([tokenizer.chat("hi")])
    expected = theirs.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :].tolist()
    (answer,) = FrozenLM(model, tokenizer, SamplingConfig(temperature=0.0, max_new_tokens=8)).answer(["hi"])
    assert answer.tokens == expected and answer.text == "Ye"


def main() -> None:
    import transformers

    entries = []
    for template, vocabulary in zip(TEMPLATES, itertools.cycle(KEPT)):
        with tempfile.TemporaryDirectory() as place:
            folder = published(Path(place) / "m", vocabulary, template)
            theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
            rows = []
            for said, system in [*zip(SAID, itertools.cycle([None, *SYSTEM])), ("hello world", SYSTEM[0])]:
                ids = their_ids(theirs, messages(template, said, system), add_generation_prompt=True)
                rows.append([said, system, ids])
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
        entries.append({"template": template, "vocabulary": vocabulary, "tokenizer": tokenizer, "conversations": rows})
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    FIXTURE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

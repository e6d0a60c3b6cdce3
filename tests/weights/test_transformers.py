"""Ids and greedy answers equal to those of `transformers`: templates x vocabularies x conversations."""

import itertools
import warnings

import pytest
from published import SILENT_ABOUT_SYSTEM, TEMPLATES, VOCABULARIES, published

from alignpro_mini.options import UserError
from alignpro_mini.weights.chat import load_tokenizer

SAID = [
    "hello world",
    "Tell me about the sea.",
    " two spaces before, and after \n",
    "what\nis\n\nthis?  [x] <b> {{ y }}",
    "über 漢字 😀 ﬁ",
    "12 3.5",
    "\n",
    "a",
]
SYSTEM = ["be kind", " Tell me\n\nabout it \n"]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_transformers(tmp_path, template, vocabulary):
    transformers = pytest.importorskip("transformers")
    folder = published(tmp_path / "m", vocabulary, template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = load_tokenizer(folder)
    for said, system in itertools.product(SAID, [None, *SYSTEM]):
        if system is not None and template in SILENT_ABOUT_SYSTEM:
            user = [{"role": "user", "content": f"{system}\n\n{said}"}]
        else:
            user = [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": said}]
        asked = ours if system is None else ours.with_system(system)
        expected = theirs.apply_chat_template(
            user, add_generation_prompt=True, return_dict=False, enable_thinking=False
        )
        found = asked.chat(said)
        assert found == list(expected), (said, system, theirs.convert_ids_to_tokens(found), theirs.convert_ids_to_tokens(expected))

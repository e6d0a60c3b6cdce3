"""Chat templates: what they do with roles and words, and those that cannot be used."""

import json
from pathlib import Path

import pytest
from published import bytes_of, pieces, published, write

from alignpro_mini.options import UserError
from alignpro_mini.weights.chat import load_tokenizer

CONTROL = ["<u>", "<a>", "<e>", "<s>"]
EACH = "{% for m in messages %}"
ANSWERS = "{% if m.role == 'assistant' %}{{ '<a>' + m.content + '<e>' }}"
NEXT = "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def tokenizer_of(place: Path, template: str, made=None):
    return load_tokenizer(
        write(place / "m", made or bytes_of(CONTROL), {"eos_token": "<e>", "chat_template": template})
    )


def said(tokenizer, prompt: str, system: str | None = None) -> str:
    tokenizer = tokenizer if system is None else tokenizer.with_system(system)
    return "".join(tokenizer.backend.decode([i], skip_special_tokens=False) for i in tokenizer.chat(prompt))


USER = EACH + ANSWERS + "{% elif m.role == 'user' %}{{ '<u>' + m.content }}"


@pytest.mark.parametrize(
    "system",
    [
        "",  # ignored
        "{% elif m.role == 'system' %}{{ raise_exception('no') }}",
        "{% elif m.role == 'system' %}{{ '<s>' + m.content + '<s>' + m.content }}",
        "{% elif m.role == 'system' %}{{ '<s>' }}",
    ],
)
def test_a_system_message_without_a_place_goes_before_the_request(tmp_path, system):
    tokenizer = tokenizer_of(tmp_path, USER + system + "{% endif %}" + NEXT)
    assert said(tokenizer, "hello", "Rewrite <e> it.") == "<u>Rewrite <e> it.\n\nhello<a>"
    assert said(tokenizer, "hello") == said(tokenizer, "hello", "") == "<u>hello<a>"
    ids = tokenizer.with_system("Rewrite <e> it.").chat("hello")
    assert tokenizer.eos_id not in ids


@pytest.mark.parametrize(
    "content, expected",
    [
        ("m.content", "  hi \n"),
        ("m.content | trim", "hi"),
        ("m.content.lstrip()", "hi \n"),
        ("m.content.rstrip()", "  hi"),
    ],
)
def test_words_are_stripped_as_the_template_does(tmp_path, content, expected):
    template = EACH + "{{ '<u>' + CONTENT + '<e>' }}".replace("CONTENT", content) + NEXT
    tokenizer = tokenizer_of(tmp_path, template)
    assert said(tokenizer, "  hi \n") == f"<u>{expected}<e><a>"
    assert said(tokenizer, "  hi \n", "  hi \n") == f"<u>{expected}<e><u>{expected}<e><a>"


@pytest.mark.parametrize(
    "content",
    ["m.content | upper", "m.content | tojson", "m.content | e", "m.content[:99]", "m.content.strip('\n')",
     "m.content | replace('x', 'y')", "m.content.split('{%')[0]"],
)  # fmt: skip
def test_a_template_that_changes_words_is_refused(tmp_path, content):
    with pytest.raises(UserError, match="the chat template (changes the user's words|does not say)"):
        tokenizer_of(tmp_path, EACH + "{{ '<u>' + CONTENT + '<e>' }}".replace("CONTENT", content) + NEXT)


def test_an_empty_system_message_may_have_a_shape_of_its_own(tmp_path):
    template = (
        "{% if messages[0].role == 'system' and not messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    )
    template += EACH + "{{ '<u>' + m.content + '<e>' }}" + NEXT
    tokenizer = tokenizer_of(tmp_path, template)
    assert said(tokenizer, "x", "") == "<u>x<e><a>" and said(tokenizer, "x", "s") == "<u>s<e><u>x<e><a>"


def test_a_token_that_needs_another_neighbour_is_refused(tmp_path):
    template = EACH + "{{ '<u>' + m.content + ' <e>' }}" + NEXT
    with pytest.raises(UserError, match="whether <u> is a control token depends on the words beside it"):
        tokenizer_of(tmp_path, template, bytes_of(CONTROL, single_word=True))
    template = EACH + "{{ '<u> ' + m.content + ' <e> ' }}" + NEXT
    tokenizer = load_tokenizer(
        write(tmp_path / "n", bytes_of(CONTROL, single_word=True), {"eos_token": "<e>", "chat_template": template})
    )
    assert said(tokenizer, "hello") == "<u> hello <e> <a>"


def test_an_answer_is_read_after_the_prompt(tmp_path):
    """The ids to learn are those of the whole conversation, without a space that no text has."""
    made = pieces(CONTROL, "first")
    tokenizer = tokenizer_of(tmp_path, EACH + "{{ '<u>' + m.content + '<e>' }}" + NEXT, made)
    asked, learned = tokenizer.chat_with_answer("hello", "tell me")
    made = tokenizer.backend
    made.encode_special_tokens = False
    assert asked + learned == made.encode("<u>hello<e><a>tell me<e>", add_special_tokens=False).ids
    assert made.id_to_token(learned[0]).startswith("t")


def test_a_space_that_the_template_puts_before_an_answer_is_learned_once(tmp_path):
    tokenizer = load_tokenizer(published(tmp_path / "m", "gpt2", "inst"))
    _, learned = tokenizer.chat_with_answer("hello", "world")
    assert tokenizer.decode(learned) == " world"
    assert tokenizer.chat_with_answer("hello", " world")[1] == learned, "as it was sampled"


def test_the_file_with_a_template_of_its_own_counts(tmp_path):
    folder = write(tmp_path / "m", bytes_of(CONTROL), {"eos_token": "<e>", "chat_template": "{{ 1 }}"})
    (folder / "chat_template.jinja").write_text(EACH + "{{ '<u>' + m.content }}" + NEXT)
    assert said(load_tokenizer(folder), "x") == "<u>x<a>"
    for several in ({"default": EACH + "{{ m.content }}" + NEXT}, [{"name": "default", "template": "{{ 1 }}"}]):
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<e>", "chat_template": several}))
        if isinstance(several, dict):
            assert said(load_tokenizer(folder), "x") == "x<a>"
        else:
            with pytest.raises(UserError, match="exactly once"):
                load_tokenizer(folder)

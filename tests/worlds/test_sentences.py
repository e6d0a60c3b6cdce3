"""Truncated answers are rated up to their last whole sentence or line."""

import pytest
import torch

from alignpro_mini.options import UserError
from alignpro_mini.training import Truncated
from alignpro_mini.worlds.sentences import by_sentences, low_reward, sentences, whole_sentences


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is good. It is ch", "It is good."),
        ("Is it? Yes! It", "Is it? Yes!"),
        ('He said "no." Then', 'He said "no."'),
        ("Costs 3.50 euros a", ""),
        ("It was 2020. Then", "It was 2020."),
        ("Do this: 1. Buy flour. 2. Mix", "Do this: 1. Buy flour."),
        ("List:\n1. Buy flour", ""),
        ("It ends.", "It ends."),
        ("", ""),
        ("Er sagte: „Das ist gut.“ Dann", "Er sagte: „Das ist gut.“"),
        # Other scripts
        ("你好。我是", "你好。"),
        ("他说：“走吧！”然后", "他说：“走吧！”"),
        ("これは本です。「はい。」と", "これは本です。「はい。」"),
        ("यह अच्छा है। मैं", "यह अच्छा है।"),
        ("ما هذا؟ هذا", "ما هذا؟"),
        ("یہ اچھا ہے۔ میں", "یہ اچھا ہے۔"),
        ("Это хорошо. Я", "Это хорошо."),
        ("Սա լավ է։ Ես", "Սա լավ է։"),
        ("ይህ ጥሩ ነው። እኔ", "ይህ ጥሩ ነው።"),
        ("สวัสดีครับ ผมชื่อ", "สวัสดีครับ"),
        ("价格是3.5元", ""),
        ("これは本である．次に", "これは本である．"),  # vshulcz/deja-vu PR 1405 names both uses of this mark
        ("値段は３．５円", ""),
        ("Really⁉ He", "Really⁉"),
        # Lists, code, JSON
        ("1. Buy flour\n2. Mix it\n3. Ba", "1. Buy flour\n2. Mix it"),
        ("- flour\n- wat", "- flour"),
        ("It works. Here:\n\n* one \n* tw", "It works. Here:\n\n* one "),
        ("材料：\n面", ""),
        (
            "Sure! Use this:\n```python\ndef f(x):\n    return x\n    y",
            "Sure! Use this:\n```python\ndef f(x):\n    return x",
        ),
        ("Use this:\n```python\ndef", ""),
        ('{\n  "name": "Bob",\n  "age', '{\n  "name": "Bob",'),
        ('{"name": "Bob", "ag', ""),
        ("\n\n  \nhalf", ""),
    ],
)
def test_where_the_last_whole_sentence_ends(text, kept):
    found = whole_sentences(Truncated(text))
    assert found == kept and isinstance(found, Truncated)  # no end is invented
    assert whole_sentences(text) == text  # an answer that ended is left alone


def length(prompts, completions):
    assert len(prompts) == len(completions)
    return [float(len(y)) for y in completions]


def test_a_text_without_a_whole_sentence_gets_the_low_reward():
    score = by_sentences(length, -1.0)
    found = score(["a", "b", "c", "d"], [Truncated("One. Tw"), Truncated("half"), "half", ""])
    assert found.tolist() == [4.0, -1.0, 4.0, 0.0]
    assert by_sentences(length, -1.0)(["a"], [Truncated("half")]).tolist() == [-1.0]


def test_each_answer_keeps_its_request():
    seen = []

    def score(prompts, completions):
        seen.append((list(prompts), list(completions)))
        return torch.zeros(len(prompts))

    by_sentences(score, 0.0)(["a", "b"], [Truncated("no"), "Yes"])
    assert seen == [(["b"], ["Yes"])]


def test_the_low_reward_is_a_quantile_of_the_others():
    answers = ["x" * n for n in range(1, 22)] + [Truncated("half a sentence")] * 9
    assert low_reward(length, ["q"] * 30, answers) == 2.0  # 1 .. 21: the 5 % quantile
    with pytest.raises(UserError, match="none of 1 answers .* raise --sampling.max_new_tokens, or .* --cut whole"):
        low_reward(length, ["q"], [Truncated("half")])


def test_sentences_of_an_answer():
    assert sentences("It is nice. Is it? Yes! And more") == ["It is nice.", "Is it?", "Yes!", "And more"]
    assert sentences('1. Begin. He said "Go." 3.5 cups') == ["1. Begin.", 'He said "Go."', "3.5 cups"]
    assert sentences("") == sentences(" ... ") == []

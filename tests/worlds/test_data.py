"""Files of real requests: what is read, what is refused with file:line, and that nothing held out leaks into training."""

import gzip
import json
import random
import re

import pytest

from alignpro_mini.options import UserError
from alignpro_mini.worlds.files import DataConfig, FileTask, read_files, read_preferences, single_turn


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match="no rows.*prompt"):
        read_files(str(write(tmp_path / "empty.jsonl", ["", " "])), ("prompt",))


def test_several_files_are_read_in_order(tmp_path):
    a, b = write(tmp_path / "a.jsonl", [{"prompt": "1"}]), write(tmp_path / "b.jsonl.gz", [{"prompt": "2"}])
    assert [row["prompt"] for row in read_files(f"{a}, {b}", ("prompt",))] == ["1", "2"]


@pytest.mark.parametrize("name", ["train.jsonl", "en/v1.0/train.jsonl.gz"])
def test_a_file_of_the_hub_by_name(tmp_path, monkeypatch, name):
    kept, mine = write(tmp_path / name.rpartition("/")[2], [{"prompt": "theirs"}]), tmp_path / "mine.jsonl"
    asked = []

    def download(*where, **more):
        asked.append((*where, more))
        return str(kept)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    paths = f"{write(mine, [{'prompt': 'mine'}])}, hf:some-one/a_set.v2:{name}"
    assert [row["prompt"] for row in read_files(DataConfig(prompts=paths).prompts, ("prompt",))] == ["mine", "theirs"]
    assert asked == [("some-one/a_set.v2", name, {"repo_type": "dataset"})]


def test_a_hub_that_does_not_answer_is_one_line_with_the_way_out(monkeypatch):
    def download(*_, **__):
        raise OSError("no route\nto the host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError) as told:
        read_files("hf:a/b:c.jsonl", ("prompt",))
    assert str(told.value) == (
        "hf:a/b:c.jsonl: the hub did not give this file (no route): download it elsewhere from "
        "https://huggingface.co/datasets/a/b, and give its path"
    )


@pytest.mark.parametrize("field", ["prompts", "preferences", "rewrites"])
@pytest.mark.parametrize(
    "name", ["hf:", "hf:a/b", "hf:b:c.jsonl", "hf:a/b:", "hf:a/b/c:d.jsonl", "hf:a/b:/c.jsonl", "hf:a/b:c.csv"]
)
def test_a_malformed_name_of_the_hub_is_told_before_anything_is_done(field, name):
    with pytest.raises(UserError) as told:
        DataConfig(**{field: f"mine.jsonl, {name}"})
    assert str(told.value).startswith(f"{field} is {name!r}; write") and "hf:owner/name:path" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("  What is up? ", "What is up?"),
        ("\n\nHuman: What is up?\n\nAssistant:", "What is up?"),
        ("\n\nHuman: What is up?\n\nAssistant: ", "What is up?"),
        ("Human: two\n\nlines\n\nAssistant:", "two\n\nlines"),
        ("The word Human: in a sentence", "The word Human: in a sentence"),
        ("\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:", None),
        ("\n\nHuman: One\n\nAssistant: Two", None),
        ("Context.\n\nHuman: One\n\nAssistant:", None),
        ("Assistant: One\n\nHuman:", None),
        # Line ends of Windows: haoliuhl/chain-of-hindsight #10.
        ("\r\n\r\nHuman: a?\r\n\r\nAssistant:", "a?"),
        ("\n\nHuman: a?\r\n\r\nAssistant:", "a?"),
        ("Human: a\r\nb?\r\n\r\nAssistant:\r\n", "a\nb?"),
        ("\rHuman: a\r\rAssistant:", None),  # one line end is no new turn
        ("\r\n\r\nHuman: One\r\n\r\nAssistant: Two\r\n\r\nHuman: Three\r\n\r\nAssistant:", None),
    ],
)
def test_dialogues_of_one_turn_are_unwrapped_and_longer_ones_left_out(prompt, want):
    assert single_turn(prompt) == want


# ---------------------------------------------------------------- the task


def wrapped(x: str) -> str:
    return f"\n\nHuman: {x}\n\nAssistant:"


@pytest.fixture
def files(tmp_path):
    """40 requests; half of them appear as dialogues; preferences and rewrites of all of them, wrapped the other way."""
    asked = [f"Question {i}?" for i in range(40)]
    some = lambda i, x: wrapped(x) if i % 2 else x  # noqa: E731
    prompts = [{"prompt": some(i, x)} for i, x in enumerate(asked)]
    prompts += [
        {"prompt": asked[0]},
        {"prompt": " ".join(["long"] * 60)},
        {"prompt": wrapped("a") + " b\n\nHuman: c\n\nAssistant:"},
    ]
    preferences = [
        {"prompt": some(i + 1, x), "chosen": f"good {i}", "rejected": f"bad {i}"} for i, x in enumerate(asked)
    ]
    preferences += [{"prompt": asked[5], "chosen": "same", "rejected": "same "}]
    preferences += [{"prompt": wrapped("a") + " b\n\nHuman: c\n\nAssistant:", "chosen": "x", "rejected": "y"}]
    return DataConfig(
        prompts=str(write(tmp_path / "p.jsonl", prompts)),
        preferences=str(write(tmp_path / "f.jsonl.gz", preferences)),
        rewrites=str(
            write(
                tmp_path / "w.jsonl",
                [{"prompt": some(i + 1, x), "rewrite": f"Please: {x}"} for i, x in enumerate(asked)],
            )
        ),
    ), asked


def task(config, seed=0, eval_inputs=10):
    return FileTask(config, eval_inputs, seed, lambda text: len(text.split()))


def test_the_split_has_no_overlap_and_counts_what_it_left_out(files):
    config, asked = files
    t = task(config)
    assert len(t.eval_requests) == 10 and sorted(t.eval_requests + t.train_requests) == sorted(asked)
    assert t.left_out == 3  # a duplicate, a long one, a dialogue of two turns


def test_two_seeds_split_differently_and_one_seed_the_same(files):
    config, _ = files
    assert task(config).eval_requests == task(config).eval_requests
    assert set(task(config, 0).eval_requests) != set(task(config, 1).eval_requests)


@pytest.mark.parametrize("seed", range(3))
def test_no_evaluation_request_reaches_the_training_data(files, seed):
    """A request wrapped as a dialogue of one turn is the same request: what one file wraps, the others do not."""
    config, asked = files
    t = task(config, seed)
    held_out = set(t.eval_requests)
    from_file = t.rewrite_pairs(1000, random.Random(0))
    assert {x for x, _ in from_file} == set(asked) - held_out and all(x2 == f"Please: {x}" for x, x2 in from_file)
    made = FileTask(DataConfig(prompts=config.prompts), 10, seed, lambda text: len(text.split())).rewrite_pairs(
        500, random.Random(0)
    )
    assert {x for x, _ in made} <= set(asked) - held_out
    assert {x for x, _, _ in t.preferences()} == set(asked) - held_out


def test_preferences_keep_who_was_chosen_and_drop_ties(files):
    config, _ = files
    for x, chosen, rejected in task(config).preferences():
        number = x.removeprefix("Question ").removesuffix("?")
        assert (chosen, rejected) == (f"good {number}", f"bad {number}")


# ---------------------------------------------------------------- pairs that cannot train a reward


def pairs_of(tmp_path, *rows, held_out=()):
    rows = [dict(zip(("prompt", "chosen", "rejected"), row)) for row in rows]
    return read_preferences(DataConfig(preferences=str(write(tmp_path / "f.jsonl", rows))), held_out)


GOOD = ("What is up?", "Not much.", "Go away.")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([("a", "same", " same ")], "ties"),
        ([("a", "x", "y"), ("a", "y", "x")], "ties"),
        ([("a", "x", "y"), (wrapped("a"), "y\r\n", "x")], "ties"),
        ([("held", "x", "y")], "about held-out requests"),
        ([(wrapped("a") + " b\n\nHuman: c\n\nAssistant:", "x", "y")], "of several turns"),
        ([("Why is it so?", "Why is it so?", "Because.")], "with an answer that begins with its prompt"),
        ([("Why is it so?", "Why is it so? Because.", "Why is it so? No.")], "with an answer that begins"),
        ([(wrapped("Why?"), wrapped("Why?") + " Because.", wrapped("Why?") + " No.")], "with an answer that begins"),
    ],
)
def test_pairs_that_cannot_train_are_left_out_and_counted(tmp_path, rows, why):
    found = pairs_of(tmp_path, *rows, GOOD, held_out=["held"])
    assert found.pairs == [GOOD]
    ((reason, count),) = found.left_out.items()
    assert reason.startswith(why) and count == len(rows)
    assert str(found) == f"preference pairs: 1 about 1 requests; left out: {count} {reason}"
    with pytest.raises(UserError, match=rf"f\.jsonl: no pair can train a reward; .*{len(rows)} {why}"):
        pairs_of(tmp_path, *rows, held_out=["held"])


def test_several_labellers_are_no_ties_and_count_as_often_as_they_stand_there(tmp_path):
    a, b = ("a", "x", "y"), ("a", "y", "x")
    found = pairs_of(tmp_path, a, b, a, GOOD)
    assert found.pairs == [a, b, a, GOOD] and (found.left_out, found.repeated) == ({}, 1)
    assert str(found) == "preference pairs: 4 about 2 requests; 1 repeat another one"


def test_made_rewrites_hold_the_request_and_vary(files):
    config, _ = files
    t = FileTask(DataConfig(prompts=config.prompts), 10, 0, lambda text: 1)
    pairs = t.rewrite_pairs(800, random.Random(0))
    assert len(pairs) == 800 and all(x in x2 for x, x2 in pairs)
    assert len({x2.replace(x, "{}") for x, x2 in pairs}) > 30  # openings x endings
    assert any(x == x2 for x, x2 in pairs)  # the plain request is among the rewrites


def test_bpos_field_name_is_understood_and_the_count_is_a_limit(files, tmp_path):
    config, _ = files
    bpo = write(tmp_path / "bpo.jsonl", [{"prompt": f"q{i}", "optimized_prompt": f"better q{i}"} for i in range(9)])
    t = FileTask(DataConfig(prompts=config.prompts, rewrites=str(bpo)), 10, 0, lambda text: 1)
    assert t.rewrite_pairs(4, random.Random(0)) == [(f"q{i}", f"better q{i}") for i in range(4)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("", "w.jsonl: no rows"),
        ({"prompt": "q", "rewrite": 3}, "w.jsonl:1: field 'rewrite' is 3, not a text"),
        ('{"prompt": "q", "rewrite": "half \\ud83d"}', "w.jsonl:1: field 'rewrite': '"),
    ],
)
def test_a_bad_file_of_rewrites_is_told_when_the_world_is_made(files, tmp_path, row, told):
    """Before anything is trained."""
    path = write(tmp_path / "w.jsonl", [row])
    with pytest.raises(UserError, match=re.escape(told)):
        FileTask(DataConfig(prompts=files[0].prompts, rewrites=str(path)), 10, 0, lambda text: 1)


def test_too_few_requests_are_told_with_the_mend(files):
    with pytest.raises(ValueError, match=r"40 of 43 requests remain.*too few for 21.*--eval\.inputs"):
        task(files[0], eval_inputs=21)


def test_there_is_no_true_reward(files):
    assert task(files[0]).gold is None

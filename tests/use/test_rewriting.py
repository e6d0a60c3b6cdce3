"""What of a dialogue is rewritten; requests that come together go through the model together."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from alignpro_mini.options import UserError
from alignpro_mini.use import rewriting
from alignpro_mini.use.rewriting import Batches, Rewriter, user_turn, with_text
from alignpro_mini.use.upstream import redacted

PICTURE = {"type": "image_url", "image_url": {"url": "x"}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    "content, x, changed",
    [
        ("hi", "hi", "HI"),
        ([text("hi")], "hi", [text("HI")]),
        ([text("hi"), PICTURE], "hi", [text("HI"), PICTURE]),
        ([PICTURE, text("hi") | {"cache": 1}], "hi", [PICTURE, text("HI") | {"cache": 1}]),
        ([text("a"), text("b")], None, None),
        ([PICTURE], None, None),
        ([], None, None),
        (["hi"], None, None),
        ([text(3)], None, None),
        (" \n", None, None),
        (None, None, None),
        (3, None, None),
    ],
)
def test_what_of_a_turn_is_rewritten(content, x, changed):
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": content}, {"role": "assistant"}]
    assert user_turn(messages) == (None if x is None else (1, x))
    if x:
        assert with_text(messages[1], x.upper()) == {"role": "user", "content": changed}
        assert messages[1]["content"] is content, "a copy is changed"


def test_no_messages():
    assert user_turn([{"role": "system", "content": "hi"}]) is None and user_turn([{}]) is None
    for wrong in (None, [], {}, "hi", [3]):
        with pytest.raises(UserError, match="messages must be a list of objects"):
            user_turn(wrong)


class Model:
    """Writes capitals. The first batch waits until the test lets it go; a text with a 0 is one too many."""

    def __init__(self):
        self.seen: list[list[str]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, texts):
        self.seen.append(list(texts))
        self.begun.set()
        assert self.go_on.wait(60)
        assert not any("0" in x for x in texts), "no"
        return [x.upper() for x in texts]


def together(ask):
    """The model's batches, and what ask(model, batches) returns, in an event loop."""
    model = Model()

    async def whole():
        with ThreadPoolExecutor(1) as executor:
            return await ask(model, Batches(model, executor))

    return model.seen, asyncio.run(whole())


async def after_the_first(model, batches, first, *others):
    """The results of all, in their order; the others come while the model works on the first."""
    futures = [batches.put(first)]
    while not model.begun.is_set():
        await asyncio.sleep(0.001)
    futures += [batches.put(x) for x in others]
    model.go_on.set()
    return [await future for future in futures]


def test_what_waits_is_one_batch_and_each_gets_its_own(monkeypatch):
    monkeypatch.setattr(rewriting, "MOST_AT_ONCE", 3)
    seen, found = together(lambda model, b: after_the_first(model, b, "a", "b", "c", "d", "e"))
    assert seen == [["a"], ["b", "c", "d"], ["e"]] and found == ["A", "B", "C", "D", "E"]


@pytest.mark.parametrize(
    "lengths, count",
    [
        ([5], 1),
        ([5, 5, 5], 3),
        ([5] * 9, 4),
        ([25] * 9, 4),
        ([26] * 9, 3),
        ([1, 60, 1], 1),
        ([1, 40, 1], 2),
        ([999, 1], 1),
    ],
)
def test_long_texts_go_with_few_others(lengths, count, monkeypatch):
    monkeypatch.setattr(rewriting, "MOST_AT_ONCE", 4)
    monkeypatch.setattr(rewriting, "MOST_CHARACTERS", 100)
    assert rewriting.fitting(["x" * length for length in lengths]) == count


def test_one_that_fails_fails_alone():
    seen, found = together(lambda model, b: after_the_first(model, b, "a", "b", "0", "c"))
    assert [str(x).split("\n")[0] for x in found] == ["A", "B", "no", "C"] and isinstance(found[2], AssertionError)
    assert seen == [["a"], ["b", "0", "c"], ["b"], ["0"], ["c"]]


def test_who_left_is_not_worked_for():
    async def ask(model, batches):
        first = batches.put("a")
        while not model.begun.is_set():
            await asyncio.sleep(0.001)
        batches.put("b").cancel()
        last = batches.put("c")
        model.go_on.set()
        return [await first, await last]

    assert together(ask) == ([["a"], ["c"]], ["A", "C"])


def test_a_text_keeps_its_rewrite(monkeypatch):
    monkeypatch.setattr(rewriting, "MOST_KEPT", 2)

    async def ask(model, batches):
        model.go_on.set()
        rewriter = Rewriter(batches)
        found = [await rewriter("a", fresh=False)]
        found += await asyncio.gather(rewriter("a"), rewriter("a"))
        found += [await rewriter(x) for x in "baca"]  # a was used last when c comes: b goes
        found += [await rewriter("b", fresh=False), await rewriter("a", fresh=False)]
        for _ in range(2):
            with pytest.raises(AssertionError):
                await rewriter("0")
        return found

    seen, found = together(ask)
    assert found == [None, "A", "A", "B", "A", "C", "A", None, "A"]
    assert seen == [["a"], ["b"], ["c"], ["0"], ["0"]], "what failed is not kept"


def test_one_who_leaves_takes_no_rewrite_from_another():
    async def ask(model, batches):
        rewriter = Rewriter(batches)
        one, other = (asyncio.create_task(rewriter("a")) for _ in range(2))
        while not model.begun.is_set():
            await asyncio.sleep(0.001)
        one.cancel()
        model.go_on.set()
        return await other

    assert together(ask) == ([["a"]], "A")


@pytest.mark.parametrize(
    "pieces, secret, whole",
    [
        (["my sk-123456 is"], "sk-123456", "my ********* is"),
        (["my sk-", "1234", "56 and sk-123456"], "sk-123456", "my ********* and *********"),
        (["sk-123", "sk-123456"], "sk-123456", "sk-123*********"),
        (list("sk-12345sk-123456!"), "sk-123456", "sk-12345*********!"),
        (["ends with sk-123"], "sk-123456", "ends with sk-123"),
        (["as ", "it ", "is"], "", "as it is"),
    ],
)
def test_a_secret_is_covered_wherever_it_stands(pieces, secret, whole):
    async def source():
        for piece in pieces:
            yield piece.encode()

    async def read():
        return [piece async for piece in redacted(source(), secret.encode())]

    found = asyncio.run(read())
    assert b"".join(found).decode() == whole and all(found)
    if not secret:
        assert found == [piece.encode() for piece in pieces], "nothing is held back"

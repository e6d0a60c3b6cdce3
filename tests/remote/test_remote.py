"""Models behind an API, against a server on this machine that is polite or hostile."""

import _thread
import json
import random
import signal
import time
import warnings
from dataclasses import replace

import pytest
import torch
from api_server import polite, serving

from alignpro_mini.alignpro import PromptScore
from alignpro_mini.frozen import SamplingConfig
from alignpro_mini.jsonl import read_jsonl
from alignpro_mini.options import UserError
from alignpro_mini.remote.client import ApiConfig, Client, Question, spent
from alignpro_mini.remote.lm import Judge, RemoteLM, unclear, verdict


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """The pauses between tries, which are half a second and more."""
    monkeypatch.setattr("alignpro_mini.remote.client.FIRST_PAUSE", 0.01)


def client(server, tmp_path, **options) -> Client:
    """A client whose timeout no polite answer needs, on a busy machine either."""
    how = {"base_url": server.url, "timeout": 30.0, "concurrency": 16, "retries": 8} | options
    return Client(ApiConfig(**how), tmp_path / "api.jsonl")


def questions(count: int) -> list[Question]:
    return [Question("m", f"prompt {i}", draw=i) for i in range(count)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_answers_come_in_the_order_of_the_questions_and_are_paid_for_once(tmp_path):
    with serving(["late", "", "late", "", "late"]) as server:
        asked = questions(30)
        rows = client(server, tmp_path).ask(asked)
        assert [row["text"] for row in rows] == [f"You asked: prompt {i} Draw {i}." for i in range(30)]
        again = client(server, tmp_path).ask(asked[::-1])  # another process, the same file
        assert again == rows[::-1]
        assert sum(server.answered.values()) == 30 == sum(server.seen.values())
        assert spent(tmp_path / "api.jsonl")["tokens"] == 30 * (2 + 6)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_200_faults_lose_no_answer_and_none_is_paid_for_twice(tmp_path, monkeypatch, capsys, seed):
    """Of 31 kinds: no episode lost, none duplicated, no traceback, no key told: whatever goes wrong is tried again."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    kinds = [
        "429",
        "500",
        "503",
        "409",
        "drop",
        "truncated",
        "cut",
        "html",
        "no choices",
        "no message",
        "null",
        "error",
    ]
    kinds += ["abort", "bad gzip", "endless error", "424", "498", "preempted", "the key"]
    fine = ["late", "twice", "no usage", "length", "max_tokens", "model_length", "parts", "marked", "packed", "whim"]
    faults = [kinds[i % len(kinds)] for i in range(146)] + fine * 5 + ["stall", "trickle"] * 2
    random.Random(seed).shuffle(faults)
    with serving(faults) as server:
        asked = questions(120)
        rows = client(server, tmp_path, retries=40, timeout=3.0, deadline=3.0).ask(asked)
        assert len(faults) == 200 and sum(server.seen[kind] for kind in set(faults)) == 200
        assert [row["prompt"] for row in rows] == [q.prompt for q in asked]
        assert all(row["text"] == polite(q.prompt, {"seed": q.draw}) for row, q in zip(rows, asked))
        assert set(server.answered.values()) == {1} and len(server.answered) == 120
        assert len(read_jsonl(tmp_path / "api.jsonl")) == 120 and set(server.keys) == {"Bearer sk-0123456789"}
        written = [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()]
        assert not any("0123456789" in text for text in [*written, *capsys.readouterr()])


@pytest.mark.parametrize(
    "fault, said",
    [
        ("401", "check OPENAI_API_KEY"),
        ("403", "check OPENAI_API_KEY"),
        ("404", "is 'm' a model of this server?"),
        ("400", "see its message"),
        ("overflow", "--api.max_prompt_chars"),
        ("429", "--api.concurrency"),
        ("500", "--resume"),
        ("drop", "is the server running?"),
        ("stall", "is the server running?"),
        ("html", "is this an OpenAI-compatible API?"),
        ("truncated", "is this an OpenAI-compatible API?"),
        ("no choices", "is this an OpenAI-compatible API?"),
        ("null", "content is null"),
        ("error", "finish_reason error"),
        ("trickle", "--api.deadline"),
        ("huge", "a reply of more than 8 MiB"),
        ("endless error", "500 no no no"),
        ("bad gzip", "ended too early"),
        ((402, {"error": {"message": "Insufficient credits"}}), "Insufficient credits: what was paid for is used up"),
        ((429, {"error": {"message": "m", "code": "insufficient_quota"}}), "used up"),
        ((422, {"detail": [{"loc": ["body", "top_k"], "msg": "field required"}]}), "field required"),
        ((302, {}), "moved"),
    ],
)
def test_each_failure_that_stays_is_one_clear_line(tmp_path, fault, said):
    with serving([fault] * 50) as server:
        limits = {"stall": {"timeout": 0.4}, "trickle": {"timeout": 0.4, "deadline": 0.4}}.get(str(fault), {})
        one = client(server, tmp_path, retries=1, concurrency=1, **limits)
        with pytest.raises(UserError) as told:
            one.ask(questions(3))
        message = str(told.value)
        assert said in message and server.url in message and "\n" not in message
        assert sum(server.seen.values()) <= 2, "what follows a failure is not sent"


def test_what_came_before_a_failure_is_kept(tmp_path):
    with serving(["", "", "404"]) as server:
        asked = questions(5)
        with pytest.raises(UserError):
            client(server, tmp_path, concurrency=1).ask(asked)
        assert len(read_jsonl(tmp_path / "api.jsonl")) == 2
        assert len(client(server, tmp_path, concurrency=1).ask(asked)) == 5
        assert set(server.answered.values()) == {1}


def test_no_server(tmp_path):
    one = Client(ApiConfig(base_url="http://127.0.0.1:9/v1", retries=0), tmp_path / "api.jsonl")
    with pytest.raises(UserError, match="http://127.0.0.1:9/v1.*is the server running"):
        one.ask(questions(1))


def test_the_token_budget_is_never_passed(tmp_path):
    with serving() as server:
        cost = questions(1)[0].most_tokens
        one = client(server, tmp_path, token_budget=3 * cost, concurrency=4)
        with pytest.raises(UserError, match=r"--api.token_budget \d+: \d+ tokens are used.*--resume"):
            for i in range(200):
                one.ask([Question("m", f"prompt {i % 10}", draw=i)])
        used = spent(tmp_path / "api.jsonl")["tokens"]
        assert 2 * cost < used <= 3 * cost
        with pytest.raises(UserError, match="token_budget"):  # also in the next process
            client(server, tmp_path, token_budget=3 * cost).ask([Question("m", "new")])
        assert client(server, tmp_path, token_budget=6 * cost).ask([Question("m", "new")])


def test_a_budget_holds_for_requests_under_way_together(tmp_path):
    with serving(["late"] * 100) as server:
        cost = questions(1)[0].most_tokens
        one = client(server, tmp_path, token_budget=5 * cost, concurrency=16)
        with pytest.raises(UserError, match="token_budget"):
            one.ask(questions(16))
        assert sum(server.seen.values()) <= 5


def test_usage_that_is_not_told_counts_as_the_most_that_it_can_be(tmp_path):
    with serving(["no usage"]) as server:
        one = client(server, tmp_path)
        one.ask(questions(1))
        assert spent(one.file)["tokens"] == questions(1)[0].most_tokens


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"prompt": "q"},
        {"system": "s"},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_tokens": 3},
        {"draw": 1},
        {"extra": '{"reasoning_effort": "low"}'},
        {"judge": True},
    ],
)
def test_everything_that_determines_an_answer_is_in_its_key(change):
    q = Question("m", "p")
    assert q.key() == Question("m", "p").key() != replace(q, **change).key()


def test_a_line_that_a_kill_cut_swallows_no_answer(tmp_path):
    with serving() as server:
        file = tmp_path / "api.jsonl"
        client(server, tmp_path).ask(questions(2))
        file.write_bytes(file.read_bytes()[:-9])
        assert len(read_jsonl(file)) == 1
        client(server, tmp_path).ask(questions(3))
        assert len(read_jsonl(file)) == 3 and max(server.answered.values()) == 2


def test_the_key_comes_from_the_environment_and_stays_there(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        Client(ApiConfig(base_url="https://example.org/v1"), tmp_path / "api.jsonl")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(["401"], answer=lambda prompt, body: "sk") as server:
        server.answer = lambda prompt, body: "fine"
        one = client(server, tmp_path)
        with pytest.raises(UserError) as told:
            one.ask(questions(1))
        one.ask(questions(1))
        assert server.keys == ["Bearer sk-secret"] * 2
        assert "sk-secret" not in str(told.value) + one.file.read_text()
    for base_url in ("me:secret@example.org/v1", "secret@example.org/v1", "example.org/v1?key=secret"):
        with pytest.raises(UserError, match="holds a user name, a password or a query"):
            ApiConfig(base_url=f"https://{base_url}")
    with pytest.raises(UserError, match="address such as"):
        ApiConfig(base_url="example.org")


def test_a_server_that_repeats_the_key_does_not_get_it_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "fault 401")  # the stand-in's message says "fault 401"
    with serving(["401"]) as server:
        with pytest.raises(UserError) as told:
            client(server, tmp_path).ask(questions(1))
        assert "fault" not in str(told.value) and "..." in str(told.value)
    key = "sk-" + "0123456789" * 2
    monkeypatch.setenv("OPENAI_API_KEY", key)
    long = "x" * 290 + key  # it would be cut in the middle of the key
    faults = [(400, {"error": {"message": f"{long}: seed is not supported"}}), (401, {"error": long})]
    with serving(faults, answer=lambda prompt, body: f"Your key is {key}.") as server:
        with pytest.raises(UserError) as told:
            client(server, tmp_path, concurrency=1).ask(questions(2))
        one = client(server, tmp_path, concurrency=1)
        assert one.ask(questions(1))[0]["text"] == "Your key is ...."
        assert "sk-0" not in str(told.value) + capsys.readouterr().out + one.file.read_text()


def test_a_key_with_the_end_of_its_line_is_that_key_and_other_letters_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\n")
    with serving() as server:
        client(server, tmp_path).ask(questions(1))
        assert server.keys == ["Bearer sk-secret"]
        monkeypatch.setenv("OPENAI_API_KEY", "sk-\u200bsecret")
        with pytest.raises(UserError, match="no key has: copy it again"):
            client(server, tmp_path)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:80a/v1", "http://[::1/v1", "http://127.0.0.1:99999/v1", "ftp://a"]
)
def test_an_address_that_is_none_is_one_line(address):
    with pytest.raises(UserError, match="it must be an address such as"):
        ApiConfig(base_url=address)


def test_half_an_emoji_is_kept_as_a_question_mark(tmp_path):
    """A server that cuts at UTF-16 units sends one: valid JSON, but no text that a file can hold."""
    with serving(answer=lambda prompt, body: "fine \ud83d") as server:
        (row,) = client(server, tmp_path).ask(questions(1))
        assert row["text"] == "fine ?" and read_jsonl(tmp_path / "api.jsonl") == [row]


def test_a_prompt_that_the_providers_filter_refuses_has_an_empty_answer(tmp_path):
    """Asked again it would be refused again, so no --resume could ever get past it."""
    with serving(["filter"]) as server:
        first, second = client(server, tmp_path, concurrency=1).ask(questions(2))
        assert first["text"] == "" and second["text"] and not first["truncated"]
        assert client(server, tmp_path).ask(questions(2)) == [first, second]
        assert sum(server.seen.values()) == 2


def test_repeated_prompts_get_independent_answers_that_a_resumed_run_finds_again(tmp_path):
    with serving() as server:
        lm = RemoteLM(client(server, tmp_path), "m", SamplingConfig(max_new_tokens=5, temperature=0.7))
        first = lm.answer(["Hi."] * 6 + ["Ho."], seeded(0))
        assert len({a.text for a in first}) == 7 and all(a.tokens is None and not a.truncated for a in first)
        more = lm.answer(["Hi."] * 6, seeded(1))
        assert not {a.text for a in first} & {a.text for a in more}
        resumed = RemoteLM(client(server, tmp_path), "m", SamplingConfig(max_new_tokens=5, temperature=0.7))
        assert resumed.answer(["Hi."] * 6 + ["Ho."], seeded(0)) == first
        assert sum(server.seen.values()) == 13
        body = server.bodies[0]
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 1.0, 5)


def test_greedy_answers_to_one_prompt_are_one_answer(tmp_path):
    with serving() as server:
        lm = RemoteLM(client(server, tmp_path), "m", SamplingConfig(temperature=0.0))
        assert len({a.text for a in lm.answer(["Hi."] * 4)}) == 1 == sum(server.seen.values())


def test_a_server_that_ignores_the_temperature_is_noticed_once(tmp_path):
    with serving(answer=lambda prompt, body: f"About {prompt}.") as server:
        lm = RemoteLM(client(server, tmp_path), "m", SamplingConfig(temperature=0.7))
        with pytest.warns(UserWarning, match="8 prompts, each answered several times, got one answer each"):
            lm.answer([f"p{i // 2}" for i in range(16)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lm.answer([f"q{i // 2}" for i in range(16)])  # once is enough
            RemoteLM(client(server, tmp_path), "m").answer([f"p{i // 2}" for i in range(14)])  # may be chance
    with serving() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        RemoteLM(client(server, tmp_path), "m").answer([f"p{i // 2}" for i in range(16)])


def test_a_truncated_answer_is_marked(tmp_path):
    with serving(["length"]) as server:
        (answer,) = RemoteLM(client(server, tmp_path), "m").answer(["Hi."])
        assert answer.truncated and type(answer.text).__name__ == "Truncated"


def test_align_pros_score_works_on_a_remote_model(tmp_path):
    with serving() as server:
        lm = RemoteLM(client(server, tmp_path, max_prompt_chars=20), "m")
        score = PromptScore(lm, lambda x, y: [float(len(text)) for text in y], seeded(0), answers=3)
        found = score(["Hi.", "Ho."], ["Hi there.", "x" * 21])
        assert found.shape == (2,) and score.fallbacks == 1 and score.x_prime == ["Hi there.", "Ho."]
        assert len(score.y) == 6


def test_the_systems_message_goes_along(tmp_path):
    with serving() as server:
        RemoteLM(client(server, tmp_path, system="Be brief."), "m").answer(["Hi."])
        assert server.bodies[0]["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi."},
        ]


@pytest.mark.parametrize(
    "reply, found",
    [
        ("A", "A"),
        ("b.", "B"),
        ("Answer B is better.", "B"),
        ("Tie", "tie"),
        ("It is a tie", "tie"),
        ("A tie.", "tie"),
        ("Both are good", None),
        ("A or B", None),
        ("", None),
        ("**A**", "A"),
        ("The answer is A", "A"),
    ],
)
def test_a_judges_reply_is_read(reply, found):
    assert verdict(reply) == found


def judging(prompt: str, body: dict) -> str:
    """A judge that prefers longer answers, and on equal ones always A."""
    a, b = (prompt.split(f"[Answer {name}]\n")[1].split("\n")[0] for name in "AB")
    return "A" if len(a) >= len(b) else "B"


def test_a_judge_asks_both_orders_and_compares_with_the_plain_answer(tmp_path):
    with serving(answer=judging) as server:
        one, asked = client(server, tmp_path), []
        judge = Judge(one, "judge", lambda requests: asked.append(requests) or ["plain" for _ in requests])
        r = judge(["x", "x", "z"], ["longer than it", "no", "other"])
        assert r.tolist() == [1.0, 0.0, 0.5]  # the third has the same length: A both times is a contradiction
        assert asked == [["x", "z"]] and sum(server.seen.values()) == 6
        judge(["x"], ["longer than it"])
        assert len(asked) == 1 and sum(server.seen.values()) == 6
        kept = [row for row in read_jsonl(one.file) if row["model"] == "judge"]
        assert len(kept) == 6 and {row["text"] for row in kept} == {"A", "B"}


def test_a_judge_without_a_verdict_is_a_tie_and_counted(tmp_path):
    with serving(answer=lambda prompt, body: "I cannot say." if "[y]" in prompt else "A") as server:
        one = client(server, tmp_path)
        judge = Judge(one, "judge", lambda requests: ["plain" for _ in requests])
        assert unclear(one.file, "judge") is None
        assert judge(["x", "x"], ["[y]", "other"]).tolist() == [0.5, 0.5]
        assert unclear(one.file, "judge") == 0.5
        one.ask([Question("judge", "a request to the same model")])
        assert unclear(one.file, "judge") == 0.5, "a greedy answer is no verdict"


def test_a_request_with_braces_and_headings_reaches_the_judge_as_it_is(tmp_path):
    with serving(answer=lambda prompt, body: "tie") as server:
        Judge(client(server, tmp_path), "judge", lambda xs: xs)(["{a} {request}"], ["{b}"])
        asked = [body["messages"][-1]["content"] for body in server.bodies]
        assert len(asked) == 2 and all("{a} {request}" in text and "{b}" in text for text in asked)


def test_a_refused_request_costs_nothing(tmp_path):
    with serving(["404"]) as server:
        one = client(server, tmp_path, token_budget=questions(1)[0].most_tokens, concurrency=1)
        with pytest.raises(UserError, match="404"):
            one.ask(questions(1))
        assert one.ask(questions(1)), "the same client may ask again"


def test_a_broken_reply_counts_as_paid_for(tmp_path):
    """It may have been: a budget must hold also then."""
    with serving(["truncated"] * 50) as server:
        cost = questions(1)[0].most_tokens
        with pytest.raises(UserError, match="token_budget"):
            client(server, tmp_path, token_budget=3 * cost).ask(questions(1))
        assert sum(server.seen.values()) == 3


def test_rows_are_json_lines_that_a_reader_can_use(tmp_path):
    with serving() as server:
        one = client(server, tmp_path)
        one.ask([Question("m", "Tell me\nmore ü", draw=3)])
        (row,) = [json.loads(line) for line in one.file.read_text(encoding="utf-8").splitlines()]
        assert set(row) == {"key", "model", "prompt", "draw", "text", "truncated", "prompt_tokens", "completion_tokens"}
        assert row["prompt"] == "Tell me\nmore ü"


# ---------------------------------------------------------------- any provider


def refusing(*fields: str):
    """A server that knows some fields of a request not."""

    def refuses(body: dict):
        for field in fields:
            if field in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{field}'", "param": field}}
        return None

    return refuses


@pytest.mark.parametrize(
    "fields, left",
    [
        (["max_tokens"], {"temperature": 0.7, "top_p": 1.0, "seed": 0, "max_completion_tokens": 5}),
        (["temperature"], {"top_p": 1.0, "seed": 0, "max_tokens": 5}),
        (["seed"], {"temperature": 0.7, "top_p": 1.0, "max_tokens": 5}),
        (["temperature", "top_p", "max_tokens", "seed"], {"max_completion_tokens": 5}),
    ],
)
def test_a_refused_field_is_left_out_from_then_on_and_told_once(tmp_path, capsys, fields, left):
    with serving() as server:
        server.refuses = refusing(*fields)
        one = client(server, tmp_path, concurrency=1)
        rows = one.ask([Question("m", f"p{i}", "", 0.7, 1.0, 5) for i in range(5)])
        assert len(rows) == 5 and len(server.bodies) == 5 + len(fields), "each field is refused once"
        sent = {name: value for name, value in server.bodies[-1].items() if name not in ("model", "messages")}
        assert sent == left
        told = capsys.readouterr().out.splitlines()
        assert [line.partition(" refuses ")[2].partition(":")[0] for line in told] == sorted(fields, key=fields.index)
        other = one.ask([Question("n", "p", "", 0.7, 1.0, 5)])
        assert other and len(server.bodies) == 5 + 2 * len(fields) + 1, "another model may know the field"


def test_a_field_that_stays_refused_or_is_the_users_own_ends_with_the_servers_words(tmp_path):
    with serving() as server:
        server.refuses = refusing("max_tokens", "max_completion_tokens")
        with pytest.raises(UserError, match="Unsupported parameter: 'max_completion_tokens'.*--api.extra"):
            client(server, tmp_path).ask(questions(1))
        server.refuses = refusing("temperature")
        with pytest.raises(UserError, match="Unsupported parameter: 'temperature'"):
            client(server, tmp_path).ask([Question("m", "p", extra='{"temperature": 0.3}')])


def test_extra_fields_go_along_and_null_leaves_one_out(tmp_path):
    extra = '{"seed": null, "max_tokens": null, "max_completion_tokens": 900, "template": {"think": null}}'
    with serving() as server:
        one = client(server, tmp_path, extra=extra)
        RemoteLM(one, "m", SamplingConfig(max_new_tokens=5)).answer(["Hi."])
        sent = {name: value for name, value in server.bodies[0].items() if name not in ("model", "messages")}
        assert sent == {"temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 900, "template": {"think": None}}
        assert Question("m", "p", extra=extra).most_tokens > 900, "the budget knows the limit that is sent"


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "it must be a JSON object"),
        ("[1]", "it must be a JSON object"),
        ('{"a": NaN}', "NaN is no JSON"),
        ('{"a": 1, "a": 2}', "comes twice"),
        ('{"stream": true}', "'stream', which a run sets itself"),
        ('{"messages": []}', "'messages', which a run sets itself"),
    ],
)
def test_extra_fields_that_are_none_are_refused(text, said):
    for name in ("extra", "judge_extra"):
        with pytest.raises(UserError, match=f"^{name} .*{said}"):
            ApiConfig(**{name: text})


def test_answers_that_are_not_as_they_should_be_are_told_with_their_number(tmp_path, capsys):
    with serving(answer=lambda prompt, body: "" if "0" in prompt else "<think>Hm.</think>Fine.") as server:
        one = client(server, tmp_path, concurrency=1)
        one.ask(questions(20))
        told = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in told[:2]] == [
            "[api] 1 of 1 answers are empty",
            "[api] 1 of 2 answers begin with the model's thoughts, and these are rated too",
        ]
        assert len(told) == 3 and told[2].startswith("[api] 10 of 12 answers begin"), "at 1, 10, 100 ..."
        assert {name: spent(one.file)[name] for name in ("empty", "thinks")} == {"empty": 2, "thinks": 18}


def test_thoughts_in_the_text_are_taken_off_where_asked(tmp_path):
    with serving(answer=lambda prompt, body: "<think>Hm.</think>Fine.") as server:
        (answer,) = RemoteLM(client(server, tmp_path, strip_thinking=True), "m").answer(["Hi."])
        assert answer.text == "Fine."
    assert verdict("<think>A is long, B is short.</think>B") == "B"


def test_a_judge_may_think_aloud(tmp_path, capsys):
    with serving(answer=lambda prompt, body: f"<think>A or B?</think>{judging(prompt, body)}") as server:
        one = client(server, tmp_path)
        assert Judge(one, "judge", lambda requests: ["plain"])(["x"], ["longer than it"]).tolist() == [1.0]
        assert "notes" not in one.file.read_text() and not capsys.readouterr().out


def test_a_limit_or_an_outage_is_waited_out_once_an_answer_has_come(tmp_path, capsys, monkeypatch):
    """Forty failures, of which `retries` would allow two; before the first answer it gives up soon."""
    monkeypatch.setattr("alignpro_mini.remote.client.LONGEST_PAUSE", 0.02)
    monkeypatch.setattr("alignpro_mini.remote.client.LONG_PAUSE", 0.0)
    for fault in ("503", "drop"):
        with serving(["", *[fault] * 40]) as server:
            one = client(server, tmp_path / fault, retries=1, concurrency=1)
            assert len(one.ask(questions(3))) == 3 and set(server.answered.values()) == {1}
            told = capsys.readouterr().out.splitlines()
            assert len(told) == 1 and "--api.patience" in told[0] and "--resume" in told[0] and server.url in told[0]
    with serving(["", *["503"] * 40]) as server:
        with pytest.raises(UserError, match="503 fault 503.*--resume"):
            client(server, tmp_path / "impatient", retries=1, concurrency=1, patience=0).ask(questions(3))
        assert sum(server.seen.values()) == 3


def test_a_server_that_asks_to_wait_longer_than_the_patience_ends_the_run_at_once(tmp_path):
    with serving(["asks"]) as server:
        with pytest.raises(UserError, match=r"429 slow \(it asks to wait 300 s\): lower --api.concurrency.*--resume"):
            client(server, tmp_path, patience=100).ask(questions(1))
        assert sum(server.seen.values()) == 1


def test_what_really_came_is_counted(tmp_path):
    """Paid replies without an answer, answers longer than their limit; also in the next process."""
    with serving(["null", "error"], answer=lambda prompt, body: "word " * 400) as server:
        one = client(server, tmp_path, concurrency=1, retries=5)
        one.ask(questions(1))
        assert spent(one.file) == {"answers": 1, "tokens": 3 * 402, "prompt_tokens": 6, "usd": 0, "failed": 2}
        one = client(server, tmp_path, concurrency=1, token_budget=3 * 402 + 800)
        one.ask([Question("m", "a")])
        with pytest.raises(UserError, match="1607 tokens are used"):  # 64 is the limit, and 400 may come
            one.ask([Question("m", "b")])


def test_a_server_that_moved_serves_the_answers_that_are_kept(tmp_path):
    with serving() as server:
        rows = client(server, tmp_path).ask(questions(3))
    with serving() as server:
        assert client(server, tmp_path).ask(questions(3)) == rows and not server.seen


def test_a_judge_may_have_an_address_and_a_key_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-model")
    monkeypatch.setenv("JUDGE_API_KEY", "key-of-the-judge")
    with serving() as server, serving(answer=judging) as court:
        one = client(server, tmp_path, judge_base_url=court.url, extra='{"a": 1}', judge_extra='{"b": 2}')
        lm = RemoteLM(one, "m")
        judge = Judge(one, "m", lambda requests: [answer.text for answer in lm.answer(requests)])
        assert judge(["x"], ["y"]).shape == (1,)
        assert set(server.keys) == {"Bearer key-of-the-model"} and set(court.keys) == {"Bearer key-of-the-judge"}
        assert [body.get("a") for body in server.bodies] == [1] and [body.get("b") for body in court.bodies] == [2, 2]
        monkeypatch.delenv("JUDGE_API_KEY")
        away = ApiConfig(base_url=server.url, judge_base_url="https://example.org/v1")
        with pytest.raises(UserError, match="https://example.org/v1: no key; set .* JUDGE_API_KEY"):
            Judge(Client(away, tmp_path / "b.jsonl"), "m", lambda requests: requests)(["x"], ["y"])


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a shell's background command ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield _thread.interrupt_main
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_is_under_way_and_sends_nothing_more(tmp_path, capsys, ctrl_c):
    with serving() as server:

        def answer(prompt: str, body: dict) -> str:
            if prompt == "prompt 4":
                ctrl_c()
            time.sleep(0.05)
            return polite(prompt, body)

        server.answer = answer
        one = client(server, tmp_path, concurrency=2)
        with pytest.raises(KeyboardInterrupt):
            one.ask(questions(200))
        assert sum(server.seen.values()) < 50
        assert len(read_jsonl(one.file)) == sum(server.answered.values()) == sum(server.seen.values())
        assert "Ctrl-C again ends at once" in capsys.readouterr().out


def test_ctrl_c_ends_an_outage(tmp_path, ctrl_c):
    with serving(["", *["500"] * 500]) as server:
        one = client(server, tmp_path, concurrency=2)
        one.ask(questions(1))
        ninth = lambda body: len(server.bodies) > 8 and body is server.bodies[8]
        server.refuses = lambda body: ctrl_c() if ninth(body) else None
        with pytest.raises(KeyboardInterrupt):
            one.ask(questions(20))
        assert len(server.bodies) < 100


def test_a_long_wait_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alignpro_mini.remote.client.FIRST_LINE", 0.0)
    with serving() as server:
        client(server, tmp_path, concurrency=1).ask(questions(3))
    assert capsys.readouterr().out.startswith("[api] 1 of 3 answers, ")


def test_an_address_is_used_with_or_without_its_last_part_and_v1_is_missed(tmp_path):
    with serving(["404", "html"]) as server:
        root = server.url.removesuffix("/v1")
        for _ in range(2):
            with pytest.raises(UserError, match="has no /v1"):
                client(server, tmp_path, base_url=root, retries=0).ask(questions(1))
        for given in ("/v1/", "/v1/chat/completions"):
            assert client(server, tmp_path / given[1:], base_url=root + given).ask(questions(1))
        assert set(server.paths) == {"/chat/completions", "/v1/chat/completions"}


def test_a_host_that_cannot_be_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for host in ("\uff11.de", "a..b"):  # no name, no part of a name
        with pytest.raises(UserError, match=f"^http://{host}/v1: "):
            Client(ApiConfig(base_url=f"http://{host}/v1", retries=0), tmp_path / "api.jsonl").ask(questions(1))


def test_a_deadline_that_ends_before_the_timeout_is_refused():
    with pytest.raises(UserError, match=r"^timeout is 900, longer than deadline \(600\); raise --api.deadline"):
        ApiConfig(timeout=900)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving() as server:
        assert client(server, tmp_path, retries=0).ask(questions(1))


@pytest.mark.parametrize("line", ["null", "123", "[]", '{"key": "x"}'])
def test_a_file_of_other_lines_is_refused(tmp_path, line):
    (tmp_path / "api.jsonl").write_text(line + "\n")
    with serving() as server, pytest.raises(UserError, match="api.jsonl holds a line that is no answer"):
        client(server, tmp_path)


def test_half_a_character_in_a_prompt_is_sent_as_a_question_mark(tmp_path):
    with serving() as server:
        (row,) = client(server, tmp_path).ask([Question("m", "Hi \ud83d")])
        assert row["prompt"] == "Hi ?" == server.bodies[0]["messages"][0]["content"]

"""`alignpro rewrite`, `chat` and `serve`."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from api_server import serving
from doubles import ROOT

from alignpro_mini.use import command, upstream
from alignpro_mini.use.command import main
from alignpro_mini.use.proxy import REWRITTEN

X = "Tell me about Milton."
WHERE = ["--run", "run", "--device", "cpu", "--seed", "1"]


def test_the_command_rewrites_its_arguments_a_file_and_what_is_typed(untrained, capsys, monkeypatch):
    untrained()
    main(["rewrite", *WHERE, "Tell", "me", "about", "Milton."])
    alone = capsys.readouterr().out
    assert len(alone.splitlines()) == 1
    Path("one.txt").write_bytes(b"\xef\xbb\xbfTell me about Milton.\r\n\r\n")
    main(["rewrite", *WHERE, "--file", "one.txt"])
    assert capsys.readouterr().out == alone
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{X}\n{X}\n\nnot read\n"))
    main(["rewrite", *WHERE])
    assert len(capsys.readouterr().out.splitlines()) == 2
    Path("bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SystemExit, match="alignpro: error: bad.txt:1: cannot be read .* is it UTF-8"):
        main(["rewrite", *WHERE, "--file", "bad.txt"])
    with pytest.raises(SystemExit, match="alignpro: error: nowhere: no run"):
        main(["rewrite", "--run", "nowhere", X])


def test_the_answers_to_both(untrained, capsys):
    Path("mine.py").write_text("def length(x, y):\n    return [len(a) for a in x]\n")
    untrained(reward="mine:length")
    main(["rewrite", *WHERE, "--answer", "--reward", "mine:length", X])
    told = capsys.readouterr().out
    assert told.count("\ny  ") == 2 and told.startswith(f"x  {X}") and "\nx' " in told
    assert told.count(f"\nr  +{len(X)}.00") == 2, "both answers are rated as answers to the request"
    with pytest.raises(SystemExit, match="--reward is read with --answer only"):
        main(["rewrite", *WHERE, "--reward", "mine:length", X])


@pytest.fixture
def batches(monkeypatch):
    """The batches of requests that the prompter gets."""
    seen = []
    made = command.Trained.rewrite
    count = lambda self, requests, *args: seen.append(list(requests)) or made(self, requests, *args)
    monkeypatch.setattr(command.Trained, "rewrite", count)
    return seen


def test_a_file_goes_through_the_model_in_batches(untrained, capsys, batches):
    untrained()
    Path("r.txt").write_text("".join(f"About town {i}.\n\n" for i in range(70)))
    main(["rewrite", *WHERE, "--file", "r.txt"])
    assert len(capsys.readouterr().out.splitlines()) == 70
    assert [len(batch) for batch in batches] == [32, 32, 6]
    assert [x for batch in batches for x in batch] == [f"About town {i}." for i in range(70)]


def test_jsonl_in_and_out(untrained, capsys, batches):
    Path("mine.py").write_text("def length(x, y):\n    return [len(a) for a in x]\n")
    untrained(reward="mine:length")
    rows = [{"id": i, "prompt": f"About \u2028 town {i} ü."} for i in range(3)]
    Path("r.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    main(["rewrite", *WHERE, "--file", "r.jsonl"])
    out, err = capsys.readouterr()
    assert not err
    found = [json.loads(line) for line in out.splitlines()]
    assert out.isascii() and [{k: row[k] for k in ("id", "prompt")} for row in found] == rows and len(batches) == 1
    assert all(set(row) == {"id", "prompt", "rewrite", "objection"} for row in found)
    assert all(row["rewrite"] == row["prompt"] for row in found if row["objection"])
    main(["rewrite", *WHERE, "--file", "r.jsonl", "--answer", "--reward", "mine:length"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in found:
        for name in ("to_the_request", "to_the_rewrite"):
            assert set(row[name]) == {"answer", "truncated", "reward"} and row[name]["reward"] == len(row["prompt"])
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    with pytest.raises(SystemExit, match="bad.jsonl:2: field 'prompt' is 3"):
        main(["rewrite", *WHERE, "--file", "bad.jsonl"])
    assert capsys.readouterr().out == "", "the whole file is read before anything is rewritten"


def test_chat_answers_line_by_line(untrained, capsys, monkeypatch):
    untrained()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{X}\n{X}\n"))
    main(["chat", *WHERE])
    told = capsys.readouterr()
    assert told.out.count("[") >= 2 and "Each line is a request of its own" in told.err


def test_serve_says_what_to_install(untrained, monkeypatch):
    monkeypatch.setattr(upstream, "aiohttp", None)
    with pytest.raises(SystemExit, match=r"^alignpro: error: .*aiohttp: pip install -e '.\[serve\]'$"):
        main(["serve", *WHERE])


def test_serve_seeds_the_models_stream_and_leaves_the_prompters_alone(untrained, monkeypatch):
    """Answers and rewrites are drawn from two streams: requests that come at the same time change neither."""
    pytest.importorskip("aiohttp")
    untrained()
    made = []

    class Unheard(command.Proxy):
        async def serve(self):
            rewrites, answers = self.rewriter.batches.function, self.upstream.answers.function
            made.append((rewrites([X]), [a.text for a in answers([X])], rewrites([X])))
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "Proxy", Unheard)
    serve = ["serve", "--run", "run", "--device", "cpu", "--port", "0", "--seed"]
    for seed in "4", "4", "5":
        main([*serve, seed])
    assert made[0] == made[1] != made[2]
    trained = command.Trained("run", "cpu", 4)
    plain = lambda: [None if r.objection else r.written for r in trained.rewrite([X])]
    assert (plain(), plain()) == (made[0][0], made[0][2]), "the answer between them took no draw of theirs"
    drawn = trained.frozen.answer([X], torch.Generator().manual_seed(4))
    assert drawn[0].text != made[0][1][0], "the prompter draws with seed 4"


def test_an_address_that_only_the_folder_names_is_not_asked(untrained, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-mine")
    with serving() as server:
        untrained(frozen="api:m", preset="smollm2", task="chat", api={"base_url": server.url})
        with pytest.raises(SystemExit, match="names the address 'http://127.*--upstream"):
            main(["serve", *WHERE, "--port", "0"])
    assert not server.seen


def test_serve_listens_warns_and_ends_with_one_line(untrained):
    pytest.importorskip("aiohttp")
    untrained()
    argv = [sys.executable, "-m", "alignpro_mini", "serve", *WHERE, "--port", "0", "--host", "0.0.0.0"]
    how = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    try:
        line = process.stdout.readline()
        assert "rewrites the last user turn for the frozen model of the run" in line
        port = line.split("/v1")[0].rpartition(":")[2]
        one = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        raw = one.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": X}])
        assert raw.parse().choices[0].message.content is not None and REWRITTEN in raw.headers
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0
    assert told == "warning: 0.0.0.0 can be reached by others, and there is no --token\n\nalignpro: stopped\n"

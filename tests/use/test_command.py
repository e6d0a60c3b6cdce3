"""`alignpro rewrite`, `chat` and `serve`, on a run that trained in seconds."""

import io
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from doubles import ROOT

from alignpro_mini.use.command import main
from alignpro_mini.use.proxy import REWRITTEN, Proxy

X = "Tell me about Milton."


@pytest.fixture
def run(whole_run) -> Path:
    return whole_run[0]


def test_the_command_rewrites_its_arguments_a_file_and_what_is_typed(run, tmp_path, capsys, monkeypatch):
    where = ["rewrite", "--run", str(run), "--device", "cpu", "--seed", "1"]
    main([*where, "Tell", "me", "about", "Milton."])
    alone = capsys.readouterr().out
    assert len(alone.splitlines()) == 1
    (tmp_path / "r.txt").write_text(f"{X}\n\n{X}\n")
    main([*where, "--file", str(tmp_path / "r.txt")])
    assert capsys.readouterr().out.splitlines()[0] == alone.strip()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{X}\n{X}\n\nnot read\n"))
    main(where)
    assert len(capsys.readouterr().out.splitlines()) == 2
    main([*where, "--answer", X])
    told = capsys.readouterr().out
    assert told.count("\ny  ") == 2 and told.startswith(f"x  {X}") and "\nx' " in told and told.count("\nr  ") == 2
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SystemExit, match="alignpro: error: .*not UTF-8 text"):
        main([*where, "--file", str(tmp_path / "bad.txt")])
    with pytest.raises(SystemExit, match="alignpro: error: nowhere: no run"):
        main(["rewrite", "--run", "nowhere", X])


def test_chat_answers_line_by_line(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{X}\n{X}\n"))
    main(["chat", "--run", str(run), "--device", "cpu", "--seed", "1"])
    told = capsys.readouterr()
    assert told.out.count("[") >= 2 and "Each line is a request of its own" in told.err


def test_serve_seeds_the_models_stream_and_leaves_the_prompters_alone(run, monkeypatch):
    """Answers and rewrites are drawn in several threads: one stream for both would make no run repeatable."""
    made = []

    class Unheard(Proxy):
        def __init__(self, config, rewrite, upstream):
            super().__init__(config, rewrite, upstream)
            made.append((rewrite, upstream))

        def serve_forever(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("alignpro_mini.use.command.Proxy", Unheard)
    for _ in range(2):
        main(["serve", "--run", str(run), "--device", "cpu", "--seed", "4", "--port", "0"])
    (rewrite, one), (_, other) = made
    assert one.generator.initial_seed() == other.generator.initial_seed()
    same = torch.rand(3, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(torch.rand(3, generator=other.generator), same), "the prompter draws with seed 4"
    before = one.generator.get_state()
    rewrite(X)
    assert torch.equal(one.generator.get_state(), before)


def test_serve_listens_and_warns_where_others_could_reach_it(run):
    argv = [
        sys.executable,
        "-m",
        "alignpro_mini",
        "serve",
        "--run",
        str(run),
        "--device",
        "cpu",
        "--port",
        "0",
        "--host",
        "0.0.0.0",
    ]
    process = subprocess.Popen(
        argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    try:
        assert "rewrites the last user turn for the frozen model of the run" in line
        port = line.split("/v1")[0].rpartition(":")[2]
        one = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        raw = one.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": X}])
        assert raw.parse().choices[0].message.content is not None and REWRITTEN in raw.headers
    finally:
        process.terminate()
    assert "no authentication" in process.communicate()[1]

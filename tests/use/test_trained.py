"""A finished run in use: its rewrites, its frozen model and its reward."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from api_server import serving

from alignpro_mini.options import UserError
from alignpro_mini.remote.config import ApiConfig
from alignpro_mini.use import trained
from alignpro_mini.use.command import main
from alignpro_mini.use.trained import Trained, config_of

X = "Tell me about Milton."


@pytest.fixture
def run(whole_run) -> Path:
    return whole_run[0]


def test_a_rewrite_is_what_the_prompter_writes_or_the_request(run):
    trained = Trained(run, "cpu", seed=0)
    found = trained.rewrite([X] * 20)
    assert len({one.written for one in found}) > 1, "sampled"
    assert all(one.sent == (X if one.objection else one.written) for one in found)
    again = Trained(run, "cpu", seed=0).rewrite([X] * 20)
    assert again == found
    greedy = trained.rewrite([X] * 3, greedy=True)
    assert len({one.written for one in greedy}) == 1


def test_requests_that_are_too_long_or_empty(run):
    trained = Trained(run, "cpu", seed=0)
    found = trained.rewrite([X, "word " * 500, X])
    assert found[1].sent == "word " * 500 and found[1].objection == "empty"
    with pytest.raises(UserError, match="the request is empty"):
        trained.rewrite([" "])
    with pytest.raises(UserError, match="is it UTF-8"):
        trained.rewrite(["Tell me \udcff"])


def test_the_frozen_model_and_the_reward_are_those_of_the_run(run, tmp_path):
    trained = Trained(run, "cpu", seed=0)
    (answer,) = trained.frozen.answer([X], torch.Generator().manual_seed(0))
    assert isinstance(answer.text, str)
    before = {path: path.read_bytes() for path in run.rglob("*.json*")}
    (reward,) = trained.reward([X], [answer.text])
    assert reward.isfinite()
    assert {path: path.read_bytes() for path in run.rglob("*.json*")} == before, "nothing of the run is changed"
    moved = shutil.copytree(run, tmp_path / "another-name")
    assert Trained(moved, "cpu").reward([X], [answer.text]).item() == reward.item()


@pytest.mark.parametrize("folder, said", [("nowhere", "no config.json"), ("half", "no trained prompter yet")])
def test_a_folder_that_is_no_finished_run(run, tmp_path, folder, said):
    if folder == "half":
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match=said):
        Trained(tmp_path / folder)


def test_a_configuration_is_read_back_and_another_file_is_refused(run):
    saved = json.loads((run / "config.json").read_text())
    config = config_of(saved)
    assert dataclasses.asdict(config) == saved and config.run_name == run.name
    wrong_ones = ({}, saved | {"ppo": 3}, saved | {"ppo": {"lrr": 1e-3}}, {"preset": "tiny"}, saved | {"seed": "0"})
    out_of_range = saved | {"seed": 10**400}, saved | {"task": "../x"}
    for wrong in (*wrong_ones, *out_of_range):
        with pytest.raises(UserError, match="no configuration of a run"):
            config_of(wrong)


# ---------------------------------------------------------------- somebody else's folder


@pytest.fixture
def hostile(untrained, tmp_path, monkeypatch):
    """`untrained`, in a working directory that holds programs with the names that a folder could give."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-and-nobody-elses")
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    (tmp_path / "payload.py").write_text("open('RAN', 'w')\ndef f(x, y): return [1.0] * len(y)\n")
    (tmp_path / "judge.py").write_text("import payload\nmodel = payload.f\n")
    return untrained


REMOTE = {"preset": "smollm2", "task": "chat", "frozen": "api:m"}


@pytest.mark.parametrize(
    "changes, argv, said",
    [
        ({"reward": "payload:f"}, ["rewrite", "--answer", X], "names the reward 'payload:f'.*--reward"),
        ({"reward": "judge:model"}, ["rewrite", "--answer", X], "names the reward 'judge:model'.*--reward"),
        (REMOTE, ["rewrite", "--answer", X], "names the address 'http://127.*OPENAI_API_KEY.*--api.base_url"),
        (REMOTE | {"reward": "payload:f"}, ["rewrite", "--answer", X], "names the reward 'payload:f'"),
        (REMOTE, ["chat"], "names the address 'http://127.*--api.base_url"),
        (
            {"reward": "payload:f"},
            ["rewrite", "--answer", "--reward", "os:system", X],
            "the reward of run is 'payload:f'",
        ),
        ({}, ["rewrite", "--answer", "--reward", "payload:f", X], "the reward of run is 'learned'"),
    ],
)
def test_a_run_folder_is_no_program(hostile, changes, argv, said):
    with serving() as server:
        folder = hostile(api={"base_url": server.url}, **changes)
        with pytest.raises(SystemExit, match=f"^alignpro: error: .*{said}") as stopped:
            main([*argv, "--run", folder, "--device", "cpu"])
    assert "\n" not in str(stopped.value) and "sk-mine" not in str(stopped.value)
    assert not Path("RAN").exists() and "payload" not in sys.modules and not server.seen and not server.keys


def test_what_the_user_names_too_is_used(hostile, capsys):
    with serving() as server, serving() as elsewhere:
        folder = hostile(api={"base_url": elsewhere.url}, reward="payload:f", **REMOTE)
        where = ["--run", folder, "--device", "cpu", "--seed", "0", "--api.base_url", server.url]
        main(["rewrite", "--answer", "--reward", "payload:f", *where, X])
        assert capsys.readouterr().out.count("r  +1.00") == 2 and Path("RAN").exists()
        assert server.keys[0] == "Bearer sk-mine-and-nobody-elses" and not elsewhere.seen
        file = Path("run", "use.jsonl")
        file.replace("kept")
        file.symlink_to(Path("kept").resolve())
        kept = Path("kept").read_bytes()
        with pytest.raises(UserError, match="use.jsonl is a link to another file"):
            _ = Trained(folder, "cpu", base_url=server.url).frozen
        assert Path("kept").read_bytes() == kept


def test_an_address_that_is_none(untrained):
    with pytest.raises(UserError, match="--api.base_url is 'nowhere'; it must be an address"):
        Trained(untrained(), "cpu", base_url="nowhere")


def test_the_rewrite_alone_needs_neither(hostile, capsys):
    main(["rewrite", "--run", hostile(reward="payload:f", **REMOTE), "--device", "cpu", X])
    assert capsys.readouterr().out and not Path("RAN").exists()


def test_the_users_address_takes_the_place_of_the_folders_addresses():
    """A judge's address too: else its key would go where only the folder says."""
    folders = ApiConfig(base_url="http://elsewhere.example/v1", judge_base_url="http://elsewhere.example/v1")
    found = trained._api(folders, "http://127.0.0.1:1/v1")
    assert (found.base_url, found.judge_base_url) == ("http://127.0.0.1:1/v1", "")

"""A finished run in use: its rewrites, its frozen model and its reward."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from alignpro_mini.options import UserError
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
    assert all(one.objection in (None, "empty") for one in trained.rewrite([X] * 20, guard=False))


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
    for wrong in ({}, saved | {"ppo": 3}, saved | {"ppo": {"lrr": 1e-3}}, {"preset": "tiny"}):
        with pytest.raises(UserError, match="no configuration of a run"):
            config_of(wrong)

"""The leaderboard: the best prompter within a budget; what has no rank says why."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials" / "assignments"
sys.path[:0] = [str(PLACE), str(Path(__file__).parent)]

import board  # noqa: E402
import grade  # noqa: E402
from test_own_run import options, results  # noqa: E402


def hand_in(folder: Path, gold: float, kl: float = 1.5, seed: int = 0, task: str = "attributes", **ppo) -> None:
    config, found = options(seed) | {"task": task}, results(seed) | {"task": task}
    config["ppo"] |= ppo
    found["arms"]["align_pro"] |= {"gold_mean": gold, "gold_ci95": [gold - 0.1, gold + 0.1], "kl": kl}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(found))


def test_the_best_run_of_each_within_the_budget_is_ranked(tmp_path):
    hand_in(tmp_path / "ada" / "one", 6.7)
    hand_in(tmp_path / "ada" / "two", 6.9, lr=1e-3)
    hand_in(tmp_path / "bob" / "one", 6.8, iterations=100)
    hand_in(tmp_path / "bob" / "two", 7.5, kl=2.5)
    hand_in(tmp_path / "cleo" / "one", 8.0, answers=2)
    lines = board.board(tmp_path, 0, 2.0, 25600).splitlines()
    assert lines[4:6] == [
        "| 1 | ada | 6.90 | 6.80 to 7.00 | 1.50 | 25600 |",
        "| 2 | bob | 6.80 | 6.70 to 6.90 | 1.50 | 6400 |",
    ]
    assert lines[7:] == [
        "* bob, two: KL above 2 (gold reward 7.50)",
        "* cleo, one: more than 25600 answers (gold reward 8.00)",
    ]


def test_what_cannot_be_ranked_says_why(tmp_path):
    hand_in(tmp_path / "a" / "one", 9.0, task="quality")
    hand_in(tmp_path / "b" / "one", 9.0, seed=3)
    hand_in(tmp_path / "c" / "one", float("nan"))
    hand_in(tmp_path / "d" / "one", 9.0)
    config = json.loads((tmp_path / "d" / "one" / "config.json").read_text())
    config["world"]["follow"] = 1.0
    (tmp_path / "d" / "one" / "config.json").write_text(json.dumps(config))
    hand_in(tmp_path / "e" / "one", 9.0)
    (tmp_path / "e" / "one" / "results.json").write_text("{")
    told = board.board(tmp_path, 0, 2.0, 25600).splitlines()[5:]
    for line, part in zip(
        told, ("no run of task", "its seed is 3", "no number at arms", "world.follow is 1.0", "cannot be read")
    ):
        assert part in line, line
    assert len(told) == 5


def test_the_command_prints_and_writes_it(tmp_path, monkeypatch, capsys):
    hand_in(tmp_path / "runs" / "ada", 6.7)
    page = tmp_path / "board.md"
    monkeypatch.setattr(sys, "argv", ["grade.py", "--board", str(tmp_path / "runs"), "--kl", "1", "--out", str(page)])
    grade.main()
    assert capsys.readouterr().out == page.read_text() and "KL above 1" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["grade.py", "--board", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        grade.main()


def test_the_handout_gives_the_commands():
    text = (PLACE / "a7_align_pro" / "README.md").read_text(encoding="utf-8")
    assert "python train.py --task attributes" in text and "--board" in text

"""README and the pages of tutorials/: their code runs, their paths and options exist, and the README stays short."""

import re
from pathlib import Path

import torch

from alignpro_mini.lab import cli
from alignpro_mini.lab.config import preset

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIALS = ROOT / "tutorials"
PAGES = [ROOT / "README.md", *sorted(TUTORIALS.glob("*.md")), *sorted(TUTORIALS.glob("results/*.md"))]
PLACES = [ROOT, ROOT / "alignpro_mini", TUTORIALS]  # what the paths of a page start from


def test_it_opens_with_the_two_commands_and_is_short():
    blocks = re.findall(r"^```\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert blocks[:2] == ["pip install -e . && python train.py", "pip install -e '.[test]' && pytest"]
    assert len(README.splitlines()) <= 120
    assert README.count("![") == 1 and len(re.findall(r"^\|-", README, re.MULTILINE)) == 1, "one picture, one table"


def test_the_library_example_runs_and_raises_its_score():
    """These lines exactly, at most 15 of them, and PPO does what it is for."""
    page = (TUTORIALS / "library.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names: dict = {}
    exec(compile(code, "library.md", "exec"), names)
    trainer, draw = names["trainer"], torch.Generator().manual_seed(1)
    trainer.generator = draw
    trained = trainer.scores(trainer.rollout(["Say something."] * 200)).mean()
    trainer.policy.lm = trainer.reference
    untrained = trainer.scores(trainer.rollout(["Say something."] * 200)).mean()
    assert trained > untrained + 0.2, (trained, untrained)


def test_files_and_modules_that_the_pages_name_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for file in set(re.findall(r"`([\w./]+/\w+\.py)`", text)):
            assert any((place / file).exists() for place in PLACES), f"{page.name}: {file}"
        for module in set(re.findall(r"python -m (alignpro_mini[\w.]*)|(alignpro_mini[\w.]*):[a-z]", text)):
            path = ROOT.joinpath(*"".join(module).split("."))
            assert path.with_suffix(".py").exists() or path.is_dir(), f"{page.name}: {module}"


def test_every_result_is_reached_from_the_entrance():
    entrance = (TUTORIALS / "results" / "README.md").read_text(encoding="utf-8")
    for page in (TUTORIALS / "results").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in entrance, page.name
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (TUTORIALS / "results").glob("*.png"):
        assert f"{picture.name})" in pages, f"no page shows {picture.name}"


def test_options_that_the_pages_name_exist():
    known = set(cli.leaves(preset("tiny"))) | {
        "help",
        "resume",
        "jobs",
        "lambdas",
        "shares",
        "plain_answers",
        "rounds",
        "size",
        "json",
        "bundle",
        "board",
        "kl",
        "answers",
        "also",
        "graft",
        "only",
        "strip",
        "variants",
        "run",
        "answer",
        "file",
        "greedy",
        "upstream",
        "token",
        "deadline",
        "timeout",
        "max-body",
        "max-waiting",
        "max-connections",
        "host",
        "nproc-per-node",
        "batch",
        "peer",
        "base_url",
        "at_a_time",
        "step",
        "episodes",
        "tokens",
        "tiny",
        "skip-hf",
        "to",
        "port",
    }
    for page in PAGES:
        named = set(
            re.findall(r"(?<![\w-])--([a-z][a-z_-]*(?:\.[a-z_0-9]+)?)(?![\w.])", page.read_text(encoding="utf-8"))
        )
        assert not named - known, f"{page.name}: {sorted(named - known)}"

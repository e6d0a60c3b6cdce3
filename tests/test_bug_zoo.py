"""The bug zoo: defects of well-known RLHF code that the test-suite must catch (tables and runner: tests/mutants/).

By default this only checks that the table still fits the source, in milliseconds. `pytest -m slow` breaks the
source once per mutant and demands that the named tests fail, and that the runner itself can be trusted.
"""

import re

import mutants
import pytest
from mutants import MUTANTS, ROOT, runner


def test_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_every_mutant_still_fits_the_source(mutant):
    source = (ROOT / mutant.file).read_text()
    broken = mutants.mutate(mutant, source)  # raises unless each snippet is found exactly once
    assert broken != source
    compile(broken, mutant.file, "exec")
    assert mutant.killed_by
    for node in mutant.killed_by:
        path, name = re.fullmatch(r"([^:]+)::(\w+)(?:\[.+\])?", runner.path_of(node)).groups()
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"no test {node}"


@pytest.mark.slow
def test_every_mutant_is_killed(capsys):
    status = runner.main([])
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_runner_reports_survivors_broken_mutants_and_failing_baselines(capsys):
    harmless = ("KL_KINDS = (", "KL_KINDS =  (")
    typo = ("logp.exp() * logp.masked_fill", "lopg.exp() * logp.masked_fill")
    entropy = "test_entropy_of_the_uniform_distribution_is_ln_v"
    sample = (
        mutants.mutant("rl_math.py", "no-op", harmless, entropy),
        mutants.mutant("rl_math.py", "typo", typo, entropy),
        mutants.mutant("rl_math.py", "gone", ("no such source", ""), entropy),
    )
    assert runner.main([], sample) == 1
    out = capsys.readouterr().out
    assert "| no-op | rl_math.py | SURVIVED |" in out
    assert "| typo | rl_math.py | BROKEN |" in out and "| gone | rl_math.py | BROKEN |" in out
    missing = (mutants.mutant("rl_math.py", "lost", harmless, "test_that_is_not_there"),)
    assert runner.main([], missing) == 1
    assert "must pass on the unbroken source" in capsys.readouterr().err
    assert runner.main(["no-such-mutant"]) == 2

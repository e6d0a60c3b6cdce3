"""The grader: the reference gets all points, nothing else does, and a known mistake gets its own hint."""

import json
import subprocess
import sys
import tempfile
import textwrap
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials" / "assignments"
sys.path[:0] = [str(PLACE), str(ROOT / "tests")]

import catalogue  # noqa: E402
import child  # noqa: E402
import cut  # noqa: E402
import grade  # noqa: E402
from checks import base  # noqa: E402
from hints import HINTS  # noqa: E402
from mutants import MUTANTS  # noqa: E402
from submissions import reference  # noqa: E402

KEYS = list(catalogue.ASSIGNMENTS)


def checks_of(key: str):
    return __import__(f"checks.{key}", fromlist=["cases"])


def key_of(path: str) -> str:
    return next(key for key in KEYS if path in catalogue.ASSIGNMENTS[key].functions)


def submission(tmp_path: Path, *sources: str, name: str = "mine.py") -> Path:
    path = tmp_path / name
    head = () if sources[:1] == catalogue.TORCH[:1] else catalogue.TORCH
    path.write_text("\n".join([*head, "", *sources]))
    return path


@pytest.mark.parametrize("key", KEYS)
def test_the_stub_is_cut_from_the_package(key):
    """Who changes an assigned function changes stub, checks and hints in the same commit: grade.py --stubs."""
    assignment = catalogue.ASSIGNMENTS[key]
    text = cut.stubs(assignment.functions, assignment.imports, assignment.title)
    assert (PLACE / assignment.folder / "submission.py").read_text(encoding="utf-8") == text
    compile(text, "stub", "exec")
    assert text.count("raise NotImplementedError") == len(assignment.functions) + 1  # and once in the first line
    assert sum(assignment.functions.values()) + assignment.whole == 100


def graded(sources: list[str], key: str, seed: int = 0, limit_s: float = grade.LIMIT_S) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as place:
        return grade.run_checks(key, submission(Path(place), *sources), seed, limit_s)


@pytest.mark.ahead(run=lambda key: graded(reference(key), key, seed=3))
@pytest.mark.parametrize("key", KEYS)
def test_the_reference_gets_every_point(key, ahead):
    assert all(result["ok"] for result in ahead.values()), ahead


@pytest.mark.ahead(
    run=lambda key: grade.run_checks(key, PLACE / catalogue.ASSIGNMENTS[key].folder / "submission.py", 0)
)
@pytest.mark.parametrize("key", KEYS)
def test_an_untouched_stub_gets_nothing(key, ahead):
    assert not any(result["ok"] for result in ahead.values())
    assert all("not written yet" in ahead[path]["message"] for path in catalogue.ASSIGNMENTS[key].functions)


def calls_of_our_own(key: str) -> list[str]:
    assignment, imports, written = catalogue.ASSIGNMENTS[key], [], {}
    for i, path in enumerate(assignment.functions):
        module, names = cut.split(path)
        imports.append(f"from alignpro_mini.{module} import {names[0]} as _own{i}")
        ours = ".".join([f"_own{i}", *names[1:]])
        written[path] = f"def {names[-1]}(*args, **kwargs):\n    return {ours}(*args, **kwargs)\n"
    return [*assignment.imports, *imports, *cut.blocks(written)]


@pytest.mark.ahead(run=lambda key: graded(calls_of_our_own(key), key))
@pytest.mark.parametrize("key", KEYS)
def test_a_call_of_our_own_function_gets_nothing(ahead, key):
    assert not any(result["ok"] for result in ahead.values()), ahead


def constant(like, value: float):
    """`like` with one value in it: the right type and shape, nothing else."""
    if isinstance(like, torch.Tensor):
        return torch.full_like(like, value if like.is_floating_point() or value == value else 0)
    if isinstance(like, (tuple, list)) and len(like) and not isinstance(like[0], (str, list)):
        return type(like)(constant(x, value) for x in like)
    if isinstance(like, (bool, int, float)):
        return type(like)(value if isinstance(like, float) or value == value else 0)
    return {str: "", list: [], dict: {}}.get(type(like))


@pytest.mark.parametrize("path", [path for key in KEYS for path in catalogue.ASSIGNMENTS[key].functions])
def test_the_reference_passes_and_constants_and_the_first_argument_fail(path):
    """In this process: the package's own function first, which also tells what a careless check would let through."""
    key, graft = key_of(path), child.Graft([path], cut)
    ours, returned, now = graft.current[path], {}, None

    def passes(function, exceptions: bool = True) -> bool:
        """Every case; without `exceptions` those only in which the function must return something."""
        nonlocal now
        graft.put(path, function)
        try:
            for case in checks_of(key).cases(path, torch.Generator().manual_seed(0)):
                now = case.about
                found, wanted = base.outcome(function, case), base.outcome(case.oracle, case, numeric=True)
                if (exceptions or wanted[0] == "value") and not base.same(found, wanted, case.tolerance):
                    return False
        finally:
            graft.put(path, ours)
        return True

    def recorded(*args, **kwargs):
        returned[now] = ours(*args, **kwargs)
        return returned[now]

    assert passes(recorded)
    if any(x is not None for x in returned.values()):
        some = next(iter(returned.values()))
        for value in (0.0, 1.0, float("nan")):
            filled = lambda *args, value=value, **kwargs: constant(returned.get(now, some), value)
            assert not passes(filled, exceptions=False), value
    assert not passes(lambda *args, **kwargs: None)
    assert not passes(lambda *args, **kwargs: args[0])


def test_a_wrong_attempt_gets_its_points_its_counterexample_and_its_hint(tmp_path):
    """assemble_rewards is right, gae forgets gamma in the decay."""
    wrong = cut.definition(cut.source_of("rl_math"), ["gae"]).replace("gamma * lam * running", "lam * running")
    path = submission(tmp_path, *reference("a5", {"rl_math.gae": wrong}))
    out = tmp_path / "results.json"
    command = [sys.executable, str(PLACE / "grade.py"), "a5", str(path), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        " 40 /  40  assemble_rewards" in done.stdout and "  0 /  45  gae" in done.stdout and " 40 / 100" in done.stdout
    )
    assert "on gamma 0.5: expected" in done.stdout and "hint: the decay of the advantage is gamma * lam" in done.stdout
    tests = json.loads(out.read_text())["tests"]
    assert [t["name"] for t in tests] == ["assemble_rewards", "gae", "all together"]
    assert sum(t["score"] for t in tests) == 40 and sum(t["max_score"] for t in tests) == 100
    assert {t["status"] for t in tests} == {"passed", "failed"} and all(
        "output" in t and "visibility" in t for t in tests
    )


@pytest.mark.parametrize(
    ("wanted", "found", "told"),
    [
        (1e306, float("inf"), "expected inf, got inf: expected 1e+306, got inf"),
        ([[1.0, 2.0]], [[1.0, 2.00001]], "[[1.0, 2.0]]: expected 2.0 at [0, 1], got 2.00001"),
        ([0.0] * 30, [0.0] * 29 + [0.5], "got a tensor of shape (30,): expected 0.0 at [29], got 0.5"),
        (torch.zeros(0), torch.zeros(0, 3), "got []: expected shape (0,), got (0, 3)"),
        (0.1, 0.2, "expected 0.1, got 0.2"),
    ],
)
def test_two_results_of_one_text_are_told_apart(wanted, found, told):
    wanted, found = (("value", [torch.as_tensor(x, dtype=torch.float64)], None) for x in (wanted, found))
    assert not base.same(found, wanted) and base.difference(found, wanted, 1e-6).endswith(told)


def test_a_function_is_replaced_where_others_have_it_as_a_default(monkeypatch):
    """`def f(sampler=generate)` holds the function itself, not its name."""
    source = """
        import torch
        from alignpro_mini.generation import generate as own

        def plain(x, sampler=own):
            return sampler

        class Holder:
            @torch.no_grad()
            def method(self, *, sampler=own):
                return sampler
        """
    module = types.ModuleType("alignpro_mini.takers")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(textwrap.dedent(source), vars(module))
    graft, new = child.Graft(["generation.generate"], cut), lambda *args, **options: []
    ours = graft.current["generation.generate"]
    for function in (new, ours):
        graft.put("generation.generate", function)
        assert module.own is module.plain(1) is module.Holder().method() is function


def test_the_fast_sampler_is_no_solution_of_the_readable_one(tmp_path):
    """It stands elsewhere in the package, takes the same arguments, and gives the same tokens."""
    (path,) = catalogue.ASSIGNMENTS["a3"].twins
    cut.stripped_package(tmp_path, [path])
    module, names = cut.split(path)
    source = (tmp_path / "alignpro_mini" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert "raise NotImplementedError" in cut.definition(source, names)
    call = "from alignpro_mini.fast import sampling\n\ndef generate(*args, **options):\n    return sampling.generate(*args, **options)\n"
    found = graded(reference("a3", {"generation.generate": call}), "a3")
    assert not found["generation.generate"]["ok"] and found["generation.draw"]["ok"]


HELPER = cut.definition(cut.source_of("rl_math"), ["_same_shape"])
LOOP = "def assemble_rewards(*args):\n    while True:\n        pass"
RIGHT_GAE = cut.definition(cut.source_of("rl_math"), ["gae"])


@pytest.mark.ahead(run=lambda sources, told, gae_is_right: graded([HELPER, *sources], "a5", limit_s=2.0))
@pytest.mark.parametrize(
    ("sources", "told", "gae_is_right"),
    [
        ([LOOP, RIGHT_GAE], "no end after", True),
        (["import os", "def assemble_rewards(*args):\n    os._exit(0)", RIGHT_GAE], "it ended the process", True),
        (["import sys", "def assemble_rewards(*args):\n    sys.exit()", RIGHT_GAE], "SystemExit", True),
        ([RIGHT_GAE], "assemble_rewards is not defined in your file", True),
        (
            ["def assemble_rewards(*args):\n    return lamda", RIGHT_GAE],
            "`return lamda`: NameError: name 'lamda' is",
            True,
        ),
        (["def assemble_rewards(:"], "your file does not import: SyntaxError", False),
        (["raise SystemExit"], "your file does not import: SystemExit", False),
        (
            ["print('x' * 10**6)", "def assemble_rewards(*args):\n    print('{\"done\": 1}')", RIGHT_GAE],
            "expected",
            True,
        ),
    ],
    ids=["endless loop", "os._exit", "sys.exit", "missing", "exception", "syntax", "exit at import", "garbage"],
)
def test_what_a_submission_may_do(sources, told, gae_is_right, ahead):
    """One function's trouble is that function's: the other one is graded all the same."""
    assert not ahead["rl_math.assemble_rewards"]["ok"] and not ahead["whole"]["ok"]
    assert told in ahead["rl_math.assemble_rewards"]["message"], ahead
    assert ahead["rl_math.gae"]["ok"] == gae_is_right, ahead


def judged(path: str, source: str) -> dict:
    """The grader's judgement of the function in this text of its module: in this process, without the import of torch."""
    graft = child.Graft([path], cut)
    ours, wrong = graft.current[path], graft.compiled(path, source)
    graft.put(path, wrong)
    try:
        cases = checks_of(key_of(path)).cases(path, torch.Generator().manual_seed(1))
        return child.check_function(path, wrong, cases, graft, grade.known_mistakes([path])[path], base)
    finally:
        graft.put(path, ours)


# (function, a piece of its module, what stands there instead, what the grader says)
SLIPS = [
    ("rl_math.whiten", "torch.rsqrt(var + eps)", "torch.rsqrt(var)", "on eps 1"),
    ("rl_math.whiten", "torch.rsqrt(var + eps)", "torch.rsqrt(var.clamp(min=eps))", "on eps 1"),
    ("rl_math.whiten", "* torch.rsqrt(var + eps)", "/ (var.sqrt() + eps)", "on eps 1"),
    ("rl_math.whiten", "torch.rsqrt(var + eps)", "torch.rsqrt(var + 1e-8)", "on eps 1"),
    (
        "rl_math.exact_kl",
        "(logp - logq).masked_fill(logp == -torch.inf, 0.0)",
        "(logp - logq).masked_fill((logp == -torch.inf) | (logq == -torch.inf), 0.0)",
        "on a logit of -inf in the reference only",
    ),
    (
        "rl_math.exact_kl",
        "(logp - logq).masked_fill(logp == -torch.inf, 0.0)",
        "(logp - logq).masked_fill(logq == -torch.inf, 0.0)",
        "on a logit of -inf in p only",
    ),
    ("rl_math.assemble_rewards", "mask, -lam * kl", "mask, kl.mul_(-lam)", "argument 2 was changed in place"),
    (
        "ppo.PPOTrainer.assemble_rewards",
        "scores = rollout.scores - ",
        "scores = rollout.scores; scores -= ",
        "Rollout.scores was",
    ),
    ("ppo.PPOTrainer.loss", "policy.sum().item()", "policy.sum().detach()", "policy_loss is a Tensor, not a number"),
    ("ppo.PPOTrainer.extra_loss", "loss.sum().item()", "loss.sum().detach()", "value_loss is a Tensor, not a number"),
    (
        "ppo.PPOTrainer.estimate_advantages",
        "float(rl_math.masked_var(advantages, mask).sqrt())",
        "rl_math.masked_var(advantages, mask).sqrt()",
        "advantage_std is a Tensor, not a number",
    ),
    ("reward.accuracy", "right.mean().item()", "right.mean()", "the result is a Tensor, not a number"),
    (
        "rl_math.explained_variance",
        "return 1 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)",
        "return 1 - float(masked_var(returns - values, mask)) / max(float(masked_var(returns, mask)), 1e-8)",
        "a float, not a tensor",
    ),
    ("rl_math.adaptive_kl_coef", "return coef * (1 + ", "return torch.tensor(coef) * (1 + ", "a Tensor, not a number"),
    ("reward.split_by_prompt", "prompts = sorted(", "prompts = list(", "other prompts are held out in another process"),
    (
        "lab.statistics.bootstrap_interval",
        "interval(resampled_moments(per_input[:, None, None], resamples, groups)[0])",
        "interval(np.random.default_rng().choice(per_input, (resamples, len(per_input))).mean(1))",
        "two calls with the same values gave two intervals",
    ),
    (
        "lab.statistics.bootstrap_interval",
        "return interval(resampled_moments(per_input[:, None, None], resamples, groups)[0])",
        "return np.array(interval(resampled_moments(per_input[:, None, None], resamples, groups)[0]))",
        "expected list, got ndarray",
    ),
    (
        "generation.sequence_logprobs",
        "(prompts[i], completions[i]) for i in rows",
        "(prompts[i], completions[i][: 16 - len(prompts[i])]) for i in rows",
        "on a row longer than the context",
    ),
    ("transformer.Transformer._allowed", "| (key == query)", "| (key == query).float()", "not implemented for 'Float'"),
    (
        "transformer.Transformer._allowed",
        "return (real & (key <= query)) | (key == query)",
        "return 1.0 * ((real & (key <= query)) | (key == query))",
        "expected torch.bool, got torch.float32",
    ),
    ("transformer.Attention.forward", "self.q_norm(q.view", "(q.view", "q_norm and k_norm"),
    ("transformer.Attention.forward", "self.k_norm(k.view", "(k.view", "q_norm and k_norm"),
    ("transformer.Attention.forward", "B, T, D = x.shape", "B, T, D = x.shapes", "no attribute 'shapes'"),
]


@pytest.mark.parametrize(("path", "right", "wrong", "told"), SLIPS)
def test_a_slip_without_a_hint_is_caught(path, right, wrong, told):
    source = cut.source_of(cut.split(path)[0])
    assert source.count(right) == 1
    found = judged(path, source.replace(right, wrong))
    assert not found["ok"] and told in found["message"] and found["hint"] == "", found


def known() -> list[tuple[str, str, dict]]:
    """(assignment, function, mistake) of every mutant with a hint."""
    found = []
    for key, assignment in catalogue.ASSIGNMENTS.items():
        for path, mistakes in grade.known_mistakes(list(assignment.functions)).items():
            found += [(key, path, mistake) for mistake in mistakes]
    return found


def one_of_each() -> list:
    """Parameters: the first mistake of each function; the others are slow (a minute for all)."""
    last, found = None, []
    for _, path, mistake in known():
        found.append(pytest.param(path, mistake, id=mistake["name"], marks=[pytest.mark.slow] * (path == last)))
        last = path
    return found


def test_every_hint_is_that_of_a_mutant_inside_an_assigned_function():
    assert {mistake["name"] for _, _, mistake in known()} == set(HINTS)
    inside, assigned = set(), [cut.split(path) for each in catalogue.ASSIGNMENTS.values() for path in each.functions]
    for mutant in MUTANTS:
        for module, names in assigned:
            if mutant.file == f"alignpro_mini/{module.replace('.', '/')}.py":
                if cut.definition(grade.mutated(mutant), names) != cut.definition(cut.source_of(module), names):
                    inside.add(mutant.name)
    assert inside == set(HINTS), "a mutant inside an assigned function has a hint"


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for key in KEYS for path in catalogue.ASSIGNMENTS[key].functions])
def test_no_known_mistake_only_crashes(path):
    """One that raises in every case is wrong for no reason of its own, and its hint would be that of every crash."""
    graft = child.Graft([path], cut)
    cases = checks_of(key_of(path)).cases(path, torch.Generator().manual_seed(1))
    for mistake in grade.known_mistakes([path])[path]:
        wrong = graft.compiled(path, mistake["source"])
        assert any(base.outcome(wrong, case)[0] == "value" for case in cases), mistake["name"]


@pytest.mark.parametrize(("path", "mistake"), one_of_each())
def test_a_known_mistake_fails_and_gets_its_own_hint(path, mistake):
    found = judged(path, mistake["source"])
    assert not found["ok"] and found["hint"] == mistake["hint"], found


def test_the_handout_says_what_is_needed():
    for key, assignment in catalogue.ASSIGNMENTS.items():
        text = (PLACE / assignment.folder / "README.md").read_text(encoding="utf-8")
        for part in ("## Goal", "## By hand", "## Check your work", "## Written question", "Time:"):
            assert part in text, (key, part)
        assert f"grade.py {key} " in text
        for path in assignment.functions:
            assert f"`{cut.name_of(path)}`" in text, (key, path)


def test_cutting_keeps_docstrings_and_everything_else():
    source = textwrap.dedent('''
        import x

        class A:
            def one(self, a):
                """Told."""
                return a  # not here

            def two(self):
                return 2
        ''')
    found = cut.without_bodies(source, [["A", "one"]])
    assert '"""Told."""\n        raise NotImplementedError' in found and "not here" not in found and "return 2" in found
    assert cut.definition(found, ["A", "two"]) == "def two(self):\n    return 2\n"
    assert cut.split("lab.statistics.win_shares") == ("lab.statistics", ["win_shares"])
    assert cut.name_of("ppo.PPOTrainer.loss") == "PPOTrainer.loss"
    with pytest.raises(LookupError, match="nothing.here: no such module"):
        cut.split("nothing.here")
    with pytest.raises(LookupError, match="A.three is not in the module"):
        cut.without_bodies(source, [["A", "three"]])

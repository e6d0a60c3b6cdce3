"""The grader: the reference gets all points, nothing else does, and a known mistake gets its own hint."""

import ast
import functools
import sys
import tempfile
import textwrap
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tutorials" / "assignments"
sys.path[:0] = [str(PLACE), str(ROOT / "tests"), str(Path(__file__).parent)]

import attempts  # noqa: E402
import catalogue  # noqa: E402
import cut  # noqa: E402
import grade  # noqa: E402
import judge  # noqa: E402
import outputs  # noqa: E402
from checks import base, compare  # noqa: E402
from graft import Places  # noqa: E402
from hints import CLASSICS, HINTS  # noqa: E402
from mutants import MUTANTS  # noqa: E402
from submissions import reference  # noqa: E402
from warm import PROCESSES  # noqa: E402

KEYS = list(catalogue.ASSIGNMENTS)


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


# A process for the grader's side of all of them: other tests put functions into the package of this one.
GRADER = ProcessPoolExecutor(1, mp_context=PROCESSES)


def results_of(key: str, file: Path, seed: int = 0, limit_s: float = 600.0) -> dict[str, dict]:
    return GRADER.submit(grade.run_checks, key, file, seed, limit_s).result()


def graded(sources: list[str], key: str, seed: int = 0, limit_s: float = 600.0) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as place:
        return results_of(key, submission(Path(place), *sources), seed, limit_s)


@pytest.mark.ahead(run=lambda key: graded(reference(key), key, seed=3))
@pytest.mark.parametrize("key", KEYS)
def test_the_reference_gets_every_point(key, ahead):
    assert all(result["ok"] for result in ahead.values()), ahead


def half_written(key: str) -> list[str]:
    """Every second function is left as it is handed out, and the others call the package's own."""
    assignment, imports, written = catalogue.ASSIGNMENTS[key], [], {}
    for i, path in enumerate(assignment.functions):
        module, names = cut.split(path)
        imports.append(f"from alignpro_mini.{module} import {names[0]} as _own{i}")
        ours = ".".join([f"_own{i}", *names[1:]])
        body = f"return {ours}(*args, **kwargs)" if i % 2 else "raise NotImplementedError"
        written[path] = f"def {names[-1]}(*args, **kwargs):\n    {body}\n"
    return [*assignment.imports, *imports, *cut.blocks(written)]


@pytest.mark.ahead(run=lambda key: graded(half_written(key), key))
@pytest.mark.parametrize("key", KEYS)
def test_an_untouched_stub_and_a_call_of_our_own_function_get_nothing(key, ahead):
    assert not any(result["ok"] for result in ahead.values()), ahead
    assert all("not written yet" in ahead[path]["message"] for path in [*catalogue.ASSIGNMENTS[key].functions][::2])


def constant(like, value: float):
    """`like` with one value in it: the right type and shape, nothing else."""
    if isinstance(like, torch.Tensor):
        return torch.full_like(like, value if like.is_floating_point() or value == value else 0)
    if isinstance(like, (tuple, list)) and len(like) and not isinstance(like[0], (str, list)):
        return type(like)(constant(x, value) for x in like)
    if isinstance(like, (bool, int, float)):
        return type(like)(value if isinstance(like, float) or value == value else 0)
    return {str: "", list: [], dict: {}}.get(type(like))


@functools.cache
def mistakes_of(key: str) -> dict[str, list[dict]]:
    return judge.known_mistakes(list(catalogue.ASSIGNMENTS[key].functions))


@functools.cache
def cases_of(path: str) -> list:
    """The cases of a function, made once for all functions in its place. Each call makes its arguments anew."""
    return judge.cases_of(key_of(path), path, seed=1)[0]


@functools.cache
def wanted(path: str, i: int, by=compare.wanted) -> tuple:
    """What the oracle gives for case i, computed once."""
    return by(cases_of(path)[i])


def outcomes(path: str, function, before=lambda case: None) -> tuple[list, list]:
    """(the cases of this function, the outcomes of the function in its place): in this process, without an import of torch."""
    places = Places({path: cut.split(path)})
    ours = places.current[path]
    cases = cases_of(path)
    places.put(path, function)
    try:
        return cases, [(before(case), base.outcome(function, case))[1] for case in cases]
    finally:
        places.put(path, ours)


def judged(path: str, function, mistakes: list, before=lambda case: None) -> dict:
    """The grader's judgement of this function, with these known mistakes."""
    places = Places({path: cut.split(path)})
    cases, found = outcomes(path, function, before)
    right = {id(case): wanted(path, i) for i, case in enumerate(cases)}
    with patch.object(compare, "wanted", lambda case: right[id(case)]):
        return judge.check_function(path, cases, found, places.current[path], mistakes, places)


def compiled(path: str, text: str):
    return Places({path: cut.split(path)}).compiled(path, text)


@pytest.mark.parametrize("path", [path for key in KEYS for path in catalogue.ASSIGNMENTS[key].functions])
def test_the_reference_passes_and_constants_and_the_first_argument_get_nothing(path):
    """The package's own function first, which also tells what a careless check would let through."""
    ours, returned, now = Places({path: cut.split(path)}).current[path], {}, ""

    def before(case) -> None:
        nonlocal now
        now = case.about

    def recorded(*args, **kwargs):
        returned[now] = ours(*args, **kwargs)
        return returned[now]

    assert judged(path, recorded, [], before)["ok"]
    tried = [lambda *args, **kwargs: None, lambda *args, **kwargs: args[0]]
    if any(x is not None for x in returned.values()):
        some = next(iter(returned.values()))
        tried += [lambda *args, v=v, **kwargs: constant(returned.get(now, some), v) for v in (0.0, 1.0, float("nan"))]
    for function in tried:
        found = judged(path, function, [], before)
        assert not found["ok"] and outputs.points(100, *found["share"]) == 0, found


def test_the_naive_functions_of_a_tutorial_are_no_solution():
    """Tutorial 09 has them for one completion; batch, padding and errors are the assignment's."""
    tutorial = (ROOT / "tutorials" / "09_credit.py").read_text(encoding="utf-8")
    for naive, name in (("naive_rewards", "assemble_rewards"), ("naive_gae", "gae")):
        path = f"rl_math.{name}"
        text = cut.definition(tutorial, [naive]).replace(naive, name)
        assert outputs.points(100, *judged(path, compiled(path, text), [])["share"]) == 0


SMALL_STEPS = attempts.lines(attempts.RIGHT_LINES)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SMALL_STEPS)) for n in attempts.RIGHT]
)
def test_another_right_function_gets_every_point(name):
    path, text = attempts.RIGHT[name]
    found = judged(path, compiled(path, text), [])
    assert found["ok"], found


def first_of_each(names: dict[str, str]) -> list:
    """Parameters from {name: function}: the first of each function; the others are slow."""
    seen: set[str] = set()
    return [pytest.param(n, marks=[pytest.mark.slow] * (f in seen or bool(seen.add(f)))) for n, f in names.items()]


@pytest.mark.parametrize("name", first_of_each({name: path for name, (path, *_) in attempts.WRONG.items()}))
def test_a_wrong_function_does_not_get_every_point(name):
    path, text = attempts.wrong(name)
    assert not judged(path, compiled(path, text), [])["ok"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GAE: whitened", "do not whiten here"),
        ("rewards: the KL summed at the end", "each token pays its own"),
        ("loss: the old policy is the new one", "old = new.detach() makes every ratio 1"),
        ("mean: nan_to_num", "must come out as NaN"),
        ("whiten: E[x²] - E[x]²", "take the mean away first"),
        ("ratio: log clamped at 20", "no limit there"),
        ("optimum: epsilon in the log", "something small is lost"),
        ("objective: a largest lam", "neither a least nor a largest value"),
    ],
)
def test_a_mistake_of_a_kind_gets_the_hint_of_its_kind(name, told):
    path, text = attempts.wrong(name)
    assert told in judged(path, compiled(path, text), mistakes_of(key_of(path))[path])["hint"]


def test_points_are_by_case_where_most_are_right():
    assert [outputs.points(40, right, 12) for right in (12, 11, 9, 8, 0)] == [40, 36, 30, 0, 0]
    assert outputs.points(14, 0, 1) == 0


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
    assert not compare.same(found, wanted, 1e-6) and compare.difference(found, wanted, 1e-6).endswith(told)


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
    path = "generation.generate"
    places, new = Places({path: cut.split(path)}), lambda *args, **options: []
    ours = places.current[path]
    for function in (new, ours):
        places.put(path, function)
        assert module.own is module.plain(1) is module.Holder().method() is function


FAST = """
from alignpro_mini.fast import sampling

def generate(*args, **options):
    return sampling.generate(*args, **options)
"""


@pytest.mark.ahead(run=lambda: graded(reference("a3", {"generation.generate": FAST}), "a3"))
def test_the_fast_sampler_is_no_solution_of_the_readable_one(ahead, tmp_path):
    """It stands elsewhere in the package, takes the same arguments, and gives the same tokens."""
    (path,) = catalogue.ASSIGNMENTS["a3"].twins
    cut.stripped_package(tmp_path, [path])
    module, names = cut.split(path)
    source = (tmp_path / "alignpro_mini" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert "raise NotImplementedError" in cut.definition(source, names)
    assert not ahead["generation.generate"]["ok"] and ahead["generation.draw"]["ok"]


# What was tried to get points without a solution.
TAIL = (
    "\ndef assemble_rewards(*args):\n    return m.assemble_rewards(*args)\ndef gae(*args):\n    return m.gae(*args)\n"
)
AT = str(cut.PACKAGE / "rl_math.py")
FRESH = "import sys, types\nm = types.ModuleType('m')\n"
CHEATS = {
    "the grader's own helper": "from cut import source_of\nexec(source_of('rl_math'))",
    "another comparison": "import sys\nsys.modules['checks.base'].same = sys.modules['checks.compare'].same = lambda *a: True",
    "the result file": "import json, sys, os\nopen(json.load(open(sys.argv[1]))['out'], 'a').write('{}')\nos._exit(0)",
    "the package's file": f"{FRESH}exec(open({AT!r}).read(), vars(m)){TAIL}",
    "the package from elsewhere": f"{FRESH}[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('alignpro_mini')]\n"
    f"sys.path.insert(0, {str(cut.ROOT)!r})\nimport alignpro_mini.rl_math as m{TAIL}",
    "a program that reads": f"{FRESH}import subprocess\nexec(subprocess.check_output(['cat', {AT!r}]), vars(m)){TAIL}",
    "the right function of another check, kept in a file": """
import marshal, tempfile, types
from pathlib import Path
from alignpro_mini import rl_math
kept = Path(__file__).parent / "kept"
def assemble_rewards(*args):
    kept.write_bytes(marshal.dumps(rl_math.gae.__code__))
def gae(*args):
    return types.FunctionType(marshal.loads(kept.read_bytes()), vars(rl_math))(*args)
""",
    "outcomes of its own": """
import sys
def gae(*args):
    frame = sys._getframe()
    while frame:
        for name in {"same", "wanted", "sentences", "outcome", "state"} & set(frame.f_globals):
            frame.f_globals[name] = lambda *a, **k: True
        frame = frame.f_back
assemble_rewards = gae
""",
}


@pytest.mark.ahead(run=lambda name: graded([CHEATS[name]], "a5"))
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (i > 2)) for i, n in enumerate(CHEATS)])
def test_a_cheat_gets_nothing(name, ahead):
    assert not any(result["ok"] or result["share"][0] for result in ahead.values()), ahead


def test_the_submissions_process_has_neither_oracles_nor_solutions(tmp_path):
    judge.furnish(tmp_path, "a6", submission(tmp_path, "", name="empty.py"))
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"child.py", "submission.py", "checks/a6.py", "alignpro_mini/ppo.py"} <= names
    assert not {name for name in names if "compare" in name or "mutants" in name or "judge" in name or "spec" in name}
    for path in catalogue.ASSIGNMENTS["a6"].functions:
        module, where = cut.split(path)
        text = (tmp_path / "alignpro_mini" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert cut.definition(text, where) == cut.definition(cut.without_bodies(cut.source_of(module), [where]), where)
    for file in (tmp_path / "checks").glob("a*.py"):
        functions = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
        oracles = [n for n in functions if n.name.startswith("oracle")]
        assert oracles and all(isinstance(n.body[-1], ast.Raise) and len(n.body) <= 2 for n in oracles), file.name


@pytest.mark.parametrize(
    "answer",
    [
        True,
        ("value", [1.0], None),
        ("value", 1.0, None, []),
        ("value", [1.0], 2.0, []),
        ("value", [1.0], None, None),
        ("raised", "ValueError"),
        ("raised", "ValueError", torch.zeros(1)),
        torch.zeros(3),
    ],
)
def test_an_answer_that_is_no_outcome_is_wrong(answer):
    """A submission may write what it likes to the grader."""
    assert judge.well_formed(answer) == ("raised", "", "what came back is no outcome")
    for right in (("value", [1.0], None, []), ("raised", "ValueError", "line 3: no")):
        assert judge.well_formed(right) is right


HELPED = """
from alignpro_mini import rl_math

class PPOTrainer:
    def penalised(self, rollout):
        return rollout.scores - self.config.missing_eos_penalty * (~rollout.finished)

    def assemble_rewards(self, rollout):
        kl = rl_math.kl_estimate(rollout.logp, rollout.logp_ref, "k1")
        return rl_math.assemble_rewards(self.penalised(rollout), kl, rollout.action, self.kl_coef)
"""


@pytest.mark.ahead(run=lambda: graded([HELPED], "a6"))
def test_a_method_may_have_helpers_in_its_class(ahead):
    assert ahead["ppo.PPOTrainer.assemble_rewards"]["ok"], ahead
    assert "PPOTrainer.loss is not defined in your file" in ahead["ppo.PPOTrainer.loss"]["message"]


FORGETS = "from alignpro_mini import rl_math\n_calls = []\n" + cut.definition(
    cut.source_of("rl_math"), ["gae"]
).replace(
    "    _same_shape(rewards",
    "    gamma = gamma if rl_math.assemble_rewards.__module__ != __name__ else 0.5\n    _same_shape(rewards",
)


@pytest.mark.ahead(run=lambda: graded(reference("a5", {"rl_math.gae": FORGETS}), "a5"))
def test_all_together_names_the_function(ahead):
    """It is right beside the package's own functions, and wrong beside the submission's."""
    assert ahead["rl_math.gae"]["ok"] and not ahead["whole"]["ok"], ahead
    assert "with the package's own" in ahead["whole"]["message"], ahead


# What each function of one submission does, and what is said of it; the last one is right.
TROUBLES = {
    "masked_mean": ("while True:\n        pass", "no end after"),
    "masked_sum": ("os._exit(0)", "it ended the process"),
    "masked_var": ("sys.exit()", "SystemExit"),
    "whiten": (None, "whiten is not defined in your file"),
    "kl_estimate": ("return lamda", "`return lamda`: NameError: name 'lamda' is"),
    "exact_kl": ("print('{\"done\": 1}')", "expected"),
}
MISCHIEF = ["import os, sys", "print('x' * 10**6)", cut.definition(cut.source_of("rl_math"), ["entropy"])]
MISCHIEF += [f"def {name}(*args, **options):\n    {body}\n" for name, (body, _) in TROUBLES.items() if body]


@pytest.mark.ahead(run=lambda: graded(MISCHIEF, "a1", limit_s=2.0))
def test_what_a_submission_may_do(ahead):
    """One function's trouble is that function's: the others are graded all the same."""
    for name, (_, told) in TROUBLES.items():
        found = ahead[f"rl_math.{name}"]
        assert not found["ok"] and told in found["message"], (name, found)
    assert ahead["rl_math.entropy"]["ok"] and not ahead["whole"]["ok"], ahead


@pytest.mark.ahead(run=lambda source, told: graded([source], "a5"))
@pytest.mark.parametrize(("source", "told"), [("def gae(:", "SyntaxError"), ("raise SystemExit", "SystemExit")])
def test_a_file_that_does_not_import_gets_nothing(source, told, ahead):
    assert not any(result["ok"] for result in ahead.values())
    assert all(f"your file does not import: {told}" in result["message"] for result in ahead.values()), ahead


# (function, a piece of its module, what stands there instead, what the grader says)
SLIPS = [
    ("rl_math.whiten", "torch.rsqrt(var + eps)", "torch.rsqrt(var)", "on numbers that differ by 0.0001"),
    ("rl_math.whiten", "torch.rsqrt(var + eps)", "torch.rsqrt(var.clamp(min=eps))", "on numbers that differ by 0.0001"),
    ("rl_math.whiten", "* torch.rsqrt(var + eps)", "/ (var.sqrt() + eps)", "on numbers that differ by 0.0001"),
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
    (
        "ppo.PPOTrainer.loss",
        "surrogate.sum().item()",
        "surrogate.sum().detach()",
        "policy_loss is a Tensor, not a number",
    ),
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
    text = cut.definition(source.replace(right, wrong), cut.split(path)[1])
    found = judged(path, compiled(path, text), mistakes_of(key_of(path))[path])
    assert not found["ok"] and told in found["message"] and found["hint"] == "", found


def known() -> list[tuple[str, str, dict]]:
    """(assignment, function, mistake) of every mutant with a hint."""
    found = []
    for key in KEYS:
        for path, mistakes in mistakes_of(key).items():
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
    assert {mistake["name"] for _, _, mistake in known()} == set(HINTS) | set(CLASSICS)
    inside, assigned = set(), [cut.split(path) for each in catalogue.ASSIGNMENTS.values() for path in each.functions]
    for mutant in MUTANTS:
        for module, names in assigned:
            if mutant.file == f"alignpro_mini/{module.replace('.', '/')}.py":
                if cut.definition(judge.mutated(mutant), names) != cut.definition(cut.source_of(module), names):
                    inside.add(mutant.name)
    assert inside == set(HINTS), "a mutant inside an assigned function has a hint"


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for key in KEYS for path in catalogue.ASSIGNMENTS[key].functions])
def test_no_known_mistake_only_crashes(path):
    """One that raises in every case is wrong for no reason of its own, and its hint would be that of every crash."""
    places = Places({path: cut.split(path)})
    cases, _ = judge.cases_of(key_of(path), path, seed=1)
    for mistake in mistakes_of(key_of(path))[path]:
        wrong = places.compiled(path, cut.definition(mistake["source"], cut.split(path)[1]))
        assert any(base.outcome(wrong, case)[0] == "value" for case in cases), mistake["name"]


@pytest.mark.parametrize(("path", "mistake"), one_of_each())
def test_a_known_mistake_fails_and_gets_its_own_hint(path, mistake):
    text = cut.definition(mistake["source"], cut.split(path)[1])
    found = judged(path, compiled(path, text), mistakes_of(key_of(path))[path])
    assert not found["ok"] and found["hint"] == mistake["hint"], found


def test_the_handout_says_what_is_needed():
    for key, assignment in catalogue.ASSIGNMENTS.items():
        text = (PLACE / assignment.folder / "README.md").read_text(encoding="utf-8")
        for part in ("## Goal", "## By hand", "## Check your work", "## Written question", "## Open task", "Time:"):
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

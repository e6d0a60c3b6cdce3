"""The rewards of a run in one file: what comes out of it again, and what is refused."""

import numpy as np
import pytest

from alignpro_mini.lab import recompute as module
from alignpro_mini.lab.config import EvalConfig
from alignpro_mini.lab.evaluation import Arm, summarise
from alignpro_mini.lab.recompute import load_rewards, recompute, save_rewards
from alignpro_mini.options import UserError

KL_COEF = {"ppo": 0.1, "oracle": 0.25}
N, GROUPS = 30, [f"town {i % 5}" for i in range(30)]


def arms_of(gold: bool = True, seed: int = 0) -> dict[str, Arm]:
    """Five arms of different shapes over common requests, the closed form over the first ten."""
    draw = np.random.default_rng(seed)
    ease = 2 * draw.standard_normal((N, 1, 1))
    shapes = {
        "no_finetuning": (N, 1, 4, 0.0),
        "fixed_rewrite": (N, 1, 4, 0.5),
        "align_pro": (N, 2, 2, 1.0),
        "rlhf_oracle": (N, 1, 4, 1.5),
        "closed_form": (10, 8, 2, 1.25),
    }
    arms = {}
    for name, (n, K, M, gain) in shapes.items():
        reward = ease[:n] + gain + draw.standard_normal((n, K, M))
        true = 3 * reward + draw.standard_normal((n, K, M)) if gold else None
        arms[name] = Arm(reward, true, draw.exponential(size=(n, M if "oracle" in name else K)), {"truncated": 0.5})
    return arms


def saved(tmp_path, arms, groups=GROUPS, kl_coef=KL_COEF):
    save_rewards(tmp_path / "rewards.npz", arms, groups, kl_coef)
    return tmp_path / "rewards.npz"


def same(found, wanted, path="") -> None:
    """Equal to 1e-3; what `found` has not was no matter of rewards."""
    if isinstance(found, dict):
        for key in found:
            same(found[key], wanted[key], f"{path}.{key}")
    elif isinstance(found, list) or isinstance(found, float):
        assert found == pytest.approx(wanted, abs=1e-3), path
    else:
        assert found == wanted, path


@pytest.mark.parametrize("gold", [True, False])
def test_what_was_saved_comes_back(tmp_path, gold):
    arms = arms_of(gold)
    before = {name: arm.reward.copy() for name, arm in arms.items()}
    back, groups, kl_coef = load_rewards(saved(tmp_path, arms))
    assert list(back) == list(arms) and groups == GROUPS and kl_coef == KL_COEF
    for name, arm in arms.items():
        for part in ("reward", "kl", "gold"):
            value = getattr(back[name], part)
            if part == "gold" and not gold:
                assert value is None
                continue
            assert value.dtype == np.float64
            np.testing.assert_allclose(value, getattr(arm, part), rtol=1e-6, atol=0.6e-4)
        assert (arm.reward == before[name]).all(), "the arms are left as they are"
    assert [path.name for path in tmp_path.iterdir()] == ["rewards.npz"], "nothing is left beside it"


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("groups", [GROUPS, [f"request {i}" for i in range(N)]], ids=["towns", "alone"])
def test_everything_that_is_told_of_the_arms_is_computed_again(tmp_path, gold, groups):
    arms = arms_of(gold)
    found = recompute(saved(tmp_path, arms, groups), 200)
    wanted = summarise(arms, EvalConfig(bootstrap=200), groups)
    assert found.keys() == wanted.keys() | {"n_eval", "kl_coef"} and list(found["arms"]) == list(wanted["arms"])
    assert found.pop("n_eval") == N and found.pop("kl_coef") == KL_COEF
    same(found, wanted)
    for name, arm in wanted["arms"].items():  # all but what is no matter of rewards
        assert arm.keys() - found["arms"][name].keys() == {"truncated"}
    assert found["request_share"] is not None and (found["gold_over_fixed"] is not None) is gold


def test_groups_and_resamples_are_those_of_the_run(tmp_path):
    arms = arms_of()
    together, alone = (
        recompute(saved(tmp_path, arms, groups), 100)["over_fixed_ci95"]
        for groups in (GROUPS, list(map(str, range(N))))
    )
    assert together != pytest.approx(alone, abs=1e-3)
    default = recompute(saved(tmp_path, arms))
    same(default["over_fixed_ci95"], summarise(arms, EvalConfig(), GROUPS)["over_fixed_ci95"])


def test_the_command_prints_the_table_of_every_file(tmp_path, capsys):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    save_rewards(first, arms_of(), GROUPS, KL_COEF)
    save_rewards(second, arms_of(seed=1), GROUPS, KL_COEF)
    module.main([str(first), str(second), "--resamples", "50"])
    printed = capsys.readouterr().out
    assert printed.index(str(first)) < printed.index(str(second))
    for file in (first, second):
        assert module.final_table(recompute(file, 50)) in printed
    assert "Align-Pro - fixed rewrite, paired" in printed and "oracle (β 0.25)" in printed


def broken(tmp_path):
    """{what is wrong with a file: its bytes}."""
    whole = saved(tmp_path, arms_of()).read_bytes()
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(3))
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    torn = bytearray(whole)
    torn[len(whole) // 2] ^= 0xFF
    return {
        "empty": b"",
        "text": b"what is this?",
        "json": b'{"arms": {}}',
        "cut in the middle": whole[: len(whole) // 2],
        "cut at the end": whole[:-1],
        "cut at its start": whole[100:],
        "one byte is wrong": bytes(torn),
        "another archive": other.read_bytes(),
        "a single array": array.read_bytes(),
        "objects": _objects(tmp_path),
    }


def _objects(tmp_path) -> bytes:
    """An archive whose array holds pickled objects: it must not be read."""
    np.savez(tmp_path / "objects.npz", groups=np.array([{"a": 1}], dtype=object), kl_coef=np.zeros(2))
    return (tmp_path / "objects.npz").read_bytes()


WRONG = (
    "empty",
    "text",
    "json",
    "cut in the middle",
    "cut at the end",
    "cut at its start",
    "one byte is wrong",
    "another archive",
    "a single array",
    "objects",
)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_or_a_cut_file_is_named(tmp_path, what):
    file = tmp_path / "bad.npz"
    file.write_bytes(broken(tmp_path)[what])
    with pytest.raises(
        UserError, match=r"bad\.npz: not the rewards of a run .*give a rewards\.npz that train\.py wrote"
    ):
        load_rewards(file)


def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_rewards(tmp_path / "nowhere.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = saved(tmp_path, arms_of())
    before = file.read_bytes()

    def fail(handle, **arrays):
        handle.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        saved(tmp_path, arms_of(seed=1))
    assert file.read_bytes() == before

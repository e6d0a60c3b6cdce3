"""Options and variants of PPO: each differs from the others in what it says, and the gain is paired by seed."""

import json

from cells import cell_config

from alignpro_mini.experiments import estimators
from alignpro_mini.experiments.estimators import AS_IT_IS, VARIED
from alignpro_mini.lab.config import preset
from alignpro_mini.ppo import PPOConfig
from alignpro_mini.variants import VARIANTS


def test_every_variant_can_be_built_and_differs_from_the_others():
    seen = set()
    for name in estimators.NAMES:
        changes = estimators.changes(name, PPOConfig())
        PPOConfig(**{key.removeprefix("ppo."): value for key, value in changes.items() if key != "seed"})
        seen.add(json.dumps(changes, sort_keys=True))
    assert len(seen) == len(estimators.NAMES) == len({estimators.folder_of(name) for name in estimators.NAMES})
    assert {options["variant"] for options in VARIED.values() if "variant" in options} == VARIANTS.keys() - {"ppo"}
    assert all(PPOConfig(**options).batch_size == PPOConfig().batch_size for options in VARIED.values())


def test_a_setting_changes_one_option_of_the_preset_but_for_the_value_baseline():
    base = preset("small").ppo
    for name, change in estimators.SETTINGS.items():
        changed = change(base)
        assert len(changed) == {"GAE, lambda 1, no value baseline": 2}.get(name, 1), name
        assert all(getattr(base, key) != value for key, value in changed.items()), name
    assert estimators.variants_of("settings", "variants")[:3] == [AS_IT_IS, estimators.OTHER_DRAWS, "learning rate / 3"]
    assert estimators.variants_of("RLOO, K 4; clip 0.1", "variants") == ["RLOO, K 4", "clip 0.1"]
    assert set(estimators.variants_of("all", "variants")) == {
        AS_IT_IS,
        estimators.OTHER_DRAWS,
        *VARIED,
        *estimators.SETTINGS,
    }


def test_variants_end_to_end_and_one_more(tmp_path):
    config = cell_config(tmp_path, name="e")
    first = estimators.run_variants(config, False, [AS_IT_IS, estimators.OTHER_DRAWS, "RLOO, K 4"])
    assert list(first["variants"]) == [AS_IT_IS, estimators.OTHER_DRAWS, "RLOO, K 4"] and first["kl_coef"] == 0.1
    saved = json.loads((tmp_path / "e" / "RLOO-K-4" / "config.json").read_text())["ppo"]
    assert (saved["variant"], saved["rewrites_per_request"]) == ("rloo", 4)
    both = estimators.run_variants(config, True, ["KL as k3 in the loss", "learning rate x 3"])
    assert set(both["variants"]) == {*first["variants"], "KL as k3 in the loss", "learning rate x 3"}
    assert both["variants"]["RLOO, K 4"] == first["variants"]["RLOO, K 4"], "loaded, not done again"
    shares = [values["attainable_gain_share"] for values in both["variants"].values()]
    assert len(set(shares)) == 5, "other draws, another trainer or another option: another prompter"
    rows = estimators.table({"runs": [both]}).splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == list(both["variants"])


def test_the_difference_to_ppo_is_paired_by_seed():
    def run(share, other):
        row = {"kl": 1.0, "mass_outside": 0.0, "lambda_kl_to_optimum": 0.02}
        of = lambda s: row | {"attainable_gain_share": s}
        return {"kl_coef": 0.1, "variants": {AS_IT_IS: of(share), "clip 0.1": of(other)}}

    text = estimators.table({"runs": [run(0.9, 0.91), run(0.95, 0.96), run(0.97, 0.98)]})
    plain, clipped = (line.split() for line in text.splitlines()[1:])
    assert plain[3:] == ["0.940", "±0.090", "–", "1.000", "±0.000", "0.200", "±0.000", "0.000", "±0.000"]
    assert clipped[4:6] == ["0.010", "±0.000"], "each seed against its own PPO"

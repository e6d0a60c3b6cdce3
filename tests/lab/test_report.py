"""The report against hand-worked tables: what was measured is printed, what was not is a dash, every text is escaped."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from doubles import ROOT
from results import PNG, arm, make_results, with_fixed

from alignpro_mini.lab import plots, report, tables
from alignpro_mini.lab.glossary import GLOSSARY, METRICS

PPO_KEYS = (
    "score_mean score_std reward_mean gold_mean kl_k1 kl_k3 kl_exact kl_coef entropy policy_loss value_loss clip_fraction "
    "value_clip_fraction ratio_max approx_kl explained_variance grad_norm missing_eos fallback_rate completion_length "
    "answer_length lr tokens_per_s rollout_s score_s update_s advantage_std"
).split()
EARLIER_KEYS = "loss heldout_loss lr tokens_per_s accuracy heldout_accuracy margin".split()
RESULT_KEYS = (
    "mean variance between_inputs between_rewrites within ci95 gold_mean gold_variance kl win_rate tie_rate difference "
    "rewrite_length answer_length right_rate worked_rate asks_for_steps fallback_rate truncated inputs gap_closed "
    "variance_ratio accuracy ceiling always_longer icc best_rewrite_gain accuracy_ci95 length_matched length_matched_pairs "
    "truncated_accuracy swap_accuracy swap_ceiling over_fixed over_fixed_ci95 gold_over_fixed gold_over_fixed_ci95 "
    "request_share request_share_ci95 fixed_rewrite variance_within_requests gold_variance_within_requests "
    "variance_ratio_within_requests gold_variance_ratio_within_requests"
).split()


def make_metrics(steps: int = 3) -> list[dict]:
    rows = [
        {
            "stage": s,
            "step": i,
            "loss": 2.0 / (i + 1),
            "heldout_loss": None if i else 2.1,
            "lr": 1e-3,
            "tokens_per_s": 9.0,
        }
        for s in ("frozen_lm", "prompter_sft")
        for i in range(steps)
    ]
    rows += [
        {"stage": "reward_model", "step": i, "loss": 0.6, "accuracy": 0.6, "heldout_accuracy": 0.6, "margin": 0.1}
        for i in range(steps)
    ]
    for stage in ("align_pro", "rlhf_oracle"):
        rows += [{"stage": stage, "step": i} | dict.fromkeys(PPO_KEYS, 0.1 * i) for i in range(steps)]
    return rows


def evaluated(x: str, y: str, gain: float) -> list[dict]:
    """A request of the evaluation, as it is and rewritten."""
    plain = {"stage": "evaluation_plain", "step": 0, "arm": "no_finetuning", "x": x, "x_prime": x, "y": y}
    ours = plain | {"stage": "evaluation", "arm": "align_pro", "x_prime": f"{x} kindly", "y": f"{y} better"}
    return [plain | {"reward": 0.25, "kl": 0.0}, ours | {"reward": 0.25 + gain, "kl": 0.5}]


def make_samples() -> list[dict]:
    def row(step, x, y, **more):
        return {
            "stage": "align_pro",
            "step": step,
            "x": x,
            "x_prime": f"{x} kindly",
            "y": y,
            "reward": 1.25,
            "kl": 0.5,
        } | more

    return [
        row(1, "TRAINED ON", "t"),
        *evaluated("SCRIPT <script>alert('x')</script>", "<img src=http://evil.example/a.png onerror=alert(1)>", 1.0),
        *evaluated("MEDIAN", "lone surrogate \udc80", 0.5),
        *evaluated("WORSE", "w", -0.5),
        {"stage": "evaluation", "arm": "align_pro", "x": "ALONE", "x_prime": None, "y": "e", "reward": 2.0, "kl": None},
    ]


def make_rewards() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "no_finetuning": rng.normal(1, 1, (20, 1, 4)),
        "align_pro": rng.normal(1.8, 1, (20, 2, 2)),
        "unknown": np.ones((2, 1, 1)),
    }


class Page(HTMLParser):
    """The page as a browser parses it: the tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    given = make_results(), make_metrics(), make_samples()
    before = copy.deepcopy(given)
    path = report.write_report(folder, *given, make_rewards())
    assert given == before, "a report must not change what it reports"
    return path, Page(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- tables


def test_final_table_prints_each_arms_numbers_in_its_row():
    text = tables.final_table(make_results())
    means, variances, _ = text.split("\n\n")
    rows = {line[:14].strip(): line[14:].split() for line in means.splitlines()[2:]}
    assert list(rows) == ["no fine-tuning", "SFT prompter", "Align-Pro", "oracle"]
    assert rows["Align-Pro"] == "1.800 [1.750, 1.850] 0.900 1.25 0.62 [0.580, 0.660] 0.11 12.3 45.6 0.07".split()
    assert rows["no fine-tuning"][4:6] == ["0.00", "–"] and rows["no fine-tuning"][8] == "–"
    rows = {line[:14].strip(): line[14:].split() for line in variances.splitlines()[2:]}
    assert rows["Align-Pro"] == "1.000 0.350 0.050 0.600 0.650 [0.900, 1.100] 0.500 [0.400, 0.600]".split()
    for line in (
        "Align-Pro (λ 0.1) - oracle (β 0.1), paired: -0.200, 95% CI [-0.300, -0.100]",
        "oracle (β 0.1) closed: 0.80, 95% CI [0.750, 0.850]",
        "no fine-tuning: 0.62, 95% CI [0.525, 0.725]",
        "never trained on: 0.80, 95% CI [0.700, 1.100]",
        "within requests, which no offset b(x) of the reward changes: 0.42, 95% CI [0.360, 0.480]",
        "\n  within requests: 0.93, 95% CI [0.840, 1.070]",
        "+0.800, 95% CI [0.700, 0.900]",
        "judged by the gold reward",
        "(ICC): 0.123",
        "held-out accuracy 0.712",
        "0.781",
        "0.553",
        "swap accuracy of the subject 0.941, gold's 0.952",
        "swap accuracy of the wish 0.874, gold's 1.000",
    ):
        assert line in text
    assert "WARNING" not in text and "at or above" not in text and "fixed rewrite" not in text


def test_the_fixed_rewrite_is_told_with_what_align_pro_gains_over_it():
    text = tables.final_table(with_fixed(make_results()))
    rows = {line[:14].strip(): line[14:].split() for line in text.split("\n\n")[0].splitlines()[2:]}
    assert list(rows)[:2] == ["no fine-tuning", "fixed rewrite"] and rows["fixed rewrite"][0] == "1.550"
    told = " ".join(text.split())  # however the lines are broken
    for words in (
        "Align-Pro - fixed rewrite, paired: +0.250, 95% CI [0.125, 0.375]",
        "the same of the gold reward: +0.100, 95% CI [-0.050, 0.250]",
        "found by 12,345 answers; of 'What is Ashby like?': 'What is Ashby like? Be precise.'",
        "share of what reading the request can gain: 0.90, 95% CI [0.800, 1.000]",
    ):
        assert words in told
    results = with_fixed(make_results(), over=(-0.25, -0.375, -0.125), gold=None, share=None)
    results["arms"]["closed_form"] = arm(2.0, 1.0)
    below = tables.final_table(results)
    assert "paired: -0.250, 95% CI [-0.375, -0.125]" in below and "of the gold reward: –" not in below
    assert "can gain: –: the closed form's lead is not shown, one sentence is enough" in " ".join(below.split())
    del results["arms"]["closed_form"]
    assert "reading the request" not in tables.final_table(results)
    results = with_fixed(make_results())
    del results["fixed_rewrite"]  # rewards alone do not tell its words (recompute.py)
    assert "+0.250, 95% CI [0.125, 0.375]" in tables.final_table(results)


@pytest.mark.parametrize("share", [(0.9, 0.8, 1.0), None])
def test_the_lines_of_the_fixed_rewrite_are_at_most_110_columns(share):
    results = with_fixed(make_results(base=-12.345, pro=-1.8, oracle=-0.0001), share=share)
    x = "Could you help me with Brookside for my geography lecture?"
    results["fixed_rewrite"] |= {"x": x, "text": f"{x} Write a careful expert guide. {'And so on. ' * 20}"}
    assert not [line for line in tables.final_table(results).splitlines() if len(line) > 110]


def test_answers_of_an_api_that_are_not_as_they_should_be_stand_below_the_table():
    api = {"answers": 24, "tokens": 99, "usd": 0, "thought": 3, "filtered": 1}
    lines = tables.final_table(make_results() | {"api": api}).splitlines()
    assert "API: 3 answers are empty, because the model thinks and reached the token limit" in lines
    assert "API: 1 answers were withheld or cut by the provider's filter" in lines


def test_how_far_the_reward_models_accuracy_can_be_believed():
    told = "accuracy on answers of like length"
    results = make_results()
    text = tables.final_table(results)
    assert "accuracy 0.712, label noise" in text and f"{told} – (0 pairs), on truncated answers –" in text
    results["reward_model"] |= {"accuracy_ci95": [0.661, 0.758], "length_matched": 0.583, "length_matched_pairs": 123}
    results["reward_model"] |= {"truncated_accuracy": 0.634}
    text = tables.final_table(results)
    assert "held-out accuracy 0.712, 95% CI [0.661, 0.758], label noise allows 0.781, always-longer 0.553" in text
    assert f"{told} 0.583 (123 pairs), on truncated answers 0.634" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_reward_that_does_not_read_the_request_and_an_oracle_that_is_reached_are_told():
    results = make_results(pro=2.5) | {"judge": "reward"}
    results["reward_model"]["swap_accuracy"] = {"subject": 0.52, "wish": 0.7}
    results["difference_to_oracle"] = {"mean": 0.5, "ci95": [0.4, 0.6]}
    text = tables.final_table(results)
    assert "WARNING: the reward model hardly reads the subject" in text and text.count("WARNING") == 1
    assert "+0.500" in text
    assert "(at or above the oracle)" in text and "reward that was optimised" in text
    assert "at or above the oracle's" in report.headline(results)
    results["reward_model"]["swap_accuracy"] = {"subject": 0.99, "wish": 0.69}
    text = tables.final_table(results)
    assert "WARNING: the reward model hardly reads the wish" in text and text.count("WARNING") == 1
    results["reward_model"] |= {"swap_accuracy": {"subject": 0.94, "wish": None}, "swap_ceiling": {"subject": None}}
    text = tables.final_table(results)  # no answers that two wishes rank apart; no gold reward
    assert "of the subject 0.940, gold's –" in text and "of the wish –, gold's –" in text and "WARNING" not in text
    results |= {"gap_closed": None, "gap_closed_ci95": None}
    assert "closed: –, the oracle's gain is not shown" in tables.final_table(results)


def test_final_table_is_aligned_and_at_most_110_columns_even_for_wide_numbers():
    results = make_results(base=-12.345, pro=-1.8, oracle=-0.0001)
    for a in results["arms"].values():
        a["right_rate"] = 0.5
    text = tables.final_table(results)
    for table in text.split("\n\n")[:2]:
        ends = {len(line) for line in table.splitlines()}
        assert len(ends) == 1, "the last column is right-aligned, so every line ends at the same place"
    assert max(map(len, text.splitlines())) <= 110
    assert "-0.000 " not in text


def test_what_was_not_measured_is_a_dash_and_never_zero():
    results = make_results(oracle=None)
    results["reward_model"] = results["headroom"] = None
    for a in results["arms"].values():
        a["gold_mean"] = a["gold_variance"] = None
        a["variance_parts"]["within"] = float("nan")
    text = tables.final_table(results)
    assert "oracle (β" not in text and "ICC" not in text and "Reward model" not in text
    means, variances = [line.split() for line in text.splitlines() if line.startswith("Align-Pro ")][:2]
    assert means[4] == "–" and variances[4] == "–" and variances[8] == "–"  # gold mean, within, gold variance


def test_right_answers_have_a_column_only_in_the_reasoning_task():
    results = make_results(task="reasoning")
    assert "right" not in tables.final_table(results)
    results["arms"]["align_pro"] |= {"right_rate": 0.83, "worked_rate": 0.9}
    text = tables.final_table(results)
    rows = {line[:14].strip(): line.split()[-1] for line in text.split("\n\n")[0].splitlines()[2:]}
    assert text.splitlines()[0].endswith("right") and rows["Align-Pro"] == "0.83" and rows["oracle"] == "–"


@pytest.mark.parametrize(
    "value, text",
    [
        (0.1234, "0.123"),
        (12.345, "12.35"),
        (123.456, "123.5"),
        (-0.0001, "0.000"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (1234567.0, "1e+06"),
        ([1, -2.5], "[1.000, -2.500]"),
    ],
)
def test_number_format(value, text):
    assert tables.num(value) == text


# ---------------------------------------------------------------- words


def test_headline_tells_a_gain_a_loss_and_no_gain_apart():
    assert "raised the reward: 1.000 to 1.800" in report.headline(make_results())
    assert "no clear gain" in report.headline(make_results(pro=1.05, ci=(-0.1, 0.2)))
    assert "lowered the reward" in report.headline(make_results(pro=0.5, ci=(-0.6, -0.4)))
    assert "Variance fell: 0.62 [0.525, 0.725] times" in report.headline(make_results())
    assert "Gold variance showed no clear change: 0.80 [0.700, 1.100] times" in report.headline(make_results())
    assert "Variance rose" in report.headline(make_results(ratio=1.3))
    assert "Variance within requests fell: 0.42 [0.360, 0.480] times" in report.headline(make_results())
    assert "oracle (KL coefficient 0.1) closed: 0.80" in report.headline(make_results())
    bare = make_results()
    del bare["arms"]["align_pro"]
    assert "did not compare" in report.headline(bare) and "did not compare" in report.headline({})


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ((0.25, 0.125, 0.375), "It beats the best fixed rewrite: by +0.250, 95% CI [0.125, 0.375]."),
        ((0.25, -0.125, 0.5), "It shows no clear gain over the best fixed rewrite: by +0.250, 95% CI [-0.125, 0.500]."),
        ((-0.25, -0.5, -0.125), "It falls short of the best fixed rewrite: by -0.250, 95% CI [-0.500, -0.125]."),
    ],
)
def test_headline_compares_with_the_fixed_rewrite(over, told):
    assert told in report.headline(with_fixed(make_results(), over))
    assert "fixed rewrite" not in report.headline(make_results())


def test_headline_admits_over_optimisation_and_an_idle_rl_stage():
    results = make_results()
    results["arms"]["align_pro"]["gold_mean"] = 0.2
    assert "Gold reward did not rise: 0.500 to 0.200" in report.headline(results)
    assert "RL added nothing" not in report.headline(results)
    for a in results["arms"].values():
        a["mean"] -= 1.8  # the better arm's mean is exactly 0 now, which is not "missing"
    results["arms"]["untrained_prompter"]["mean"] = 0.0
    assert "RL added nothing" in report.headline(results)


def test_variance_sentence_names_the_part_that_fell_the_most():
    results = make_results()  # inputs 0.40 -> 0.35, rewrites 0 -> 0.05, within 1.2 -> 0.6
    assert "within (the frozen LM's own sampling): 1.200 to 0.600" in report.variance_sentence(results)
    results["arms"]["align_pro"]["variance_parts"] = {"between_inputs": 0.1, "between_rewrites": 0.0, "within": 1.1}
    assert "between inputs" in report.variance_sentence(results)
    results["arms"]["align_pro"]["variance_parts"] = {"between_inputs": 0.5, "between_rewrites": None, "within": 1.3}
    none = "No variance component was seen to fall from no fine-tuning to Align-Pro."
    assert report.variance_sentence(results) == report.variance_sentence({}) == none


@pytest.mark.parametrize("key", sorted({*PPO_KEYS, *EARLIER_KEYS, *RESULT_KEYS}))
def test_every_metric_is_explained(key):
    assert len(METRICS[key]) == 3 and all(part.strip() for part in METRICS[key])


def test_no_metric_is_explained_twice():
    keys = [key for line in GLOSSARY.splitlines() for key in line.split(" | ")[0].split()]
    assert len(keys) == len(set(keys)) and set(keys) == METRICS.keys()


# ---------------------------------------------------------------- plots and page


def test_the_page_is_one_file_that_loads_nothing(page):
    path, parsed = page
    assert path.name == "report.html" and path.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    links = [
        value for _, attrs in parsed.tags for name, value in attrs.items() if name in ("src", "href", "action", "data")
    ]
    assert links.pop(0) == "explore.html", "a link, which nothing follows by itself"
    assert len(links) == 14 and all(link.startswith("data:image/png;base64,iVBORw0KGgo") for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy and "@import" not in path.read_text(encoding="utf-8")


def test_untrusted_text_is_shown_and_not_run(page):
    _, parsed = page
    assert "<script>alert('x')</script>" in parsed.text and "<img src=http://evil.example" in parsed.text
    assert "</pre><b>" in parsed.text and not [tag for tag, _ in parsed.tags if tag == "b"]
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)


def test_the_page_opens_with_one_request_before_and_after_then_the_arms_then_the_tables(page):
    html = page[0].read_text(encoding="utf-8")
    order = (
        "Before: the request",
        "<br>MEDIAN<p>",
        "<br>0.25<",
        "After: rewritten",
        "<br>MEDIAN kindly<p>",
        "<br>0.75<",
    )
    places = [html.index(text) for text in (*order, "raised the reward", "<img", "<table>", "Training", "ALONE")]
    assert places == sorted(places)
    assert "TRAINED ON" not in html


def test_the_request_of_the_opening_is_not_the_luckiest_one():
    plain, ours = report.before_after(make_samples())
    assert (plain["x_prime"], ours["x_prime"]) == ("MEDIAN", "MEDIAN kindly")
    four = make_samples() + evaluated("BEST", "b", 3.0)
    assert report.before_after(four)[0]["x"] == "MEDIAN"  # of an even number the lower one of the middle two
    assert report.before_after(evaluated("x", "y", float("nan"))) is None
    assert report.before_after(make_samples()[-1:]) is None


def test_the_page_holds_the_evaluation_and_the_numbers(page):
    _, parsed = page
    for text in ("SCRIPT", "WORSE", "ALONE", "[1.750, 1.850]", "1.200 to 0.600", '"lr": 0.0001', *METRICS):
        assert text in parsed.text, text
    assert report.headline(make_results()) in parsed.text


def test_the_task_name_is_escaped_everywhere(tmp_path):
    results = make_results(task="<script>alert(2)</script>$x^$")
    html = report.write_report(tmp_path, results, [], [], {}).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;alert(2)&lt;/script&gt;$x^$" in html


def test_plots_are_pngs(page, tmp_path):
    made = sorted((page[0].parent / "plots").iterdir())
    assert len(made) == 14 and {"arms_reward.png", "align_pro_kl_k1.png", "frozen_lm_loss.png"} <= {
        p.name for p in made
    }
    plots.arms_variance(make_results(), tmp_path / "new" / "folder" / "plot.png")
    for path in (*made, tmp_path / "new" / "folder" / "plot.png"):
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5000


def test_a_panel_in_which_nothing_changes_is_named_and_not_drawn(page):
    path, parsed = page
    assert "never changed: reward model: loss, nats per pair; reward model: accuracy, share of pairs." in parsed.text
    assert not (path.parent / "plots" / "reward_model_loss.png").exists()
    rows = [{"stage": "a", "step": s, "flat": 0.5, "moves": 0.5 + s} for s in range(3)]
    assert plots.is_flat(rows, ("a", "b"), "flat missing") and not plots.is_flat(rows, ("b", "a"), "flat moves")


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([*range(101), 5000], 0, 187),  # quantiles 5.05 and 95.95 of 0 to 100 and the spike: up to 96 + 91
        ([*range(101), -5000], -87, 100),
        ([0, 1, 2, 3], 0, 3),
        ([0.0] * 99 + [1.0], 0, 1),  # the quantiles are equal: nothing says what is far
        ([7.0], 7, 7),
    ],
)
def test_a_spike_does_not_squeeze_a_plot(values, low, high):
    assert plots.robust_limits(values) == pytest.approx((low, high), abs=1)


def test_a_spike_is_marked_at_the_edge_with_its_value(tmp_path):
    _, ((ax,),) = plots.new_figure(tmp_path / "plot.png", 1, 1, plots.PICTURE)
    curve = {step: step / 100 for step in range(101)}
    plots._cut(ax, [curve | {50: 35.65, 60: 9.0}, {1: -70.0}])
    low, high = ax.get_ylim()
    assert -1.5 < low < 0 and 1 < high < 2.5
    assert [text.get_text() for text in ax.texts] == ["-70.00", "35.65"]
    marks = [(*line.get_xdata(), *line.get_ydata(), line.get_marker()) for line in ax.lines]
    assert marks == [(1, low, "v"), (50, high, "^"), (60, high, "^")]


SURROUNDED = """
import sys
from pathlib import Path
from test_report import make_results
from alignpro_mini.lab import plots
plots.arms_reward(make_results(), Path("plot.png"))
"""


def test_the_settings_of_a_user_do_not_reach_the_plots(page, tmp_path):
    """The backend of a notebook that is not here, LaTeX that is not installed, a size and a font of somebody else."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 7\nfont.size: 40\n")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environment = os.environ | {"MPLBACKEND": "no_such_backend", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", SURROUNDED], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "plot.png").read_bytes() == (page[0].parent / "plots" / "arms_reward.png").read_bytes()


def test_settings_of_a_user_are_back_after_a_plot(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 40, "text.usetex": True}):
        plots.arms_reward(make_results(), tmp_path / "plot.png")
        assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["text.usetex"]) == (40, True)


def test_a_picture_that_cannot_be_drawn_is_told_and_the_report_is_written_without_it(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no room\nfor a font cache")

    monkeypatch.setattr(plots, "reward_histograms", fails)
    html = report.write_report(tmp_path, make_results(), make_metrics(), [], make_rewards()).read_text(encoding="utf-8")
    assert html.count("<img") == 13 and "reward_histograms" not in html
    assert capsys.readouterr().err == "warning: the report has no reward_histograms: RuntimeError: no room\n"


def test_missing_parts_do_not_crash(tmp_path):
    assert report.write_report(tmp_path / "empty", {}, [], [], {}).exists()
    results = make_results(oracle=None)
    for optional in ("config", "reward_model", "headroom", "wall_s", "variance_ratio", "preset"):
        del results[optional]
    for a in results["arms"].values():
        a.update(dict.fromkeys(a, None), mean=a["mean"])
    metrics = [{"stage": "align_pro", "step": i, "score_mean": None, "kl_k1": 1.0} for i in range(3)]
    rewards = {"align_pro": np.array([[[np.nan, 1.0, 2.0]]]), "no_finetuning": np.ones((2, 1, 1))}
    assert report.write_report(
        tmp_path / "sparse", results, metrics, [{"stage": "evaluation", "x": "x"}], rewards
    ).exists()
    assert "–" in tables.final_table(results)


def test_a_step_logged_twice_keeps_its_last_value_in_the_order_of_steps():
    rows = [{"stage": "a", "step": s, "v": v} for s, v in ((2, 1.0), (1, 5.0), (2, 7.0), (3, None), (4, float("nan")))]
    assert list(plots.series(rows + [{"stage": "b", "step": 9, "v": 0.0}], "a", "v").items()) == [(1, 5.0), (2, 7.0)]


THEORY = {
    "attainable_gain_share": 0.963,
    "attainable_gain_share_cross_fitted": 1.004,
    "attainable_gain_share_less_unlisted": 0.961,
    "regularised_gap": 0.0421,
    "lambda_kl_to_optimum": 0.0421,
    "mass_outside": 0.031,
    "mass_outside_sft": 0.02,
    "unlisted_cost": 0.003,
    "optimum_noise": 0.01,
    "delta1": 1.5,
    "delta2": -0.25,
    "delta3": -1.0,
    "r_max": 4.0,
    "bound_paper": 3.0,
    "bound_sharp": 2.0,
}


def test_the_distance_to_the_optimum_is_told():
    results = make_results() | {"theory": THEORY}
    results["arms"]["closed_form"] = arm(1.9, 0.5, inputs=48)
    text = tables.final_table(results)
    assert "first 48 requests" in text and "0.963 of the gain attainable with the enumerated rewrites" in text
    assert "cross-fitted optimum 1.004; less the cost of other rewrites 0.961, their probability 0.031)" in text
    assert "gap 0.0421 = λ KL to the optimum 0.0421" in text
    assert "1.500 + -0.250 + -1.000 = 0.250; bounds: sharper 2.000, the paper's (recalled) 3.000" in text
    assert THEORY.keys() <= METRICS.keys()
    without = {k: v for k, v in THEORY.items() if not k.startswith(("delta", "bound"))}  # no oracle was trained
    assert "Suboptimality" not in tables.final_table(results | {"theory": without})

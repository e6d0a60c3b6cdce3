"""The page of a run: one HTML file that opens anywhere, offline, with its tables, plots and before/after prompts."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

from alignpro_mini.lab import plots
from alignpro_mini.lab.glossary import ARMS, GLOSSARY, METRICS, TRIO
from alignpro_mini.lab.tables import MEANS, VARIANCES, WITHIN, arm_table, get, notes, num
from alignpro_mini.options import one_line


def headline(results: dict) -> str:
    """What happened, in plain words, from the numbers alone; says so when nothing was gained."""
    base, sft, ours = (get(results, "arms", arm) for arm in ("no_finetuning", "untrained_prompter", "align_pro"))
    ci, gap, lead = get(ours, "difference", "ci95"), get(results, "gap_closed"), get(results, "difference_to_oracle")
    if not ci:
        return "This run did not compare Align-Pro with no fine-tuning."
    verdict = "raised the reward" if ci[0] > 0 else "lowered the reward" if ci[1] < 0 else "showed no clear gain"
    said = [f"Align-Pro {verdict}: {num(get(base, 'mean'))} to {num(get(ours, 'mean'))}, gain's 95% CI {num(ci)}."]
    if (over := get(results, "over_fixed_ci95")) is not None:
        which = "It beats" if over[0] > 0 else "It falls short of" if over[1] < 0 else "It shows no clear gain over"
        said.append(f"{which} the best fixed rewrite: by {num(results['over_fixed'], sign='+')}, 95% CI {num(over)}.")
    if gap is not None:
        coefficient = f"{results['kl_coef']['oracle']:g}"
        said.append(f"Share of the gap to the RLHF oracle (KL coefficient {coefficient}) closed: {num(gap, 2)}.")
    if lead and lead["mean"] >= 0:
        said.append("Align-Pro's mean is at or above the oracle's.")
    ratios = {"Variance": "variance_ratio", "Variance within requests": WITHIN, "Gold variance": "gold_variance_ratio"}
    for name, key in ratios.items():
        ratio, ci95 = get(results, key), get(results, f"{key}_ci95")
        if ratio is not None and ci95:
            fell = "fell" if ci95[1] < 1 else "rose" if ci95[0] > 1 else "showed no clear change"
            said.append(f"{name} {fell}: {num(ratio, 2)} {num(ci95, 3)} times no fine-tuning's.")
    if ci[0] > 0 and get(sft, "mean") is not None and sft["mean"] >= ours["mean"]:
        said.append("The SFT prompter did as well: RL added nothing.")
    before, after = get(base, "gold_mean"), get(ours, "gold_mean")
    if None not in (before, after):
        said.append(f"Gold reward {'rose' if after > before else 'did not rise'}: {num(before)} to {num(after)}.")
    return " ".join(said)


def variance_sentence(results: dict) -> str:
    """Names the variance component that fell the most from no fine-tuning to Align-Pro."""
    before, after = (get(results, "arms", arm, "variance_parts") or {} for arm in TRIO[:2])
    falls = {part: before[part] - after[part] for part in before if None not in (before[part], after.get(part))}
    part = max(falls, key=falls.get, default=None)
    if part is None or falls[part] <= 0:
        return "No variance component was seen to fall from no fine-tuning to Align-Pro."
    what = METRICS[part][0].removeprefix("variance component: ")
    return f"What fell the most is {part.replace('_', ' ')} ({what}): {num(before[part])} to {num(after[part])}."


_CSS = """:root{color-scheme:light dark} body{max-width:74rem;margin:auto;padding:1rem;font:16px/1.5 sans-serif}
.wide{overflow-x:auto} table{border-collapse:collapse;font-size:.85rem} .wide td{min-width:2.5rem} .arms td{white-space:nowrap}
td,th{padding:.35rem .6rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top} details{margin:1rem 0}
.wide :is(td,th):first-child{position:sticky;left:0;background:Canvas} pre{white-space:pre-wrap;font:inherit}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem}
.side section{border:1px solid #8886;border-radius:.5rem;padding:0 1rem} .side .after{border-color:#0072b2}
.lead{font-size:1.15rem;border-left:4px solid #0072b2;padding-left:1rem} .label{font-size:.85rem;opacity:.8}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(22rem,100%),1fr));gap:1rem;align-items:start}
img{width:100%}"""


def _table(heads, rows) -> str:
    """An HTML table. The models' outputs are untrusted: every cell is escaped here."""
    lines = [("th", heads), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{escape(str(cell))}" for cell in line) for tag, line in lines)
    return f"<div class=wide><table><tr>{'<tr>'.join(cells)}</table></div>"


def _side_by_side(samples: list[dict]) -> list[dict]:
    """The evaluation's samples, request by request, the arms of a request in the table's order."""
    found = [s for s in samples if s["stage"].startswith("evaluation")]
    requests = {x: i for i, x in enumerate(dict.fromkeys(s.get("x") for s in found))}
    order = {arm: i for i, arm in enumerate(ARMS)}
    return sorted(found, key=lambda s: (requests[s.get("x")], order.get(s.get("arm"), len(order))))


def _drawn(folder: Path, **pictures: Callable[[Path], None]) -> list[Path]:
    """The pictures that could be drawn. One that could not is told, and the report is written without it."""
    drawn = []
    for name, draw in pictures.items():
        path = folder / f"{name}.png"
        try:
            draw(path)
        except Exception as error:  # matplotlib's surroundings have many ways to fail, and this is a run's end
            print(f"warning: the report has no {name}: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
            continue
        drawn.append(path)
    return drawn


def before_after(samples: list[dict]) -> tuple[dict, dict] | None:
    """One request as two samples: sent as it is, and rewritten by the trained prompter.

    Of the logged requests it is the one whose reward rose by the median; None where no request has both rewards.
    """
    by_arm = {arm: {s.get("x"): s for s in samples if s.get("arm") == arm} for arm in TRIO[:2]}
    plain, ours = by_arm.values()
    both = [(plain[x], ours[x]) for x in plain if x in ours]
    gain = lambda pair: pair[1]["reward"] - pair[0]["reward"]
    both = sorted((pair for pair in both if None not in [get(s, "reward") for s in pair]), key=gain)
    return both[(len(both) - 1) // 2] if both else None


def _opening(samples: list[dict]) -> str:
    """The request of `before_after`, its two answers side by side."""
    if (found := before_after(samples)) is None:
        return ""
    titles = (
        ("Before: the request as it is", "request x"),
        ("After: rewritten by the trained prompter", "rewrite x\u2032"),
    )
    parts = []
    for kind, (title, sent), sample in zip(("before", "after"), titles, found):
        lines = (sent, sample.get("x_prime")), ("answer y", sample.get("y")), ("reward", num(sample["reward"], 2))
        told = "".join(f"<p><span class=label>{name}</span><br>{escape(str(text))}" for name, text in lines)
        parts.append(f"<section class={kind}><h3>{title}</h3>{told}</section>")
    chosen = "<p class=label>Of the logged evaluation requests, the one whose reward rose by the median."
    return f"<div class=side>{''.join(parts)}</div>{chosen} The frozen LM is the same on both sides."


def _images(paths: list[Path]) -> str:
    """The pictures side by side, as many as the width holds."""
    data = {p.stem: base64.b64encode(p.read_bytes()).decode() for p in paths}
    tags = (f'<img alt="{name}" src="data:image/png;base64,{png}">' for name, png in data.items())
    return f"<div class=plots>{''.join(tags)}</div>"


def _curves(folder: Path, metrics: list[dict]) -> str:
    """The learning curves. A panel in which nothing changes is named, not drawn."""
    moving = [panel for panel in plots.PANELS if not plots.is_flat(metrics, panel[0], panel[2])]
    draw = lambda panel: lambda path: plots.panel(metrics, path, *panel)
    paths = _drawn(folder, **{f"{panel[0][0]}_{panel[2].split()[0]}": draw(panel) for panel in moving})
    flat = [title for _, title, _ in plots.PANELS if title not in [panel[1] for panel in moving]]
    told = f"<p class=label>Not drawn, because they never changed: {escape('; '.join(flat))}." if flat else ""
    return _images(paths) + told


def write_report(run_dir: Path, results: dict, metrics: list[dict], samples: list[dict], rewards: dict) -> Path:
    """Write run_dir/plots/*.png and run_dir/report.html, one file that loads nothing; returns its path."""
    folder = Path(run_dir, "plots")
    arms = _drawn(
        folder,
        arms_reward=lambda path: plots.arms_reward(results, path),
        arms_variance=lambda path: plots.arms_variance(results, path),
        reward_histograms=lambda path: plots.reward_histograms(rewards, path),
    )
    texts = []
    for row in _side_by_side(samples):
        numbers = num(row.get("reward"), 2), num(row.get("kl"), 2)
        texts.append([ARMS.get(row.get("arm"), ["–"])[0], row.get("x"), row.get("x_prime"), row.get("y"), *numbers])
    title = escape(f"Align-Pro: task {results.get('task')}, preset {results.get('preset')}, seed {results.get('seed')}")
    about = json.dumps({key: results.get(key) for key in ("n_eval", "wall_s", "config")}, indent=2, default=str)
    page = [  # its Content-Security-Policy: should any text ever slip past escape(), nothing may load or run
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_CSS}</style><h1>{title}</h1>",
        _opening(samples),
        f"<p class=lead>{escape(headline(results))}",
        '<p>Beside this file, <a href="explore.html">explore.html</a> has the exact optimum as λ moves, and what the '
        "prompter wrote while it was trained.",
        "<h2>Arms</h2>",
        _images(arms),
        f"<p>{variance_sentence(results)}",
        "<div class=arms>",
        _table(*arm_table(results, MEANS)),
        "<h3>Variance</h3>",
        _table(*arm_table(results, VARIANCES)),
        f"</div><h3>Comparisons</h3><pre>{escape(chr(10).join(notes(results)))}</pre>",
        "<h2>Training</h2>",
        _curves(folder, metrics),
        "<details><summary>More requests: every arm's rewrite and answer</summary>",
        _table(["arm", "request x", "rewrite x\u2032", "answer y", "reward", "KL"], texts),
        f"</details><details><summary>Configuration and time</summary><pre>{escape(about)}</pre></details>",
        "<details><summary>Glossary of the metrics</summary>",
        _table(
            ["metric", "meaning", "healthy", "a bad value means"], [row.split(" | ") for row in GLOSSARY.splitlines()]
        ),
    ]
    out = Path(run_dir) / "report.html"
    out.write_text("\n".join(page), encoding="utf-8", errors="replace")  # BPE can leave lone surrogates
    return out

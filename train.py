"""Align-Pro from nothing to a trained prompter, in the order of the paper's pipeline.

    python train.py                                     # the embedded world, task quality: 4 to 6 minutes on two cores,
                                                        # mean reward about -0.2 -> 1.2, variance about 0.9 -> 0.2
    python train.py --task all --seed 0-4 --jobs 2      # several runs, two side by side, and one table
    python train.py --grid all --task all --seed 0-4 --jobs 2   # the paper's figure: two prompters x two frozen models
    python train.py --frontier 0.05,0.1,0.2,0.5                # reward against KL, beside the exact optimum
    python train.py --preset smollm2 --data.prompts ... # a real chat model and real prompts (see the README)
    python train.py --help                              # every option, with its reason

What it leaves out: multi-GPU training, and anything another script would want to import (that is in `alignpro_mini`).
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

# OpenMP's threads wait for each other by spinning. Where another program wants the cores too, that made training some
# 19 times slower on two cores; spinning only briefly costs a tenth when alone. Must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from alignpro_mini import assess, frontier, grid, jobs, pipeline, tables
from alignpro_mini.cli import parse_command_line
from alignpro_mini.config import RunConfig
from alignpro_mini.run import Run


def main(config: RunConfig, resume: bool) -> dict:
    """One run, stage by stage; returns its results."""
    run = Run(config, resume)
    task = pipeline.make_task(config)  # requests, rewrites, and the true reward where it is known
    tokenizer, pi_f = pipeline.frozen_lm(run, task)  # the model nobody may touch from here on
    rho_sft = pipeline.prompter_sft(run, task, tokenizer, pi_f)  # supervised: x -> x'
    reward = pipeline.reward_model(run, task, pi_f, rho_sft)  # Bradley-Terry on preferences, or a callable
    pipeline.print_headroom(run, task, pi_f, rho_sft, reward)  # can rewriting move this reward at all?
    rho = pipeline.align_pro(run, task, pi_f, rho_sft, reward)  # PPO on the prompter
    oracle = pipeline.rlhf_oracle(run, task, pi_f, reward)  # the same PPO on a copy of the LM
    rated = assess.rate_rewrites(run, task, pi_f, reward)  # every rewrite that can be listed, tried many times
    samples = assess.sample_oracle(run, pi_f, oracle, reward, rated)  # for the bounds on the distance to the oracle
    listing = assess.closed_form(run, rho_sft, rho, rated, samples)  # the exact optimum, and PPO's distance to it
    arms = assess.evaluate_plain(run, task, pi_f, oracle, reward)  # all arms, one fixed set of unseen requests
    arms |= assess.evaluate_prompters(run, task, pi_f, rho_sft, rho, reward, listing)
    results = assess.conclude(run, arms)
    print(tables.final_table(results))
    print(f"\nreport: {assess.write_report(run, results, arms)}")
    return results


if __name__ == "__main__":
    configs, how = parse_command_line()
    one = (
        partial(grid.run_group, cells=how.cells)
        if how.cells
        else partial(frontier.run_frontier, lams=how.lams)
        if how.lams
        else main
    )
    failed = []
    try:
        if how.jobs > 1 and len(configs) > 1:
            results, failed = jobs.run_side_by_side(Path(__file__), sys.argv[1:], configs, how.jobs)
        else:
            results = [one(config, resume=how.resume) for config in configs]
    except (ValueError, OSError, FloatingPointError) as error:  # what a user can mend; a bug keeps its traceback
        sys.exit(f"train.py: error: {error}")
    if how.cells and results:
        print(tables.grid_table(results))
        print(f"\nfigures: {', '.join(map(str, grid.draw(results, configs[0])))}")
    elif how.lams:
        print(tables.frontier_table(results))
    elif len(results) > 1:
        print(tables.sweep_table(results))
    if failed:
        sys.exit(f"train.py: error: {len(failed)} of {len(configs)} runs failed; see {', '.join(map(str, failed))}")

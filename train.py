"""Align-Pro from scratch to a trained prompter, in the order of the paper's pipeline.

    python train.py                                     # the embedded world, task quality: 7 minutes on two cores,
                                                        # mean reward about -0.1 -> 0.8; best fixed sentence: 0.3
    python train.py --task all --seed 0-4 --jobs 2      # several runs, two side by side, and one table
    python train.py --preset smollm2 --data.prompts ... # a real chat model and real prompts (see the README)
    python train.py --help                              # the main options; --help all: every option, with its reason

    torchrun --nproc-per-node 2 train.py                # two processes: rollouts and PPO updates are shared out

What it leaves out: experiments of many runs (`python -m alignpro_mini.experiments.grid`, ...).
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C while torch is imported: one line instead of a traceback. Later `one_line_errors` takes over.
    nothing = b"\ntrain.py: stopped before anything began; --resume is not needed\n"
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, nothing) and 130))

# Waiting OpenMP threads keep their core busy. With other programs on the same cores this made training about 19 times
# slower. A short busy-wait costs about 10 % when the machine is otherwise free. Must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from alignpro_mini.lab import assess, beside, pipeline, processes, sweep, tables
from alignpro_mini.lab.cli import one_line_errors, parse_command_line
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.run import Run
from alignpro_mini.lab.setup import setup_of


def main(config: RunConfig, resume: bool) -> dict:
    """One run, stage by stage; returns its results."""
    setup = setup_of(config)  # the embedded world, or real models
    world = setup.make_world()  # requests, rewrites, and the true reward where it is known
    run = processes.leader_first(lambda: Run(config, resume))  # torchrun: the first process writes
    tokenizer = setup.tokenizer(run, world)
    with beside.meanwhile(run, "prompter_sft"):  # where it pays, a second process goes on up to this stage meanwhile
        pi_f = pipeline.frozen_lm(run, setup, world, tokenizer)  # its weights stay fixed from here on
    rho_sft = pipeline.prompter_sft(run, setup, world, tokenizer)  # supervised: x -> x'
    reward = pipeline.reward_model(run, setup, world, pi_f, rho_sft)  # Bradley-Terry on preferences, or a callable
    pipeline.print_headroom(run, world, pi_f, rho_sft, reward)  # can rewriting change this reward at all?
    with beside.meanwhile(run, "evaluation_plain"):  # meanwhile all that needs no trained prompter
        rho = pipeline.align_pro(run, world, pi_f, rho_sft, reward)  # PPO on the prompter
    fixed = pipeline.fixed_rewrite(run, world, pi_f, reward)  # its competitor: one rewrite for all requests
    oracle = pipeline.rlhf_oracle(run, world, pi_f, reward)  # the same PPO on a copy of the LM
    rated = assess.rate_rewrites(run, setup, world, pi_f, reward)  # every enumerated rewrite, answered many times
    samples = assess.sample_oracle(run, pi_f, oracle, reward, rated)  # for the bounds on the distance to the oracle
    listing = assess.closed_form(run, rho_sft, rho, rated, samples)  # the exact optimum, and PPO's distance to it
    arms = assess.evaluate_plain(run, world, pi_f, oracle, reward)  # all arms, one fixed set of held-out requests
    arms |= assess.evaluate_prompters(run, world, pi_f, rho_sft, rho, reward, fixed, listing)
    if not run.leads:
        return {}
    results = assess.conclude(run, world, arms)
    print(tables.final_table(results))
    print(f"\nreport: {assess.write_report(run, results, arms, listing)}")
    return results


if __name__ == "__main__":
    configs, arguments = parse_command_line()
    with one_line_errors("train.py", resumes=True), processes.joined(configs, arguments.jobs):
        results, failed = sweep.run_all([__file__], configs, arguments, main)
    if len(configs) > 1 and results:
        print(sweep.sweep_table(results))
    sweep.exit_if_failed("train.py", configs, failed)

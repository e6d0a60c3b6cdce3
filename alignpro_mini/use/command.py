"""Use a trained prompter.

    alignpro rewrite --run runs/NAME "my request"            the rewrite; --answer: answers to both, with rewards
    alignpro rewrite --run runs/NAME --file requests.txt     one request a line; requests.jsonl: {"prompt": ...} a line
    alignpro chat    --run runs/NAME                         type requests, see rewrite and answer
    alignpro serve   --run runs/NAME                         an OpenAI-compatible proxy that rewrites the last user turn

`python -m alignpro_mini` is the same command.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout

import torch

from alignpro_mini.jsonl import read_checked, read_lines
from alignpro_mini.lab.cli import one_line_errors
from alignpro_mini.options import UserError, require
from alignpro_mini.remote.client import LOOPBACK
from alignpro_mini.use.proxy import REWRITTEN, SWITCH, Proxy, ProxyConfig
from alignpro_mini.use.rewriting import MOST_AT_ONCE, Batches, fitting
from alignpro_mini.use.trained import Trained
from alignpro_mini.use.upstream import HttpUpstream, LocalUpstream, check_installed

# ---------------------------------------------------------------- requests


def typed() -> Iterator[str]:
    """What is typed, line by line, until an empty line or the end."""
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text ({error.reason})") from None
        if not text:
            return
        yield text


def rows_of(file: str) -> list[dict]:
    """The requests of a file as rows with a "prompt": of JSONL (.gz too) its objects, else one for each line.

    The whole file is read first: a bad line is told before anything is rewritten.
    """
    if is_jsonl(file):
        return [row for row, _ in read_checked(file, ("prompt",))]
    return [{"prompt": line} for line, _ in read_lines(file)]


def is_jsonl(file: str | None) -> bool:
    return bool(file) and file.endswith((".jsonl", ".jsonl.gz"))


def batches_of(args: argparse.Namespace) -> Iterator[list[dict]]:
    """The requests, as many as go through the model together; what is typed goes alone, as its answer is waited for."""
    rows = []
    if args.request:
        rows = [{"prompt": " ".join(args.request)}]
    elif args.file:
        rows = rows_of(args.file)
    else:
        yield from ([{"prompt": x}] for x in typed())
    while rows:
        count = fitting([row["prompt"] for row in rows[:MOST_AT_ONCE]])
        yield rows[:count]
        rows = rows[count:]


# ---------------------------------------------------------------- rewrite and chat


def rewritten(trained: Trained, requests: Sequence[str], args: argparse.Namespace) -> list[dict]:
    """For each request the text that is sent and, with --answer, the frozen model's answers to both, with rewards.

    Where the text that is sent is the request itself, stderr says why; JSONL has a field for it.
    """
    rows = []
    for rewrite in trained.rewrite(requests, args.greedy):
        if rewrite.objection and not is_jsonl(args.file):
            print(f"(the request itself: {rewrite.objection} {rewrite.written!r:.200})", file=sys.stderr)
        rows.append({"rewrite": rewrite.sent, "objection": rewrite.objection})
    if not args.answer:
        return rows
    sent = [row["rewrite"] for row in rows]
    answers = trained.frozen.answer([*requests, *sent], trained.generator)
    rewards = trained.reward([*requests, *requests], [answer.text for answer in answers]).tolist()
    for i, (answer, reward) in enumerate(zip(answers, rewards)):
        name = "to_the_request" if i < len(rows) else "to_the_rewrite"
        said = {"answer": answer.text, "truncated": answer.truncated, "reward": reward}
        rows[i % len(rows)][name] = said
    return rows


def show(x: str, row: dict) -> None:
    """Print a rewrite, or two texts with their answers."""
    if "to_the_rewrite" not in row:
        print(row["rewrite"], flush=True)
        return
    for name, text, said in (("x ", x, row["to_the_request"]), ("x'", row["rewrite"], row["to_the_rewrite"])):
        cut = " (truncated)" * said["truncated"]
        print(f"{name} {text}\ny  {said['answer']}\nr  {said['reward']:+.2f}{cut}\n", flush=True)


def rewrite(args: argparse.Namespace) -> None:
    """Print the rewrite of each request; with --answer also the frozen model's answers to both, and their rewards.

    For a file with JSONL it prints JSONL: each object of the file with the fields "rewrite" and "objection", and with
    --answer "to_the_request" and "to_the_rewrite".
    """
    require(args.answer or not args.reward, "--reward is read with --answer only")
    trained = Trained(args.run, args.device, args.seed, args.reward, args.base_url)
    batches = batches_of(args)
    if args.answer:
        _ = trained.reward  # what it needs is missing now, or never
    for batch in batches:
        with redirect_stdout(sys.stderr):  # what is told of an API is no part of the rewrites
            rows = rewritten(trained, [asked["prompt"] for asked in batch], args)
        for asked, row in zip(batch, rows):
            if is_jsonl(args.file):
                print(json.dumps(asked | row), flush=True)
            else:
                show(asked["prompt"], row)


def chat(args: argparse.Namespace) -> None:
    """Each line typed is a request of its own: the prompter learned on single turns."""
    trained = Trained(args.run, args.device, args.seed, base_url=args.base_url)
    frozen = trained.frozen  # loaded before the first line
    print("Each line is a request of its own. An empty line ends.", file=sys.stderr)
    for x in typed():
        sent = rewritten(trained, [x], args)[0]["rewrite"]
        (answer,) = frozen.answer([sent], trained.generator)
        print(f"[{sent}]\n{answer.text}\n", flush=True)


# ---------------------------------------------------------------- serve


def serve(args: argparse.Namespace) -> None:
    """Listen until Ctrl-C."""
    check_installed()
    trained = Trained(args.run, args.device, args.seed, base_url=args.base_url)
    config = ProxyConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ProxyConfig)})
    if trained.config.remote:
        trained.require_address("--upstream")
    models = ThreadPoolExecutor(1)  # one thread for both models: they would take each other's processor
    written = lambda texts: [None if r.objection else r.written for r in trained.rewrite(texts, args.greedy)]
    rewrites = Batches(written, models)
    if args.base_url:
        upstream = HttpUpstream(args.base_url, config.timeout, config.deadline)
    else:
        # Of another seed, as x' and y must not share their draws.
        draws = torch.Generator().manual_seed(trained.generator.initial_seed() ^ 1)
        frozen = trained.frozen
        answers = Batches(lambda texts: frozen.answer(texts, draws), models)
        upstream = LocalUpstream(answers, trained.config.run_name)
    proxy = Proxy(config, rewrites, upstream)
    if config.host not in LOOPBACK and not config.token:
        print(f"warning: {config.host} can be reached by others, and there is no --token", file=sys.stderr)
    print(f"{proxy.url} rewrites the last user turn for {args.base_url or 'the frozen model of the run'}")
    headers = f"the reply's header {REWRITTEN} tells the rewrite; the request's header {SWITCH}: off leaves it out"
    print(headers, flush=True)
    try:
        asyncio.run(proxy.serve())
    except KeyboardInterrupt:
        pass  # `one_line_errors` has told of it
    try:
        models.shutdown()  # a thread that computes while the process ends would abort it
    except KeyboardInterrupt:  # once more: now
        os._exit(130)


def main(argv: list[str] | None = None) -> None:
    """The command line at the top of this module."""
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("alignpro", description=__doc__, **form)
    commands = parser.add_subparsers(required=True, metavar="rewrite | chat | serve")
    for command in (rewrite, chat, serve):
        one = commands.add_parser(command.__name__, description=command.__doc__, **form)
        one.set_defaults(command=command)
        one.add_argument("--run", required=True, help="folder of a finished run")
        one.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
        one.add_argument("--seed", type=int, help="of the sampling (default: another one each time)")
        one.add_argument("--greedy", action="store_true", help="take the likeliest token each time instead of sampling")
        if command is rewrite:
            one.add_argument("request", nargs="*", help="the request; without it, and without --file, type requests")
            one.add_argument("--file", help='text with a request, or .jsonl (.gz) with a "prompt", in each line')
            one.add_argument("--answer", action="store_true", help="show the frozen model's answers to x and x'")
            one.add_argument("--reward", default="", help="with --answer, the run's reward again, if it is a function")
        else:
            one.set_defaults(answer=False, file=None)
        names = ["--upstream"] if command is serve else []
        about = "OpenAI-compatible API, up to /v1, for the answers; needed where the run's model is behind one"
        one.add_argument(*names, "--api.base_url", dest="base_url", metavar="URL", default="", help=about)
        if command is serve:
            for f in dataclasses.fields(ProxyConfig):
                about = f"{f.metadata['help']} (default: {f.default})"
                one.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default, help=about)
    args = parser.parse_args(argv)
    with one_line_errors("alignpro"):
        args.command(args)

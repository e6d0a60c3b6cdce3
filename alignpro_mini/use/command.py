"""Use a trained prompter.

    alignpro rewrite --run runs/NAME "my request"            the rewrite; --answer: answers to both, with rewards
    alignpro rewrite --run runs/NAME --file requests.txt     one request a line
    alignpro chat    --run runs/NAME                         type requests, see rewrite and answer
    alignpro serve   --run runs/NAME                         an OpenAI-compatible proxy that rewrites the last user turn

`python -m alignpro_mini` is the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable

import torch

from alignpro_mini.lab.cli import one_line_errors
from alignpro_mini.options import UserError, require
from alignpro_mini.remote.client import LOOPBACK
from alignpro_mini.use.proxy import REWRITTEN, SWITCH, Proxy, ProxyConfig
from alignpro_mini.use.trained import Rewrite, Trained
from alignpro_mini.use.upstream import HttpUpstream, LocalUpstream


def lines(args: argparse.Namespace) -> Iterable[str]:
    """The requests: of the command line, of a file, or typed one by one until an empty line or the end."""
    if args.request:
        yield " ".join(args.request)
    elif args.file:
        with open(args.file, encoding="utf-8") as file:
            try:
                yield from (line.strip() for line in file if line.strip())
            except UnicodeDecodeError as error:
                raise UserError(f"{args.file}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    else:
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


def sent_text(rewritten: Rewrite) -> str:
    """What is sent; where it is the request itself, stderr says why."""
    if rewritten.objection:
        print(f"(the request itself: {rewritten.objection} {rewritten.written!r:.200})", file=sys.stderr)
    return rewritten.sent


def rewrite(args: argparse.Namespace) -> None:
    """Print the rewrite of each request; with --answer also the frozen model's answers to both, and their rewards."""
    trained = Trained(args.run, args.device, args.seed, args.reward, args.base_url)
    require(args.answer or not args.reward, "--reward is read with --answer only")
    if args.answer:
        trained.reward  # noqa: B018  # what it needs is missing now, or never
    for x in lines(args):
        (rewritten,) = trained.rewrite([x], args.greedy)
        sent = sent_text(rewritten)
        if not args.answer:
            print(sent, flush=True)
            continue
        answers = trained.frozen.answer([x, sent], trained.generator)
        rewards = trained.reward([x, x], [answer.text for answer in answers])
        for name, text, answer, r in zip(("x ", "x'"), (x, sent), answers, rewards):
            cut = " (truncated)" * answer.truncated
            print(f"{name} {text}\ny  {answer.text}\nr  {float(r):+.2f}{cut}\n", flush=True)


def chat(args: argparse.Namespace) -> None:
    """Each line typed is a request of its own: the prompter learned on single turns."""
    trained = Trained(args.run, args.device, args.seed, base_url=args.base_url)
    frozen = trained.frozen  # loaded before the first line
    print("Each line is a request of its own. An empty line ends.", file=sys.stderr)
    for x in lines(argparse.Namespace(request=None, file=None)):
        (rewritten,) = trained.rewrite([x], args.greedy)
        sent = sent_text(rewritten)
        (answer,) = frozen.answer([sent], trained.generator)
        print(f"[{sent}]\n{answer.text}\n", flush=True)


def serve(args: argparse.Namespace) -> None:
    """Listen until Ctrl-C."""
    trained = Trained(args.run, args.device, args.seed, base_url=args.base_url)
    config = ProxyConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ProxyConfig)})
    if trained.config.remote:
        trained.require_address("--upstream")
    url = args.base_url
    # A stream of its own, as requests come from threads; of another seed, as x' and y must not share their draws.
    draws = torch.Generator().manual_seed(trained.generator.initial_seed() ^ 1)
    name = trained.config.run_name
    upstream = HttpUpstream(url, config.timeout) if url else LocalUpstream(trained.frozen, name, draws)
    proxy = Proxy(config, lambda x: trained.rewrite([x], args.greedy)[0].sent, upstream)
    if config.host not in LOOPBACK:
        print(f"warning: {config.host} can be reached by others, and there is no authentication", file=sys.stderr)
    print(f"{proxy.url} rewrites the last user turn for {url or 'the frozen model of the run'}")
    headers = f"the reply's header {REWRITTEN} tells the rewrite; the request's header {SWITCH}: off leaves it out"
    print(headers, flush=True)
    try:
        proxy.serve_forever()
    except KeyboardInterrupt:
        proxy.server_close()


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
            one.add_argument("--file", help="a text file with a request in each line")
            one.add_argument("--answer", action="store_true", help="show the frozen model's answers to x and x'")
            one.add_argument("--reward", default="", help="with --answer, the run's reward again, if it is a function")
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

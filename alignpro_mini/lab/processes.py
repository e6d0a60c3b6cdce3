"""Several processes: `torchrun --nproc-per-node N train.py ...`, on one machine or many.

Each process samples, answers and scores its share of a batch; the shares are then gathered, so that all of them see
the same batch and the same advantages; of each minibatch every process computes the gradient of its share, and torch's
DistributedDataParallel averages them. From equal weights and one batch this is the update of a single process.

The first process does all other stages and writes the run's folder; the others wait and load. If one of them dies,
the others end with one line, and `--resume` goes on.
"""

from __future__ import annotations

import datetime
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.device import resolve_device
from alignpro_mini.options import require
from alignpro_mini.ppo import PPOConfig, PPOTrainer
from alignpro_mini.rollout import Rollout
from alignpro_mini.variants import VARIANTS

# What gloo and NCCL say of a process that is gone. Their other errors, of unequal shapes say, are bugs.
GONE = re.compile(r"(?is)(gloo|nccl).*(closed|reset by peer|broken pipe|remote process)")
LOST = "another process of this run ended, or torchrun was stopped; to go on, give the same command with --resume"


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def _leave() -> None:
    """End at once with one line: torch's threads can abort an interpreter that shuts down."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: error: {LOST}\n".encode())
    os._exit(1)


@contextmanager
def joined(configs: Sequence[RunConfig], jobs: int = 1) -> Iterator[None]:
    """The processes that torchrun started, together for the length of the block; one process alone: nothing.

    Raises UserError for runs that several processes cannot train.
    """
    number = _launched()
    if number == 1:
        yield
        return
    check(configs, jobs, number)
    gpu = resolve_device(configs[0].device).type == "cuda"
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # Others wait for the first while it trains alone, for hours.
    dist.init_process_group("nccl" if gpu else "gloo", timeout=datetime.timedelta(days=7))
    rank_here = rank()
    # torchrun sends SIGTERM to the others, mostly before they notice. Waiting for NCCL, a handler would never run.
    signal.signal(signal.SIGTERM, signal.SIG_DFL if gpu else lambda *_: _leave())
    try:
        with redirect_stdout(open(os.devnull, "w", encoding="utf-8") if rank_here else sys.stdout):
            yield
        # Not after an error: the others may be elsewhere. None leaves before the others are ready to.
        gc.collect()  # a reducer that is still alive keeps threads that abort the process at its end
        wait()
        dist.destroy_process_group()
    except RuntimeError as error:
        if not GONE.search(str(error)):
            raise
        sys.stdout.flush()
        _leave()
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)  # the others may be elsewhere; see `_leave`
    if rank_here:
        os._exit(0)  # its work is done; see `_leave`


def _launched() -> int:
    """How many processes torchrun started; 1 without it.

    Raises UserError where a cluster's variables say that there are several, but not which one this is.
    """
    size = os.environ.get("WORLD_SIZE", "").strip() or "1"
    told = f"the variable WORLD_SIZE is {size!r}"
    require(size.isdecimal() and int(size) > 0, f"{told}: unset it, or start the run by torchrun")
    lacking = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    alone = int(size) == 1 or not lacking
    require(alone, f"{told}, and {', '.join(lacking)} not set: start the run by torchrun, or unset WORLD_SIZE")
    return int(size)


def leader_first(make: Callable):
    """make() in the first process, then in the others."""
    if rank():
        wait()
        return make()
    made = make()
    wait()
    return made


def trainer_class(config: PPOConfig) -> type[PPOTrainer]:
    """The trainer that `config.variant` names, over all processes if there are several."""
    trainer = VARIANTS[config.variant]
    return sharded(trainer) if count() > 1 else trainer


class _Parallel(DistributedDataParallel):
    """The wrapped policy, which is also read as what it wraps, and saved as it would be without."""

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["module"], name)

    def state_dict(self, *args, **kwargs):
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.module.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args, **kwargs):
        return self.module.named_parameters(*args, **kwargs)


def sharded(trainer: type[PPOTrainer]) -> type[PPOTrainer]:
    """The subclass of a trainer that works over all processes."""
    return type(f"Sharded{trainer.__name__}", (Sharded, trainer), {})


class Sharded:
    """What a trainer does otherwise over all processes, put before its class by `sharded`.

    Raises UserError for batches that cannot be shared equally.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.processes = count()
        self.rank = rank()
        self._updating = False
        require_shares(self.config, self.processes)
        self.policy = _Parallel(self.policy)
        # One stream is the same everywhere (prompts, minibatches). The other is each process's own: what the caller
        # gave, since its score may draw from it too. Every iteration seeds the second by the first.
        self._own, self.generator = self.generator or torch.Generator(), torch.Generator()
        self.generator.set_state(self._own.get_state())

    def rollout(self, prompts: Sequence[str]) -> Rollout:
        """The own share of the prompts, sampled from a stream of its own."""
        seed = int(torch.randint(2**40, (), generator=self.generator))
        self._own.manual_seed(seed * self.processes + self.rank)
        share = len(prompts) // self.processes
        common, self.generator = self.generator, self._own
        try:
            return super().rollout(prompts[self.rank * share : (self.rank + 1) * share])
        finally:
            self.generator = common

    def scores(self, rollout: Rollout) -> Tensor:
        """Score the own share; `rollout` then becomes the whole batch, and these are its scores."""
        rollout.scores = super().scores(rollout)
        whole = gathered(rollout)
        for f in fields(Rollout):
            setattr(rollout, f.name, getattr(whole, f.name))
        return rollout.scores

    def update(self, rollout: Rollout) -> dict[str, float]:
        """The update of the whole batch, each process's share of every minibatch; the metrics are those of all."""
        self._updating = True
        try:
            own = super().update(rollout)
        finally:
            self._updating = False
        of_all: list[dict] = [{}] * self.processes
        dist.all_gather_object(of_all, own)
        whole = {name: sum(one[name] for one in of_all) for name in own}
        return whole | {"ratio_max": max(one["ratio_max"] for one in of_all), "grad_norm": own["grad_norm"]}

    def loss(self, part: Rollout) -> tuple[Tensor, dict[str, float]]:
        total, logged = super().loss(part)
        return total * self.processes, logged  # the gradients are averaged, and the loss is a sum over tokens

    def _micro_batches(self, index: Tensor, rollout: Rollout) -> Iterator[Tensor]:
        yield from super()._micro_batches(index[self.rank :: self.processes] if self._updating else index, rollout)


def gathered(rollout: Rollout) -> Rollout:
    """The rollouts of all processes as one, in their order, padded to common widths."""
    device = rollout.mask.device
    to = lambda value, where: value.to(where) if isinstance(value, Tensor) else value
    mine = {f.name: to(getattr(rollout, f.name), "cpu") for f in fields(Rollout)}
    parts: list[dict] = [{}] * count()
    dist.all_gather_object(parts, mine)
    widths = [(one["mask"].shape[1] - one["action"].shape[1], one["action"].shape[1]) for one in parts]  # (P, T)
    P, T = (max(width) for width in zip(*widths))

    def joined_field(name: str):
        values = [one[name] for one in parts]
        if isinstance(values[0], list):
            return [item for value in values for item in value]
        if values[0] is None:  # not known yet
            return None
        if values[0].dim() > 1:
            left = name in ("features", "mask")
            pads = [(P - p if left else 0, T - t) for p, t in widths]
            values = [F.pad(v, (*(0, 0) * (v.dim() - 2), *pad)) for v, pad in zip(values, pads)]
        return torch.cat(values).to(device)

    return Rollout(**{name: joined_field(name) for name in mine})


def require_shares(c: PPOConfig, number: int, section: str = "") -> None:
    """Raises UserError for a batch that `number` processes cannot share equally."""
    for part, what in ((c.num_minibatches, "num_minibatches"), (c.rewrites_per_request, "rewrites_per_request")):
        needed = f"{section}batch_size is {c.batch_size}; {number} processes need a multiple of {number * part}"
        require(c.batch_size % (number * part) == 0, f"{needed}, which is processes times {what}")


def check(configs: Sequence[RunConfig], jobs: int, number: int) -> None:
    """Raises UserError for what several processes cannot do."""
    c = configs[0]
    single = len(configs) == 1 and jobs == 1
    require(single, "several processes train one run: give one --task, one --seed and no --jobs")
    require(c.api.token_budget == 0, "--api.token_budget is counted by one process; leave it out with several")
    require(not c.judge, "--reward judge:MODEL asks some questions twice in several processes: use one")
    require_shares(c.ppo, number, "--ppo.")
    if c.eval.oracle:
        require_shares(c.oracle, number, "--oracle.")

"""A run's folder, and how a run goes on after it was killed.

    runs/<name>/config.json         every option
                stages.json         finished stages and their seconds
                metrics.jsonl       one line per log step of each stage
                samples.jsonl       x, x', y, reward, KL at intervals
                snapshots.jsonl     rewrites of a few requests, always the same, at intervals of PPO on the prompter
                api.jsonl           the answers of models behind an API (api_failed.jsonl: replies without one)
                checkpoints/        a folder or file per finished stage; <stage>.state.safetensors while it runs
                plots/, report.html, explore.html, results.json

A finished stage is loaded, not done again. A stage that was killed goes on from its last saved state, and the log lines
after that state are dropped, so the files end up as if the run had not been interrupted. Every file is written beside
its place and renamed into it: a kill leaves the old one or the new one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from alignpro_mini.fast.transformer import FastTransformer
from alignpro_mini.jsonl import append_jsonl, jsonl, read_jsonl
from alignpro_mini.lab import processes
from alignpro_mini.lab.claim import Claim, claim, turn
from alignpro_mini.lab.config import RunConfig
from alignpro_mini.lab.device import use_threads, with_dtype
from alignpro_mini.lab.guards import runaway
from alignpro_mini.options import UserError
from alignpro_mini.remote.config import ApiConfig
from alignpro_mini.tokenizer import Tokenizer
from alignpro_mini.training import Saved
from alignpro_mini.transformer import Transformer
from alignpro_mini.weights.pretrained import load_pretrained, save_pretrained
from alignpro_mini.weights.tensors import load_state, read_json, replacing, save_state, write_json

API_FILE = "api.jsonl"  # in a run's folder: every answer of an API
SNAPSHOTS = "snapshots.jsonl"  # written by snapshots.py
LOGS = ("metrics.jsonl", "samples.jsonl", SNAPSHOTS)
SILENCE = 20.0  # seconds: a stage says at least so often that it is at work
TRIM_EVERY = 20.0  # seconds at least between two calls of `return_freed_memory`
# Options that a run may go on with changed: where it lies, how an API is asked, and what ends it.
DECIDE_ANSWERS = {f"api.{name}" for name in ("system", "extra", "judge_extra", "strip_thinking")}
MAY_CHANGE = {"out", "stop"} | {f"api.{f.name}" for f in dataclasses.fields(ApiConfig)} - DECIDE_ANSWERS
SHOWN = ("loss", "heldout_loss", "accuracy", "score_mean", "kl_k1", "entropy")  # what the progress line says


def return_freed_memory() -> None:
    """Give freed memory back to the system: glibc keeps it in pieces, of a real model's run gigabytes."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)


def frozen_names(module: nn.Module) -> set[str]:
    """The parameters that do not train, under every name they have (tied weights have two)."""
    return {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


class Run:
    """A run's folder. `Run(config, resume)` makes it, or finds it again.

    Raises FileExistsError when the folder holds a run and `resume` is False, UserError when it holds one with
    other options or another process works in it (with `wait`: waits for its end), OSError when it cannot be written.
    This process then uses as many threads as `device.shares` says.

    `second`: the folder belongs to another process, which started this one to make some of its stages (lab/beside.py).
    """

    def __init__(self, config: RunConfig, resume: bool = False, wait: bool = False, second: bool = False) -> None:
        self.config = with_dtype(config)  # before the folder's config.json is written
        self.path = Path(config.out) / config.run_name
        self.leads = processes.rank() == 0
        self.second = second
        self._claim: Claim | None = None
        self.met: dict[str, None] = {}  # the stages that this process came to, in this order
        self.told: set[str] = set()  # finished stages of which nothing more is printed
        use_threads(self.config)
        if second:
            self._claim = claim(self.path / "checkpoints", wait=True)
        elif self.leads:
            self._prepare(resume, wait)
        self.stages = self.finished()

    @property
    def may_share(self) -> bool:
        """Whether two processes can work in this folder in turn: not where the file system has no locks."""
        return bool(self._claim and self._claim.held)

    def finished(self) -> dict[str, dict]:
        """The finished stages of all processes, with their seconds."""
        file = self.path / "stages.json"
        return read_json(file) if file.exists() else {}

    def _prepare(self, resume: bool, wait: bool) -> None:
        """Check that the folder is new, or holds a run with the same options, and make it."""
        options = json.loads(json.dumps(dataclasses.asdict(self.config)))
        saved, kept = self.path / "config.json", self.path / "checkpoints"
        try:
            kept.mkdir(parents=True, exist_ok=True)
            self._claim = claim(self.path, wait)
            claim(kept, wait=True)  # until the second process of a run that was killed has ended
            begun = [self.path / "stages.json", self.path / "metrics.jsonl", *kept.glob("*")] if saved.exists() else []
            if not resume and any(path.exists() for path in begun):
                mend = "already holds a run: add --resume to go on with it, or --name NAME to start another"
                raise FileExistsError(f"{self.path} {mend}")
            if resume and saved.exists():
                self._same_options(read_json(saved), options)
            for left in self.path.rglob(".*.tmp"):  # half-written files of a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            write_json(saved, options)
        except OSError as error:
            if error.errno is None:  # the one above
                raise
            raise OSError(f"{self.path} cannot be written ({error.strerror}): choose another with --out") from None

    def _same_options(self, old: dict, new: dict) -> None:
        def flat(tree: dict, prefix: str = "") -> dict:
            parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in tree.items()]
            return {key: value for part in parts for key, value in part.items()}

        old, new = flat(old), flat(new)
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in MAY_CHANGE]
        for name in ("api.base_url", "api.judge_base_url"):
            if old.get(name) != new.get(name):
                print(f"--{name} was {old.get(name)!r}, now {new.get(name)!r}: the answers that are kept still serve")
        if changed:
            changes = ", ".join(f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in changed[:4])
            raise UserError(
                f"{self.path} was started with other options ({changes}): use these, another --name or --out"
            )

    def once(
        self,
        name: str,
        make: Callable[[RunStage], object],
        load: Callable[[], object],
        save: Callable[[object], None],
        together: bool = False,
    ):
        """The result of a stage: loaded if it is finished, else made, saved and marked as finished.

        Of several processes the first one makes it, or all of them `together`; the first one saves it.
        """
        self.met[name] = None
        if name in self.stages:
            if name not in self.told:
                print(f"[{name}] already done in {self.stages[name]['seconds']:.0f} s, loaded")
            return load()
        if not self.leads:
            result = make(RunStage(self, name)) if together else None
            processes.wait()  # until it is saved
            # Its own line only: the first process may have finished the next stage already.
            self.stages[name] = read_json(self.path / "stages.json")[name]
            return result if together else load()
        stage = RunStage(self, name)
        if not stage.state_path.exists():
            self.forget_after(name, -1)  # what an earlier try logged, from its step 0 on
        with stage.signs_of_life():
            result = make(stage)
        save(result)
        with self._turn():
            self.stages = self.finished() | {name: {"seconds": round(stage.seconds(), 2)}}
            write_json(self.path / "stages.json", self.stages)
        stage.state_path.unlink(missing_ok=True)
        print(f"[{name}] done in {self.stages[name]['seconds']:.0f} s")
        processes.wait()
        return result

    def model(
        self, name: str, make: Callable[[RunStage], Transformer], tokenizer: Tokenizer, together: bool = False
    ) -> Transformer:
        """A stage whose result is a model, kept as a folder that `load_pretrained` reads."""
        folder = self.path / "checkpoints" / name

        def save(model: Transformer) -> None:
            shutil.rmtree(folder, ignore_errors=True)  # left by a try that was killed before its stage was marked
            save_pretrained(model, folder, tokenizer)

        load = lambda: load_pretrained(folder, model_class=FastTransformer)[0]
        return self.once(name, make, load, save, together)

    def json(self, name: str, make: Callable[[RunStage], dict]) -> dict:
        """A stage whose result is a JSON object."""
        path = self.path / "checkpoints" / f"{name}.json"
        load = lambda: read_json(path)
        return self.once(name, make, load, lambda value: write_json(path, value))

    def tensors(
        self, name: str, make: Callable[[RunStage], tuple[dict[str, Tensor], dict]]
    ) -> tuple[dict[str, Tensor], dict]:
        """A stage whose result is named tensors and JSON-able facts about them."""
        path = self.path / "checkpoints" / f"{name}.safetensors"
        return self.once(name, make, lambda: load_state(path), lambda made: save_state(path, *made))

    def generator(self, name: str) -> torch.Generator:
        """A random stream of its own for each purpose: no stage's draws depend on another's."""
        seed = int.from_bytes(name.encode(), "little") % (2**61 - 1)
        return torch.Generator().manual_seed((seed * 1_000_003 + self.config.seed) % (2**63 - 1))

    def append(self, file: str, rows: list[dict]) -> None:
        if self.leads:
            with self._turn():
                append_jsonl(self.path / file, rows)

    def rows(self, file: str) -> list[dict]:
        return read_jsonl(self.path / file)

    def forget_after(self, stage: str, step: int) -> None:
        """Drop the log lines of a stage that lie after the state it goes on from."""
        if self.leads:
            self._rewrite(lambda rows: [r for r in rows if r["stage"] != stage or r["step"] <= step])

    def in_order(self) -> None:
        """Bring log lines and finished stages into the order of the stages: a second process mixed them."""
        place = {name: i for i, name in enumerate(self.met)}.get
        self.stages = dict(sorted(self.stages.items(), key=lambda item: place(item[0], len(self.met))))
        write_json(self.path / "stages.json", self.stages)
        self._rewrite(lambda rows: sorted(rows, key=lambda r: place(r["stage"], len(self.met))))

    def _rewrite(self, changed: Callable[[list[dict]], list[dict]]) -> None:
        with self._turn():
            for path in (self.path / file for file in LOGS):
                if path.exists():
                    with replacing(path) as beside:
                        beside.write_text(jsonl(changed(read_jsonl(path))), encoding="utf-8")

    def _turn(self) -> AbstractContextManager[None]:
        """For a change of a file that both processes of a run write."""
        return turn(self.path / "config.json")


class RunStage:
    """A `training.Stage` of a run: progress on the screen, log and saved state in the run's folder."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.state_path = run.path / "checkpoints" / f"{name}.state.safetensors"
        self._latest = ""  # the last logged metrics, for the progress line
        self._before = 0.0  # seconds spent before a kill
        self._clock = time.perf_counter()
        self._next_save = 0.0  # earliest time of the next save
        self._last = -1  # the stage's last step
        self._bar: tqdm | None = None
        self._ppo: list[dict] = []  # its iterations so far
        self._stopped = False
        self.doing = ""  # a part of the stage, for the signs of life
        self._say(f"[{name}]")

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)  # beside a progress bar
        sys.stdout.flush()
        self._spoke = time.perf_counter()

    @contextmanager
    def signs_of_life(self) -> Iterator[None]:
        """While the block runs, a line after every SILENCE seconds without one: one batch of answers may take minutes."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SILENCE / 10):
                if time.perf_counter() - self._spoke >= SILENCE:
                    self._say(f"[{self.name}] {self.doing}{': ' * bool(self.doing)}at work for {self.seconds():.0f} s")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._clock

    def save(self, step: int, *things: Saved, **meta) -> None:
        """Keep the state after `step` steps: trainable weights, optimiser moments, generators, and JSON-able `meta`.

        Frozen weights are left out: they are where the stage took them from, and may be most of a large model. States
        are skipped as long as writing the last one took more than a tenth of the time since; the stage's last one never.
        """
        begun = time.perf_counter()
        early = begun < self._next_save and step != self._last and not self._stopped
        if early or not self.run.leads:
            return
        tensors: dict[str, Tensor] = {}
        groups = {}
        for i, thing in enumerate(things):
            if isinstance(thing, nn.Module):
                frozen = frozen_names(thing)
                tensors |= {f"{i}.{k}": v for k, v in thing.state_dict().items() if k not in frozen}
            elif isinstance(thing, torch.Generator):
                tensors[f"{i}.state"] = thing.get_state()
            else:
                state = thing.state_dict()
                groups[str(i)] = state["param_groups"]
                tensors |= {f"{i}.{p}.{k}": v for p, moments in state["state"].items() for k, v in moments.items()}
        save_state(self.state_path, tensors, {"step": step, "groups": groups, "meta": meta, "seconds": self.seconds()})
        self._next_save = begun + 10 * (time.perf_counter() - begun)

    def restore(self, *things: Saved) -> tuple[int, dict]:
        """Bring `things` (the same, in the same order, as in `save`) to the saved state; returns its step and meta."""
        if not self.state_path.exists():
            self.run.forget_after(self.name, 0)
            return 0, {}
        tensors, saved = load_state(self.state_path)
        for i, thing in enumerate(things):
            mine = {k.partition(".")[2]: v for k, v in tensors.items() if k.partition(".")[0] == str(i)}
            if isinstance(thing, nn.Module):
                frozen = frozen_names(thing)
                missing, unexpected = thing.load_state_dict(mine, strict=False)
                if unexpected or set(missing) - frozen:
                    raise UserError(f"{self.state_path} does not fit the model: delete it to begin this stage again")
            elif isinstance(thing, torch.Generator):
                thing.set_state(mine["state"])
            else:
                state: dict[int, dict] = {}
                for key, value in mine.items():
                    p, _, moment = key.partition(".")
                    state.setdefault(int(p), {})[moment] = value
                thing.load_state_dict({"state": state, "param_groups": saved["groups"][str(i)]})
        self._before = saved["seconds"]
        self.run.forget_after(self.name, saved["step"])
        logged = [row for row in self.run.rows("metrics.jsonl") if row["stage"] == self.name and "kl_k1" in row]
        self._ppo = [row for row in logged if row["step"] <= saved["step"]]
        self._stopped = self.run.config.stop and any("stopped" in row for row in self._ppo)
        print(f"[{self.name}] goes on from step {saved['step']}")
        return saved["step"], saved["meta"]

    def progress(self, start: int, stop: int) -> Iterator[int]:
        """The steps from `start` to `stop`, with a progress bar in a terminal.

        Elsewhere a line is printed every tenth of the stage, and at least once a minute, with the time left.
        """
        self._last = stop
        self._bar = tqdm(
            range(start, stop), initial=start, total=stop, desc=self.name, disable=self.run.second or None, leave=False
        )
        begun = trimmed = self._spoke = time.perf_counter()
        for step in self._bar:
            if self._stopped:
                return
            yield step
            done, now = step + 1, time.perf_counter()
            if self._bar.disable and (done % math.ceil(stop / 10) == 0 or done == stop or now - self._spoke >= 60):
                left = (now - begun) / (done - start) * (stop - done)
                self._say(f"[{self.name}] step {done} of {stop}, {left:.0f} s left{self._latest}")
            if now - trimmed >= TRIM_EVERY:
                return_freed_memory()
                trimmed = now

    def log(self, step: int, metrics: dict, samples: Sequence[dict] = ()) -> None:
        """One line of metrics.jsonl, and the samples: appended to samples.jsonl, the first three shown.

        Raises FloatingPointError naming a metric that is NaN or infinite.
        """
        for key, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise FloatingPointError(f"{self.name} step {step}: {key} is {value}; the last good state is kept")
        if metrics.get("kl_k1", 0) < -1:
            problem = f"{self.name} step {step}: the KL (k1) is {metrics['kl_k1']:.2f} nats; its mean cannot be below 0"
            warnings.warn(f"{problem}: are tokens scored as they were sampled (temperature, mask)?", stacklevel=2)
        row = {"stage": self.name, "step": step, **metrics}
        if self.run.config.stop and "kl_k1" in row:
            self._ppo.append(row)
            if why := runaway(self._ppo):
                self._stopped, row["stopped"] = True, why
                self._say(f"[{self.name}] ends after step {step}: {why} (--stop false leaves this check out)")
        self.run.append("metrics.jsonl", [row])
        self._latest = "".join(f", {k} {metrics[k]:.3f}" for k in SHOWN if metrics.get(k) is not None)
        if self._bar is not None:
            self._bar.set_postfix_str(self._latest[2:])
        if samples:
            self.samples(step, samples)

    def samples(self, step: int, rows: Sequence[dict], show: bool = True) -> None:
        """Append samples (x, x_prime, y, reward, kl) to samples.jsonl and show the first three."""
        self.run.append("samples.jsonl", [{"stage": self.name, "step": step, **row} for row in rows])
        for row in rows[: 3 * show]:
            texts = {k: " ".join(str(row[k]).split()) for k in ("x", "x_prime", "y")}
            lines = "".join(f"    {k.replace('_prime', chr(39)):3s} {v[:150]}\n" for k, v in texts.items() if v)
            head = f"  step {step}  reward {row['reward']:+.2f}  KL {row['kl']:.2f}\n"
            self._say(head + lines.rstrip("\n"))

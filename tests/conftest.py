"""What the tests share: small fakes, one for each interface, so that a test takes milliseconds; the fixture `ahead`."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported: OpenMP threads that spin while they wait slow each other down on a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import pytest
import torch

from alignpro_mini.experiments.gradient import Letters, random_lm  # noqa: F401
from alignpro_mini.training import SilentStage
from alignpro_mini.transformer import Transformer, TransformerConfig

NO_PARAMS = SimpleNamespace(params={})
POOL, JOB = pytest.StashKey(), pytest.StashKey()


def pytest_collection_modifyitems(items):
    """Tests that wait for a process come last: until then the process has the time of all others."""
    items.sort(key=lambda item: item.get_closest_marker("ahead") is not None)  # a stable sort


def pytest_collection_finish(session):
    """Start what the tests marked `ahead(run=function)` wait for, in their order: processes for the second core.

    function(**the test's parameters) runs in a thread, beside the other tests; the fixture `ahead` is what it returns.
    """
    if session.config.option.collectonly:
        return
    pool = session.config.stash[POOL] = ThreadPoolExecutor(max_workers=1)
    for item in session.items:
        if mark := item.get_closest_marker("ahead"):
            item.stash[JOB] = pool.submit(mark.kwargs["run"], **getattr(item, "callspec", NO_PARAMS).params)


def pytest_sessionfinish(session):
    if pool := session.config.stash.get(POOL, None):
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """One undisturbed run of train.py that learns nothing: its folder, to be read only, and what it printed."""
    from test_end_to_end import finish

    out = tmp_path_factory.mktemp("whole")
    printed = finish(out)
    return out / "tiny-quality-seed0", printed


@pytest.fixture
def ahead(request):
    return request.node.stash[JOB].result()


def in_a_folder(check):
    """For `ahead(run=...)`: check(folder) in a temporary folder; gives its exception, for the test to raise, or None."""

    def run():
        with tempfile.TemporaryDirectory() as place:
            try:
                check(Path(place))
            except Exception as error:
                return error

    return run


def lookup_lm(rows: dict[int, dict[int, float]], vocabulary: int = 12, max_len: int = 40) -> Transformer:
    """A model whose next token depends on the last one only: rows[last][next] is its exact probability.

    A token without a row is followed by any token, all equally likely; a `next` left out never comes. The blocks add
    nothing and the embedding is one-hot, so the last norm times the output matrix reads one row of the table.
    """
    config = TransformerConfig(
        vocabulary, d_model=vocabulary, n_layers=1, n_heads=1, max_len=max_len, tied=False, norm_eps=1e-12
    )
    model = Transformer(config)
    table = torch.zeros(vocabulary, vocabulary)  # (last, next) logits
    for last, following in rows.items():
        table[last] = -1e9
        for token, p in following.items():
            table[last, token] = torch.tensor(p).log()
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(vocabulary))
        model.unembed.weight.copy_(table.T / vocabulary**0.5)
        model.blocks[0].attn.out.weight.zero_()
        model.blocks[0].mlp.down.weight.zero_()
    return model.eval()


class FakeStage(SilentStage):
    """A stage that keeps its log in memory and saves nothing."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.shown: list[dict] = []

    def log(self, step: int, metrics: dict, samples=()) -> None:
        self.rows.append({"step": step} | metrics)
        self.shown += samples

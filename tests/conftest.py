"""What pytest does for all tests: processes that run beside them (`ahead`), and one whole run that they share."""

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

# Before torch is imported. A second thread brings nothing at the tests' sizes, and takes the core of the processes beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

NO_PARAMS = SimpleNamespace(params={})
POOL, JOB = pytest.StashKey(), pytest.StashKey()


def pytest_collection_modifyitems(items):
    """Tests that wait for a process come last: until then the process has the time of all others."""
    items.sort(key=lambda item: item.get_closest_marker("ahead") is not None)  # a stable sort


def pytest_collection_finish(session):
    """Start what the tests marked `ahead(run=function)` wait for, in their order: processes for the second core.

    function(**the test's parameters) runs in a thread, beside the other tests; the fixture `ahead` is what it returns.
    Two at a time: at the end no other test has a use for the first core.
    """
    if session.config.option.collectonly:
        return
    pool = session.config.stash[POOL] = ThreadPoolExecutor(max_workers=2)
    for item in session.items:
        if mark := item.get_closest_marker("ahead"):
            item.stash[JOB] = pool.submit(mark.kwargs["run"], **getattr(item, "callspec", NO_PARAMS).params)


def pytest_sessionfinish(session):
    if pool := session.config.stash.get(POOL, None):
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """One undisturbed run of train.py that learns nothing: its folder, to be read only, and what it printed.

    In a fresh process, as a user starts it; the runs that are compared with it need not import torch anew (warm.py).
    """
    from micro import start

    out = tmp_path_factory.mktemp("whole")
    process = start(out)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed[-3000:]
    return out / "micro-quality-seed0", printed


@pytest.fixture
def ahead(request):
    return request.node.stash[JOB].result()

import gc
import os
import sys

# Without bytecode every process that a test starts compiles the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Before torch, and for the processes that tests start: threads of one small operation wait for one
# another, which takes many times the work where something else has the second core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

sys.dont_write_bytecode = False

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the tests marked cuda do not need it
    pass
else:
    # Derandomised, so that a failure is the same one on every machine; torch's first call is slow.
    settings.register_profile(
        "lidar",
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("lidar")


def pytest_collection_finish():
    gc.freeze()  # else each full collection visits every module and every test again


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For -n alone, one part for each process at first: fixtures of few modules run twice."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def with_threads():
    """Sets how many threads torch has, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

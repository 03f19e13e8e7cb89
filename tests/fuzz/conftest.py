"""Fuzz tests: a few examples each in ``make test``, 20,000 in ``make fuzz``.

Every input has to end in success or in a ``UserError`` within 10 seconds and 2 GiB.
"""

import os
import resource
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": timedelta(seconds=10),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("few", max_examples=25, derandomize=True, database=None, **_COMMON)
settings.register_profile(
    "fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20000")), **_COMMON
)


def pytest_configure(config):
    if config.getoption("--hypothesis-profile", None) is None:
        settings.load_profile("few")


@pytest.fixture(autouse=True)
def bounded_memory():
    """Fail if an example has taken more than 2 GiB.

    This is the peak of the process above what it held before or holds afterwards: thousands of
    models that were built leave some 30 KiB each in the libraries.
    """
    before = _peak()
    yield
    statm = Path("/proc/self/statm")
    kept = 0
    if statm.exists():
        kept = int(statm.read_text().split()[1]) * resource.getpagesize()
    assert _peak() - max(before, kept) < 2 * 2**30


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Fuzz tests: a few examples each in ``make test``, 20,000 in ``make fuzz``.

Every input has to end in success or in a ``UserError`` within 10 seconds and 2 GiB.
"""

import functools
import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

_COMMON = {
    "deadline": timedelta(seconds=10),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("few", max_examples=25, derandomize=True, database=None, **_COMMON)
settings.register_profile(
    "fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20000")), **_COMMON
)
_STATUS = Path("/proc/self/status")
_LIMIT = 2 * 2**20  # KiB


def pytest_collection_modifyitems(config, items):
    """Few examples, unless the command names a profile. Other tests keep their own settings."""
    few = config.getoption("--hypothesis-profile", None) is None
    tests = {item.obj for item in items if item.path.parent == Path(__file__).parent}
    for test in filter(is_hypothesis_test, tests if few else ()):
        settings.get_profile("few")(test)


@pytest.fixture(autouse=True)
def bounded_memory(request):
    """Fail for an example during which the memory of the process grows by more than 2 GiB."""
    test = request.function
    if not (is_hypothesis_test(test) and _STATUS.exists()):  # only Linux has such a peak
        yield
        return
    example = test.hypothesis.inner_test

    @functools.wraps(example)
    def measured(*arguments, **named):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the current memory again
        before = _kib("VmRSS")
        example(*arguments, **named)
        assert _kib("VmHWM") - before < _LIMIT

    test.hypothesis.inner_test = measured
    yield
    test.hypothesis.inner_test = example


def _kib(field):
    """A number of ``/proc/self/status``: the memory of the process, or its peak."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])

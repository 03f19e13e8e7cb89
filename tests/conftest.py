"""Small runs that several tests look at."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process a core already

import pytest

from botvision.data.shapes import write_shapes
from tiny import TINY_SETTINGS


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A COCO folder of 7 + 4 pictures of shapes."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=7, val=4, image_size=64)
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory):
    """A finished run of 8 steps on ``tiny_data``; tests must not write into it."""
    from botvision.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "tiny"
    steps = ["--max-steps", "8", "--eval-steps", "4", "--out", str(out)]
    main(["train", str(tiny_data), *TINY_SETTINGS, *steps])
    return out


def _data_set(name: str) -> Path:
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BOTVISION_DATA", beside)) / name
    if not folder.exists():
        pytest.skip(
            f"no {folder}: the dataset {name} is not part of the repository; set BOTVISION_DATA to "
            "a folder that contains it"
        )
    return folder


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    return _data_set("coco-mini")


@pytest.fixture(scope="session")
def nuclei() -> Path:
    return _data_set("nuclei")


@pytest.fixture(scope="session")
def cifar10() -> Path:
    return _data_set("cifar10.zip")

import os
from pathlib import Path

import pytest


def _data_set(name: str) -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("BOTVISION_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set BOTVISION_DATA to a folder with the data set {name}")
    return folder


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    return _data_set("coco-mini")


@pytest.fixture(scope="session")
def nuclei() -> Path:
    return _data_set("nuclei")

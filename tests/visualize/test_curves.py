import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from botvision.errors import UserError
from botvision.visualize.curves import _running_mean, plot_curves

MASK_COLOR = (0xD5, 0x5E, 0x00)


def train_event(step: int, scale: float = 1.0) -> dict:
    parts = {"loss_classifier": 0.5, "loss_box_reg": 0.3, "loss_mask": 0.4, "loss_objectness": 0.02}
    parts = {name: scale * value / (1 + step / 50) for name, value in parts.items()}
    return {
        "event": "train",
        "step": step,
        "epoch": step / 100,
        "loss": sum(parts.values()),
        **parts,
        "lr": 0.01,
        "seconds": float(step),
    }


def eval_event(step: int, *tasks: str, ap: float = 0.3) -> dict:
    return {"event": "eval", "step": step} | {task: {"AP": ap, "AP50": 1.5 * ap} for task in tasks}


TRAIN = [train_event(step) for step in range(0, 200, 10)]
EVALS = [eval_event(step, "bbox", "segm", ap=0.1 + step / 1000) for step in (50, 100, 190)]


def write(path: Path, events: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return path


def pictures(folder: Path, events: list[dict], tail: str = "") -> list[np.ndarray]:
    folder.mkdir()
    paths = plot_curves(write(folder / "metrics.jsonl", events, tail), folder / "plots")
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(axis=2).any())


def test_writes_loss_and_ap(tmp_path):
    written = plot_curves(write(tmp_path / "metrics.jsonl", TRAIN + EVALS), tmp_path / "a" / "b")
    assert written == [tmp_path / "a" / "b" / "loss.png", tmp_path / "a" / "b" / "ap.png"]
    for path in written:
        with Image.open(path) as picture:
            assert picture.info["dpi"] == pytest.approx((160, 160), abs=0.1)
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 50


def test_no_evaluation_gives_the_loss_alone(tmp_path):
    written = plot_curves(write(tmp_path / "metrics.jsonl", TRAIN), tmp_path)
    assert written == [tmp_path / "loss.png"]
    assert not (tmp_path / "ap.png").exists()


def test_broken_lines_and_unknown_events_are_skipped(tmp_path):
    clean = pictures(tmp_path / "clean", TRAIN + EVALS)
    strange = [{"event": "start", "step": 3, "loss": 99}, {"loss": 99}, *TRAIN, *EVALS]
    broken = pictures(tmp_path / "broken", strange, tail='{"event": "train", "step": 200, "lo')
    for a, b in zip(clean, broken, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resumed_run_overrides_the_steps_it_repeats(tmp_path):
    clean = pictures(tmp_path / "clean", TRAIN)
    lost = [train_event(step, scale=7) for step in (150, 160)]
    resumed = pictures(tmp_path / "resumed", TRAIN[:15] + lost + TRAIN[15:])
    np.testing.assert_array_equal(clean[0], resumed[0])
    kept = pictures(tmp_path / "kept", TRAIN + lost)
    assert (clean[0] != kept[0]).any()


def test_detection_has_no_mask_curve(tmp_path):
    both = pictures(tmp_path / "both", TRAIN + EVALS)[1]
    box_evals = [eval_event(step, "bbox") for step in (50, 99)]
    boxes = pictures(tmp_path / "boxes", TRAIN + box_evals)[1]
    assert has_color(both, MASK_COLOR)
    assert not has_color(boxes, MASK_COLOR)

    absent = [event | {"segm": {"AP": -1.0, "AP50": -1.0}} for event in box_evals]
    np.testing.assert_array_equal(pictures(tmp_path / "absent", TRAIN + absent)[1], boxes)


def test_one_step_and_a_diverged_loss_are_drawn(tmp_path):
    assert has_color(pictures(tmp_path / "one", TRAIN[:1])[0], MASK_COLOR)
    diverged = [*TRAIN, train_event(200, scale=float("nan")), train_event(210, scale=float("inf"))]
    assert len(pictures(tmp_path / "diverged", diverged)) == 1


def test_running_mean_is_the_mean_of_the_finite_neighbors():
    values = np.random.default_rng(0).random(400)
    values[[3, 200, 201]] = np.nan, np.inf, np.nan
    expected = []
    for index in range(400):
        near = values[max(0, index - 5) : index + 6]
        expected.append(near[np.isfinite(near)].mean())
    np.testing.assert_allclose(_running_mean(values), expected, rtol=1e-12)


def test_a_missing_file_or_one_without_training_is_the_users_fault(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl: no such file"):
        plot_curves(tmp_path / "nothing.jsonl", tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl: has no train event"):
        plot_curves(write(tmp_path / "metrics.jsonl", EVALS), tmp_path)


def test_pyplot_and_torch_stay_unloaded():
    code = "import sys, botvision.visualize; print([m for m in sys.modules if m in sys.argv])"
    command = [sys.executable, "-c", code, "matplotlib.pyplot", "torch"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

"""The command ``botvision train``: initial weights, end of training and saved files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from botvision.cli.main import main
from commandline import fail
from tiny import TINY_SETTINGS


def train(data, out, *more):
    main(["train", str(data), *TINY_SETTINGS, "--out", str(out), *map(str, more)])
    return out


def events(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_run_goes_on_from_another_ones_weights(tiny_run, tiny_data, tmp_path, capsys):
    run = train(tiny_data, tmp_path / "run", "--weights", tiny_run, "--max-steps", 0)
    text = capsys.readouterr().out
    assert "classes with weights in the file: circle, square, triangle, ring" in text
    before, after = (load_file(r / "best.safetensors") for r in (tiny_run, run))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # These are metrics of the best weights, so they are at least as good as those of the last.
    old, new = (json.loads((r / "metrics.json").read_text()) for r in (tiny_run, run))
    assert new["step"] == 0
    assert new["segm"]["AP"] >= old["segm"]["AP"] - 1e-9
    assert not (run / "checkpoints" / "last.ckpt").exists()


def test_other_classes_get_a_head_of_their_own(tiny_run, tiny_data, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "val"):
        (data / part).symlink_to(tiny_data / part)
    (data / "annotations").mkdir()
    for file in (tiny_data / "annotations").iterdir():
        text = file.read_text().replace('"circle"', '"disc"')
        (data / "annotations" / file.name).write_text(text)
    train(data, tmp_path / "run", "--weights", tiny_run, "--max-steps", 1)
    text = capsys.readouterr().out
    assert "classes with weights in the file: square, triangle, ring\n" in text
    assert "new classes with random weights: disc\n" in text
    assert "unused classes of the file: circle\n" in text


def test_weights_of_another_detector_are_refused_with_the_flags_to_give(
    tiny_data, tmp_path, capsys
):
    model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    save_file(model.state_dict(), tmp_path / "v2.safetensors")
    line = fail(
        capsys,
        *("train", tiny_data, *TINY_SETTINGS, "--weights", tmp_path / "v2.safetensors"),
        *("--max-steps", 1, "--out", tmp_path / "run"),
    )
    assert "v2.safetensors: not the weights of this architecture" in line
    assert "--detector.fpn-channels 256, --detector.rpn-convs 2, --detector.box-convs 4" in line


def test_a_run_that_gets_no_better_stops_early_and_is_complete(tiny_data, tmp_path, capsys):
    # Without training, no evaluation can be better than the first.
    settings = ["--lr", 0, "--max-steps", 20, "--eval-steps", 2, "--patience", 2]
    run = train(tiny_data, tmp_path / "run", *settings, "--norm", "frozen")
    assert "stopped at step 6: 2 evaluations without a better one" in capsys.readouterr().out
    assert [event["step"] for event in events(run, "eval")] == [2, 4, 6]
    train(tiny_data, run, "--max-steps", 20, "--resume")
    assert "complete, 6 of 20 steps; raise patience to continue" in capsys.readouterr().out
    assert len(events(run, "train")) == 6
    train(tiny_data, run, "--patience", 3, "--resume")
    assert "stopped at step 8: 3 evaluations" in capsys.readouterr().out
    train(tiny_data, run, "--patience", 0, "--max-steps", 10, "--resume")
    assert [event["step"] for event in events(run, "eval")] == [2, 4, 6, 8, 10]
    for steps in (10, 5):
        train(tiny_data, run, "--max-steps", steps, "--resume")
        assert (
            f"complete, 10 of {steps} steps; raise max_steps to continue" in capsys.readouterr().out
        )


def test_frozen_stages_and_recomputed_blocks(tiny_data, tmp_path, capsys):
    settings = ["--max-steps", 2, "--freeze-stages", 2, "--grad-checkpointing", "true"]
    start = train(tiny_data, tmp_path / "start", "--max-steps", 0)
    run = train(tiny_data, tmp_path / "run", *settings)
    assert "peak memory" in capsys.readouterr().out
    before, after = (load_file(r / "best.safetensors") for r in (start, run))
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {n for n in before if n.startswith(tuple(f"backbone.body.{m}" for m in _FROZEN))}
    assert frozen <= same
    assert "backbone.body.layer2.0.conv1.weight" not in same


_FROZEN = ("conv1.", "bn1.", "layer1.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patience", 2], "--patience: requires --eval-steps, because it counts evaluations"),
        (["--max-steps", -1], "--max-steps -1: must be at least 0"),
        (["--max-instances", -1], "--max-instances -1: must be at least 0"),
        (["--freeze-stages", 7], "--freeze-stages 7: must be between 0 and 5"),
        (
            ["--model-args", "{positon: none}"],
            "--model-args: botnet50 does not accept 'positon'; did you mean 'position'?",
        ),
        (["--model-args", "{blocks: 2}"], "--model-args: botnet50 does not accept {"),
        (["--weights", "nowhere.pth"], "nowhere.pth: no such weights file"),
        (
            ["--compile", "true", "--grad-checkpointing", "true"],
            "--compile: cannot be combined with --grad-checkpointing",
        ),
    ],
)
def test_settings_that_cannot_work(tiny_data, tmp_path, capsys, flags, message):
    line = fail(
        capsys,
        *("train", tiny_data, *TINY_SETTINGS, "--out", tmp_path / "run", "--max-steps", 1),
        *flags,
    )
    assert message in line


def test_the_logged_loss_does_not_depend_on_accumulate(tiny_data, tmp_path):
    """Lightning divides the loss of a micro-batch by their number."""
    out = tmp_path / "run"
    settings = [*TINY_SETTINGS, "--batch-size", "4", "--accumulate", "2", "--norm", "frozen"]
    main(["train", str(tiny_data), *settings, "--max-steps", "2", "--out", str(out)])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["event"] == "train"):
        parts = [value for name, value in line.items() if name.startswith("loss_")]
        assert len(parts) == 5
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)

"""The commands train, eval and predict on class folders."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from botvision.attention.position import resize_relative
from botvision.cli.main import main
from botvision.config import ClassificationConfig
from botvision.data.samplers import sample_images
from botvision.settings import recipe_names
from botvision.tasks.checkpoint import ClassifierSpec
from botvision.training.optimizer import make_optimizer
from class_files import CLASSES, write_classes
from commandline import fail, train_config
from killed import run_and_kill

# With these settings, the result for an image does not depend on its batch.
EXACT = ["--device", "cpu", "--precision", "32"]
SETTINGS = [
    *("--model", "botnet50_s1"),
    # Not zero-initialized, otherwise the attention would hardly matter in so few steps.
    *("--model-args", "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32], zero_init_last: false}"),
    *("--image-size", "48", "--batch-size", "4", "--base-lr", "0.02", "--base-batch-size", "4"),
    *EXACT,
    *("--workers", "0", "--warmup-steps", "2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"))


def train(data, out, *more):
    main(["train", str(data), *SETTINGS, "--out", str(out), *map(str, more)])
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of 6 steps; tests must not write into it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(data, out, "--max-steps", 6, "--eval-steps", 3)


def events(out, kind="train"):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def losses(out):
    return [event["loss"] for event in events(out)]


def state(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def test_train_writes_the_run_folder(run):
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "metrics.json", "best.safetensors"),
        *("checkpoints", "plots", "predictions"),
    }
    names = {path.name for path in (run / "plots").iterdir()}
    assert names == {"loss.png", "accuracy.png", "confusion.png"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["step"] == 6
    assert set(metrics["per_class"]) == set(CLASSES)
    assert sum(row["images"] for row in metrics["per_class"].values()) == 7
    assert [event["step"] for event in events(run, "eval")] == [3, 6]
    assert all(0 <= event["data_seconds"] <= event["seconds"] for event in events(run))


def test_eval_of_the_run_is_its_own_evaluation(run, data, tmp_path):
    main(["eval", str(run), str(data), "--out", str(tmp_path), *EXACT])
    got = json.loads((tmp_path / "metrics.json").read_text())
    best = max(event["top1"] for event in events(run, "eval"))
    assert got["top1"] == best
    assert got["split"] == "val"
    assert (tmp_path / "predictions" / "confusion.csv").is_file()


def test_a_run_in_bf16_is_evaluated_and_used_in_bf16(data, tmp_path):
    bf16 = ["--precision", "bf16"]
    out = train(data, tmp_path / "run", *bf16, "--max-steps", 2)
    own = json.loads((out / "metrics.json").read_text())
    listed = {}
    for precision in ("bf16", "32"):
        folder = tmp_path / precision
        settings = ["--out", str(folder), "--device", "cpu", "--precision", precision]
        main(["eval", str(out), str(data), *settings, "--batch-size", "4"])
        got = json.loads((folder / "metrics.json").read_text())
        assert got["precision"] == precision
        assert (got["loss"] == own["loss"]) == (precision == "bf16")
        main(["predict", str(out), str(data / "val" / "red"), *settings])
        found = json.loads((folder / "predictions.json").read_text())
        listed[precision] = [best["probability"] for row in found for best in row["classes"]]
    assert listed["bf16"] != listed["32"]
    assert listed["bf16"] == pytest.approx(listed["32"], abs=0.02)


def test_eval_of_some_images(run, data, tmp_path, capsys):
    """``eval --limit`` agrees with ``predict`` on each image drawn from the sorted files."""
    arguments = ["eval", str(run), str(data), "--out", str(tmp_path), *EXACT]
    main([*arguments, "--limit", "4"])
    assert "4 of the 7 images" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["images"], metrics["images_in_split"]) == (4, 7)
    files = [path for name in sorted(CLASSES) for path in sorted((data / "val" / name).iterdir())]
    drawn = [files[index] for index in sample_images(7, 4)]
    main(["predict", str(run), *map(str, drawn), "--out", str(tmp_path / "each"), *EXACT])
    listed = json.loads((tmp_path / "each" / "predictions.json").read_text())
    for name, values in metrics["per_class"].items():
        own = [row for row, path in zip(listed, drawn, strict=True) if path.parent.name == name]
        right = sum(row["classes"][0]["class"] == name for row in own)
        assert (values["images"], round(values["accuracy"] * len(own))) == (len(own), right)
    assert "--limit -1: must be at least 1" in fail(capsys, *arguments, "--limit", "-1")


def test_eval_at_another_size_with_either_table_rule(run, data, tmp_path):
    seen = {}
    for rule in ("slice", "interpolate"):
        out = tmp_path / rule
        more = ["--image-size", "32", "--table-resize", rule, "--batch-size", "3"]
        main(["eval", str(run), str(data), "--out", str(out), *EXACT, *more])
        seen[rule] = json.loads((out / "metrics.json").read_text())
        assert seen[rule]["image_size"] == 32
    assert seen["slice"]["loss"] != seen["interpolate"]["loss"]


def test_predict_lists_the_best_classes_and_draws_a_sheet(run, data, tmp_path, capsys):
    images = sorted((data / "val" / "red").iterdir())
    main(["predict", str(run), str(data / "val" / "red"), "--out", str(tmp_path)])
    listed = json.loads((tmp_path / "predictions.json").read_text())
    assert [row["file"] for row in listed] == [str(path) for path in images]
    for row in listed:
        shares = [best["probability"] for best in row["classes"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {best["class"] for best in row["classes"]} == set(CLASSES)
        assert (row["width"], row["height"]) == (37, 32)
    assert Image.open(tmp_path / "predictions.png").width > 600
    assert f"{images[0]}: {listed[0]['classes'][0]['class']}" in capsys.readouterr().out


def test_the_batch_does_not_change_the_classes(run, data, tmp_path, capsys):
    found = []
    for batch_size in ("1", "3"):
        out = tmp_path / batch_size
        folders = [str(data / "val" / name) for name in ("red", "blue")]
        main(["predict", str(run), *folders, "--out", str(out), *EXACT, "--batch-size", batch_size])
        found.append(json.loads((out / "predictions.json").read_text()))
        assert "images per second (reading and classifying)" in capsys.readouterr().out
    assert len(found[0]) > 4
    for one, three in zip(*found, strict=True):
        assert one["file"] == three["file"]
        assert [c["class"] for c in one["classes"]] == [c["class"] for c in three["classes"]]
        want = [c["probability"] for c in one["classes"]]
        assert [c["probability"] for c in three["classes"]] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ["--flip"],
        ["--scales", "1"],
        ["--tile", "512"],
        ["--score-threshold", "0"],
        ["--max-detections", "5"],
        ["--mask-format", "rle"],
    ],
)
def test_a_detectors_flag_is_refused(run, data, capsys, flags):
    commands = [["predict", str(run), str(data / "val" / "red")], ["eval", str(run), str(data)]]
    for command in commands[: 1 if flags[0] == "--mask-format" else 2]:
        with pytest.raises(SystemExit) as stopped:
            main([*command, *flags])
        assert stopped.value.code == 2
        line = f"{flags[0]}: applies only to detectors; leave it out for {run}"
        assert line in capsys.readouterr().err


def test_predict_agrees_with_eval(run, data, tmp_path):
    main(["eval", str(run), str(data), "--out", str(tmp_path), *EXACT])
    per_class = json.loads((tmp_path / "metrics.json").read_text())["per_class"]
    for name in CLASSES:
        main(["predict", str(run), str(data / "val" / name), "--out", str(tmp_path / name), *EXACT])
        listed = json.loads((tmp_path / name / "predictions.json").read_text())
        right = sum(row["classes"][0]["class"] == name for row in listed)
        assert per_class[name]["accuracy"] == pytest.approx(right / len(listed))


def test_the_first_losses_are_as_recorded(data, tmp_path):
    """Detects changes of the arithmetic."""
    more = ["--smoothing", 0.1, "--mixup", 0.2, "--cutmix", 1.0, "--drop-path", 0.1]
    out = train(data, tmp_path / "run", "--max-steps", 4, *more)
    assert losses(out) == pytest.approx(GOLDEN, rel=1e-3)


GOLDEN = [1.021279, 1.128146, 0.996247, 1.191702]


def test_a_step_in_parts_is_a_step(data, tmp_path):
    """Batch norm is frozen, because its statistics would depend on the micro-batches."""
    runs = [
        train(data, tmp_path / str(k), "--max-steps", 4, "--norm", "frozen", "--accumulate", k)
        for k in (1, 2)
    ]
    one, two = (load_file(out / "best.safetensors") for out in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert [event["step"] for event in events(runs[1])] == [1, 2, 3, 4]


def test_two_processes_train_and_evaluate_like_one(data, tmp_path):
    """Seven validation images on two processes are each counted once."""
    settings = ["--norm", "frozen", "--max-steps", 4, "--eval-steps", 2]
    for processes in (1, 2):
        out = ["--out", tmp_path / str(processes), "--devices", processes]
        run = [sys.executable, "-m", "botvision", "train", data, *SETTINGS, *settings, *out]
        # One thread per process, so that sums have the same order.
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, run)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (tmp_path / name for name in ("1", "2"))
    assert "cpu x 2" in done.stdout
    want, got = (load_file(out / "best.safetensors") for out in (one, two))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)
    want, got = (json.loads((out / "metrics.json").read_text()) for out in (one, two))
    assert {k: v["images"] for k, v in got["per_class"].items()} == {
        k: v["images"] for k, v in want["per_class"].items()
    }
    for name in ("top1", "top5", "loss", "calibration_error"):
        assert got[name] == pytest.approx(want[name], abs=1e-4)
    assert len(events(two)) == len(events(one)) == 4


def test_a_killed_run_with_a_moving_average_resumes_as_if_nothing_had_been(data, tmp_path):
    settings = ["--ema-decay", 0.8, "--max-steps", 8, "--checkpoint-steps", 3, "--eval-steps", 4]
    whole = train(data, tmp_path / "whole", *settings)
    killed = tmp_path / "killed"
    run_and_kill(5, "train", data, *SETTINGS, "--out", killed, *settings)
    assert len(losses(killed)) < 8
    train(data, killed, *settings, "--resume")
    assert losses(killed) == losses(whole)
    want, got = state(whole), state(killed)
    for key in ("state_dict", "current_model_state"):
        for name, tensor in want[key].items():
            assert torch.equal(got[key][name], tensor), name
    moved = [
        not torch.equal(want["state_dict"][name], tensor)
        for name, tensor in want["current_model_state"].items()
        if tensor.is_floating_point() and not name.endswith(("mean", "std"))
    ]
    assert any(moved)
    # best.safetensors contains the averaged weights of the better of the two evaluations.
    saved, best = load_file(whole / "best.safetensors"), load_file(killed / "best.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in saved.items())
    last = events(whole, "eval")[-1]
    if last["top1"] > events(whole, "eval")[0]["top1"]:
        assert torch.equal(saved["fc.weight"], want["state_dict"]["model.fc.weight"])


def test_fine_tuning_at_another_size_resizes_the_position_tables(run, data, tmp_path, capsys):
    weights = run / "best.safetensors"
    out = train(
        *(data, tmp_path / "run", "--weights", weights, "--image-size", 64),
        *("--max-steps", 1, "--lr", 0),
    )
    assert "position tables resized" in capsys.readouterr().out
    old, new = load_file(weights), load_file(out / "best.safetensors")
    name = "layer4.0.conv2.pos_embed.height_rel"
    assert old[name].shape[0] == 5
    torch.testing.assert_close(new[name], resize_relative(old[name], 4, "interpolate"))
    assert torch.equal(new["fc.weight"], old["fc.weight"])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv3_small_050"])
def test_any_model_of_timm_trains(data, tmp_path, name):
    out = train(data, tmp_path / "run", "--model", name, "--model-args", "{}", "--max-steps", 1)
    assert math.isfinite(losses(out)[0])


@pytest.mark.parametrize("name", recipe_names("classification"))
def test_every_recipe_parses(data, name):
    config = train_config(data, "--recipe", name)
    assert isinstance(config, ClassificationConfig)


@pytest.mark.parametrize("everything", [False, True])
def test_position_tables_and_norms_decay_only_when_asked(data, everything):
    config = train_config(data, *SETTINGS, "--decay-all", str(everything).lower())
    model = ClassifierSpec.of(config, CLASSES).build()
    groups = make_optimizer(model, config, 10)["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        kernel = parameter.ndim > 1 and ".pos_embed." not in name
        assert decay[id(parameter)] == (1e-4 if kernel or everything else 0), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--batch-size", "5", "--accumulate", "2"],
            "--batch-size 5: must be a multiple of 2; the global batch size is split into",
        ),
        (["--mixup", "0.2", "--batch-size", "3"], "a --batch-size that is a multiple of 2"),
        (["--jitter", "[1, 2]"], "jitter"),
        (["--recipe", "demo"], "--recipe demo: no such recipe for classification"),
        (["--model-args", "{layers: 3}"], "--model botnet50_s1: cannot be built"),
        (["--auto-augment", "best"], "--auto-augment best: not a policy of timm"),
        (["--lr", "1e30"], "the loss is not finite at step"),
    ],
)
def test_wrong_settings_are_one_line(data, tmp_path, capsys, arguments, message):
    more = ["--max-steps", "4", *arguments]
    line = fail(capsys, "train", data, *SETTINGS, "--out", tmp_path / "run", *more)
    assert message in line


def test_several_processes_need_a_folder(data, capsys):
    line = fail(capsys, "train", data, *SETTINGS, "--devices", "2")
    assert "give --out" in line

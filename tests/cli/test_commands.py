"""The command: output, files, errors and exit status."""

import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from botvision.cli.main import COMMANDS, main
from botvision.config import DetectionConfig, DetectorConfig
from botvision.models import list_models
from botvision.settings import recipe_names
from commandline import fail, run, train_config
from tiny import TINY_SETTINGS


def settings(*arguments):
    return train_config("shapes", *arguments)


def test_help_is_quick_and_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "botvision", "--help"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert "usage: botvision COMMAND" in done.stdout
    assert all(name in done.stdout for name in COMMANDS)
    loaded = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "timm", "lightning", "matplotlib", "torchvision"}
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        ("doctor", {}, "2000"),
        ("bench", {}, None),
        ("doctor", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("doctor", {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_sleep_early_unless_the_user_has_configured_them(
    monkeypatch, command, before, after
):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    seen = {}
    make_parser, _, summary = COMMANDS[command]

    def look(parser, arguments):
        seen.update(os.environ)

    monkeypatch.setitem(COMMANDS, command, (make_parser, look, summary))
    main([command])
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert seen.get("GOMP_SPINCOUNT") == after


def test_the_command_configures_threads_before_torch_is_imported():
    """OpenMP reads the variable when torch is imported."""
    code = (
        "import os, sys; from botvision.cli.main import COMMANDS, main; "
        "make, _, text = COMMANDS['doctor']; "
        "COMMANDS['doctor'] = (make, lambda *_: print('torch' in sys.modules), text); "
        "main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: botvision {name}" in capsys.readouterr().out


def test_a_flag_beats_the_config_which_beats_the_recipe_which_beats_the_default(tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text("batch_size: 5\nimage_size: 320\ndetector: {fpn_channels: 32}\n")
    layered = ["--batch-size", "6", "--config", str(config), "--recipe", "quick"]
    recipe, default = settings("--recipe", "quick"), DetectionConfig("DATA")
    got = settings(*layered)
    assert (default.batch_size, got.batch_size) == (4, 6)
    assert (default.image_size, recipe.image_size, got.image_size) == (1024, 384, 320)
    assert got.detector.fpn_channels == 32
    assert (
        got.detector.box_head_dim == recipe.detector.box_head_dim != default.detector.box_head_dim
    )
    assert got.optimizer == recipe.optimizer != default.optimizer
    assert got.momentum == default.momentum
    assert got.detector.anchor_sizes == (8, 16, 32, 64, 128)


@pytest.mark.parametrize("name", recipe_names("detection"))
def test_every_recipe_parses(name):
    settings("--recipe", name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "data"),
        (["train", "nowhere"], "nowhere: no such folder or archive"),
        (
            ["train", "shapes", "--recipe", "best"],
            "--recipe best: no such recipe for",
        ),
        (["train", "shapes", "--config", "no.yaml"], "--config no.yaml: no such file"),
        (["eval", "RUN", "shapes", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["train", "shapes", "--batch-size", "many"], "--batch-size many: expected a whole number"),
        (["train", "shapes", "--learning-rate", "1"], "learning-rate"),
        (["eval", "nowhere", "shapes"], "nowhere"),
        (["predict", "nowhere", "a.jpg"], "nowhere"),
        (
            ["predict", "nowhere", "a.jpg", "--mask-format", "png"],
            "--mask-format png: expected one of rle, polygon",
        ),
        (
            ["predict", "nowhere", "a.jpg", "--batch-size", "0"],
            "--batch-size 0: must be at least 1",
        ),
        (["train", "shapes", "--resume"], "--resume: requires --out"),
        (["fly"], "no command is named 'fly'; choose one of train"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, message):
    assert message in fail(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "100"], "--image-size 100: must be a multiple of 32"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--norm", "sync", "--device", "cpu"], "--norm sync: torch synchronizes batch norm"),
        (["--model", "botnet51"], "no model is named 'botnet51'; did you mean"),
        (["--weights", "no.pth"], "no.pth: no such weights file"),
        (["--device", "cuda"], "--device cuda: not available on this machine"),
    ],
)
def test_wrong_settings_are_one_line(capsys, monkeypatch, tiny_data, tmp_path, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # The flags under test come last, so they win.
    line = fail(capsys, "train", tiny_data, *TINY_SETTINGS, "--out", tmp_path / "run", *arguments)
    assert message in line


def test_train_writes_the_run_folder(tiny_run, tiny_data):
    assert {path.name for path in tiny_run.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "metrics.json", "best.safetensors"),
        *("checkpoints", "plots", "predictions"),
    }
    assert (tiny_run / "checkpoints" / "last.ckpt").exists()
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert (config["data"], config["seed"], config["image_size"]) == (str(tiny_data), 0, 64)
    assert config["versions"]["torch"] == torch.__version__
    assert config["resolved"]["steps"] == 8
    events = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(1, 9))
    assert [e["step"] for e in events if e["event"] == "eval"] == [4, 8]
    assert all(np.isfinite(e["loss"]) for e in events if e["event"] == "train")
    for name in ("loss.png", "ap.png"):
        assert Image.open(tiny_run / "plots" / name).size[0] > 500


def test_eval_gives_what_pycocotools_gives(capsys, tiny_run, tiny_data, tmp_path):
    text = run(
        capsys,
        "eval",
        tiny_run,
        tiny_data,
        "--out",
        tmp_path,
        "--device",
        "cpu",
        "--split",
        "train",
    )
    assert "train: 7 images" in text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    truth = COCO(str(tiny_data / "annotations" / "instances_train.json"))
    found = truth.loadRes(str(tmp_path / "predictions" / "results.json"))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        np.testing.assert_allclose(
            list(metrics[kind].values()), evaluation.stats, rtol=0, atol=1e-6
        )


def test_eval_in_the_runs_precision_finds_what_the_run_found(capsys, tiny_data, tmp_path):
    """The result is equal bit-for-bit. In float32 it differs."""
    bf16 = ["--precision", "bf16"]
    run(capsys, "train", tiny_data, *TINY_SETTINGS, *bf16, "--max-steps", 4, "--out", tmp_path)
    path = tmp_path / "predictions" / "results.json"
    found = json.loads(path.read_text())
    assert len(found) > 20
    threshold = DetectorConfig().score_threshold
    arguments = ["eval", tmp_path, tiny_data, "--score-threshold", threshold, "--device", "cpu"]
    assert "precision bf16" in run(capsys, *arguments, *bf16)
    assert json.loads(path.read_text()) == found
    assert "precision 32" in run(capsys, *arguments, "--precision", "32")
    assert json.loads(path.read_text()) != found


def test_eval_of_some_images_gives_what_pycocotools_gives_on_them(
    capsys, tiny_run, tiny_data, tmp_path
):
    arguments = ["eval", tiny_run, tiny_data, "--device", "cpu", "--split", "train"]
    text = run(capsys, *arguments, "--out", tmp_path / "some", "--limit", "4")
    assert "4 of the 7 images" in text
    metrics = json.loads((tmp_path / "some" / "metrics.json").read_text())
    assert (metrics["images"], metrics["images_in_split"]) == (4, 7)
    truth = COCO(str(tiny_data / "annotations" / "instances_train.json"))
    results = tmp_path / "some" / "predictions" / "results.json"
    seen = {result["image_id"] for result in json.loads(results.read_text())}
    assert len(seen) == 4
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.params.imgIds = sorted(seen)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        np.testing.assert_allclose(
            list(metrics[kind].values()), evaluation.stats, rtol=0, atol=1e-6
        )
    text = run(capsys, *arguments, "--out", tmp_path / "all", "--limit", "9")
    whole = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert whole["images"] == whole["images_in_split"] == 7
    assert "quick look" not in text


def test_eval_writes_the_curves_that_ap_is_the_mean_of(capsys, tiny_run, tiny_data, tmp_path):
    run(capsys, "eval", tiny_run, tiny_data, "--out", tmp_path, "--split", "train")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    with (tmp_path / "predictions" / "precision_recall.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Image.open(tmp_path / "plots" / "precision_recall.png").width > 1000
    for kind in ("bbox", "segm"):
        for iou, name in (("0.50", "AP50"), ("0.75", "AP75"), ("0.50:0.95", "AP")):
            for label, values in {"(mean)": metrics, **metrics["per_class"]}.items():
                curve = [
                    float(row["precision"])
                    for row in rows
                    if (row["kind"], row["class"], row["iou"]) == (kind, label, iou)
                ]
                assert len(curve) == 101
                assert np.mean(curve) == pytest.approx(values[kind][name], abs=1e-6)


def test_eval_says_which_splits_there_are(capsys, tiny_run, tiny_data):
    line = fail(capsys, "eval", tiny_run, tiny_data, "--split", "test")
    assert "--split test" in line and "choose one of train, val" in line


def test_eval_of_no_images_is_an_error(capsys, tiny_run, tiny_data):
    assert "--limit 0: must be at least 1" in fail(
        capsys, "eval", tiny_run, tiny_data, "--limit", "0"
    )


def test_max_detections(capsys, tiny_run, tiny_data, tmp_path):
    run(capsys, "eval", tiny_run, tiny_data, "--out", tmp_path, "--max-detections", "3")
    results = json.loads((tmp_path / "predictions" / "results.json").read_text())
    counts = np.unique([r["image_id"] for r in results], return_counts=True)[1]
    assert counts.max() <= 3
    assert "AR3" in json.loads((tmp_path / "metrics.json").read_text())["bbox"]


def test_a_classifiers_flag_is_refused_for_a_detector(capsys, tiny_run, tiny_data):
    line = fail(capsys, "eval", tiny_run, tiny_data, "--image-size", "96")
    assert f"--image-size: applies only to classifiers; leave it out for {tiny_run}" in line


def test_a_broken_training_image_is_named(capsys, tiny_data, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (data / "train" / "000003.jpg").write_bytes(b"no image")
    for workers in ("0", "1"):
        out = tmp_path / f"run{workers}"
        arguments = [*TINY_SETTINGS, "--max-steps", "4", "--out", out, "--workers", workers]
        assert "000003.jpg" in fail(capsys, "train", data, *arguments)


def test_weights_are_taken_and_reported(capsys, tiny_data, tmp_path):
    import timm

    resnet = timm.create_model("resnet50", layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    text = run(
        capsys,
        *("train", tiny_data, *TINY_SETTINGS, "--max-steps", "1", "--out", tmp_path / "run"),
        *("--weights", tmp_path / "resnet.pth"),
    )
    assert f"weights of {tmp_path / 'resnet.pth'}" in text
    assert "layer4.0.conv2.qkv.weight" in text


def test_detection_data_trains_faster_rcnn(capsys, tiny_data, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for file in (data / "annotations").iterdir():
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    arguments = [*TINY_SETTINGS, "--max-steps", "2", "--out", tmp_path / "run"]
    text = run(capsys, "train", data, *arguments)
    assert "detection, 64 px" in text
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "bbox" in metrics and "segm" not in metrics
    image = data / "val" / "000000.jpg"
    line = fail(capsys, "predict", tmp_path / "run", image, "--mask-format", "polygon")
    assert "--mask-format: applies only to segmentation models" in line
    line = fail(
        capsys, "train", data, *arguments[:-1], tmp_path / "other", "--task", "segmentation"
    )
    assert "none of its objects can be used (no mask: " in line


def test_models(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = run(capsys, "models")
    assert "20.852 M" in table
    assert all(name in table for name in list_models())
    monkeypatch.setattr("botvision.models.list_models", lambda: ["botnet50"])
    (row,) = json.loads(run(capsys, "models", "--json"))
    assert (row["name"], row["parameters"], row["image_size"]) == ("botnet50", 20_852_008, 224)


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(SystemExit):
        main(["train", "nowhere", "--debug"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--recipe", "--task"])
def test_an_option_without_its_value_is_one_line(capsys, option):
    assert option in fail(capsys, "train", "shapes", option)

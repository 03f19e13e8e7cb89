"""Settings: wrong values and names are one line, and every layer is used."""

import pytest
import yaml

from botvision.config import ClassificationConfig, DetectionConfig
from botvision.errors import UserError
from botvision.settings import load_recipe, make_config
from botvision.tasks.config import training_config
from commandline import fail, run, train_config
from tiny import TINY_SETTINGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "--lr -1: must be at least 0"),
        (["--lr", "nan"], "--lr nan: expected a number"),
        (["--ema-decay", "2"], "--ema-decay 2: must be at least 0 and less than 1"),
        (["--workers", "-5"], "--workers -5: must be at least 0, or -1 to select"),
        (["--epochs", "-1"], "--epochs -1: must be at least 0"),
        (["--epochs", "inf"], "--epochs inf: expected a number"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--detector.nms-threshold", "2"], "--detector.nms-threshold 2: must be between 0 and 1"),
        (["--jitter", "2", "0.5"], "--jitter 2 0.5: must not decrease"),
        (["--jitter", "0", "1"], "--jitter 0 1: must be greater than 0"),
        (["--milestones", "[0.9, 0.1]"], "--milestones 0.9 0.1: must not decrease"),
        (["--freeze-stages", "9"], "--freeze-stages 9: must be between 0 and 5"),
        (["--batch-size", "1.5"], "--batch-size 1.5: expected a whole number"),
        (["--lr", "fast"], "--lr fast: expected a number"),
        (["--norm", "none"], "--norm none: expected one of plain, sync, frozen"),
        (["--jitter", "0.5"], "--jitter 0.5: expected 2 numbers"),
        (["--detector.anchor-sizes", "1", "2"], "[1, 2]: expected 5 numbers"),
        (["--model-args", "5"], "--model-args 5: expected names and values"),
        (["--batchsize", "4"], "no option is named --batchsize; did you mean --batch-size?"),
        (["--mixup", "0.2"], "--mixup applies only to classifiers"),
        (["--task", "classification", "--jitter", "1"], "--jitter applies only to detectors"),
        (["more"], "unexpected argument more"),
    ],
)
def test_wrong_settings_are_one_line_without_names_of_python(capsys, arguments, message):
    line = fail(capsys, "train", "shapes", *arguments)
    assert message in line
    assert not any(word in line for word in ("typing", "class '", "Parser key", "NoneType"))


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("eval", ["--scales", "0"], "--scales 0: must be greater than 0"),
        ("eval", ["--limit", "0"], "--limit 0: must be at least 1"),
        ("eval", ["--tille", "9"], "no option is named --tille; did you mean --tile?"),
        ("predict", ["--score-threshold", "1.5"], "--score-threshold 1.5: must be between 0 and 1"),
        ("predict", ["--scales", "big"], "--scales big: expected a number"),
    ],
)
def test_wrong_options_of_the_other_commands(capsys, command, arguments, message):
    assert message in fail(capsys, command, "RUN", "shapes", *arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": 5}, "detector 5: expected names and values"),
        ({"detector": {"anchor_sizes": [1, 2, 3, 4, "a"]}}, "anchor_sizes a: expected 5 numbers"),
        ({"model": None}, "model : expected text"),
        ({"max_steps": "a"}, "max_steps a: expected a whole number"),
        ({"flip": "maybe"}, "flip maybe: expected true or false"),
    ],
)
def test_wrong_values_in_a_file(settings, message):
    with pytest.raises(UserError, match=message):
        make_config(DetectionConfig, {"data": "shapes"}, settings)


def test_several_numbers_follow_an_option():
    assert train_config("shapes", "--jitter", "0.5", "2").jitter == (0.5, 2.0)
    assert train_config("--jitter", "0.5", "2", "shapes").jitter == (0.5, 2.0)
    assert train_config("shapes", "--jitter", "[0.5, 2]").jitter == (0.5, 2.0)
    assert make_config(DetectionConfig, {"data": "x", "precision": 32}).precision == "32"


def test_the_recipe_in_a_config_file_is_used(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("recipe: quick\nbatch_size: 6\n")
    config = train_config("shapes", "--config", file)
    assert (config.image_size, config.batch_size) == (load_recipe("quick")["image_size"], 6)
    # The option overrides the file's recipe.
    assert (
        train_config("shapes", "--config", file, "--recipe", "demo").image_size
        == (load_recipe("demo")["image_size"])
    )


def test_a_runs_config_repeats_the_run(capsys, tiny_run, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repeated = training_config(str(tiny_data), config=tiny_run / "config.yaml", settings={})
    own = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert repeated.out is None
    assert (repeated.max_steps, repeated.image_size) == (8, own["image_size"])
    run(capsys, "train", tiny_data, "--config", tiny_run / "config.yaml", "--max-steps", "1")
    assert list((tmp_path / "runs").iterdir())


def test_adamw_uses_the_same_learning_rate_at_every_batch_size(capsys, tiny_data, tmp_path):
    adamw = {"data": "x", "optimizer": "adamw", "base_lr": 0.002, "base_batch_size": 4}
    assert make_config(DetectionConfig, adamw, {"batch_size": 100}).peak_lr == 0.002
    sgd = make_config(ClassificationConfig, {"data": "x", "batch_size": 512})
    assert sgd.peak_lr == pytest.approx(0.1 * 512 / 256)
    assert sgd.lr_rule == " (base_lr 0.1 x 512 / 256)"
    arguments = [tiny_data, *TINY_SETTINGS, "--max-steps", "1", "--out", tmp_path / "run"]
    text = run(capsys, "train", *arguments, "--optimizer", "adamw")
    assert "learning rate 0.01 (base_lr, not scaled with the batch size)" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: *a\n", "not valid YAML: an alias (*name) in line 2"),
        ("[" * 5_000, "nested too deeply"),
        ("a: [1", "not valid YAML"),
        ("lr: 2020-99-99", "not valid YAML"),
        ("just text", "contains no settings"),
        ("", "contains no settings"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_damaged_config_file_is_one_line(capsys, tmp_path, text, message):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    assert f"{file}: {message}" in fail(capsys, "train", "shapes", "--config", file)


def test_arguments_of_a_recipe_are_not_blamed_on_the_user(capsys):
    line = fail(capsys, "train", "shapes", "--recipe", "quick", "--model", "convnext_atto")
    assert "--model convnext_atto: does not accept the arguments that recipe quick sets" in line
    assert "with --model-args" in line
    other = ["--recipe", "quick", "--model", "convnext_atto", "--model-args", "{}"]
    assert train_config("shapes", *other).model_args == {}
    assert train_config("shapes", "--recipe", "quick", "--model", "resnet50").model_args

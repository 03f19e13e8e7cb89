"""The command ``botvision bench``: output, files and errors."""

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from PIL import Image

from botvision.attention import implementations
from botvision.bench import attention
from botvision.bench.config import AttentionBenchConfig, DataBenchConfig, ModelBenchConfig
from botvision.cli.main import main
from botvision.cli.parsers import config_parser
from class_files import write_classes
from commandline import fail

AUTO = [name for name in ("chunked", "onednn") if name in implementations("cpu")]
TINY = ["attention", "--dim", "16", "--num-heads", "2", "--seconds", "0.001", "--device", "cpu"]


@pytest.mark.parametrize(
    ("config", "arguments"),
    [(AttentionBenchConfig, []), (ModelBenchConfig, []), (DataBenchConfig, ["shapes"])],
)
def test_defaults_and_help_are_those_of_the_options_class(config, arguments):
    parser = config_parser(config)
    assert config(**parser.parse_args(arguments).as_dict()) == config(*arguments)
    helps = {action.dest: action.help for action in parser._actions}
    assert all(helps[field.name] for field in fields(config))


def test_help_loads_nothing_heavy():
    code = "import sys; from botvision.cli.bench import bench_parser; bench_parser().format_help()"
    heavy = "print([name for name in ('torch', 'timm', 'matplotlib') if name in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", f"{code}; {heavy}"], text=True)
    assert printed.strip() == "[]"


def test_options_become_fields():
    parsed = config_parser(ModelBenchConfig).parse_args(
        ["--compile", "a", "b@64", "--precision", "32", "bf16", "--json", "rows.json"]
    )
    expected = ModelBenchConfig(
        ["a", "b@64"], compile=True, precision=["32", "bf16"], json=Path("rows.json")
    )
    assert ModelBenchConfig(**parsed.as_dict()) == expected
    parsed = config_parser(DataBenchConfig).parse_args(["shapes", "--jitter", "[0.5, 1.5]"])
    assert DataBenchConfig(**parsed.as_dict()) == DataBenchConfig("shapes", jitter=(0.5, 1.5))


def test_attention_prints_saves_and_draws(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    rows = []
    bench = attention.bench_attention
    monkeypatch.setattr(attention, "bench_attention", lambda config: rows.extend(bench(config)))
    files = ["--json", str(tmp_path / "new" / "rows.json"), "--plot", str(tmp_path / "rows.png")]
    main(["bench", *TINY, "--sizes", "3", "2x4", "--impl", "reference", *AUTO, *files])
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 100
    assert printed.out.count("2x4") == 4 and printed.out.count("(auto)") == 8
    for title in ("forward, precision 32", "train, precision bf16"):
        assert title in printed.out
    assert "train, bf16, map 2x4 (8 of 8)" in printed.err

    saved = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert saved["rows"] == [asdict(row) for row in rows] and len(rows) == 8 * (4 + len(AUTO))
    assert saved["kind"] == "attention"
    assert set(saved["machine"]) == {
        *("cpu", "instruction_sets", "cores", "threads", "gpu", "platform"),
    }
    assert {"python", "torch", "timm", "botvision"} <= set(saved["versions"])
    assert saved["settings"]["sizes"] == [[3, 3], [2, 4]]
    assert saved["settings"]["impl"] == ["reference", *AUTO]
    assert saved["settings"]["num_heads"] == 2 and "json" not in saved["settings"]
    picture = Image.open(tmp_path / "rows.png").convert("RGB")
    assert picture.width > 1500 and picture.height > 800
    assert len(picture.getcolors(2**24)) > 100


def test_an_interrupted_run_keeps_what_it_measured(capsys, monkeypatch, tmp_path):
    measure_map = attention._measure_map

    def interrupted(config, mode, precision, size):
        if size == (2, 4):
            raise KeyboardInterrupt
        return measure_map(config, mode, precision, size)

    monkeypatch.setattr(attention, "_measure_map", interrupted)
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "rows.png")]
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *TINY, "--sizes", "3", "2x4", *files])
    assert stopped.value.code == 130
    assert "3x3" in capsys.readouterr().out
    assert {row["width"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]} == {3}
    assert Image.open(tmp_path / "rows.png").width > 1000


def test_models(capsys, tmp_path):
    path = tmp_path / "rows.json"
    models = ["resnet18@32", "botnet50@64"]
    main(["bench", "model", *models, "--seconds", "0.001", "--device", "cpu", "--json", str(path)])
    out = capsys.readouterr().out
    assert "resnet18" in out and "1.00x" in out
    rows = json.loads(path.read_text())["rows"]
    assert [(row["model"], row["image_size"]) for row in rows] == [
        *(("resnet18@32", 32), ("botnet50@64", 64)),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'expected "benchmark" to be one of {attention,model,data}'),
        (["layers"], "invalid choice: 'layers'"),
        (["attention", "--sizes", "0"], "--sizes 0: give the size of a map in cells"),
        (["attention", "--sizes", "3x"], "--sizes 3x: give the size of a map in cells"),
        (["attention", "--sizes", "3", "2x3x4"], "--sizes 2x3x4: give the size of a map in cells"),
        (
            ["attention", "--impl", "fast"],
            "--impl fast: not available on cpu; choose from reference, sdpa, chunked",
        ),
        (["attention", "--dim", "12"], "--dim 12: must be a multiple of 8"),
        (["attention", "--dim", "40", "--num-heads", "3"], "8 and of --num-heads 3"),
        (["attention", "--num-heads", "0"], "--num-heads 0: must be greater than 0"),
        (["attention", "--batch-size", "-1"], "--batch-size -1: must be greater than 0"),
        (["attention", "--seconds", "0"], "--seconds 0.0: must be greater than 0"),
        (["attention", "--precision", "8"], "--precision 8: expected one of 32, bf16, 16"),
        (["attention", "--plot", "rows.jpg"], "--plot rows.jpg: give a file that ends in .png"),
        (
            ["attention", "--json", "/dev/null/rows.json"],
            "--json /dev/null/rows.json: the folder does not exist",
        ),
        (
            ["attention", "--plot", "/dev/null/rows.png"],
            "--plot /dev/null/rows.png: the folder does not exist",
        ),
        (["attention", "--json", "/"], "--json /: cannot be written"),
        (["model", "resnett50"], "did you mean resnet50"),
        (["model", "resnet50@"], "resnet50@: give NAME, or NAME@PIXELS, where PIXELS"),
        (["model", "resnet50@0"], "resnet50@0: give NAME, or NAME@PIXELS, where PIXELS"),
        (["model", "--image-size", "0"], "--image-size 0: must be greater than 0"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, message):
    device = ["--device", "cpu"] if len(arguments) > 1 else []
    assert message in fail(capsys, "bench", *arguments, *device)


def test_data_pipelines_are_timed_side_by_side(capsys, tmp_path, tiny_data):
    classes = write_classes(tmp_path / "classes")
    for data, size, rows in (
        (classes, 24, ["decoding and resizing alone", "evaluation", "training", "rand-m9-n1"]),
        (tiny_data, 64, ["torchvision's", "the same, Pillow", "large-scale jitter", "decoding"]),
    ):
        saved = tmp_path / "rows.json"
        more = ["--images", "4", "--seconds", "0.01", "--policy", "rand-m9-n1"]
        main(["bench", "data", str(data), "--image-size", str(size), *more, "--json", str(saved)])
        printed = capsys.readouterr().out
        assert f"to {size} px, one process on one core" in printed
        content = json.loads(saved.read_text())
        assert content["kind"] == "data" and content["settings"]["image_size"] == size
        for row, name in zip(content["rows"], rows, strict=True):
            assert name in row["pipeline"]
            assert row["images_per_second"] > 0
            first = content["rows"][0]["images_per_second"]
            assert row["ratio"] == pytest.approx(row["images_per_second"] / first)


def test_data_that_cannot_be_read_is_one_line(capsys, tmp_path):
    classes = write_classes(tmp_path / "classes")
    for file in (classes / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    assert "can be read as an image" in fail(capsys, "bench", "data", classes)
    assert "--images 0" in fail(capsys, "bench", "data", classes, "--images", 0)

"""What ``predict`` writes: nothing is lost, nothing of another call stays, no link is followed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from botvision.errors import UserError
from botvision.tasks.predict import predict
from botvision.tasks.results import Results
from commandline import fail, run

CUDA_OFF = ["--device", "cpu", "--precision", "32"]


def listed(folder):
    return json.loads((folder / "predictions.json").read_text())


def pictures(folder):
    return {path.name for path in folder.iterdir()} - {"predictions.json"}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (40, 30), (80 * k, 10, 10)).save(folder / f"{k}.png")
    return folder


@pytest.fixture
def weights(tiny_run, tmp_path):
    """A received run folder, which tests may write into."""
    (tmp_path / "run").mkdir()
    shutil.copy(tiny_run / "best.safetensors", tmp_path / "run")
    return tmp_path / "run"


def test_bad_files_and_empty_folders_lose_nothing(capsys, weights, images, tmp_path):
    (tmp_path / "empty").mkdir()
    (images / "1.png").write_bytes(b"broken")
    os.mkfifo(images / "3.png")
    (images / "4.png").mkdir()
    wrong = [tmp_path / "empty", tmp_path / "nowhere.png", images, tmp_path / "nowhere"]
    line = fail(capsys, "predict", weights, *wrong, *CUDA_OFF)
    assert line.startswith(f"botvision predict: error: {tmp_path}/empty: no image files in this")
    out = weights / "predictions"
    assert line.endswith(f" (and 5 more); the other results (2) are in {out}")
    assert [entry["file"] for entry in listed(out)] == [str(images / f"{k}.png") for k in (0, 2)]
    assert pictures(out) == {"0.png", "2.png"}


def test_every_failure_is_printed_and_written_to_is_not(capsys, weights, images):
    (images / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError):
        predict(weights, [images], device="cpu")
    text = capsys.readouterr().out
    assert f"left out: {images}/1.png: cannot be read as an image" in text
    assert "written to" not in text


def test_without_one_readable_image_earlier_results_stay(capsys, weights, images, tmp_path):
    run(capsys, "predict", weights, images, *CUDA_OFF)
    line = fail(capsys, "predict", weights, tmp_path / "nowhere.png", *CUDA_OFF)
    assert line.endswith("there are no other results")
    assert len(listed(weights / "predictions")) == 3


def test_an_entry_names_its_picture(capsys, weights, images, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(images, other)
    run(capsys, "predict", weights, images, other, *CUDA_OFF)
    out = weights / "predictions"
    named = {entry["file"]: entry["picture"] for entry in listed(out)}
    assert named[str(images / "1.png")] == "1.png"
    assert named[str(other / "1.png")] == "1-2.png"
    assert set(named.values()) == pictures(out)
    for entry in listed(out):
        drawn = Image.open(out / entry["picture"]).convert("RGB").getpixel((0, 0))
        assert drawn == Image.open(entry["file"]).getpixel((0, 0))


def test_pictures_of_an_earlier_call_do_not_stay(capsys, weights, images):
    run(capsys, "predict", weights, images, *CUDA_OFF)
    run(capsys, "predict", weights, images / "2.png", *CUDA_OFF)
    assert pictures(weights / "predictions") == {"2.png"}


def test_a_file_of_the_user_is_not_replaced(capsys, weights, images):
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    for _ in range(2):
        run(capsys, "predict", weights, images / "0.png", "--out", images, *CUDA_OFF)
        assert pictures(images) == {*before, "0-2.png"}
    for name, content in before.items():
        assert (images / name).read_bytes() == content
    run(capsys, "predict", weights, images / "0-2.png", "--out", images, *CUDA_OFF)
    assert (images / "0-2.png").exists()  # an image of this call


@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "[" * 10**5, "3", "null", '{"picture": "a.png"}', "[3, null, []]"),
        '[{"picture": "../a.png"}, {"picture": "/a.png"}, {"picture": "a.txt"}, {"picture": 3}]',
        '[{"picture": ["a"]}, {"picture": "sub/a.png"}, {"picture": ".png"}, {"picture": "..png"}]',
    ],
)
def test_an_earlier_list_of_a_stranger_removes_nothing(tmp_path, content):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    kept = [tmp_path / "a.png", out / "a.txt", out / "a.png", out / "sub" / "a.png", out / ".png"]
    for path in kept:
        path.touch()
    (out / "predictions.json").write_text(content)
    results = Results(out, [])
    results.add({"file": "x"})
    results.close()
    assert listed(out) == [{"file": "x"}]
    assert all(path.exists() for path in kept)


def test_links_are_not_followed(capsys, weights, images, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = weights / "predictions"
    out.mkdir()
    for name in ("predictions.json", "predictions.json.tmp", ".tmp-predictions.json", "0.png"):
        (out / name).symlink_to(victim)
    (out / ".tmp-0-2.png").symlink_to(victim)
    run(capsys, "predict", weights, images, *CUDA_OFF)
    assert victim.read_text() == "precious"
    assert listed(out)[0]["picture"] == "0-2.png"


def test_a_folder_that_is_a_link_is_refused(capsys, weights, images, tiny_data, tmp_path):
    (tmp_path / "victims").mkdir()
    for name in ("predictions", "plots"):
        (weights / name).symlink_to(tmp_path / "victims")
        command = (
            ["predict", weights, images] if name == "predictions" else ["eval", weights, tiny_data]
        )
        line = fail(capsys, *command, *CUDA_OFF)
        assert f"{weights}/{name}: is a link to {tmp_path}/victims" in line
        (weights / name).unlink()
    assert list((tmp_path / "victims").iterdir()) == []


def test_a_link_that_the_user_names_is_followed(capsys, weights, images, tiny_data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    run(capsys, "predict", weights, images, "--out", tmp_path / "link", *CUDA_OFF)
    run(capsys, "eval", weights, tiny_data, "--out", tmp_path / "link", *CUDA_OFF)
    assert len(listed(tmp_path / "elsewhere")) == 3
    assert (tmp_path / "elsewhere" / "metrics.json").exists()


def test_results_of_eval_do_not_follow_links(capsys, weights, tiny_data, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("metrics.json", "predictions/results.json", "plots/precision_recall.png"):
        path = weights / name
        path.parent.mkdir(exist_ok=True)
        for one in (path, path.with_name(f"{path.name}.tmp"), path.with_name(f".tmp-{path.name}")):
            one.symlink_to(victim)
    run(capsys, "eval", weights, tiny_data, *CUDA_OFF)
    assert victim.read_text() == "precious"
    assert json.loads((weights / "metrics.json").read_text())["images"] == 4


NAMES = [
    *("[b].png", "a[/b].png", "..png", "two\nlines.png", "\x1b[31m.png", f"{'n' * 250}.png"),
    *(f"{'日' * 80}.png", "$x$.png", ":cat:.png", "\u202egnp.png", os.fsdecode(b"\xff.png")),
]


@pytest.mark.parametrize("name", [name.replace("/", "") for name in NAMES])
def test_any_name_of_an_image(capsys, weights, images, tmp_path, name):
    path = images / name
    (images / "0.png").rename(path)
    out = tmp_path / "out [/red]".replace("/", "")
    text = run(capsys, "predict", weights, path, "--out", out, *CUDA_OFF)
    (entry,) = listed(out)
    assert entry["file"] == str(path)
    assert (out / entry["picture"]).is_file()
    assert entry["picture"].isprintable() and not entry["picture"].startswith(".")
    lines = text.splitlines()
    assert len(lines) == 3 and lines[2] == f"written to {out}"
    assert "\x1b" not in text and "\u202e" not in text


def test_the_list_is_valid_at_any_time(tmp_path):
    results = Results(tmp_path, [])
    for k in range(3):
        results.add({"file": f"{k}"})
        assert listed(tmp_path) == [{"file": f"{n}"} for n in range(k + 1)]
    results.close()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_process_has_written_what_it_found(weights, tiny_data, stop, tmp_path):
    out = tmp_path / "out"
    images = [str(tiny_data / "val" / "000000.jpg")] * 500
    command = [sys.executable, "-m", "botvision", "predict", str(weights), *images]
    process = subprocess.Popen(
        [*command, "--out", str(out), *CUDA_OFF],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs this in the background ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (out / "000000-3.png").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(stop)
    process.communicate()
    assert process.returncode != 0
    found = listed(out)
    assert 2 <= len(found) < 500
    assert all((out / entry["picture"]).exists() for entry in found[:-1])


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_keeps_the_list_valid(tmp_path):
    results = Results(tmp_path, [])
    results.add({"file": "a"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"predictions\.json: cannot be written \(File too"):
            results.add({"file": "b" * 2000})
        assert listed(tmp_path) == [{"file": "a"}]
        results.add({"file": "c"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    results.close()
    assert listed(tmp_path) == [{"file": "a"}, {"file": "c"}]

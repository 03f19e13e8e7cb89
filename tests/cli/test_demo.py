"""The pictures of the demo, from a run that is already complete."""

import shutil

import torch
from PIL import Image

from botvision.tasks.checkpoint import load_model
from botvision.tasks.demo import attention_weights, demo


def test_a_complete_run_is_drawn_again(tiny_run, tiny_data, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    for picture in (out / "plots").iterdir():
        picture.unlink()
    demo(out, data=str(tiny_data), max_steps=8)
    text = capsys.readouterr().out
    assert "mask AP50" in text
    for name in (
        "predictions/overlays.png",
        "plots/attention.png",
        "plots/loss.png",
        "plots/ap.png",
    ):
        assert Image.open(out / name).width > 400
        assert name in text


def test_attention_weights_are_those_of_the_first_layer(tiny_run):
    detector, card = load_model(tiny_run)
    image = torch.randint(0, 256, (3, 48, card.image_size), dtype=torch.uint8)
    weights = attention_weights(detector, image)
    side = card.image_size // 16
    assert weights.shape == (4, side, side, side, side)
    torch.testing.assert_close(torch.from_numpy(weights).sum((-1, -2)), torch.ones(4, side, side))

"""Names are text: they are neither markup, formulas nor control codes."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from botvision.data.categories import Categories
from botvision.errors import UserError
from botvision.evaluation.report import print_metrics
from botvision.terminal import cell, print_text, terminal
from botvision.text import printable, shortened
from botvision.visualize.classes import draw_confusion, prediction_sheet
from botvision.visualize.overlays import contact_sheet, draw_instances

NAMES = [
    *(
        "[/x]",
        "cat[adult]",
        "[red]cat[/red]",
        ":cat:",
        "\x1b[31mred",
        "two\nlines",
        "a\rb",
        "\x9b2J",
    ),
    *("right \u202e to left", "$\\frac{1$", "$x$ and $y$", "tab\t", "\udce9", "\x00", "a" * 250),
    *("日本語", "नमस्ते", "", " ", "{name}", "%s", "\\n", "\u2028"),
]


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain", "plain"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\x1b[31m\x9b", r"\x1b[31m\x9b"),
        ("\u202ecod.\u2066", r"\u202ecod.\u2066"),
        ("\u2028\ufeff", r"\u2028\ufeff"),
        ("\udce9", r"\udce9"),
        ("日本語 é ü 👩\u200d🚀 न\u200cम", "日本語 é ü 👩\u200d🚀 न\u200cम"),
        ("back\\slash [/x] :cat: $x$", "back\\slash [/x] :cat: $x$"),
    ],
)
def test_control_characters_are_escaped(text, printed):
    assert printable(text) == printed
    assert printable(printed) == printed


def test_a_long_name_is_cut():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert shortened("\n" * 3, 3) == "\\n…"


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_one_line(name):
    for error in (UserError(f"{name}: is wrong"), UserError("is", parameter="a", value=name)):
        line = str(error)
        assert len(f"{line}.".splitlines()) == 1
        assert printable(name) in line
        assert str(pickle.loads(pickle.dumps(error))) == line


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("console", [terminal, Console], ids=["own", "given"])
def test_a_name_is_printed_as_it_is(name, console):
    console = console()
    console.file = io.StringIO()
    print_text(console, f"{printable(name)}: one\nline two")
    assert console.file.getvalue() == f"{printable(name)}: one\nline two\n"


@pytest.mark.parametrize("name", [name for name in NAMES if name.strip()])
def test_a_name_is_a_cell_of_a_table(name):
    console = Console(file=io.StringIO(), width=300)
    table = Table("class")
    table.add_row(cell(name))
    console.print(table)
    assert printable(name) in console.file.getvalue()
    metrics = {
        "bbox": {"AP": 0.5},
        "per_class": {name: {"bbox": {"AP": 0.5}}, "b": {"bbox": {"AP": 1}}},
    }
    print_metrics(console, metrics)
    assert console.file.getvalue().count(printable(name)) == 2


def test_names_are_drawn(tmp_path, recwarn):
    image = Image.new("RGB", (60, 40))
    boxes = [[5, 5, 30, 30]] * len(NAMES)
    draw_instances(image, boxes, NAMES, np.full(len(NAMES), 0.5))
    contact_sheet([[image] * len(NAMES)], NAMES)
    prediction_sheet([image] * len(NAMES), [[(name, 0.9)] for name in NAMES])
    draw_confusion(NAMES, np.eye(len(NAMES)), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    assert [str(warning.message) for warning in recwarn.list] == []


def test_a_dollar_is_no_formula():
    """Else three x would be narrower than three x between dollar signs."""
    image = Image.new("RGB", (60, 40))

    def ink(name):
        return (np.asarray(prediction_sheet([image], [[(name, 0.0)]]).convert("L")) < 128).sum()

    assert ink("$xxx$") > ink("xxx") > ink("xx")


def test_categories_are_one_line():
    names = ("a\nb", "\x1b[31m", "[/x]")
    assert str(Categories((1, 2, 3), names)).endswith(r"1 = 1 a\nb, 2 = 2 \x1b[31m, 3 = 3 [/x]")


class Bad(Dataset):
    def __init__(self, name):
        self.name = name

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("broken data stream")
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read; replace it") from error


@pytest.mark.parametrize("name", ["a.jpg", "two\nlines.jpg", "\x1b[31m.jpg"])
def test_an_error_of_a_data_loading_process_keeps_its_message(name):
    """torch raises it again with the traceback as its message."""
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            next(iter(DataLoader(Bad(name), num_workers=workers)))
        assert str(caught.value) == f"{printable(name)}: cannot be read; replace it"

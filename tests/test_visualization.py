"""Pictures: what their axes, bars and headings say."""

import numpy as np
import pytest
import torch

from errors import OptionError
from experiments import charts
from experiments.scores import Scores
from experiments.suites import Suite
from training import visualization
from training.visualization import save_curves, save_grid, wrap_heading


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures = []
    monkeypatch.setattr(visualization, "_save", lambda figure, path: figures.append(figure))
    return figures


def test_headings_break_between_words_and_parts_of_names():
    assert wrap_heading("ladder_binaural_student_seed0, epoch 12") == "ladder_binaural_student_\nseed0, epoch 12"
    assert wrap_heading("absolute error") == "absolute error"


def test_bars_say_what_and_in_which_unit_and_where_near_is(drawn, tmp_path):
    maps = [torch.rand(1, 8, 8)]
    columns = [("prediction", "depth", maps), ("absolute error", "error", maps), ("student", "disparity", maps)]
    save_grid(tmp_path / "a.png", columns, ["row"])
    bars = drawn[0].axes[3:]
    assert [bar.get_xlabel() for bar in bars] == ["depth [m]", "error [m]", ""]
    assert [bar.get_ylabel() for bar in bars] == ["", "", ""], "nothing lies on its side"
    low, high = bars[2].get_yticks()
    assert low < high and [text.get_text() for text in bars[2].get_yticklabels()] == ["far", "near"]


@pytest.mark.parametrize("audio_format", ["spectrogram", "mel"])
def test_spectrograms_have_axes(drawn, tmp_path, audio_format):
    sound = {"audio_samples": 3112, "audio_format": audio_format}
    save_grid(tmp_path / "a.png", [("AUDIO", "audio", [torch.rand(2, 16, 20)])], ["row"], "", sound)
    axis = drawn[0].axes[0]
    assert axis.get_ylabel() == "row\nfrequency [kHz]" and axis.get_xlabel() == "time [ms]"
    labels = [float(text.get_text()) for text in axis.get_xticklabels()]
    assert labels == [0, 20, 40, 60, 0, 20, 40, 60], "of 70.6 ms, for either ear"
    places = axis.get_xticks()
    assert places[1] == pytest.approx(20 / (3112 / 44.1) * 20 - 0.5) and places[4] == pytest.approx(19.5)
    assert all(-0.5 <= place <= 15.5 for place in axis.get_yticks())


def test_curves_are_those_that_there_are(drawn, tmp_path):
    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_distance": 2 / epoch} for epoch in (1, 2, 3)]
    save_curves(tmp_path / "curves.png", rows)
    first, second = drawn[0].axes
    assert (first.get_title(), second.get_title()) == (
        "training loss and its parts", "validation, distance from the teacher"
    )  # fmt: skip
    assert second.lines[0].get_ydata().tolist() == [2, 1, 2 / 3]


@pytest.fixture
def charted(monkeypatch):
    """The figures of a report."""
    figures = []
    monkeypatch.setattr(charts, "_png", lambda figure: figures.append(figure) or b"")
    return figures


def test_epochs_are_whole_numbers_in_a_report(charted):
    charts.draw_curves({"a": Scores(None, [0], ["a"], None, {}, [[1.0, 0.9]])})
    charted[0].canvas.draw()
    axis = charted[0].axes[0]
    assert all(place == round(place) for place in axis.get_xticks())
    assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1, "it covers no line"


def test_what_labels_are_worth_is_drawn_of_the_rows_that_there_are(charted):
    points = {"alone": [(0.1, "alone, 10 %"), (1.0, "alone, 100 %")], "taught": [(0.0, "taught, 0 %"), (0.1, "lost")]}
    errors = {"alone, 10 %": [[0.5, 0.7], [0.3, 0.5]], "alone, 100 %": [[0.2, 0.4]], "taught, 0 %": [[0.7, 0.7]] * 3}
    suite = Suite("labels", [], label_curves=points | {"nobody": [(0.5, "lost")]})
    charts.draw_label_curves(
        suite, {name: Scores(None, [0], ["a", "b"], np.array(values), {}, []) for name, values in errors.items()}
    )
    axis = charted[0].axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0 %", "10 %", "100 %"], "no 50 %: nothing is there"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["alone", "taught"]
    (line, other), (ranges, _) = axis.lines, axis.collections
    assert line.get_xydata() == pytest.approx(np.array([[1, 0.5], [2, 0.3]]))
    assert other.get_xydata() == pytest.approx(np.array([[0, 0.7]]))
    assert ranges.get_segments()[0][:, 1] == pytest.approx([0.4, 0.6]), "of the seeds"


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.png"
    with pytest.raises(OptionError, match=r"file/a.png cannot be written"):
        save_grid(path, [("depth", "depth", [torch.ones(1, 4, 4)])], ["row"])
    with pytest.raises(OptionError, match=r"file/a.png cannot be written"):
        save_curves(path, [{"epoch": 1, "train_loss": 0.5}])

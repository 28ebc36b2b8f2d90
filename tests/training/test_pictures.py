from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from xray_pipeline.training import pictures

LABELS = ["PNEUMONIA"] * 30 + ["NORMAL"] * 3


def drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def test_each_class_is_shown() -> None:
    shown = [LABELS[at] for at in pictures.spread(LABELS, 8)]
    assert sorted(shown) == ["NORMAL"] * 3 + ["PNEUMONIA"] * 5


def test_few_radiographs_are_all_shown_once() -> None:
    assert sorted(pictures.spread(["A", "B", "A"])) == [0, 1, 2]


def test_only_a_wrong_answer_has_a_red_title() -> None:
    pixels = np.zeros((2, 8, 8), np.uint8)
    plain = np.asarray(drawn(pictures.gallery(pixels, ["a", "b"], [False, False]))).astype(int)
    red = np.asarray(drawn(pictures.gallery(pixels, ["a", "b"], [False, True]))).astype(int)
    assert not (plain[..., 0] > plain[..., 1] + 50).any()
    assert (red[..., 0] > red[..., 1] + 50).any()

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.preprocess import PAD_VALUE, Preprocess

sides = st.integers(1, 700)


@pytest.mark.parametrize("size_wh", [(100, 64), (0, 64), (64, -32)])
def test_preprocess__refuses_sizes_off_the_stride(size_wh: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        Preprocess(size_wh)


def test_letterbox__same_pixels_as_ultralytics() -> None:
    from converters.checkpoint import import_ultralytics

    import_ultralytics()
    from ultralytics.data.augment import LetterBox

    rng = np.random.default_rng(0)
    for height, width in ((480, 640), (333, 500), (640, 640), (97, 31), (720, 1280)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        canvas = Preprocess((320, 320)).buffer()[0]
        Preprocess((320, 320)).letterbox(image, canvas)
        np.testing.assert_array_equal(canvas, LetterBox((320, 320), auto=False)(image=image))


def test_letterbox__overwrites_a_used_canvas() -> None:
    spec = Preprocess((64, 64))
    canvas = spec.buffer()[0]
    spec.letterbox(np.full((64, 64, 3), 255, np.uint8), canvas)
    spec.letterbox(np.zeros((32, 64, 3), np.uint8), canvas)
    assert (canvas[:16] == PAD_VALUE).all()
    assert (canvas[16:48] == 0).all()
    assert (canvas[48:] == PAD_VALUE).all()


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([(64, 64), (320, 192), (192, 320)]))
def test_letterbox__inverse_brings_boxes_back(width: int, height: int, size_wh: tuple[int, int]) -> None:
    spec = Preprocess(size_wh)
    letterbox = spec.letterbox(np.zeros((height, width, 3), np.uint8), spec.buffer()[0])
    boxes = np.array([[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]], np.float32)
    tolerance = 1.5 / letterbox.gain  # rounding of the inner size and of the border, in source pixels
    np.testing.assert_allclose(letterbox.to_source(letterbox.to_canvas(boxes)), boxes, atol=max(1e-2, tolerance * 1e-2))
    canvas_boxes = letterbox.to_canvas(boxes)
    assert (canvas_boxes >= -1).all()
    assert (canvas_boxes[:, 2] <= size_wh[0] + 1).all()
    assert (canvas_boxes[:, 3] <= size_wh[1] + 1).all()

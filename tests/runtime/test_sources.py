from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.images import is_truncated_jpeg, read_image
from runtime.sources.images import ImagesSource
from runtime.sources.simulated import BOARD_WIDTH, Line, SimulatedSource
from runtime.sources.video import VideoOptions, VideoSource
from tests.conftest import write_images


def write_video(path: Path, frames: int = 12) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 96))
    for index in range(frames):
        writer.write(Line(1, (96, 96)).image(index))
    writer.release()


def test_images_source__sorted_and_complete(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 4)
    found = list(ImagesSource(tmp_path).images())
    assert len(found) == 4
    np.testing.assert_array_equal(found[2], cv2.imread(str(paths[2])))


def test_images_source__loops(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    stream = ImagesSource(tmp_path, loop=True).images()
    pictures = [next(stream) for _ in range(5)]
    np.testing.assert_array_equal(pictures[0], pictures[4])


@pytest.mark.parametrize("cut", [0, 10, 400, -2])
def test_read_image__truncated_jpeg_is_named(tmp_path: Path, cut: int) -> None:
    (path,) = write_images(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match=r"000\.jpg .*(truncated|cannot be decoded)"):
        read_image(path)


def test_is_truncated_jpeg__allows_what_comes_after_the_end(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1)
    data = path.read_bytes()
    assert not is_truncated_jpeg(data)
    assert not is_truncated_jpeg(data + b"a maker's trailer" * 500)
    assert is_truncated_jpeg(data[:-3])


def test_images_source__no_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no folder"):
        ImagesSource(tmp_path / "none")
    with pytest.raises(SourceError, match="holds no images"):
        ImagesSource(tmp_path)


def test_video_source__reads_all_and_knows_its_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi")
    source = VideoSource(str(tmp_path / "a.avi"))
    assert (source.fps, source.live) == (25, False)
    assert len(list(source.images())) == 12
    source.close()


def test_video_source__loops(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 3)
    stream = VideoSource(str(tmp_path / "a.avi"), VideoOptions(loop=True)).images()
    assert len([next(stream) for _ in range(8)]) == 8


def test_video_source__bad_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such video file"):
        VideoSource(str(tmp_path / "none.avi"))
    (tmp_path / "text.avi").write_text("not a video")
    with pytest.raises(SourceError, match="cannot be opened as video"):
        VideoSource(str(tmp_path / "text.avi"))


def test_video_source__an_unreachable_stream_is_told_without_its_password() -> None:
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@127\.0\.0\.1:9/x is not there .*Connection refused") as caught:
        VideoSource("rtsp://user:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value)


def test_line__same_seed_same_frame_same_truth() -> None:
    first, second = Line(3, (128, 128)), Line(3, (128, 128))
    np.testing.assert_array_equal(first.image(11), second.image(11))
    np.testing.assert_array_equal(first.truth(11).xyxy, second.truth(11).xyxy)
    assert not np.array_equal(first.image(11), Line(4, (128, 128)).image(11))


def test_line__truth_moves_with_the_belt() -> None:
    line = Line(3, (256, 256), step=16)
    for index in range(0, 3 * BOARD_WIDTH // 16, 5):
        now, then = line.truth(index), line.truth(index + 1)
        inside = (now.xyxy[:, 0] > 17) & (now.xyxy[:, 2] < 255)
        for box, label in zip(now.xyxy[inside], now.class_id[inside], strict=True):
            moved = box - np.array([16, 0, 16, 0], np.float32)
            assert any(
                np.allclose(moved, other) and label == kind for other, kind in zip(then.xyxy, then.class_id, strict=True)
            )


def test_line__light_drifts_darker_and_warmer() -> None:
    line = Line(3, (128, 128), light_drift=0.01)
    early, late = line.image(0).astype(float), line.image(100).astype(float)
    assert line.light_at(100) == 1.0
    assert late.mean() < 0.6 * early.mean()
    assert late[..., 0].mean() / late[..., 2].mean() < early[..., 0].mean() / early[..., 2].mean()


def test_simulated_source__stops_after_its_frames() -> None:
    assert len(list(SimulatedSource(Line(1, (64, 64)), frames=5).images())) == 5

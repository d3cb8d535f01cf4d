from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration.labels import load_dataset
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from edge import pseudo_labels
from edge.demo.scene import SimulatedScene
from edge.errors import TrainingError
from edge.finetune import FinetuneRequest, finetune
from edge.mean_teacher import PoolSpec, PoolTeacher, as_batch
from edge.probe import ProbeRequest, probe
from edge.processes import launched_fabric
from edge.pseudo_labels import HIGHEST, LOWEST, ClassThresholds, believed, painted_over
from edge.snapshot import Snapshot
from edge.torch_detector import canvas_detector, torch_detector
from edge.yolo import build_detector, weight_average
from runtime.detections import Detections
from runtime.pool import Pool, Seen
from runtime.preprocess import Preprocess
from tests.conftest import fill_pool


def found(*rows: tuple[float, int], box: tuple[float, float, float, float] = (10, 10, 30, 20)) -> Detections:
    scores, classes = zip(*rows, strict=True) if rows else ((), ())
    return Detections(
        np.tile(np.array(box, np.float32), (len(rows), 1)), np.array(scores, np.float32), np.array(classes, np.int32)
    )


def test_thresholds__as_many_boxes_are_believed_as_labels_have() -> None:
    rng = np.random.default_rng(0)
    thresholds = ClassThresholds(np.array([1.0, 0.5, 3.0, 0.0]))
    frames = []
    for _ in range(200):
        timid = [(float(score), 1) for score in rng.uniform(0.1, 0.6, 1)]
        bold = [(float(score), 0) for score in rng.uniform(0.5, 1.0, 2)]
        frames.append(found(*bold, *timid, (0.95, 3)))
    thresholds.update(frames)
    assert thresholds.values[0] == pytest.approx(0.75, abs=0.03), "half of what is found boldly"
    assert thresholds.values[1] == pytest.approx(0.35, abs=0.05), "half of the timid"
    assert thresholds.values[2] == LOWEST, "never found often enough"
    assert thresholds.values[3] == HIGHEST, "no label has it"


def test_thresholds__state_comes_back() -> None:
    one, other = ClassThresholds(np.array([1.0])), ClassThresholds(np.array([1.0]))
    one.update([found((0.7 + index / 1000, 0)) for index in range(30)])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    one.update([found((0.4, 0))])
    other.update([found((0.4, 0))])
    np.testing.assert_array_equal(one.values, other.values)


def test_believed__the_doubtful_are_painted_over_and_the_sure_are_not() -> None:
    thresholds = ClassThresholds(np.array([1.0, 1.0]))
    thresholds.values[:] = (0.5, 0.8)
    rows = found((0.6, 0), (0.6, 1), (0.04, 0))
    rows.xyxy[1] += 5
    sure, unsure = believed(rows, thresholds)
    assert (sure.confidence.tolist(), unsure.class_id.tolist()) == ([pytest.approx(0.6)], [1])
    image = np.random.default_rng(0).integers(0, 100, (40, 40, 3), dtype=np.uint8)
    shown = painted_over(image, unsure, sure)
    assert (shown[10:21, 10:31] == image[10:21, 10:31]).all()
    assert (shown[22:26, 32:36] == 114).all()
    assert (shown[:9] == image[:9]).all()


def test_as_batch__boxes_as_shares_and_images_by_index() -> None:
    batch = as_batch([torch.zeros(3, 40, 40)] * 3, [found((0.9, 1)), found(), found((0.8, 0), (0.7, 2))])
    assert batch["img"].shape == (3, 3, 40, 40)
    assert batch["batch_idx"].tolist() == [0, 2, 2]
    assert batch["cls"].flatten().tolist() == [1, 0, 2]
    np.testing.assert_allclose(batch["bboxes"][0], [0.5, 0.375, 0.5, 0.25])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    path = SimulatedScene.make(out, labels=8, seed=0, imgsz=64).data
    kept = (out / "val.txt").read_text().splitlines()[:4]
    (out / "val.txt").write_text("\n".join(kept) + "\n")
    return path


def test_pool_teacher__waits_for_the_burn_in_then_teaches(data: Path, pool_dir: Path, tmp_path: Path) -> None:
    dataset = load_dataset(data)
    student = build_detector("yolo11n", dataset.names, 0)
    frames = Snapshot.take(pool_dir, tmp_path, None, 1)
    spec = PoolSpec(imgsz=64, batch=4, seed=0, steps=100, burn_in=0.3, weight=2.0)

    def teacher() -> PoolTeacher:
        made = PoolTeacher(frames, weight_average(student, 100).ema, dataset.train, len(dataset.names), spec)
        made._detect = lambda images: (
            [found((0.95, 0), box=(8, 8, 30, 40))] * len(images)
        )  # a teacher with fresh weights believes nothing
        return made

    torch.manual_seed(0)
    student.train()
    assert teacher().loss(student, 29, launched_fabric()) is None
    first, again, later = (teacher().loss(student, step, launched_fabric()) for step in (30, 30, 60))
    assert first is not None
    assert again is not None
    assert later is not None
    assert float(first.detach()) > 0
    assert float(later.detach()) > 5 * float(first.detach()), "the weight grows over a tenth of the run"
    torch.autograd.backward(later)
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in student.parameters())
    blind = teacher()
    blind._detect = lambda images: [found((0.2, 0))] * len(images)
    assert blind.loss(student, 60, launched_fabric()) is None


def bright_square(canvas: NDArray[np.uint8]) -> Detections:
    rows, columns = np.nonzero(canvas[..., 0] > 200)
    return found((0.95, 0), box=(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def test_pool_teacher__boxes_lie_where_the_student_sees_the_object(data: Path, tmp_path: Path) -> None:
    """Frames are flipped at random; the square lies on one side."""
    with Pool.create(tmp_path / "pool") as pool:
        image = np.full((64, 64, 3), 20, np.uint8)
        image[10:26, 4:24] = 255
        pool.add(image, Seen("line", 1000.0, "test"))
    dataset = load_dataset(data)
    student = build_detector("yolo11n", dataset.names, 0)
    spec = PoolSpec(imgsz=64, batch=16, seed=0, steps=100, burn_in=0.0, weight=1.0)
    teacher = PoolTeacher(Snapshot.take(tmp_path / "pool", tmp_path, None, 1), student, dataset.train, len(dataset.names), spec)
    teacher._detect = lambda canvases: [bright_square(canvas) for canvas in canvases]
    images, targets = teacher._labelled(0)
    lefts = {int(each.xyxy[0, 0]) for each in targets}
    assert lefts == {4, 40}, "as it is, and flipped"
    for shown, target in zip(images, targets, strict=True):
        left, top, right, bottom = target.xyxy[0].astype(int)
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert shown[:, inside].mean() > shown[:, ~inside].mean() + 0.2


def test_pool_teacher__too_many_damaged_frames_stop_the_run_and_few_are_named(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(data)
    for damaged, kept in ((1, 39), (3, 37)):
        path = tmp_path / str(damaged)
        fill_pool(path / "pool", 40)
        frames = Snapshot.take(path / "pool", path, None, 1)
        for file in sorted((path / "frames").rglob("*.jpg"))[:damaged]:
            file.unlink()
            file.write_bytes(b"no JPEG")
        student = build_detector("yolo11n", dataset.names, 0)
        spec = PoolSpec(imgsz=64, batch=40, seed=0, steps=10, burn_in=0.0, weight=1.0)
        teacher = PoolTeacher(frames, student, dataset.train, len(dataset.names), spec)
        teacher._detect = lambda canvases: [found((0.95, 0))] * len(canvases)
        if damaged > 0.05 * (damaged + kept):
            with pytest.raises(TrainingError, match="3 of 40 frames are damaged"):
                teacher._labelled(0)
        else:
            assert len(teacher._labelled(0)[0]) == 40
            assert len(teacher.damaged) == damaged


def test_canvas_detector__a_batch_gives_what_single_pictures_give(checkpoint: Path) -> None:
    detector = detector_from_checkpoint(load_checkpoint(checkpoint))
    canvases = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    single = torch_detector(detector, Preprocess((64, 64)))
    for together, canvas in zip(canvas_detector(detector, 1 / 255)(canvases), canvases, strict=True):
        alone = single(canvas)
        np.testing.assert_allclose(together.confidence, alone.confidence, atol=1e-5)
        np.testing.assert_allclose(together.xyxy, alone.xyxy, atol=1e-2)


def request(data: Path, out: Path, pool: Path, **changes: Any) -> FinetuneRequest:
    return FinetuneRequest(data, out, **{"imgsz": 64, "batch": 4, "epochs": 4, "pool": pool, "burn_in": 0.25, **changes})


def test_finetune__with_a_pool_tells_what_was_believed(data: Path, pool_dir: Path, tmp_path: Path) -> None:
    done = finetune(request(data, tmp_path / "run", pool_dir))
    assert "pseudo_boxes_per_frame" not in done.curve[0]
    assert done.curve[-1]["pseudo_boxes_per_frame"] == 0, "fresh weights believe nothing"
    assert not (tmp_path / "run" / "frames").exists()
    assert finetune(request(data, tmp_path / "run", pool_dir, resume=True)).checkpoint == done.checkpoint


def test_finetune__with_a_pool_resumed_ends_where_the_whole_run_ends(
    data: Path, pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thresholds of nothing, so that a teacher with fresh weights is believed and its labels are learnt."""
    from edge.training import Run

    for limit in ("LOWEST", "HIGHEST"):
        monkeypatch.setattr(pseudo_labels, limit, 0.0)
    whole = finetune(request(data, tmp_path / "whole", pool_dir))
    finish = Run.finish_epoch

    def killed(run: Run, *arguments: Any) -> None:
        if run.epoch == 2:
            raise KeyboardInterrupt
        finish(run, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "finish_epoch", killed)
        finetune(request(data, tmp_path / "run", pool_dir))
    done = finetune(request(data, tmp_path / "run", pool_dir, resume=True))
    assert [row.get("pseudo_boxes_per_frame") for row in done.curve] == [
        row.get("pseudo_boxes_per_frame") for row in whole.curve
    ]
    assert done.curve[-1]["pseudo_boxes_per_frame"] > 0
    first, second = load_checkpoint(whole.checkpoint).state, load_checkpoint(done.checkpoint).state
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_probe__classes_that_look_different_are_told_apart(tmp_path: Path) -> None:
    data = SimulatedScene.make(tmp_path / "data", labels=40, seed=0, imgsz=192).data
    detector = build_detector("yolo11n", ["x"], 3)
    from converters.checkpoint import Checkpoint, save_checkpoint

    save_checkpoint(tmp_path / "d.pt", Checkpoint("yolo11n", ("x",), detector.state_dict(), 64))
    rows = probe(ProbeRequest(data, (tmp_path / "d.pt",), imgsz=64, part="neck"))
    assert set(rows) == {"fresh weights", "given weights"}
    for row in rows.values():
        assert row.val > 4
        assert 0 <= row.linear_interval[0] <= row.linear <= row.linear_interval[1] <= 1
    assert max(row.linear for row in rows.values()) > 0.4, "three shapes that even fresh filters tell apart"

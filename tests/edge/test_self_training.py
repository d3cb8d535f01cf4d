from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration.labels import LabeledImage, load_dataset
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from edge import finetune as finetune_module
from edge import fused_looks as fused_looks_module
from edge import pseudo_labels, self_training
from edge import training as training_module
from edge.errors import TrainingError
from edge.finetune import finetune
from edge.finetune_request import FinetuneRequest
from edge.fused_looks import fuse, fused_looks
from edge.processes import detection_loss, launched_fabric
from edge.pseudo_labels import HIGHEST, LOWEST, class_thresholds, split_by_belief
from edge.self_training import Look, Pupils, Taught
from edge.snapshot import Snapshot
from edge.torch_detector import DetectBatch, batch_detector, torch_detector
from edge.training import Run, seed_everything
from edge.training_images import BatchSpec, TrainingImage, shown, training_loader
from edge.yolo import build_detector
from runtime.detections import Detections
from runtime.errors import PoolError
from runtime.pool import Pool, Seen
from runtime.pool_import import add_image_file
from runtime.preprocess import Preprocess
from tests.conftest import few_labels, fill_pool


def found(*rows: tuple[float, int], box: tuple[float, float, float, float] = (10, 10, 30, 20)) -> Detections:
    scores, classes = zip(*rows, strict=True) if rows else ((), ())
    return Detections(
        np.tile(np.array(box, np.float32), (len(rows), 1)), np.array(scores, np.float32), np.array(classes, np.int32)
    )


def test_thresholds__as_many_boxes_are_believed_as_labels_have() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(200):
        timid = [(float(score), 1) for score in rng.uniform(0.3, 0.8, 1)]
        bold = [(float(score), 0) for score in rng.uniform(0.5, 1.0, 2)]
        frames.append(found(*bold, *timid, (0.95, 3)))
    values = class_thresholds(frames, np.array([1.0, 0.5, 3.0, 0.0]))
    assert values[0] == pytest.approx(0.75, abs=0.03), "half of what is found boldly"
    assert values[1] == pytest.approx(0.55, abs=0.05), "half of the timid"
    assert values[2] == LOWEST, "never found often enough"
    assert values[3] == HIGHEST, "no label has it"
    assert (class_thresholds(frames[:10], np.array([1.0, 0.5, 3.0, 0.0])) == (LOWEST + HIGHEST) / 2).all()


def test_split_by_belief__three_ways() -> None:
    sure, unsure = split_by_belief(found((0.6, 0), (0.6, 1), (0.04, 0)), np.array([0.5, 0.8]))
    assert (sure.confidence.tolist(), unsure.class_id.tolist()) == ([pytest.approx(0.6)], [1])


def image_of(path: Path, boxes: list[list[float]], hidden: list[list[float]]) -> TrainingImage:
    item = LabeledImage(path, np.zeros(len(boxes), np.int32), np.array(boxes, np.float32).reshape(-1, 4))
    return TrainingImage(item, (40, 40), np.array(hidden, np.float32).reshape(-1, 4), of_pool=True)


def test_shown__the_doubtful_is_grey_and_the_sure_is_not() -> None:
    picture = np.random.default_rng(0).integers(0, 100, (40, 40, 3), dtype=np.uint8)
    image = image_of(Path("a.jpg"), [[0.5, 0.375, 0.5, 0.25]], [[0.375, 0.375, 0.875, 0.625]])
    seen = shown(picture, image)
    assert (seen[10:20, 10:30] == picture[10:20, 10:30]).all()
    assert (seen[20:25, 15:35] == 114).all()
    assert (seen[:10] == picture[:10]).all()
    assert picture.max() < 114, "the picture itself is as it was"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_labels(tmp_path_factory.mktemp("data"), held_out=4)


def sure_of_one(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
    return [found((0.95, 0))] * len(images)


def taught(folder: Path, data: Path, detect: DetectBatch, most: int = 1000) -> Taught:
    """From the frames of `folder/pool`; every label has objects."""
    dataset = load_dataset(data)
    labels = [item for item in dataset.train if len(item.class_id)]
    pupils = Pupils(Snapshot.take(folder / "pool", folder, None, 1), labels, (), len(dataset.names))
    return pupils.taught(detect, Look(2, most, 16, 0))


def test_pupils__as_many_frames_as_there_is_room_for(data: Path, tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 40)
    everything, some = taught(tmp_path, data, sure_of_one), taught(tmp_path, data, sure_of_one, 25)
    assert (everything.looked, everything.boxes, len(everything.images)) == (40, 40, 40)
    assert len({image.item.path for image in some.images}) == 25
    assert all(image.of_pool for image in some.images)
    again = taught(tmp_path, data, sure_of_one, 25)
    assert [image.item.path for image in again.images] == [image.item.path for image in some.images]


def test_pupils__what_nothing_is_believed_of_is_left_out(data: Path, tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 40)
    blind = taught(tmp_path, data, lambda images: [found((0.15, 0))] * len(images))
    assert (blind.images, blind.boxes, blind.looked) == ((), 0, 40)


def test_pupils__frames_that_show_a_held_out_image_are_left_out(data: Path, tmp_path: Path, capsys: Any) -> None:
    fill_pool(tmp_path / "pool", 40)
    frames = Snapshot.take(tmp_path / "pool", tmp_path, None, 1)
    dataset = load_dataset(data)
    labels = [item for item in dataset.train if len(item.class_id)]
    pupils = Pupils(frames, labels, [replace(labels[0], path=frames.path(3)), *dataset.val], len(dataset.names))
    for epoch in (2, 3):
        found = pupils.taught(sure_of_one, Look(epoch, 40, 16, 0))
        assert frames.path(3) not in {image.item.path for image in found.images}
        assert 20 < found.looked < 40
    told = capsys.readouterr().err
    assert told.count(f"left out, shows the held-out image {frames.path(3).name}: {frames.name(3)}") == 1, "the first time"


def test_pupils__frames_that_show_a_labelled_image_are_left_out_and_count_for_no_threshold(data: Path, tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 40)
    frames = Snapshot.take(tmp_path / "pool", tmp_path, None, 1)
    dataset = load_dataset(data)
    labels = [item for item in dataset.train if len(item.class_id)]
    own = [replace(item, path=frames.path(index)) for index, item in enumerate(labels[:2])]
    looked: list[int] = []

    def detect(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        looked.extend(int(image.sum(dtype=np.int64)) for image in images)
        return sure_of_one(images)

    found = Pupils(frames, own, (), len(dataset.names)).taught(detect, Look(2, 40, 16, 0))
    assert not {item.path for item in own} & {image.item.path for image in found.images}
    assert len(looked) == found.looked < 40
    assert not set(looked) & {int(frames.read(index).sum(dtype=np.int64)) for index in range(len(own))}


def bright_square(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
    def square(image: NDArray[np.uint8]) -> Detections:
        rows, columns = np.nonzero(image[..., 0] > 200)
        return found((0.95, 0), (0.3, 1), box=(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))

    return [square(image) for image in images]


def test_pupils__boxes_lie_where_the_student_sees_the_object(data: Path, tmp_path: Path) -> None:
    with Pool.create(tmp_path / "pool") as pool:
        image = np.full((48, 96, 3), 20, np.uint8)
        image[10:26, 4:40] = 255
        pool.add(image, Seen("line", 1000.0, "test"))
    frames = [*taught(tmp_path, data, bright_square).images] * 16
    assert frames[0].size_wh == (96, 48)
    assert len(frames[0].hidden) == 1, "the second class is not believed, and the first lies over it"
    seed_everything(0, 0)
    batches = list(training_loader(frames, load_dataset(data).names, BatchSpec(64, 4, 0, mosaic=False, steps=5), None))
    assert len(batches) == 5
    lefts = set()
    for batch in batches:
        for picture, row in zip(batch["img"].float() / 255, range(4), strict=True):
            for cx, cy, width, height in batch["bboxes"][batch["batch_idx"] == row].tolist():
                inside = torch.zeros(64, 64, dtype=torch.bool)
                left, top = round(64 * (cx - width / 2)), round(64 * (cy - height / 2))
                inside[top : round(64 * (cy + height / 2)), left : round(64 * (cx + width / 2))] = True
                lefts.add(left)
                assert picture[:, inside].mean() > picture[:, ~inside].mean() + 0.2
    assert len(lefts) > 4, "flipped, scaled and moved"


def test_pupils__too_many_damaged_frames_stop_the_run_and_few_are_named(data: Path, tmp_path: Path, capsys: Any) -> None:
    for damaged in (1, 3):
        path = tmp_path / str(damaged)
        fill_pool(path / "pool", 40)
        for file in sorted((path / "pool").rglob("*.jpg"))[:damaged]:
            file.unlink()
            file.write_bytes(b"no JPEG")
        if damaged == 3:
            with pytest.raises(TrainingError, match="3 of 40 frames are damaged"):
                taught(path, data, sure_of_one)
        else:
            assert len(taught(path, data, sure_of_one).images) == 39
            assert capsys.readouterr().err.count("left out, damaged: ") == 1


def test_batch_detector__a_batch_gives_what_single_pictures_give(checkpoint: Path) -> None:
    detector = detector_from_checkpoint(load_checkpoint(checkpoint))
    images = [np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8) for size in ((64, 64, 3), (30, 90, 3))]
    single = torch_detector(detector, Preprocess((64, 64)))
    for together, image in zip(batch_detector(detector, Preprocess((64, 64)))(images), images, strict=True):
        alone = single(image)
        np.testing.assert_allclose(together.confidence, alone.confidence, atol=1e-5)
        np.testing.assert_allclose(together.xyxy, alone.xyxy, atol=1e-2)


@pytest.mark.parametrize("model", ["yolo11n", "yolov10n", "yolo26n"])
def test_detection_loss__of_frames_moves_no_box(model: str) -> None:
    detector = build_detector(model, ["a", "b"], 0).train()
    target = {"cls": torch.zeros(2, 1), "bboxes": torch.full((2, 4), 0.5), "batch_idx": torch.arange(2.0)}
    batch = {"img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), **target}
    moved = []
    for boxes in (True, False):
        detector.zero_grad()
        detection_loss(detector, batch, launched_fabric(), boxes=boxes).backward()  # type: ignore[no-untyped-call]
        head = dict(detector.model[-1].named_parameters())
        learnt = {name.split(".")[0] for name, each in head.items() if each.grad is not None and bool(each.grad.any())}
        moved.append(learnt)
    assert any("cv2" in name for name in moved[0])
    assert {name for name in moved[0] if "cv2" not in name} == moved[1], "the classes' branches, and nothing else of the head"


def request(data: Path, out: Path, pool: Path, **changes: Any) -> FinetuneRequest:
    return FinetuneRequest(data, out, **{"imgsz": 64, "batch": 4, "epochs": 4, "pool": pool, "burn_in": 0.5, **changes})


def test_finetune__with_a_pool_labels_come_first(data: Path, pool_dir: Path, tmp_path: Path, capsys: Any) -> None:
    done = finetune(request(data, tmp_path / "run", pool_dir))
    assert re.search(r"believes 0 boxes in \d+ frames", capsys.readouterr().err), "two epochs of nearly fresh weights"
    lineage = load_checkpoint(done.checkpoint).lineage
    assert (lineage["finetune_epochs"], lineage["last_look_boxes"]) == ("4", "0")
    alone = finetune(FinetuneRequest(data, tmp_path / "alone", imgsz=64, batch=4, epochs=4))
    assert [row["loss"] for row in done.curve][:2] == [row["loss"] for row in alone.curve][:2], "labels come first"
    assert not (tmp_path / "run" / "frames").exists()
    before = done.checkpoint.read_bytes()
    again = finetune(
        request(data, tmp_path / "run", pool_dir.parent / "." / ".." / pool_dir.parent.name / pool_dir.name, resume=True)
    )
    assert done.checkpoint.read_bytes() == before
    assert again.accuracy == done.accuracy
    assert "teacher" not in capsys.readouterr().err, "finished: nothing to look at"
    with pytest.raises(TrainingError, match="holds a run already"):
        finetune(request(data, tmp_path / "run", pool_dir))
    with pytest.raises(TrainingError, match="needs 2 epochs or more"):
        finetune(request(data, tmp_path / "short", pool_dir, epochs=1))
    with pytest.raises(TrainingError, match="to resume from"):
        finetune(request(data, tmp_path / "never", pool_dir, resume=True))


def test_finetune__a_pool_that_is_not_there_is_told_before_the_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no pool"):
        finetune(request(data, tmp_path / "run", tmp_path / "typo"))
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_finetune__frames_that_are_gone_are_told_before_a_resumed_run_trains(
    data: Path, pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Run.step

    def killed(run: Run, *arguments: Any) -> None:
        if run.epoch == 1:
            raise KeyboardInterrupt
        step(run, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "step", killed)
        finetune(request(data, tmp_path / "run", pool_dir))
    shutil.rmtree(tmp_path / "run" / "frames")
    monkeypatch.setattr(Run, "step", lambda *_: pytest.fail("trained"))
    with pytest.raises(TrainingError, match="holds no frames to resume on; start a new run"):
        finetune(request(data, tmp_path / "run", pool_dir, resume=True))


@pytest.mark.parametrize(
    "cut",
    ["in the labels' turn", "before the teacher looked", "in the frames' turn", "before it looked again", "before the end"],
)
def test_finetune__with_a_pool_resumed_ends_where_the_whole_run_ends(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, cut: str
) -> None:
    """With thresholds of nothing, so that a teacher with fresh weights is believed and its labels are learnt; the pool holds
    labelled images, which are left out.
    """
    pool_dir = tmp_path / "pool"
    fill_pool(pool_dir, 24)
    with Pool.create(pool_dir) as pool:
        for number, item in enumerate(load_dataset(data).train[:3]):
            add_image_file(pool, item.path, "labelled", float(number))
    for limit in ("LOWEST", "HIGHEST"):
        monkeypatch.setattr(pseudo_labels, limit, 0.0)
    for module in (pseudo_labels, self_training, fused_looks_module):
        monkeypatch.setattr(module, "DOUBT", 0.0)
    whole = finetune(request(data, tmp_path / "whole", pool_dir))
    told = re.search(r"believes (\d+) boxes in (\d+) frames", capsys.readouterr().err)
    assert told
    assert int(told[1]) > 0
    assert int(told[2]) == 24
    finish = Run.finish_epoch

    def killed(run: Run, *arguments: Any) -> None:
        if run.epoch == (1 if "labels" in cut else 3):
            raise KeyboardInterrupt
        finish(run, *arguments)

    def killed_before(*_: Any) -> Taught:
        raise KeyboardInterrupt

    look = Pupils.taught

    def killed_before_again(pupils: Pupils, detect: DetectBatch, each: Look) -> Taught:
        if each.epoch == 3:
            raise KeyboardInterrupt
        return look(pupils, detect, each)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_module, "_SAVE_EVERY_S", 0)
        if "turn" in cut:
            patch.setattr(Run, "finish_epoch", killed)
        elif "end" in cut:
            patch.setattr(finetune_module, "save_checkpoint", killed_before)
        else:
            patch.setattr(Pupils, "taught", killed_before_again if "again" in cut else killed_before)
        finetune(request(data, tmp_path / "run", pool_dir))
    kept = {path: path.stat().st_ino for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match="holds a run already"):
        finetune(request(data, tmp_path / "run", pool_dir))
    assert {path: path.stat().st_ino for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept, "nothing was touched"
    for changes in ({"epochs": 6}, {"imgsz": 96}, {"seed": 5}):
        with pytest.raises(TrainingError, match="was started with other settings"):
            finetune(request(data, tmp_path / "run", pool_dir, resume=True, **changes))
    done = finetune(request(data, tmp_path / "run", pool_dir, resume=True))
    assert load_checkpoint(done.checkpoint).lineage == load_checkpoint(whole.checkpoint).lineage
    assert done.curve[-1]["loss"] == whole.curve[-1]["loss"]
    first, second = load_checkpoint(whole.checkpoint).state, load_checkpoint(done.checkpoint).state
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_fuse__an_object_that_few_looks_show_is_less_sure() -> None:
    one, other = found((0.9, 0), (0.8, 1)), found((0.3, 0), box=(10, 10, 34, 20))
    fused = fuse([one, other, found()])
    assert fused.class_id.tolist() == [0, 1]
    np.testing.assert_allclose(fused.confidence, [0.4, 0.8 / 3], rtol=1e-6)
    np.testing.assert_allclose(fused.xyxy[0], [10, 10, 31, 20], rtol=1e-6)
    assert len(fuse([found(), found()])) == 0


def test_fuse__of_each_look_one_box_counts() -> None:
    """Two boxes of a look that overlap by 0.65 are one object, and no surer than the better of them."""
    boxes = np.array([[10, 10, 30, 20], [10, 10, 30, 23]], np.float32)
    look = Detections(boxes, np.array([0.6, 0.5], np.float32), np.zeros(2, np.int32))
    fused = fuse([look] * 3)
    np.testing.assert_allclose(fused.confidence, [0.6], rtol=1e-6)
    np.testing.assert_allclose(fused.xyxy, [[10, 10, 30, 20]], rtol=1e-6)


def test_fused_looks__boxes_come_back_to_where_the_object_is() -> None:
    image = np.full((48, 96, 3), 20, np.uint8)
    image[10:26, 4:40] = 255
    for upright in (False, True):
        looked: list[int] = []

        def detect(images: Sequence[NDArray[np.uint8]], looked: list[int] = looked) -> list[Detections]:
            looked.append(len(images))
            return bright_square(images)

        (fused,) = fused_looks(detect, upright=upright)([image])
        np.testing.assert_allclose(fused.xyxy, [[4, 10, 40, 26]] * 2, rtol=1e-6)
        np.testing.assert_allclose(fused.confidence, [0.95, 0.3], rtol=1e-6)
        assert looked == [1] * (2 if upright else 3)

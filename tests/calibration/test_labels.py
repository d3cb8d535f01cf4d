from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.labels import load_dataset, read_labels, split_dataset, tell_unlabelled, write_dataset
from runtime.errors import SourceError
from tests.conftest import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of four boards, a box each."""
    root = tmp_path / "set"
    paths = write_images(root / "images", 12)
    (root / "labels").mkdir()
    for index, path in enumerate(paths):
        renamed = path.rename(path.with_name(f"board{index // 3}_{index}.jpg"))
        (root / "labels" / f"{renamed.stem}.txt").write_text(f"{index % 2} 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("names:\n  0: good\n  1: bad\n")
    return root


def test_split_dataset__never_splits_a_group(folder: Path, tmp_path: Path) -> None:
    data = split_dataset(folder, tmp_path / "split", r"^(board\d)", labels=4, val_share=0.25, seed=0)
    dataset = load_dataset(data)
    rest = (tmp_path / "split" / "rest.txt").read_text().splitlines()
    boards = [
        {Path(path).name[:6] for path in part}
        for part in ([*(str(i.path) for i in dataset.train), *rest], [str(i.path) for i in dataset.val])
    ]
    assert boards[0].isdisjoint(boards[1])
    assert (len(dataset.train), len(dataset.val), len(rest)) == (4, 3, 5)
    assert dataset.names == ("good", "bad")
    other = load_dataset(split_dataset(folder, tmp_path / "other", r"^(board\d)", 4, 0.25, seed=5))
    assert [item.path for item in other.train] != [item.path for item in dataset.train]


def test_split_dataset__links_have_the_labels_beside_them_and_not_beside_their_target(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    for part in ("images", "labels"):
        (own / part).mkdir(parents=True)
    for path in (folder / "images").iterdir():
        (own / "images" / path.name).symlink_to(path)
        (own / "labels" / f"{path.stem}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (own / "data.yaml").write_text("names: [other]\n")
    found = load_dataset(split_dataset(own, tmp_path / "split", r"^(board\d)", 0, 0.25, 0))
    assert {int(number) for item in (*found.train, *found.val) for number in item.class_id} == {0}


def test_split_dataset__bad_patterns(folder: Path, tmp_path: Path) -> None:
    for pattern, message in (("(", "no regular expression"), ("^(x)", "does not match"), ("^(board)", "one group")):
        with pytest.raises(DataError, match=message):
            split_dataset(folder, tmp_path / "split", pattern, 0, 0.2, 0)


def test_truth__pixels(folder: Path) -> None:
    (item,) = read_labels([folder / "images" / "board0_1.jpg"], 2)
    truth = item.truth((96, 48))
    np.testing.assert_allclose(truth.xyxy, [[36, 12, 60, 36]])
    assert truth.class_id.tolist() == [1]


def test_read_labels__a_missing_file_is_an_empty_image(folder: Path) -> None:
    (folder / "labels" / "board0_0.txt").unlink()
    (item,) = read_labels([folder / "images" / "board0_0.jpg"], 2)
    assert len(item.class_id) == 0


def test_tell_unlabelled__images_without_a_label_file_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "labels" / "board0_0.txt").write_text("")  # shows nothing, and says so
    dataset = load_dataset(split_dataset(folder, tmp_path / "split", r"^(board\d)", 0, 0.25, 0))
    tell_unlabelled(dataset)
    assert not capsys.readouterr().err
    lost = folder / "labels" / f"{dataset.train[0].path.stem}.txt"
    lost.unlink()
    tell_unlabelled(dataset)
    told = "1 of 12 images have no label file and count as showing nothing; the first of them would be"
    assert capsys.readouterr().err == f"{told} {lost}\n"


def test_read_labels__tells_every_kind_of_problem_with_its_line(folder: Path) -> None:
    (folder / "labels" / "board0_0.txt").write_text(
        "0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n0 1.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n0 a b c d\n0 nan 0.5 0.1 0.1\n0 .5 .5 0 .1\n-1 .5 .5 .1 .1\n"
    )
    with pytest.raises(DataError) as caught:
        read_labels([folder / "images" / "board0_0.jpg"], 2)
    told = str(caught.value)
    for expected in (
        "7 label problem(s)", "board0_0.txt:2: class 7 is unknown: data.yaml names classes 0 to 1", "board0_0.txt:3: box 1.5",
        "board0_0.txt:4: 4 numbers", "board0_0.txt:5: not numbers", "and 2 more",
    ):  # fmt: skip
        assert expected in told


@given(st.text(max_size=60))
def test_read_labels__fuzzed_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz"
    (root / "labels").mkdir(parents=True, exist_ok=True)
    (root / "labels" / "a.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        (item,) = read_labels([root / "images" / "a.jpg"], 3)
    except DataError:
        return
    assert ((item.cxcywh >= 0) & (item.cxcywh <= 1)).all()
    assert set(item.class_id.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]\n", "has no `train`"),
        ("names: []\ntrain: x\nval: x\n", "no usable `names`"),
        ("names: {1: a}\ntrain: x\nval: x\n", "no usable `names`"),
        ("names: [a, b, a]\ntrain: x\nval: x\n", "names a class twice"),
        ("names: {0: a, 1: a}\ntrain: x\nval: x\n", "names a class twice"),
        ("names: [a]\ntrain: nowhere\nval: nowhere\n", "neither a folder of images nor a list"),
        ("names: [a]\ntrain: list.txt\nval: list.txt\n", "lists 1 of 1 images that do not exist"),
        ("names: [a]\ntrain: [\n", r"data\.yaml:3: not valid YAML"),
        ("names: [a]\ntrain: x\ntrain: y\n", r"data\.yaml:3: train comes twice; line 2 has it already"),
        ("names: [a]\ntrain: [nowhere]\nval: x\n", "nowhere, which is neither a folder"),
        ("3", "no mapping"),
    ],
)
def test_load_dataset__refuses(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text("gone.jpg\n")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "data.yaml")


def test_load_dataset__no_file_and_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "none.yaml")
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [good, bad]\n")
    assert len(load_dataset(folder / "data.yaml").train) == 12
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    with pytest.raises(SourceError, match="holds no images"):
        load_dataset(folder / "data.yaml")


@pytest.mark.parametrize(
    ("train", "count"), [("[images, one.txt]", 12), ("lists/one.txt", 1), ("[lists/one.txt, lists/one.txt]", 1)]
)
def test_load_dataset__an_image_that_entries_or_lines_name_twice_counts_once(folder: Path, train: str, count: int) -> None:
    one = next((folder / "images").iterdir()).name
    (folder / "lists").mkdir()
    (folder / "one.txt").write_text(f"images/{one}\n")
    (folder / "lists" / "one.txt").write_text(f"../images/{one}\n../lists/../images/{one}\n")
    (folder / "data.yaml").write_text(f"train: {train}\nval: images\nnames: [good, bad]\n")
    assert len(load_dataset(folder / "data.yaml").train) == count


def test_write_dataset__is_read_back(folder: Path, tmp_path: Path) -> None:
    paths = sorted((folder / "images").iterdir())
    data = write_dataset(tmp_path / "written", ["good", "bad"], paths[:3], paths[3:5])
    assert (len(load_dataset(data).train), len(load_dataset(data).val)) == (3, 2)

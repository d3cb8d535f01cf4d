from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge.errors import StorageError, TrainingError
from edge.methods.views import TwoViews, ViewSpec
from edge.pretrain import pretrain
from edge.pretrain_request import PretrainRequest
from edge.shard_export import export_shards
from edge.shard_loader import ShardLoader
from edge.shards import INDEX, ShardIndex, ShardSet
from edge.view_loader import LoaderSpec
from runtime.errors import PoolError
from runtime.images import decode_image
from runtime.pool import Pool
from tests.conftest import fill_pool
from tests.edge.small_runs import same_weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames in four shards."""
    root = tmp_path_factory.mktemp("shards")
    fill_pool(root / "pool", 40)
    export_shards(root / "pool", root / "out", per_shard=11)
    return root / "out"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.shards._PAUSE_S", 0.01)


def test_export__every_frame_once_with_its_bytes(shards: Path) -> None:
    found = ShardSet.open(str(shards))
    assert [shard.frames for shard in found.index.shards] == [11, 11, 11, 7]
    read = [frame for shard in found.index.shards for frame in found.frames(shard)]
    with Pool.open(shards.parent / "pool") as pool:
        expected = {f"{entry.sha256}.jpg": pool.read_jpeg(entry) for entry in pool.entries()}
        order = [f"{entry.sha256}.jpg" for entry in pool.entries()]
    assert dict(read) == expected
    assert [name for name, _ in read] != order, "frames that follow each other do not share a shard"
    with pytest.raises(TrainingError, match="holds shards already"):
        export_shards(shards.parent / "pool", shards)


def test_export__an_empty_pool(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 0)
    with pytest.raises(PoolError, match="is empty"):
        export_shards(tmp_path / "pool", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export__what_was_evicted_or_is_damaged_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_pool(tmp_path / "pool", 40)
    with Pool.open(tmp_path / "pool") as pool:
        files = [pool.file_of(entry) for entry in pool.entries()]
    for path in files[:7]:
        path.unlink()
    for path in files[7:9]:
        path.write_bytes(b"cut off")
    index = export_shards(tmp_path / "pool", tmp_path / "out", per_shard=10)
    assert [shard.frames for shard in index.shards] == [10, 10, 10, 1], "shards are filled up, but for the last"
    shards = ShardSet.open(str(tmp_path / "out"))
    found = {name for shard in index.shards for name, _ in shards.frames(shard)}
    assert found == {path.name for path in files[9:]}
    told = capsys.readouterr().err
    assert {line for line in told.splitlines() if "left out" in line} == {
        f"left out, damaged: {path.name}" for path in files[7:9]
    }


def test_export__many_damaged_frames_end_it_and_leave_nothing(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 40)
    with Pool.open(tmp_path / "pool") as pool:
        files = [pool.file_of(entry) for entry in pool.entries()]
    for path in files[:3]:
        path.write_bytes(b"cut off")
    with pytest.raises(PoolError, match=r"^3 of 40 frames are damaged, first \w+\.jpg; .*: edge pool check .*pool --repair$"):
        export_shards(tmp_path / "pool", tmp_path / "out", per_shard=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(TrainingError, match="file is a file; name a folder"):
        export_shards(tmp_path / "pool", tmp_path / "file", per_shard=2)


def test_export__an_address_is_refused(edge: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 2)
    done = edge("pool", "export", "pool", "s3://bucket/x")
    told = "edge: shards are written to a folder, and s3://bucket/x is an address; give a folder, then copy it there\n"
    assert (done.returncode, done.stderr) == (2, told)
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    assert "out: 2 frames in 1 shards" in edge("pool", "export", "pool", "out").stdout


def loader(shards: Path | str, **changes: int) -> ShardLoader:
    return ShardLoader(ShardSet.open(str(shards)), TwoViews(ViewSpec(64)), LoaderSpec(**{"batch": 4, "seed": 3, **changes}))


def same(first: list[tuple[torch.Tensor, ...]], second: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_loader__an_epoch_is_the_same_again_and_from_the_middle(shards: Path, workers: int) -> None:
    made = loader(shards, workers=workers)
    whole = list(made.epoch(1))
    assert len(whole) == made.steps >= 7
    assert same(whole, list(loader(shards, workers=workers).epoch(1)))
    assert same(whole[4:], list(loader(shards, workers=workers).epoch(1, first_step=4)))
    assert not same(whole, list(loader(shards, workers=workers).epoch(2)))


def test_loader__processes_have_shards_of_their_own_and_as_many_batches(shards: Path) -> None:
    ranks = [list(loader(shards, rank=rank, world=2).epoch(0)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == loader(shards, world=2).steps
    assert all(len(views[0]) == 2 for made in ranks for views in made)
    with pytest.raises(TrainingError, match="4 shards for 6 readers"):
        loader(shards, world=2, workers=3)


def test_loader__a_truncated_shard_stops_the_run_with_its_name(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    victim = copy / "shard-000001.tar"
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"shard-000001\.tar cannot be read: .*--resume"):
        list(loader(copy).epoch(0))


class Told:
    """Views that tell which frame it was and what was drawn."""

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        return (torch.tensor([image.mean(), rng.random()], dtype=torch.float64),)


def told(shards: Path, first_step: int = 0, **changes: int) -> tuple[list[torch.Tensor], ShardLoader]:
    """The batches of an epoch, in each what its frames were, and their loader."""
    made = ShardLoader(ShardSet.open(str(shards)), Told(), LoaderSpec(**{"batch": 4, "seed": 3, **changes}))
    return [views[0] for views in made.epoch(0, first_step)], made


@pytest.mark.parametrize(("workers", "batch", "steps"), [(0, 3, 13), (2, 2, 19), (3, 4, 8), (3, 1, 40)])
def test_loader__readers_of_unequal_shards_go_on_at_any_step(
    shards: Path, tmp_path: Path, workers: int, batch: int, steps: int
) -> None:
    export_shards(shards.parent / "pool", tmp_path / "out", per_shard=16)  # 16, 16 and 8
    whole, made = told(tmp_path / "out", workers=workers, batch=batch)
    assert len(whole) == made.steps == steps
    for first in {1, 2, 5, steps // 2, steps - 4, steps - 3, steps - 2, steps - 1}:
        rest, _ = told(tmp_path / "out", first, workers=workers, batch=batch)
        assert torch.equal(torch.stack(rest), torch.stack(whole[first:])), first
    assert told(tmp_path / "out", steps, workers=workers, batch=batch)[0] == []


def test_loader__steps_are_what_every_order_of_the_shards_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(1, 30, size=rng.integers(6, 12)).tolist()
        world, workers, share = (int(rng.integers(1, most)) for most in (3, 4, 6))
        index = ShardIndex.model_validate({"shards": [{"name": f"s{i}.tar", "frames": n} for i, n in enumerate(counts)]})
        try:
            made = ShardLoader(ShardSet("nowhere", index), Told(), LoaderSpec(share * world, 0, workers, world=world))
        except TrainingError:
            continue
        mine = [rng.permutation(counts[rank::world]) for rank in range(world)]
        found = [sum(int(part[reader::workers].sum()) // share for reader in range(workers)) for part in mine]
        assert made.steps <= min(found)
        assert made.steps == min(found) or workers > 1, "a single reader leaves out what fills no batch, and no more"


@pytest.mark.parametrize(("batch", "workers"), [(2, 0), (1, 0), (4, 2)])
def test_loader__damaged_pictures_leave_all_other_batches_as_they_are(
    shards: Path, tmp_path: Path, batch: int, workers: int
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    clean, _ = told(copy, batch=batch, workers=workers)
    _damage(copy, clean[3][0, 0])
    whole, made = told(copy, batch=batch, workers=workers)
    assert len(made.damaged) == 1
    assert len(whole) == made.steps == len(clean)
    changed = [step for step, (one, two) in enumerate(zip(clean, whole, strict=True)) if not torch.equal(one, two)]
    assert changed == [3], "also where it is the first of its batch, or the whole of it"
    for first in (3, 4, 7):
        assert torch.equal(torch.stack(told(copy, first, batch=batch, workers=workers)[0]), torch.stack(whole[first:]))


def test_loader__many_damaged_pictures_end_the_run(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    clean, _ = told(copy)
    for view in clean[0][:3]:
        _damage(copy, view[0])
    with pytest.raises(TrainingError, match=r"3 of 40 frames are damaged, first .*edge pool check POOL --repair, then export"):
        told(copy)


def _damage(folder: Path, mean: torch.Tensor) -> None:
    """Overwrites the picture of that mean value."""
    for path in sorted(folder.glob("*.tar")):
        data = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                place = slice(member.offset_data, member.offset_data + member.size)
                if decode_image(bytes(data[place]), member.name).mean() == float(mean):
                    data[place] = bytes(member.size)
                    path.write_bytes(data)
                    return


def test_loader__a_sentence_from_a_reader_is_not_wrapped(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(TrainingError, match=r"^[^\n]*shard-000001\.tar cannot be read: [^\n]*--resume$"):
        told(copy, workers=2)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"format": "other/1", "shards": [{"name": "a", "frames": 1}]}',
        '{"shards": [{"name": "../x", "frames": 1}]}',
        "no",
    ],
)
def test_open__what_is_no_index_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(TrainingError, match="no index of shards"):
        ShardSet.open(str(tmp_path))
    with pytest.raises(TrainingError, match=r"it does not exist; write shards with: edge pool export POOL OUT$"):
        ShardSet.open(str(tmp_path / "nowhere"))


class Flaky(http.server.SimpleHTTPRequestHandler):
    """A server from which every shard vanishes once in the middle."""

    broken: set[str] = set()  # noqa: RUF012
    always = False

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if self.path.endswith(".tar") and (self.always or self.path not in self.broken):
            self.broken.add(self.path)
            outputfile.write(source.read(20_000))
            self.close_connection = True
            return
        super().copyfile(source, outputfile)


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, type[Flaky]]]:
    kind = type("One", (Flaky,), {"broken": set()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(shards))) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}", kind
        found.shutdown()


def test_http__a_shard_that_vanishes_in_the_middle_is_asked_for_again(shards: Path, server: tuple[str, type[Flaky]]) -> None:
    url, kind = server
    assert same(list(loader(url).epoch(0)), list(loader(shards).epoch(0)))
    assert len(kind.broken) >= 3, "each was cut once"
    kind.broken.clear()
    assert same(list(loader(url, workers=2).epoch(0)), list(loader(shards, workers=2).epoch(0)))


class Refusing(http.server.BaseHTTPRequestHandler):
    """`/403/…` answers 403."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    do_HEAD = do_GET  # noqa: N815


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("{server}/403", r"access is refused \(403, .*\); give the right to read it \(.*AWS_PROFILE.*\)"),
        ("{server}/401", r"access is refused \(401, .*"),
        ("{server}/404", r"it does not exist; write shards with: edge pool export POOL OUT"),
        ("{server}/503", r"503, .*; see to storage and network"),
        ("http://127.0.0.1:1", r"Cannot connect to host .*; see to storage and network"),
        ("http://127.0.0.1:port", r"Invalid URL: .*; give a folder, or an address that begins with https:// or s3://"),
        ("foo://bucket/x", r"Protocol not known: foo; give a folder, or an address .*"),
        ("gs://bucket/x", r"Please install gcsfs .*; or give a folder, or an address .*"),
    ],
)
def test_open__what_a_storage_refuses_is_one_sentence(url: str, told: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        with pytest.raises(TrainingError, match=rf"^[^\n]*/index\.json cannot be read: {told}$"):
            ShardSet.open(url.format(server=f"http://127.0.0.1:{found.server_address[1]}"))
        found.shutdown()


def test_open__s3_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs", reason="pip install 'edgeloop[fleet]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        TrainingError, match=r"index\.json cannot be read: access is refused \(Unable to locate credentials\); .*AWS_P"
    ):
        ShardSet.open("s3://bucket/x")


def test_http__one_that_stays_away_is_a_clear_stop(server: tuple[str, type[Flaky]]) -> None:
    url, kind = server
    kind.always = True
    with pytest.raises(TrainingError, match=r"shard-.*cannot be read: .*go on with --resume"):
        list(loader(url).epoch(0))


@pytest.fixture
def s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """The shards in a bucket of moto's server, and a client of it."""
    server_module = pytest.importorskip("moto.server", reason="pip install 'edgeloop[dev]'")
    s3fs = pytest.importorskip("s3fs", reason="pip install 'edgeloop[fleet]'")
    import boto3

    s3fs.S3FileSystem.clear_instance_cache()  # one that found no credentials is kept as well

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="plant")
    for path in shards.iterdir():
        client.upload_file(str(path), "plant", f"line/{path.name}")
    yield "s3://plant/line", client
    server.stop()


def test_s3__a_bucket_is_read_and_an_object_that_vanishes_is_a_clear_stop(shards: Path, s3: tuple[str, Any]) -> None:
    url, client = s3
    assert same(list(loader(url).epoch(0)), list(loader(shards).epoch(0)))
    client.delete_object(Bucket="plant", Key="line/shard-000002.tar")
    import fsspec

    fsspec.filesystem("s3").invalidate_cache()
    with pytest.raises(TrainingError, match=r"shard-000002\.tar cannot be read: .*--resume"):
        list(loader(url).epoch(0))


def test_pretrain__a_shard_that_is_put_back_is_gone_on_with(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))

    def request(out: str, **changes: Any) -> PretrainRequest:
        return PretrainRequest(Path(), tmp_path / out, imgsz=64, batch=8, epochs=1, shards=str(copy), **changes)

    whole = pretrain(request("whole"))
    for number in range(4):  # whichever comes first
        shard = copy / f"shard-{number:06d}.tar"
        data = shard.read_bytes()
        shard.write_bytes(data[: len(data) // 2])
        with pytest.raises(StorageError, match="then go on with --resume"):
            pretrain(request(f"cut{number}"))
        shard.write_bytes(data)
        assert same_weights(whole, pretrain(request(f"cut{number}", resume=True)))


def test_pretrain__from_shards_is_resumed_where_it_stopped(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.training import Run

    def request(out: str, **changes: Any) -> PretrainRequest:
        return PretrainRequest(
            Path(), tmp_path / out, imgsz=64, batch=8, epochs=2, shards=str(shards), save_every_s=0.0, **changes
        )

    whole = pretrain(request("whole"))
    apply, steps = Run.apply, 0

    def counted(run: Run) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        apply(run)

    monkeypatch.setattr(Run, "apply", counted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(request("run"))
    assert same_weights(whole, pretrain(request("run", resume=True)))


def test_index__frames_are_counted_without_reading_them() -> None:
    index = ShardIndex.model_validate({"shards": [{"name": f"s{i}.tar", "frames": 1000} for i in range(100)]})
    assert len(ShardSet("nowhere", index)) == 100_000

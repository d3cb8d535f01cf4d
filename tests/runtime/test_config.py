from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config import EdgeConfig, GStreamerConfig, ServerConfig, load_config
from runtime.errors import ConfigError
from tests.conftest import ROOT

GOOD = """
model: {bundle: bundles/current}
cameras:
  door:
    source: {kind: video, uri: "rtsp://u:p@127.0.0.1/x"}
"""


def load(tmp_path: Path, text: str) -> EdgeConfig:
    path = tmp_path / "edge.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_load_config__defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.model.engine == "auto"
    assert config.cameras["door"].fps is None
    assert config.collect is None
    assert config.server is None


def test_load_config__the_shipped_example_is_valid() -> None:
    config = load_config(ROOT / "deploy" / "edge.yaml")
    assert config.collect is not None
    assert {sink.kind for sink in config.sinks} == {"jsonl", "pictures"}
    assert config.server == ServerConfig(), "the example shows the defaults"


def test_load_config__tells_all_problems_with_their_lines(tmp_path: Path) -> None:
    text = (
        "model:\n  bundle: b\n  engin: auto\n  threads: -1\n"
        "cameras:\n  door:\n    source:\n      kind: video\n      url: x\n    fpss: 3\n"
        "  gate:\n    source: {kind: webcam}\n"
        "sinks:\n  - {kind: jsonl}\nmore: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    told = str(caught.value)
    for expected in (
        "8 problems", "edge.yaml:3: model.engin: unknown key", "edge.yaml:4: model.threads:", "edge.yaml:9: cameras.door.source.url: unknown key",
        "cameras.door.source.uri: is missing", "edge.yaml:10: cameras.door.fpss: unknown key", "edge.yaml:12: cameras.gate.source",
        "sinks.0.path: is missing", "edge.yaml:15: more: unknown key",
    ):  # fmt: skip
        assert expected in told, f"{expected!r} not in:\n{told}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- 1\n- 2\n", "no mapping"),
        ("", "no mapping"),
        (GOOD.replace("source:", "fps: max\n    source:"), "fps: max is for files"),
        (GOOD.replace("door", '"a/b"'), "cameras"),
        (GOOD.replace("u:p@", "u:p w@"), r"edge\.yaml:5: cameras\.door\.source\.uri: an address holds no white space"),
        (GOOD + "server: {port: 65536}\n", r"edge\.yaml:6: server\.port: is 65536; expected at most 65535"),
        (GOOD + "server: {prot: 80}\n", r"server\.prot: unknown key"),
        (
            GOOD.replace("source:", "fps: 0\n    source:"),
            r"1 problem;[^\n]*\n.*cameras\.door\.fps: is 0; expected more than 0, or 'max'",
        ),
        (
            GOOD.replace("model: {", "model: {confidence: {car: 2}, "),
            r"1 problem;[^\n]*\n.*model\.confidence\.car: is 2; expected at most 1",
        ),
        (GOOD.replace("model: {", "model: {threads: two, "), r"model\.threads: is 'two'; expected a whole number"),
        (GOOD.replace("source:", "region: [0, 0, 1]\n    source:"), r"cameras\.door\.region: expected more values"),
        ("model: {bundle: b}\ncameras:\n  1: {source: x, fpss: 3}\n", r"2 problems"),
        (GOOD + "sinks: [{kind: mqtt, path: x}]\n", r"sinks\.0: expected kind: 'jsonl', 'pictures', but got 'mqtt'"),
    ],
)
def test_load_config__refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_load_config__a_number_is_a_camera_of_this_machine(tmp_path: Path) -> None:
    source = load(tmp_path, GOOD + "  desk: {source: 2}\n").cameras["desk"].source
    assert isinstance(source, GStreamerConfig)
    assert "device=/dev/video2 " in source.pipeline


def test_load_config__an_empty_server_block_serves_at_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + "server: {}\n")
    assert config.server is not None
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)


def test_load_config__what_comes_twice_is_told_with_everything_else(tmp_path: Path) -> None:
    text = GOOD + "  gate:\n    source: {kind: images, path: a, path: b}\n  door:\n    fps: -1\nmodel: {bundle: other}\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    told = str(caught.value)
    for expected in (
        "edge.yaml:7: cameras.gate.source.path: a key may come once; line 7 has it already",
        "edge.yaml:8: cameras.door: camera names must differ; line 4 has it already",
        "edge.yaml:10: model: a key may come once; line 2 has it already",
        "cameras.door.source: is missing",
    ):
        assert expected in told, f"{expected!r} not in:\n{told}"


def test_load_config__two_cameras_of_one_name_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 problem;[^\n]*\n  .*edge\.yaml:6: cameras\.door: camera names must differ"):
        load(tmp_path, GOOD + "  door:\n    source: {kind: simulated}\n")


def test_load_config__aliases_are_no_second_keys(tmp_path: Path) -> None:
    text = "x: &x {fps: 5}\ny: &y {source: {kind: simulated}}\nmodel: {bundle: b}\ncameras:\n  a: {<<: *x, <<: *y}\n  b: {<<: *y}\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "2 problems" in str(caught.value), "only x and y are unknown"
    assert "once" not in str(caught.value)


def test_load_config__an_alias_that_leads_back_ends(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, "model: &m {bundle: b, more: *m}\ncameras: {}\n")


def test_load_config__no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read.*deploy/edge\.yaml"):
        load_config(tmp_path / "none.yaml")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.sampled_from(["model: {bundle: b}\n", "cameras: {a: {source: {kind: images, path: "]).flatmap(
    lambda head: st.text(max_size=40).map(lambda tail: head + tail)))  # fmt: skip
def test_load_config__fuzzed_text_gives_a_config_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(load_config(path), EdgeConfig)
    except ConfigError as error:
        assert "fuzz.yaml" in str(error)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rtsp:/joe:secret@host/x", "did you mean rtsp://"),
        ("joe:secret@1.2.3.4:554/x", "did you mean rtsp://"),
        ("htp://host/x", "unknown protocol htp; use one of rtsp"),
        ("rtsp://joe:secret@host:port/x", "the port of the address is no number"),
        ('""', "an address is missing"),
    ],
)
def test_load_config__addresses_that_cannot_be(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, f"model: {{bundle: b}}\ncameras:\n  a:\n    source: {source}\n")
    assert "secret" not in str(caught.value)


def test_load_config__two_sinks_of_one_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"two sinks write to r\.jsonl"):
        load(tmp_path, GOOD + "sinks: [{kind: jsonl, path: r.jsonl}, {kind: jsonl, path: r.jsonl}]\n")

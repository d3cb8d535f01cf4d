from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings

from runtime.logs import JsonFormatter, RedactFilter, TextFormatter
from tests.conftest import ROOT
from tests.runtime.test_uri import PASSWORDS

FORMATTERS = {"text": TextFormatter(), "json": JsonFormatter()}


def line(form: str, record: logging.LogRecord) -> str:
    assert RedactFilter().filter(record)
    return FORMATTERS[form].format(record)


def record_with(message: object, *args: object, error: Exception | None = None, **extra: object) -> logging.LogRecord:
    exc_info = None
    if error:
        try:
            raise error
        except Exception as caught:  # noqa: BLE001
            exc_info = (type(caught), caught, caught.__traceback__)
    record = logging.getLogger("runtime.capture").makeRecord(
        "runtime.capture", logging.WARNING, "f", 1, message, args, exc_info
    )
    vars(record).update(extra)
    return record


def test_json__holds_what_a_collector_needs() -> None:
    record = record_with("lost after %d frames", 7, camera="gate", size_wh=(640, 480), rate=float("nan"))
    got = json.loads(line("json", record))
    assert (got["level"], got["logger"], got["message"]) == ("WARNING", "runtime.capture", "lost after 7 frames")
    assert (got["thread"], got["camera"], got["size_wh"], got["rate"]) == ("MainThread", "gate", [640, 480], "nan")
    told = datetime.strptime(got["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs(told.timestamp() - record.created) < 0.002


@pytest.mark.parametrize("form", ["text", "json"])
def test_format__an_exception_stays_on_the_line(form: str) -> None:
    got = line(form, record_with("broke\nhere", error=ValueError("first\nsecond")))
    assert len(got.splitlines()) == 1
    assert "Traceback" in got
    assert "second" in got


def test_format__arguments_that_do_not_fit_lose_neither_the_line_nor_a_password() -> None:
    got = line("text", record_with("camera %d", "rtsp://u:secret@h/x"))
    assert "camera %d (and a log call whose arguments do not fit: TypeError)" in got
    assert "secret" not in got


def test_json__an_extra_field_replaces_none_of_ours() -> None:
    assert json.loads(line("json", record_with("x", level="mine", time="never")))["level"] == "WARNING"


@settings(deadline=None)
@pytest.mark.parametrize("form", ["text", "json"])
@given(password=PASSWORDS)
def test_filter__no_password_survives(form: str, password: str) -> None:
    def said(secret: str) -> str:
        uri = f"rtsp://admin:{secret}@cam/live"
        record = record_with("lost %s", uri, error=OSError(f"{uri} refused"), uri=uri, tried=[{"first": uri}])
        record.created, record.msecs = 0.0, 0.0
        return line(form, record)

    assert said(password) == said("another"), "what is written must not depend on the password"


PROGRAM = """
import logging, sys, threading, warnings
from runtime.logs import configure_logging
configure_logging(sys.argv[1])
logging.getLogger("a").info("hello %s", "rtsp://u:secret@h/x", extra={"camera": "gate"})
logging.getLogger("a").debug("too fine")
warnings.warn("old\\nthing")
def fail(): raise RuntimeError("rtsp://u:secret@h/x broke")
thread = threading.Thread(target=fail, name="worker"); thread.start(); thread.join()
fail()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_configure_logging__one_line_a_record_on_stderr(form: str) -> None:
    command = [sys.executable, "-c", PROGRAM, form]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 4)
    assert "secret" not in done.stderr
    levels = [json.loads(line)["level"] if form == "json" else line.split()[1] for line in lines]
    assert levels == ["INFO", "WARNING", "CRITICAL", "CRITICAL"]
    assert "thread worker ended" in lines[2]

"""Log lines: one form for people and one for machines, whatever is in them."""

import json
import logging
import subprocess
import sys

from serving.logs import JsonFormatter, TextFormatter
from tests.server_process import environment


def record(message: str = "it is done", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("serving.x", logging.INFO, "x.py", 1, message, (), None)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    if fields:
        made.fields = fields
    return made


def failed() -> logging.LogRecord:
    made = record("it failed", request_id="a1")
    try:
        {}["why"]
    except KeyError:
        made.exc_info = sys.exc_info()
    return made


def test_a_text_line_ends_with_its_fields() -> None:
    line = TextFormatter().format(record(code="OK", count=3, seconds=0.123456789))
    assert line == (
        "2023-11-14T22:13:20.250Z INFO serving.x: it is done code=OK count=3 seconds=0.123457"
    )


def test_a_text_value_is_one_word_and_one_line_whatever_it_is() -> None:
    line = TextFormatter().format(record(a="two words", b="x\ny", c='q"=', d="", e="é\x1b[31m"))
    assert line.endswith(r'a="two words" b="x\ny" c="q\"=" d="" e="\u00e9\u001b[31m"')


def test_a_json_line_is_one_object_with_the_fields_as_members() -> None:
    line = JsonFormatter().format(record(code="OK", seconds=0.5, text="x\ny", level="forged"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "INFO",
        "logger": "serving.x",
        "message": "it is done",
        "code": "OK",
        "seconds": 0.5,
        "text": "x\ny",
    }


def test_a_traceback_follows_a_text_line_and_is_a_member_of_a_json_line() -> None:
    first, *rest = TextFormatter().format(failed()).splitlines()
    assert first.endswith("it failed request_id=a1")
    assert rest[-1] == "KeyError: 'why'"
    line = JsonFormatter().format(failed())
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("KeyError: 'why'")


PROGRAM = """
import logging, sys, warnings
from serving import logs
logs.set_up("warning", sys.argv[1])
logging.getLogger("uvicorn.error").error("from uvicorn")
logging.getLogger("grpc._cython.cygrpc").error("from grpc")
logging.getLogger("grpc._cython.cygrpc").error(
    "ExecuteBatchError raised in core by servicer method [/a/B]"  # a client has left
)
logging.getLogger("serving").info("not important enough")
warnings.warn("from python")
"""


def test_what_libraries_log_and_warn_of_goes_the_same_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == [
        "uvicorn.error",
        "grpc._cython.cygrpc",
        "py.warnings",
    ]

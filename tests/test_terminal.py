"""Names of files, classes and stages come from strangers: nothing that is printed or logged commands the terminal."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiny_pipeline import tiny_tokenizer
from vqvdm import cli
from vqvdm.errors import logger_of
from vqvdm.files import write_text
from vqvdm.train.log import Progress
from vqvdm.video import write_video

EVIL = "\x1b[2J\x1b]0;title\x07[/bold]"
HARMLESS = r"\x1b[2J\x1b]0;title\x07[/bold]"
SOURCES = Path(cli.__file__).parent


def check(said: str) -> None:
    assert HARMLESS in said
    assert not set("\x1b\x07\x9b") & set(said)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES.rglob("*.py") if "logging.getLogger(" in p.read_text()], ids=lambda path: path.name
)
def test_loggers_are_made_in_one_place(path: Path) -> None:
    assert path.name in ("errors.py", "server.py")  # the latter: that of the web server


def test_what_is_logged_is_printable(caplog: pytest.LogCaptureFixture) -> None:
    logger_of("vqvdm.x").warning("%s: %d", EVIL, 3)
    logger_of("vqvdm.x").warning(EVIL + "100%")
    check(caplog.text)
    assert [record.getMessage() for record in caplog.records] == [f"{HARMLESS}: 3", f"{HARMLESS}100%"]
    assert len(logging.getLogger("vqvdm.x").filters) == 1


def test_what_a_training_says_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("tokenizer", 0, 1, quiet=False).say(f"warning: {EVIL}")
    check(capsys.readouterr().err)


def test_a_log_file_is_never_silent_for_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress("tokenizer", 0, 9, quiet=False)
    progress.update(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("vqvdm.train.log.SILENCE", -1.0)
    progress.update(2)
    assert capsys.readouterr().err.startswith("tokenizer 2/9  remaining 00:00")


def test_mistakes_on_the_command_line_are_printable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["recipe", "list", EVIL]) == 2
    check(capsys.readouterr().err)

    def refuse(*words, **settings):
        raise PermissionError(13, "Permission denied", EVIL)

    monkeypatch.setattr(cli, "app", refuse)
    monkeypatch.setattr(cli, "check_command", lambda words: None)
    assert cli.main([]) == 2
    check(capsys.readouterr().err)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """One that can be read, one that cannot."""
    name = EVIL.replace("/", "")
    write_video(tmp_path / "clips" / f"a{name}.mp4", np.zeros((8, 32, 32, 3), np.uint8), 8.0)
    (tmp_path / "clips" / f"b{name}.mp4").write_text("no video")
    return tmp_path / "clips"


def test_names_of_videos(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "shard", str(clips), "--out", str(tmp_path / "shards")]) == 0
    said = capsys.readouterr()
    assert "\x1b[2J" not in said.out + said.err
    assert rf"left out: b{HARMLESS.replace('/', '')}.mp4" in said.out


def test_names_of_reconstructions(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    words = ["--frames", "4", "--size", "16", "--fps", "8", "--out", str(tmp_path / "out")]
    assert cli.main(["reconstruct", str(tmp_path / "tokenizer"), str(clips), *words]) == 0
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said and HARMLESS.replace("/", "") in said


def test_names_in_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text(json.dumps({"stage": EVIL, "step": 1, "loss": 1.0}) + "\n")
    assert cli.main(["runs", str(tmp_path)]) == 0
    check(capsys.readouterr().out)


def test_names_in_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"value": 1.0, "deviation": None, "real": 1.0, "better": "lower"}
    side = {"name": "x", "videos": 1, "skipped": 0, "skipped_videos": [], "digest": "0"}
    report = {
        "metrics": {"fvd": figure}, "counts": {"real": 1, "fake": 1}, "real": side, "fake": side, "networks": {},
        "protocol": {"line": EVIL, "name": EVIL}, "warnings": [EVIL], "versions": {"vqvdm": "0"},
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(report))
    shutil.copy(tmp_path / "a.json", tmp_path / f"{EVIL.replace('/', '')}.json")
    assert cli.main(["evaluate", "compare", *map(str, sorted(tmp_path.glob("*.json")))]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and r"\x1b[2J" in said


def test_half_characters_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "report.md", "caf\u00e9 \udcff.mp4")
    assert (tmp_path / "report.md").read_text("utf-8") == r"café \udcff.mp4"

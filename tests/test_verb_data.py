"""`vqvdm data check`: what it prints, and its exit status."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from vqvdm.cli import main
from vqvdm.errors import InputError
from vqvdm.verbs.data import check


def _lines(text: str) -> dict[str, str]:
    """First word(s) of each summary line -> the rest."""
    pairs = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_a_good_folder(tmp_path, numbered, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name, frames, fps in (
        ("train/x/a", 10, 25),
        ("train/x/b", 20, 25),
        ("train/y/c", 60, 30),
        ("test/y/d", 16, 25),
    ):
        numbered.write(tmp_path / f"{name}.avi", frames=frames, fps=fps)
    assert check(str(tmp_path), frames=16) == 0
    out = capsys.readouterr().out
    assert "\nToo short for 16 frames, left out: 1\n  train/x/a.avi: 10 frames at 25 fps\n" in out
    found = _lines(out)
    assert found["layout"] == "folders"
    assert found["videos"] == "4 (train 3, test 1); 0 bad"
    assert found["classes"] == "2"
    assert found["frames"] == "10 to 60, median 18, together 106"
    assert found["seconds"] == "0.4 to 2, median 0.72"
    assert found["frame rates"] == "25 fps: 3, 30 fps: 1"
    assert found["sizes"] == "64x48: 4"
    assert found["too short"] == "1 of 4 for 16 frames"
    assert re.split(r"\s+", found["0"]) == ["x", "2", "0"]
    assert re.split(r"\s+", found["1"]) == ["y", "1", "1"]
    assert check(str(tmp_path), frames=16, fps=10) == 0
    assert _lines(capsys.readouterr().out)["too short"] == "3 of 4 for 16 frames at 10 fps"


def test_every_bad_file_is_named_with_its_reason_and_ends_in_status_1(tmp_path, numbered, capsys):
    numbered.write(tmp_path / "good.avi", frames=30)
    cut = numbered.write(tmp_path / "cut.avi", frames=60)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "[odd] name.mp4").write_text("no video")
    (tmp_path / "empty.webm").touch()
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "2 bad" in out
    assert "Bad files, left out: 2" in out
    assert "[odd] name.mp4: not a readable video" in out
    assert "empty.webm: the file is empty" in out
    assert re.search(r"Damaged, but usable: 1\n  cut\.avi: the header states 60 frames", out)


def test_the_table_of_classes_counts_what_can_be_read(tmp_path, numbered, capsys):
    for name in ("x/a", "x/b", "y/c", "z/d"):
        numbered.write(tmp_path / "train" / f"{name}.avi")
    (tmp_path / "train" / "y" / "bad.avi").write_text("no video")
    (tmp_path / "train" / "z" / "d.avi").write_text("no video")
    assert check(str(tmp_path)) == 1
    out = capsys.readouterr().out
    found = re.fullmatch(r"5 \(train (\d+), test (\d+)\); 2 bad", _lines(out)["videos"])
    assert found is not None
    rows = [line.split() for line in out.splitlines()]
    assert ["id", "class", "train", "test", "bad"] in rows
    table = [row for row in rows if row and row[0] in "012"]
    assert [sum(int(row[column]) for row in table) for column in (2, 3)] == [int(found[1]), int(found[2])]
    assert [[row[1], int(row[2]) + int(row[3]), row[4]] for row in table] == [
        ["x", 2, "0"],
        ["y", 1, "1"],
        ["z", 0, "1"],
    ]


def test_a_manifest_states_frame_rates(tmp_path, numbered, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in "ab":
        (tmp_path / name).mkdir()
        for number, image in enumerate(numbered.make(20)):
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    numbered.write(tmp_path / "c.mp4", frames=20, codec="libx264", stamps=[*range(10), *range(20, 30)])
    (tmp_path / "m.csv").write_text("file,fps\na,10\nb,\nc.mp4,5\n")
    check(str(tmp_path / "m.csv"), frames=16, fps=5)
    found = _lines(capsys.readouterr().out)
    assert found["frame rates"] == "10 fps: 1, 25 fps (assumed): 1, 5 fps: 1"
    assert found["seconds"] == "0.8 to 4, median 2"
    assert found["too short"] == "2 of 3 for 16 frames at 5 fps"  # 4 s at 5 fps are enough


def test_what_the_layout_leaves_out_is_said(tmp_path, numbered, capsys):
    for name in ("run/a", "steam_train/b", "c"):
        numbered.write(tmp_path / f"{name}.avi")
    check(str(tmp_path), layout="folders")
    out = capsys.readouterr().out
    assert "Notes: 2\n  not taken as splits, though called so: steam_train" in out
    assert "  videos left out, as they lie in no class: 1 (first: c.avi)" in out


def test_real_folders(real_data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert check(str(real_data / "ucf101-mini")) == 0
    out = capsys.readouterr().out
    found = _lines(out)
    assert found["videos"] == "11 (train 2, test 9); 0 bad"
    assert found["frame rates"] == "29.97 fps: 6, 25 fps: 5"
    assert "Listed, but absent: 13309" in out
    assert "... and 13299 more" in out
    assert "(92 more without videos)" in out
    assert check(str(real_data / "sky-mini"), frames=32) == 0
    found = _lines(capsys.readouterr().out)
    assert found["layout"] == "frames"
    assert found["frame rates"] == "25 fps (assumed): 36"


def test_nothing_to_check(tmp_path):
    with pytest.raises(InputError, match="no videos found"):
        check(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        check(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="stride 0"):
        check(str(tmp_path), stride=0)

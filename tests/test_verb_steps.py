"""How few steps a model needs: the knee of figures, and what the command writes and keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vqvdm import VQVDMPipeline, cli
from vqvdm.verbs.steps import Row, as_table, knee, picture

ROWS = [
    Row("dpm++", 4, 4, 150.0, 9.0, 0.50),
    Row("dpm++", 8, 8, 104.0, 5.0, 0.88),
    Row("dpm++", 20, 20, 100.0, 5.0, 0.90),
    Row("euler", 8, 8, 103.0, 5.0, 0.70),
    Row("euler", 50, 50, 101.0, 5.0, 0.91),
]


def test_the_knee_is_the_cheapest_row_that_is_nearly_the_best():
    assert knee(ROWS, 0.05) == ROWS[1]  # of euler's eight steps the judge recognises too few
    unjudged = [replace(row, judge=None) for row in ROWS]
    assert knee(unjudged, 0.05) == unjudged[3]  # equally dear, and better
    assert knee(ROWS, 0.0) == ROWS[2]  # no row has both the best FVD and the best share
    assert knee(ROWS, 0.02) == ROWS[2]
    assert knee(ROWS, 1.0) == ROWS[0]


def test_rows_as_table_and_picture():
    lines = as_table(ROWS).splitlines()
    assert lines[0] == "| scheduler | steps | calls | FVD | KVD | judge |"
    assert lines[2] == "| dpm++ | 4 | 4 | 150 | 9 | 0.500 |"
    assert "judge" not in as_table([replace(row, judge=None) for row in ROWS])
    drawn = picture(ROWS)
    assert "dpm++" in drawn and "euler" in drawn


def test_the_command(commands, capsys):
    words = ["model", "--reference", "real.npy", "--clips", "8", "--dtype", "float32"]
    asked = ["--steps", "2,1", "--schedulers", "euler,heun", "--tolerance", "0", "--keep"]
    assert cli.main(["evaluate", "steps", *words, *asked, "--report", "made/steps.json"]) == 0
    found = json.loads((commands / "made" / "steps.json").read_text())
    rows = [(row["scheduler"], row["steps"], row["calls"]) for row in found["rows"]]
    assert rows == [("euler", 1, 1), ("euler", 2, 2), ("heun", 1, 1), ("heun", 2, 3)]
    assert all(0 <= row["judge"] <= 1 for row in found["rows"])  # its classes are the toy world's
    assert found["knee"]["fvd"] == min(row["fvd"] for row in found["rows"])
    assert "steps.svg" in (commands / "made" / "steps.md").read_text()
    index = json.loads((commands / "model" / "model_index.json").read_text())
    assert "_name_or_path" not in index  # a path of this machine
    kept = VQVDMPipeline.from_pretrained(commands / "model")
    assert kept.card() == (commands / "model" / "README.md").read_text()
    assert kept.config["num_inference_steps"] == found["knee"]["steps"]
    assert found["knee"]["scheduler"] in type(kept.scheduler).__name__.lower()

    # the same figures as the command for a single row
    asked = ["--steps", "2", "--scheduler", "euler", "--report", "one.json"]
    assert cli.main(["evaluate", "samples", *words, *asked]) == 0
    one = json.loads((commands / "one.json").read_text())["metrics"]
    assert found["rows"][1]["fvd"] == one["fvd"]["value"]
    assert found["rows"][1]["judge"] == one["judge"]["value"]


def test_a_card_that_was_edited_stays_and_fewer_clips_are_taken_as_they_are(commands, capsys):
    card = commands / "model" / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    words = ["model", "--reference", "real.npy", "--steps", "1", "--schedulers", "euler", "--keep"]
    assert cli.main(["evaluate", "steps", *words]) == 0  # of 20 videos
    assert "now takes 1 steps of euler" in capsys.readouterr().out
    assert card.read_text().endswith("\nMine.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "4,x"], "must be whole numbers"),
        (["--steps", "0"], "must be whole numbers"),
        (["--steps", "4,1001"], "--steps 1001: ddim cannot take so many"),
        (["--schedulers", "dpn++"], "did you mean 'dpm++'"),
        (["--tolerance", "-1"], "--tolerance -1"),
    ],
)
def test_mistakes_are_named_before_the_work(commands, capsys, words, message):
    assert cli.main(["evaluate", "steps", "model", "--reference", "real.npy", *words]) == 2
    assert message in capsys.readouterr().err

"""Reports side by side: what differs is said, and published figures are those of their tables."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from vqvdm import cli
from vqvdm.evaluation.compare import differences, published, side_by_side
from vqvdm.metrics.protocol import PRESETS

REPORT = {
    "metrics": {
        "fvd": {"value": 123.456, "deviation": None, "better": "lower"},
        "kvd": {"value": 7.0, "deviation": 0.5, "better": "lower"},
    },
    "protocol": {"name": "vqvdm", "line": "vqvdm, ...", "clips": 2048, "epsilon": 1e-3, "resize": "half_pixel"},
    "counts": {"real": 2048, "fake": 2048},
    "real": {"digest": "ab"},
    "networks": {"i3d": "cd"},
}


def changed(**changes: dict) -> dict:
    report = copy.deepcopy(REPORT)
    for part, values in changes.items():
        report[part] |= values
    return report


def test_one_protocol_compares():
    text = side_by_side({"a": REPORT, "b": changed(metrics={"fvd": {"value": 9.0, "deviation": None}})})
    assert "| FVD | 123.5 | 9 |" in text
    assert "| KVD | 7 ± 0.5 | 7 ± 0.5 |" in text
    assert "these figures compare" in text


def test_every_difference_is_named():
    other = changed(
        protocol={"epsilon": 1e-5, "resize": "legacy"},
        counts={"fake": 100},
        real={"digest": "xy"},
        networks={"i3d": "zz"},
    )
    assert differences({"a": REPORT, "b": other}) == {
        "epsilon": [1e-3, 1e-5],
        "resize": ["half_pixel", "legacy"],
        "clips, fake": [2048, 100],
        "reference": ["ab", "xy"],
        "weights of i3d": ["cd", "zz"],
    }
    text = side_by_side({"a": REPORT, "b": other})
    assert "do not compare" in text
    assert "| epsilon | 0.001 | 1e-05 |" in text


def test_published_figures():
    """Spot checks of both tables; every row has a source and a figure."""
    ucf, sky, rec = ({r["method"]: r for r in published(n)} for n in ("ucf101", "sky", "ucf101-reconstruction"))
    assert (ucf["VQ-VDM"]["is"], ucf["VQ-VDM"]["fvd"], ucf["TATS"]["fvd"], ucf["VDM"]["is"]) == (64.13, 425, 332, 57.0)
    assert (sky["VQ-VDM"]["fvd"], sky["VQ-VDM"]["kvd"], sky["MoCoGAN-HD"]["fvd"]) == (109.4, 5.9, 183.6)
    assert (ucf["W.A.L.T-L"]["fvd"], ucf["MAGVIT-L"]["fvd"], rec["MAGVIT-v2"]["rfvd"]) == (34.6, 76, 8.6)
    assert (len(ucf), len(sky), len(rec)) == (14, 4, 8)
    rows = [*ucf.values(), *sky.values(), *rec.values()]
    assert all(row["source"] and row.keys() & {"is", "fvd", "kvd", "rfvd"} for row in rows)
    assert {row.get("preset", "vqvdm") for row in rows} <= PRESETS.keys()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        path.write_text(json.dumps(REPORT))
    assert cli.main(["evaluate", "compare", *map(str, paths), "--dataset", "sky"]) == 0
    out = capsys.readouterr().out
    assert "| figure | one | two |" in out
    assert "| DIGAN | GAN | 128x128 | 114.6 | 6.8 | ICLR 2022 | 2,048 clips, ten draws, test split |" in out
    assert "- `tats`: one differs from it in" in out
    assert "epsilon 0.001 (1e-05)" in out
    paths[1].write_text(json.dumps({"one half": REPORT}))
    assert cli.main(["evaluate", "compare", str(paths[1])]) == 2
    assert "holds the reports of a calibration" in capsys.readouterr().err
    for nothing in ("[1]", '{"metrics": {}, "protocol": {}, "counts": {}}', '{"metrics": [], "protocol": 1}'):
        paths[0].write_text(nothing)
        assert cli.main(["evaluate", "compare", str(paths[0])]) == 2
    paths[0].write_text("{}")
    assert cli.main(["evaluate", "compare", str(paths[0])]) == 2
    assert "is no report of `vqvdm evaluate`" in capsys.readouterr().err
    assert cli.main(["evaluate", "compare", str(tmp_path / "none.json")]) == 2
    assert cli.main(["evaluate", "compare"]) == 2
    assert "nothing to compare" in capsys.readouterr().err

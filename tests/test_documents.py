"""The documents hold: their code runs, their commands parse, and what they name is there."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import CycloptsError
from PIL import Image, ImageSequence
from torch.distributed.run import get_args_parser

from vqvdm import Recipe, VideoDenoiser, VideoTokenizer
from vqvdm.cli import app, check_command, join_overrides, main
from vqvdm.data.layouts import find_videos
from vqvdm.data.toy import CLASSES, ToyMotions
from vqvdm.errors import InputError
from vqvdm.recipe_io import packaged_names
from vqvdm.video import write_video

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vqvdm"
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)

# Recipes on `toy` train in a second with these. (bf16 gradients are wrong on grids so small: docs/log.md)
SMALL = [
    "data.size=16",
    "data.frames=4",
    "data.workers=0",
    "data.toy_clips=8",
    "tokenizer.training.precision=float32",
    "tokenizer.model.channels=[8,16]",
    "tokenizer.loss.quantize_after=1",
    "tokenizer.loss.perceptual=0",  # LPIPS' network may not be here
    "tokenizer.training.steps=2",
    "tokenizer.training.batch=2",
    "latents.windows=1",
    "denoiser.model.channels=[8,16]",
    "denoiser.model.head_dim=8",
    "denoiser.training.steps=2",
    "denoiser.training.batch=2",
    "sampling.steps=2",
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    language: str
    text: str


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(language: str, *documents: str) -> list[Block]:
    found = []
    for document in documents or DOCUMENTS:
        for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL):
            found += [Block(document, kind, text)] if kind == language else []
    return found


def prose(document: str) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)


def code_spans(document: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(document))


def shell_lines(*documents: str) -> list[tuple[str, str]]:
    """(document, command) of every line of the bash blocks."""
    lines = [(block.document, line) for block in blocks("bash", *documents) for line in block.text.splitlines()]
    return [(document, line) for document, line in lines if line and not line.startswith("#")]


def verb_words(line: str) -> list[str] | None:
    """The words after `vqvdm` of a shell line, also as torchrun and accelerate start it; None for other commands."""
    words = shlex.split(line)
    place = words.index("vqvdm") if "vqvdm" in words else None
    if place is None or not (place == 0 or words[place - 1] in ("-m", "--")):
        return None
    return words[place + 1 :]


def table_rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table's body below a heading."""
    section = read(document).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documents assume it: `clips/`, `mine.yaml`, and the run `runs/demo` (tiny, hardly trained)."""
    folder = tmp_path_factory.mktemp("documents")
    for label, name in enumerate(CLASSES[:2]):
        for number in range(4):
            video = ToyMotions(size=48, frames=24).render(number, label, fps=12).video
            write_video(folder / "clips" / name / f"{number}.mp4", video, fps=12)
    (block,) = blocks("yaml", "docs/training.md")
    (folder / "mine.yaml").write_text(block.text, encoding="utf-8")
    for verb in ("train tokenizer", "encode", "train denoiser"):
        assert main([*verb.split(), "demo", *SMALL, "--run", str(folder / "runs" / "demo")]) == 0
    return folder


@pytest.fixture
def inside(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workplace, as the current folder."""
    shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# ------------------------------------------------------------------------------------------------------------ code runs


ON_A_SERVER = "docs/page.md"  # tests/test_app_page.py runs its code


@pytest.mark.parametrize("document", sorted({block.document for block in blocks("python")} - {ON_A_SERVER}))
def test_python_blocks_run(document: str, inside: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python", document):
        exec(compile(block.text, document, "exec"), names)
    if document == "README.md":
        assert {"left.mp4", "grow.mp4"} <= {path.name for path in inside.iterdir()}


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(inside: Path) -> None:
    notebook = json.loads(read("docs/notebook.ipynb"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            assert cell["outputs"] == [], "outputs are of one machine and one version"
    assert len(names["longer"].videos()[0]) == 32
    assert names["difference"].max() <= 1  # a video does not depend on its batch
    assert (inside / "bounce.gif").is_file()


def test_commands_for_own_clips_run(inside: Path) -> None:
    """The README's way from a folder of clips to samples, with its own lines, on a tiny model."""
    section = read("README.md").split("### Your own clips\n")[1]
    lines = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert lines is not None
    for line in lines[1].splitlines():
        words = verb_words(line)
        assert words is not None
        changes = SMALL if "asl64" in words else []
        assert main([*words, *changes]) in (0, None), line
    run = inside / "runs" / "mine"
    for name in ("recipe.yaml", "log.jsonl", "samples", "checkpoints/tokenizer", "checkpoints/denoiser"):
        assert (run / name).exists()
    for name in ("tokenizer/config.json", "latents/index.json", "pipeline/model_index.json", "pipeline/README.md"):
        assert (run / name).is_file()
    assert len(list((inside / "samples").glob("*.mp4"))) == 2 * 4
    assert (inside / "reconstructions" / "sheet.png").is_file()


def test_the_run_folders_table_is_complete(workplace: Path) -> None:
    named = {
        name.split("/")[0]
        for row in table_rows("docs/training.md", "The run folder")
        for name in re.findall(r"`([^`]+)`", row[0])
    }
    assert {path.name for path in (workplace / "runs" / "demo").iterdir()} == named - {"held-out"}  # of a student alone


@pytest.mark.parametrize("language", ["csv", "json"])
def test_manifest_examples_are_read(language: str, tmp_path: Path) -> None:
    (block,) = blocks(language, "docs/data.md")
    manifest = tmp_path / {"csv": "manifest.csv", "json": "manifest.jsonl"}[language]
    manifest.write_text(block.text, encoding="utf-8")
    (tmp_path / "videos").mkdir()
    for name in ("beach.mp4", "road"):
        (tmp_path / "videos" / name).touch()
    listing = find_videos(tmp_path)
    assert (listing.layout, listing.classes, listing.absent) == ("manifest", ("traffic", "waves"), ())
    assert [(s.split, s.start, s.end, s.fps) for s in listing.samples] == [
        ("train", 0, 2.5, None),
        ("test", 2.5, 5, None),
        ("train", None, None, 10),
    ]


def test_the_picture_is_what_its_code_makes(inside: Path) -> None:
    """If the toy world changed: run the last block of docs/data.md again and move toy.webp into docs/."""
    exec(compile(blocks("python", "docs/data.md")[-1].text, "docs/data.md", "exec"), {})
    made, kept = (frames(path) for path in (inside / "toy.webp", ROOT / "docs" / "toy.webp"))
    assert made.shape == kept.shape
    assert np.abs(made - kept).mean() < 1  # of 255: other versions of the encoder differ a little
    assert (ROOT / "docs" / "toy.webp").stat().st_size < 300_000


def frames(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.stack([np.asarray(frame.convert("RGB"), np.float32) for frame in ImageSequence.Iterator(image)])


# ------------------------------------------------------------------------------------------------------- commands parse


@pytest.mark.parametrize(("document", "line"), shell_lines())
def test_shell_lines(document: str, line: str) -> None:
    words = verb_words(line)
    if words is not None:
        parse(words)
        return
    known = ("pip install ", "make ", "scripts/", "mkdir -p ", "python exported/sampler.py ")  # tests/test_export.py
    assert line.startswith(known), f"{document}: {line}"
    if line.startswith("make "):
        assert re.search(rf"^{line.split()[1]}:", read("Makefile"), re.MULTILINE)
    if line.startswith("scripts/"):
        assert os.access(ROOT / line.split()[0], os.X_OK), f"{document}: {line}"


@pytest.mark.parametrize("line", [line for _, line in shell_lines() if line.startswith("torchrun ")])
def test_torchrun_leaves_our_options_alone(line: str) -> None:
    """Its parser takes every option before it, ours too: `--run` is short for two of its own."""
    arguments = get_args_parser().parse_args(shlex.split(line)[1:])
    assert (arguments.module, arguments.training_script) == (True, "vqvdm")
    assert arguments.training_script_args == verb_words(line)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_prose(document: str) -> None:
    """`vqvdm ...` in running text: a known verb, and where it is a whole command, one that parses."""
    for span in code_spans(document):
        if span.startswith("vqvdm ") and not re.search(r"[A-Z.]{3,}", span):
            check_command(shlex.split(span)[1:])
        if span.startswith("make ") and span != "make":
            assert re.search(rf"^{span.split()[-1]}:", read("Makefile"), re.MULTILINE), span


def parse(words: list[str]) -> None:
    """The command line accepts the words, and the recipe among them its changes."""
    check_command(words)
    words = join_overrides(words)
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    recipe = bound.arguments.get("recipe", "demo" if words[0] == "demo" else None)
    if recipe is not None:
        # A run folder is a recipe once it is there; those of the documents are not.
        recipe = "asl64" if recipe.startswith("runs/") else recipe
        Recipe.load(recipe, bound.arguments.get("overrides", ()), check_models=True)


@pytest.mark.parametrize(
    "line", ["sample runs/demo --clases left", "train tokenizer asl64 data.fsp=3", "trian tokenizer toy"]
)
def test_wrong_commands_do_not_parse(line: str) -> None:
    with pytest.raises((InputError, CycloptsError), match=r"clases|fsp|trian"):
        parse(line.split())


# ------------------------------------------------------------------------------------------------- what is named exists


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_and_functions_exist(document: str) -> None:
    for span in code_spans(document):
        if re.fullmatch(r"(src|tests|docs)/[\w/.-]+", span):
            assert (ROOT / span).exists(), span
        elif place := re.fullmatch(r"([\w/]+)\.py:([\w.]+)", span):
            module = importlib.import_module("vqvdm." + place[1].replace("/", "."))
            assert callable(reduce(member, place[2].split("."), module)), span


def member(owner: Any, name: str) -> Any:
    """A public or private member as written, unwrapped from a cached property."""
    value = vars(owner)[name]
    return value.func if "func" in dir(value) else value


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_recipe_keys_exist(document: str) -> None:
    for span in code_spans(document):
        key = re.match(r"((?:data|tokenizer|latents|denoiser|sampling)(?:\.[a-z_0-9]+)+)(?:=.*)?$", span)
        if key is None or key[1].endswith((".py", ".yaml")) or key[1] in ("tokenizer.encode", "data.check"):
            continue
        assert exists(Recipe(), key[1]), f"{document}: {span}"


def exists(recipe: Any, key: str) -> bool:
    part = recipe
    for name in key.split("."):
        if isinstance(part, dict):
            network = VideoTokenizer if key.startswith("tokenizer") else VideoDenoiser
            return name in signature(network).parameters
        if not is_dataclass(part) or name not in {entry.name for entry in fields(part)}:
            return False
        part = getattr(part, name)
    return True


def test_the_file_tree_is_the_source() -> None:
    (block,) = blocks("", "README.md")
    tree = block.text
    named = set(re.findall(r"[\w]+\.py\b", tree)) | set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))
    there = {path.name for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named == there - {"__init__.py", "__main__.py", "__pycache__"}
    documents = set(re.findall(r"[\w-]+\.md", tree.split("docs/", 1)[1]))
    assert documents == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_recipe_table_is_right() -> None:
    """Names, sizes, latents and parameters, counted on the meta device."""
    rows = table_rows("README.md", "Recipes")
    assert sorted(row[0].strip("`") for row in rows) == packaged_names()
    classes = {
        "toy": len(CLASSES),
        "demo": len(CLASSES),
        "asl64": 24,
        "asl64-gpu": 24,
        "paper-ucf101": 101,
        "ucf101": 101,
        "vdm": 101,
    }
    for name, _, clips, latents, tokenizer, denoiser, _ in rows:
        name = name.strip("`")
        recipe = Recipe.load(name)
        frames, size = recipe.data.frames, recipe.data.size
        assert clips == f"{frames}x{size}x{size}", name
        assert clips in recipe.description or name == "demo", name
        with torch.device("meta"):
            stage1 = None if recipe.tokenizer is None else VideoTokenizer(**recipe.tokenizer.model)
            channels = 3 if stage1 is None else stage1.config["latent_channels"]
            sees = {
                "self_condition": recipe.denoiser.self_conditioning > 0,
                "context": recipe.denoiser.context > 0,
            }
            known = {"num_classes": classes.get(name, 0), "in_channels": channels}
            stage2 = VideoDenoiser(**{**sees, **recipe.denoiser.model, **known})
        assert denoiser == millions(stage2), name
        if stage1 is None:
            assert (latents, tokenizer) == ("none", "none")
            continue
        c, t, h, w = stage1.latent_shape(frames, size, size)
        assert (latents, tokenizer) == (f"{t}x{h}x{w}, {c} channels", millions(stage1)), name


def millions(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}"


# ---------------------------------------------------------------------------------------------------------- figures


def test_every_result_has_its_command() -> None:
    sections = read("docs/results.md").split("\n## ")[1:]
    assert sections
    for section in sections:
        assert "```bash\nvqvdm " in section, section.splitlines()[0]


def test_the_demos_figures_are_the_reports() -> None:
    """Keys of report.json that the documents name, as the report's own code writes them."""
    written = set(re.findall(r'"(\w+)":', read("src/vqvdm/demo/report.py")))
    named = {row[0].split(",")[0].strip("`") for row in table_rows("README.md", "What the demo's figures mean")}
    named |= set(re.findall(r"^\| `(\w+)`", read("docs/results.md").split("## Real clips")[0], re.MULTILINE))
    assert named <= written
    assert {"reconstruction_psnr_db", "judge_accuracy", "judge_chance", "displacement_ratio", "seconds"} <= named


def test_logged_figures_are_named(workplace: Path) -> None:
    lines = [
        json.loads(line)
        for line in (workplace / "runs" / "demo" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    logged = {name for line in lines for name in line} - {"stage", "step", "quantizer"}
    assert logged <= set(code_spans("docs/training.md"))

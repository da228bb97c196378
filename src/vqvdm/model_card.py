"""The model card: what a saved pipeline says about itself, in the words of the hub (Mitchell et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

import vqvdm

# Facts that have their own place in the card; every other fact of `about` is listed under "Training".
_PLACED = ("data", "data_license", "license", "results", "repository")
_SHOWN_LABELS = 200
SAMPLE = "sample.webp"


def model_card(
    *,
    config: Mapping[str, Any],
    num_classes: int,
    sample: bool,
    denoiser: str,
    tokenizer: str | None,
    scheduler: str,
    noise: Mapping[str, Any],
) -> str:
    """The text of README.md: a YAML header and Markdown.

    Args:
        config: the pipeline's own settings: `id2label`, `fps`, `num_frames`, `height`, `width`,
            `num_inference_steps`, `guidance_scale`, `guidance_interval`, `about`.
        num_classes: classes the denoiser knows, 0 if unconditional.
        sample: whether `SAMPLE` lies beside the card.
        denoiser, tokenizer: one line on each network; None says that pixels are diffused.
        scheduler: name of the scheduler's class.
        noise: what the denoiser predicts, and from which noise.
    """
    about = dict(config["about"])
    kind = "class-conditional" if num_classes else "unconditional"
    header = ModelCardData(
        library_name="vqvdm",
        license=about.get("license"),
        tags=["vqvdm", "diffusers", "video-generation", kind, "safetensors"],
    )
    size = f"{config['num_frames']} frames of {config['height']}x{config['width']} at {config['fps']:g} fps"
    title = str(about.get("name") or about.get("recipe") or "video generator")
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {title}\n\nA {kind} video generator made with vqvdm {vqvdm.__version__}. By default it makes {size}.",
        f"![Videos of this model]({SAMPLE})" if sample else "",
        _parts(denoiser, tokenizer, scheduler, noise),
        _usage(config, num_classes, about),
        _classes(config["id2label"], num_classes),
        _seeds(),
        _training(about),
        _results(about.get("results")),
        _limits(about),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _parts(denoiser: str, tokenizer: str | None, scheduler: str, noise: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in noise.items())
    rows = [
        ("tokenizer", tokenizer or "none: the denoiser works on pixels"),
        ("denoiser", f"{denoiser} ({settings})"),
        ("scheduler", scheduler),
    ]
    return "## Parts\n\n" + _table(("part", "what it is"), rows)


def _usage(config: Mapping[str, Any], num_classes: int, about: Mapping[str, Any]) -> str:
    names = list(config["id2label"].values())
    asked = [json.dumps(names[0], ensure_ascii=False)] if names else ["0"]
    asked += [json.dumps(names[-1], ensure_ascii=False)] if len(names) > 1 else []
    labels = f"class_labels=[{', '.join(asked)}], " if num_classes else ""
    interval = config["guidance_interval"]
    guidance = ""
    if num_classes:
        guidance = (
            f", guidance of scale {config['guidance_scale']:g} between the noise levels "
            f"{interval['low']:g} and {interval['high']:g}"
        )
    return f"""## Use

```python
import torch
from vqvdm import VQVDMPipeline

pipe = VQVDMPipeline.from_pretrained("{about.get("repository", "path/to/this/folder")}")
output = pipe({labels}fps={config["fps"]:g}, generator=torch.Generator().manual_seed(0))
first_video = output.frames[0]  # a list of PIL images
```

Or, from a shell: `vqvdm sample path/to/this/folder --out samples`.

Defaults: {config["num_inference_steps"]} steps{guidance}. The usual diffusers schedulers swap in:
`pipe.scheduler = SomeScheduler.from_config(pipe.scheduler.config)`."""


def _classes(id2label: Mapping[str, str], num_classes: int) -> str:
    if not num_classes:
        return ""
    lines = [f"- {key}: {name}" for key, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    if len(lines) > _SHOWN_LABELS:
        lines = [*lines[:_SHOWN_LABELS], f"- and {len(lines) - _SHOWN_LABELS} more, in `model_index.json`"]
    return "\n".join([f"## Classes\n\n{num_classes} classes.\n", *lines]).rstrip()


def _seeds() -> str:
    return (
        "## Seeds\n\nOne generator gives each video its own seed, drawn in order (`output.seeds`). A video depends on "
        "its own seed, class and frame rate, not on the batch it was made in:\n"
        "`generator=[torch.Generator().manual_seed(output.seeds[2])]` makes the third one alone."
    )


def _training(about: Mapping[str, Any]) -> str:
    rows = [("data", about.get("data", "not stated")), ("licence of the data", about.get("data_license", "not stated"))]
    rows += [(name.replace("_", " "), value) for name, value in about.items() if name not in _PLACED]
    return "## Training\n\n" + _table(("what", "value"), rows)


def _results(results: Mapping[str, Any] | None) -> str:
    return "## Results\n\n" + _table(("measure", "value"), list(results.items())) if results else ""


def _limits(about: Mapping[str, Any]) -> str:
    licence = about.get("license") or "not stated by whoever trained this model; ask before you use or pass it on"
    return (
        "## Limits and licence\n\n"
        "The model knows nothing but the clips it was trained on and repeats what is one-sided in them. Its videos are "
        "made by a machine; files written by `vqvdm sample` say so in their metadata (`ai_generated`).\n\n"
        f"Licence of the weights: {licence}."
    )


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

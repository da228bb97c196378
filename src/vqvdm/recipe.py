"""Recipes: every number of a training, in one file.

A recipe is a tree of frozen dataclasses, read from YAML (`recipes/*.yaml`, or any file of the user's) and changed by
dotted overrides (`tokenizer.training.steps=500`). The arguments of the two networks are those of their constructors
(`VideoTokenizer`, `VideoDenoiser`), so each default is written down once, beside the class it belongs to.

Reading needs no torch, except that `Recipe.load(..., check_models=True)` compares the networks' arguments with their
constructors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from vqvdm import recipe_io
from vqvdm.errors import InputError
from vqvdm.structure import Origins, origin, plain, structure

Tracker = Literal["tensorboard", "wandb", "trackio"]
Scheduler = Literal["dpm++", "unipc", "euler", "heun", "ddim", "ddpm"]


@dataclass(frozen=True)
class DataRecipe:
    """Which clips are seen, and how they are cut."""

    path: str = "toy"  # "toy", "toy-clouds", a folder in any known layout, a manifest, or the URL of shards
    layout: Literal["auto", "ucf101", "frames", "folders", "flat", "manifest", "shards"] = "auto"
    split: int = 1  # UCF-101's split list, 1 to 3; 0: every video, for training and for test
    frames: int = 16  # frames of a clip
    size: int = 64  # height and width in pixels
    fps: float | None = None  # frame rate asked for; None takes every `stride`-th frame
    stride: int = 1  # used when fps is None
    crop: Literal["center", "random"] = "center"
    flip: bool = False  # mirror half of the training clips (wrong where left and right are classes)
    toy_clips: int = 16384  # nominal number of clips of the built-in worlds
    workers: int = 1  # loader processes; 0 loads in the training process


@dataclass(frozen=True)
class TrainingRecipe:
    """The optimiser's side of one stage."""

    steps: int = 10_000  # optimiser updates
    batch: int = 8  # clips per update and process, before accumulation
    accumulate: int = 1  # batches added up per update
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the inner weights; AdamW for all else
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    weight_decay: float = 0.0
    warmup: int = 100  # updates of linear warm-up
    final_learning_rate: float = 0.0  # fraction left at the end of the cosine
    clip_norm: float = 1.0  # largest gradient norm; 0 does not clip
    ema_decay: float = 0.999  # 0 keeps no average
    precision: Literal["float32", "bf16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # of the newest
    keep_every: int = 0  # and those of updates that are multiples of it; 0: none
    keep_best: str | None = None  # and the best by this figure of the log, such as test_psnr
    trackers: tuple[Tracker, ...] = ()  # besides log.jsonl


@dataclass(frozen=True)
class DenoiserTrainingRecipe(TrainingRecipe):
    """That of a network that may be too large for each process to hold whole."""

    fsdp: bool = False  # weights, gradients, optimiser and average in shards over the processes (FSDP2)


@dataclass(frozen=True)
class AdversarialRecipe:
    """The discriminators of stage 1: when they enter, how strongly, and what keeps them steady."""

    weight: float = 0.0  # of the adversarial loss; 0 trains without discriminators
    loss: Literal["hinge", "non_saturating"] = "hinge"
    image: bool = True  # PatchGAN on one random frame of each clip
    video: bool = True  # 3D PatchGAN on the clip
    channels: int = 64
    layers: int = 3
    start: int = 10_000  # update at which the discriminators begin to train
    ramp: int = 5_000  # updates over which their weight grows from 0
    feature_matching: float = 0.0
    adaptive: bool = False  # VQGAN's gradient-ratio weight (Esser et al. 2021, eq. 7)
    stabilizer: Literal["none", "lecam", "r1"] = "lecam"
    stabilizer_weight: float = 0.001
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)


@dataclass(frozen=True)
class TokenizerLossRecipe:
    """Weights of stage 1's loss terms."""

    l1: float = 1.0
    l2: float = 1.0
    quantizer: float = 1.0  # of the quantiser's own loss (commitment)
    quantize_after: int = 0  # updates on continuous latents before the quantiser enters
    perceptual: float = 0.0  # LPIPS
    perceptual_after: int = 0  # updates without it, which are several times cheaper
    noise: float = 0.0  # largest deviation of noise that is added to the latents, whose own deviation is 1
    adversarial: AdversarialRecipe = field(default_factory=AdversarialRecipe)


@dataclass(frozen=True)
class TokenizerRecipe:
    """Stage 1."""

    model: dict[str, Any] = field(default_factory=dict)  # arguments of VideoTokenizer
    loss: TokenizerLossRecipe = field(default_factory=TokenizerLossRecipe)
    start_from: str | None = None  # a tokenizer, run or hub id whose weights this one starts with
    decoder_only: bool = False  # all but the decoder stays as it was there, so that latents keep their meaning
    training: TrainingRecipe = field(default_factory=TrainingRecipe)


@dataclass(frozen=True)
class LatentsRecipe:
    """The latent cache between the stages."""

    windows: int = 1  # windows taken from each video
    flips: bool = False  # also store the mirrored clip
    stills: bool = False  # also store what the first and the last frame encode to when held still
    batch: int = 16
    shard: int = 1024  # clips per file


@dataclass(frozen=True)
class DiffusionRecipe:
    """What is predicted, and on which noise schedule (arguments of `diffusion.Objective`)."""

    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] = "flow"
    schedule: Literal["linear", "scaled_linear", "cosine"] = "cosine"
    zero_terminal_snr: bool = True  # of the discrete schedule; flow reaches pure noise by construction
    min_snr_gamma: float | None = None
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    shift: float = 1.0  # flow: moves times towards noise (Esser et al. 2024, eq. 23)


@dataclass(frozen=True)
class DenoiserRecipe:
    """Stage 2."""

    model: dict[str, Any] = field(default_factory=dict)  # arguments of VideoDenoiser
    diffusion: DiffusionRecipe = field(default_factory=DiffusionRecipe)
    class_dropout: float = 0.5  # probability of training without the class
    self_conditioning: float = 0.0  # probability of showing it its own first estimate; 0 builds it without
    context: float = 0.0  # probability of showing it some of the clip's frames, to be completed; 0 builds it without
    images: float = 0.0  # share of the updates that learn half of each clip's frames (or latents) one by one
    start_from: str | None = None  # a pipeline, run or hub id whose denoiser's weights this one starts with
    lora_rank: int = 0  # of adapters that alone are trained, with the classes; 0 trains all weights
    training: DenoiserTrainingRecipe = field(default_factory=DenoiserTrainingRecipe)


@dataclass(frozen=True)
class DistillationRecipe:
    """The student that `vqvdm distill` trains: what its teacher shows it, and how it samples."""

    pairs: int = 16_384  # noise, and the teacher's path from it to a clip
    held_out: int = 64  # more of them, not learnt from, whose error the log has as test_loss; 0 for none
    teacher_steps: int = 20  # a multiple of `steps`
    teacher_guidance: float | None = None  # null: the pipeline's own
    teacher_scheduler: Scheduler | None = None  # likewise
    steps: int = 4  # of Euler's method, by the student; it learns these and no others
    strides: tuple[int, ...] = ()  # of the teacher's steps each of the student's goes; without, all as many
    training: DenoiserTrainingRecipe = field(default_factory=DenoiserTrainingRecipe)


@dataclass(frozen=True)
class SamplingRecipe:
    """Defaults of the pipeline."""

    scheduler: Scheduler = "dpm++"  # "heun" is for prediction flow, "ddpm" for the others
    steps: int = 20
    guidance_scale: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # part of the noise levels, 0 clean to 1 noise, with guidance


@dataclass(frozen=True)
class Recipe:
    """All numbers of one system; `tokenizer: null` diffuses pixels (the VDM baseline)."""

    name: str = "custom"
    description: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    tokenizer: TokenizerRecipe | None = field(default_factory=TokenizerRecipe)
    latents: LatentsRecipe = field(default_factory=LatentsRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    sampling: SamplingRecipe = field(default_factory=SamplingRecipe)

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = (), *, check_models: bool = False) -> Self:
        """Read a recipe, strictly.

        A file may lie on another one: `base: toy` takes all of `toy` but its name and description, and changes what the
        file itself says, key by key. In the networks' arguments lists become tuples.

        Args:
            name_or_path: a packaged name ("toy"), a YAML file, or the folder of a run.
            overrides: changes as `key=value` with dotted keys, such as `tokenizer.training.steps=500`.
            check_models: also compare `tokenizer.model` and `denoiser.model` with the constructors (imports torch).

        Raises:
            InputError: no such recipe, an unknown key, or a value of the wrong type or out of range; the message names
                the file or override, the key, the value and what is allowed.
        """
        values, origins = recipe_io.read(name_or_path, overrides)
        for (part, name), only in _RETIRED.items():
            if isinstance(values.get(part), dict) and values[part].get(name) == only:
                del values[part][name]
        recipe = structure(cls, values, origins)
        recipe.check(origins)
        if check_models:
            recipe.check_models(origins)
        return recipe

    def encoded_data(self) -> DataRecipe:
        """The data as `vqvdm encode` reads it: with stored mirror images the windows themselves stay as they are."""
        return replace(self.data, flip=False) if self.latents.flips else self.data

    def save(self, path: str | Path) -> None:
        """Write all numbers as YAML, atomically; `Recipe.load(path)` gives an equal recipe."""
        recipe_io.write(Path(path), plain(self))

    def to_yaml(self) -> str:
        """All numbers as YAML text."""
        return recipe_io.dump(plain(self))

    def check(self, origins: Origins | None = None) -> None:
        """Raise `InputError` for a number out of range or for settings that exclude each other.

        Args:
            origins: where each dotted key was set, for the message; `load` knows them.
        """
        origins = origins or {}
        for key, value in _leaves(self):
            allowed = _RANGES.get(key) or _RANGES.get(key.rpartition(".")[2])
            numbers = value if isinstance(value, tuple) else (value,)
            if allowed and not all(number is None or allowed.holds(number) for number in numbers):
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(f"{origin(origins, key)}: {key} is {shown}, but must be {allowed.words}")
        for key, rule in _RULES.items():
            if problem := rule(self):
                raise InputError(f"{origin(origins, key)}: {key} {problem}")

    def check_models(self, origins: Origins | None = None) -> None:
        """Raise `InputError` for a network's argument of another name or type, or for more than the memory holds."""
        from vqvdm.building import check_arguments
        from vqvdm.denoiser import VideoDenoiser

        check_arguments(VideoDenoiser, self.denoiser.model, origins or {}, "denoiser.model")
        if self.tokenizer is not None:
            from vqvdm.tokenizer import VideoTokenizer

            check_arguments(VideoTokenizer, self.tokenizer.model, origins or {}, "tokenizer.model")


@dataclass(frozen=True)
class _Range:
    """Bounds of a number; the upper one may be excluded."""

    low: float
    high: float = math.inf
    open_end: bool = False
    positive: bool = False  # excludes the lower bound

    def holds(self, number: float) -> bool:
        above = number > self.low if self.positive else number >= self.low
        return above and (number < self.high if self.open_end else number <= self.high)

    @property
    def words(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.positive else f"at least {self.low:g}"
        return f"between {self.low:g} and {self.high:g}" + (" (excluded)" if self.open_end else "")


def run_folder(recipe: str, settings: Recipe, run: Path | None = None) -> Path:
    """The run a command works in: `run` if given, the folder that `recipe` names, else runs/ and the recipe's name."""
    if run is not None:
        return run
    return Path(recipe) if (Path(recipe) / "recipe.yaml").is_file() else Path("runs") / settings.name


# Settings that the recipes of older runs hold, and the one value of them that means what is done now.
_RETIRED: Mapping[tuple[str, str], str] = {("distillation", "times"): "uniform", ("distillation", "scheduler"): "euler"}

_COUNT = _Range(1)
_NOT_NEGATIVE = _Range(0)
_SHARE = _Range(0, 1)
_DECAY = _Range(0, 1, open_end=True)

# Allowed numbers by dotted key or, where it means the same everywhere, by the last name alone.
_RANGES: Mapping[str, _Range] = {
    "data.split": _Range(0, 3),
    "frames": _COUNT,
    "size": _COUNT,
    "fps": _Range(0, positive=True),
    "stride": _COUNT,
    "strides": _COUNT,
    "toy_clips": _COUNT,
    "workers": _NOT_NEGATIVE,
    "steps": _COUNT,
    "batch": _COUNT,
    "accumulate": _COUNT,
    "learning_rate": _Range(0, positive=True),
    "betas": _DECAY,
    "weight_decay": _NOT_NEGATIVE,
    "warmup": _NOT_NEGATIVE,
    "final_learning_rate": _SHARE,
    "clip_norm": _NOT_NEGATIVE,
    "ema_decay": _DECAY,
    "seed": _NOT_NEGATIVE,
    "log_every": _COUNT,
    "sample_every": _COUNT,
    "checkpoint_every": _COUNT,
    "keep_checkpoints": _COUNT,
    "keep_every": _NOT_NEGATIVE,
    "l1": _NOT_NEGATIVE,
    "l2": _NOT_NEGATIVE,
    "quantizer": _NOT_NEGATIVE,
    "perceptual": _NOT_NEGATIVE,
    "perceptual_after": _NOT_NEGATIVE,
    "noise": _NOT_NEGATIVE,
    "weight": _NOT_NEGATIVE,
    "channels": _COUNT,
    "layers": _Range(1, 32),
    "start": _NOT_NEGATIVE,
    "ramp": _NOT_NEGATIVE,
    "feature_matching": _NOT_NEGATIVE,
    "stabilizer_weight": _NOT_NEGATIVE,
    "windows": _COUNT,
    "shard": _COUNT,
    "min_snr_gamma": _Range(0, positive=True),
    "shift": _Range(0, positive=True),
    "class_dropout": _SHARE,
    "self_conditioning": _SHARE,
    "context": _SHARE,
    "images": _DECAY,
    "lora_rank": _NOT_NEGATIVE,
    "guidance_scale": _NOT_NEGATIVE,
    "pairs": _COUNT,
    "held_out": _NOT_NEGATIVE,
    "teacher_steps": _COUNT,
    "teacher_guidance": _NOT_NEGATIVE,
    "guidance_interval": _SHARE,
}


def _terminal_noise(recipe: Recipe) -> str | None:
    diffusion = recipe.denoiser.diffusion
    if diffusion.zero_terminal_snr and diffusion.prediction == "epsilon":
        return (
            "is true, which prediction 'epsilon' cannot use: in pure noise, the noise says nothing of the clip; "
            "set it to false, or choose prediction v_prediction, sample or flow"
        )
    return None


def _min_snr(recipe: Recipe) -> str | None:
    diffusion = recipe.denoiser.diffusion
    if diffusion.min_snr_gamma is not None and diffusion.prediction == "flow":
        return "weighs the discrete predictions only; with prediction 'flow' set it to null"
    return None


def _self_conditioning(recipe: Recipe) -> str | None:
    if recipe.denoiser.self_conditioning == 0 or recipe.denoiser.diffusion.prediction != "epsilon":
        return None
    return "needs an estimate of the clean latents, which prediction 'epsilon' does not give in much noise; set it to 0"


def _scheduler(recipe: Recipe) -> str | None:
    scheduler, prediction = recipe.sampling.scheduler, recipe.denoiser.diffusion.prediction
    if scheduler == ("ddpm" if prediction == "flow" else "heun"):
        return f"is {scheduler!r}, which has no form for prediction {prediction!r}; dpm++, unipc, euler and ddim have"
    return None


def _teacher_steps(recipe: Recipe) -> str | None:
    theirs, own = recipe.distillation.teacher_steps, recipe.distillation.steps
    if recipe.distillation.strides or theirs % own == 0:
        return None
    return f"is {theirs}, but must be a multiple of distillation.steps, {own}: each is as long as some of the teacher's"


def _strides(recipe: Recipe) -> str | None:
    part = recipe.distillation
    if not part.strides or (len(part.strides), sum(part.strides)) == (part.steps, part.teacher_steps):
        return None
    return (
        f"is {list(part.strides)}, but must be {part.steps} numbers (distillation.steps) that add up to "
        f"{part.teacher_steps} (distillation.teacher_steps), or [] for steps that are all as long"
    )


def _interval(recipe: Recipe) -> str | None:
    low, high = recipe.sampling.guidance_interval
    return None if low < high else f"is [{low:g}, {high:g}], but must rise"


def _discriminators(recipe: Recipe) -> str | None:
    adversarial = recipe.tokenizer.loss.adversarial if recipe.tokenizer else AdversarialRecipe()
    if adversarial.weight > 0 and not (adversarial.image or adversarial.video):
        return f"is {adversarial.weight:g}, but both discriminators (image, video) are off"
    return None


def _discriminator_layers(recipe: Recipe) -> str | None:
    if recipe.tokenizer is None:
        return None
    adversarial, data = recipe.tokenizer.loss.adversarial, recipe.data
    if adversarial.weight == 0 or adversarial.start >= recipe.tokenizer.training.steps:
        return None
    sides = [("data.size", data.size), *([("data.frames", data.frames)] if adversarial.video else [])]
    for name, side in sides:
        most = side.bit_length() - 1  # times it can be halved
        if adversarial.layers > most:
            advice = f"take at most {most}" if most > 0 else "set adversarial.video=false"
            return (
                f"is {adversarial.layers}: so often a discriminator halves a clip, which needs {name} of at least "
                f"{2**adversarial.layers}, not {side}; {advice}"
            )
    return None


def _colours(recipe: Recipe) -> str | None:
    channels = 3 if recipe.tokenizer is None else recipe.tokenizer.model.get("in_channels", 3)
    return None if channels == 3 else f"is {channels!r}, but clips have 3 colours; leave it out"


def _flips(recipe: Recipe) -> str | None:
    if recipe.latents.flips and recipe.data.path == "toy":
        return "is true, but left and right are classes of data.path=toy, which a mirror exchanges; set it to false"
    return None


def _reconstruction(recipe: Recipe) -> str | None:
    if recipe.tokenizer is None:
        return None
    loss = recipe.tokenizer.loss
    if loss.l1 == loss.l2 == loss.perceptual == 0:
        return (
            "is 0, and so are l2 and perceptual: nothing would teach the tokenizer to reconstruct its clips; "
            "give one of them a weight, such as l1=1"
        )
    return None


def _decoder_only(recipe: Recipe) -> str | None:
    if recipe.tokenizer is None or not recipe.tokenizer.decoder_only or recipe.tokenizer.start_from is not None:
        return None
    return "is true, but no tokenizer is named whose decoder to train; set tokenizer.start_from"


def _compiled_shards(recipe: Recipe) -> str | None:
    training = recipe.denoiser.training
    if training.fsdp and training.compile:
        return "is true, but torch's compiler fails among weights that come and go; set denoiser.training.compile=false"
    return None


# Settings that exclude each other: the key to name, and what is wrong with it (None: nothing).
_RULES: Mapping[str, Callable[[Recipe], str | None]] = {
    "denoiser.diffusion.zero_terminal_snr": _terminal_noise,
    "denoiser.diffusion.min_snr_gamma": _min_snr,
    "denoiser.self_conditioning": _self_conditioning,
    "denoiser.training.fsdp": _compiled_shards,
    "sampling.scheduler": _scheduler,
    "sampling.guidance_interval": _interval,
    "distillation.teacher_steps": _teacher_steps,
    "distillation.strides": _strides,
    "latents.flips": _flips,
    "tokenizer.model.in_channels": _colours,
    "tokenizer.decoder_only": _decoder_only,
    "tokenizer.loss.l1": _reconstruction,
    "tokenizer.loss.adversarial.weight": _discriminators,
    "tokenizer.loss.adversarial.layers": _discriminator_layers,
}


def _leaves(part: Any, key: str = "") -> list[tuple[str, Any]]:
    """The dotted keys and values of all dataclass fields; the networks' free arguments are left out."""
    leaves: list[tuple[str, Any]] = []
    for entry in fields(part):
        value, dotted = getattr(part, entry.name), f"{key}.{entry.name}" if key else entry.name
        if is_dataclass(value):
            leaves += _leaves(value, dotted)
        elif isinstance(value, (int, float, tuple)) and not isinstance(value, bool):
            leaves.append((dotted, value))
    return leaves

"""The command line: `vqvdm VERB`. It names the verbs; each is imported when it is called, so that help is quick.

Exit status: 0 done, 1 `data check` found bad files, 2 the user's mistake (one line on stderr), 130 interrupted.
Anything else is our bug and shows its traceback; `VQVDM_DEBUG=1` shows the traceback of the user's mistakes too.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from vqvdm import __version__
from vqvdm.errors import InputError, printable
from vqvdm.structure import did_you_mean

_MISTAKE, _INTERRUPTED = 2, 130
_SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}  # the machine's state, not our bug

app = App(
    name="vqvdm",
    help="Learn from a folder of videos; generate new ones.",
    help_epilogue="Recipes hold all numbers (vqvdm recipe list); change any of them with key=value.",
    help_format="plaintext",  # Markdown would cost 50 ms
    version=__version__,
    suppress_keyboard_interrupt=False,
)
data = App(name="data", help="Look at a data set, or make shards of it.", sort_key=1)
train = App(name="train", help="Train tokenizer (stage 1) or denoiser (stage 2); call again to resume.", sort_key=2)
evaluate = App(name="evaluate", help="Score videos: FVD, KVD and more.", sort_key=6)
recipe = App(name="recipe", help="Look at recipes.", sort_key=6)
weights = App(name="weights", help="Fetch or import the networks that measure.", sort_key=7)
_GROUPS = {"data": data, "train": train, "evaluate": evaluate, "recipe": recipe, "weights": weights}

app.command("vqvdm.demo.run:main", name="demo", help="From nothing to generated videos, in minutes.", sort_key=0)
app.command(data)
data.command("vqvdm.verbs.data:check", name="check", help="Counts, classes, lengths, frame rates, and every bad file.")
data.command("vqvdm.verbs.shard:shard", name="shard", help="Write tars that training reads, here or over HTTP.")
app.command(train)
train.command("vqvdm.train.tokenizer:main", name="tokenizer", help="Stage 1, the 3D VQGAN.", sort_key=0)
train.command("vqvdm.train.denoiser:main", name="denoiser", help="Stage 2, latent video diffusion.", sort_key=1)
app.command("vqvdm.train.distill:main", name="distill", help="A student of few steps.", sort_key=3)
app.command("vqvdm.verbs.encode:main", name="encode", help="Write the latent cache for stage 2.", sort_key=3)
app.command("vqvdm.verbs.sample:main", name="sample", help="Generate videos.", sort_key=4)
app.command("vqvdm.verbs.reconstruct:main", name="reconstruct", help="Pass videos through the tokenizer.", sort_key=5)
app.command("vqvdm.verbs.runs:main", name="runs", help="Which trainings there are, and how far.", sort_key=5)
app.command("vqvdm.app.command:main", name="app", help="The web page: generate, reconstruct, look.", sort_key=5)
app.command("vqvdm.export.command:main", name="export", help="Programs that run without this package.", sort_key=9)
app.command(evaluate)
evaluate.command("vqvdm.verbs.evaluate:files", name="files", help="Videos of any system against others.", sort_key=0)
evaluate.command("vqvdm.verbs.evaluate:samples", name="samples", help="What a model generates.", sort_key=1)
evaluate.command("vqvdm.verbs.evaluate:reconstructions", name="reconstructions", help="A tokenizer.", sort_key=2)
evaluate.command("vqvdm.verbs.steps:main", name="steps", help="How few steps a model needs.", sort_key=6)
evaluate.command("vqvdm.verbs.classes:main", name="classes", help="Whether classes are recognised.", sort_key=2)
evaluate.command("vqvdm.verbs.continuation:main", name="continuation", help="Given frames, long videos.", sort_key=2)
evaluate.command("vqvdm.verbs.evaluate:reference", name="reference", help="Store a reference's features.", sort_key=3)
evaluate.command("vqvdm.verbs.evaluate:calibrate", name="calibrate", help="What figures mean here.", sort_key=4)
evaluate.command("vqvdm.verbs.evaluate:compare", name="compare", help="Reports side by side.", sort_key=5)
app.command("vqvdm.benchmark.run:main", name="benchmark", help="How fast each stage is here.", sort_key=8)
app.command(recipe)
recipe.command("vqvdm.verbs.show:show", name="show", help="Print a recipe with all its numbers.")
recipe.command("vqvdm.verbs.show:names", name="list", help="Print the packaged recipes.")
app.command(weights)
weights.command("vqvdm.verbs.weights:i3d", name="i3d", help="For FVD and KVD.", sort_key=0)
weights.command("vqvdm.verbs.weights:lpips", name="lpips", help="The perceptual distance and loss.", sort_key=1)
weights.command("vqvdm.verbs.weights:c3d", name="c3d", help="For the Inception Score.", sort_key=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's own) and return the exit status."""
    debug = os.environ.get("VQVDM_DEBUG", "") not in ("", "0")
    words = join_overrides(sys.argv[1:] if arguments is None else arguments)
    try:
        check_command(words)
        status = app(words, result_action="return_value", exit_on_error=False, print_error=False)
    except (InputError, CycloptsError) as error:
        if debug:
            raise
        return _fail(str(error), _MISTAKE)
    except BrokenPipeError:  # the reader of our output left, as in `vqvdm recipe show toy | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug or error.errno not in _SURROUNDINGS:
            raise
        return _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror), _MISTAKE)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    return status if isinstance(status, int) else 0  # `data check` returns one


def check_command(words: Sequence[str]) -> None:
    """Raise `InputError` for an unknown command. (Cyclopts would import every verb, and so torch, to say it.)"""
    level = app
    for word in words:
        if word.startswith("-"):
            return
        if word not in level:
            commands = [name for name in level if not name.startswith("-")]
            hint = did_you_mean(word, commands) or ";"
            raise InputError(f"unknown command {word!r}{hint} there are: {', '.join(commands)}")
        if word not in _GROUPS:
            return
        level = _GROUPS[word]


def join_overrides(arguments: Sequence[str]) -> list[str]:
    """Turn dotted options into overrides, and put them last; join what begins like a negative number to its option.

    `--a.b 5` and `--a.b=5` become `a.b=5`; `--a.b` before another option or at the end becomes `a.b=true`. `--a -1,2`
    becomes `--a=-1,2`, which would else be taken for an option.
    """
    words: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and "." in name):
            option = name.startswith("--") and name != "--" and not equals
            negative = option and rest and re.match(r"-\d", rest[0])
            words.append(f"{word}={rest.pop(0)}" if negative else word)
        elif equals:
            overrides.append(word[2:])
        elif rest and not rest[0].startswith("--"):
            overrides.append(f"{word[2:]}={rest.pop(0)}")
        else:
            overrides.append(f"{word[2:]}=true")
    return words + overrides


def _fail(message: str, status: int) -> int:
    from rich.console import Console
    from rich.text import Text

    label = "error: " if status == _MISTAKE else ""
    Console(stderr=True).print(Text.assemble((label, "bold red"), printable(message)), soft_wrap=True)
    return status

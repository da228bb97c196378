"""Two processes (gloo) do as one does: train, encode, sample; and end, or go on, together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_pipeline import tiny_pipeline
from tiny_training import ADVERSARIAL, give_tokenizer, open_tiny, tiny_recipe
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.recipe import Recipe
from vqvdm.train import denoiser, tokenizer
from vqvdm.train.checkpoint import Checkpoint, latest_checkpoint
from vqvdm.train.denoiser import train_denoiser
from vqvdm.train.tokenizer import train_tokenizer

# diffusers' schedulers give tensors to numpy in a way that numpy deprecates

SCRIPT = Path(__file__).with_name("tiny_training.py")


def recipe_of(batch: int) -> Recipe:
    """Everything on: adversarial terms with adaptive weight and LeCam, a codebook whose codes restart.

    A low learning rate, so that rounding, which Adam magnifies, does not carry a vector over to another code.
    """
    recipe = tiny_recipe(
        replace(ADVERSARIAL, start=1, ramp=1),
        steps=4,
        checkpoint_every=2,
        batch=batch,
        warmup=0,
        log_every=2,
        learning_rate=1e-4,
    )
    assert recipe.tokenizer is not None
    model = {**recipe.tokenizer.model, "restart_after": 1}
    return replace(recipe, tokenizer=replace(recipe.tokenizer, model=model))


def train(run: Path, stage: str, batch: int, processes: int, recipe: Recipe | None = None) -> Checkpoint:
    recipe = recipe or recipe_of(batch)
    if processes == 1:
        {"tokenizer": train_tokenizer, "denoiser": train_denoiser}[stage](recipe, run)
    else:
        recipe.save(run / "recipe.yaml")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launch, str(SCRIPT), stage, str(run)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
    found = latest_checkpoint(run / "checkpoints" / stage)
    assert found is not None
    assert found.step == 4
    return found


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tokenizer, denoiser):
        monkeypatch.setattr(module, "open_dataset", open_tiny)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes that wait for each other, on a busy machine
@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path, stage: str) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        run.mkdir()
        give_tokenizer(run)
    one, two = train(runs[0], stage, batch=4, processes=1), train(runs[1], stage, batch=2, processes=2)
    check_alike(one, two, stage)
    logs = [records(run) for run in runs]
    assert [record["step"] for record in logs[0]] == [record["step"] for record in logs[1]]
    if stage == "tokenizer":  # the ratio of the whole batch's gradients, not the mean of the processes' ratios
        ours, theirs = (
            [record["adversarial_weight"] for record in log if "adversarial_weight" in record] for log in logs
        )
        assert ours
        assert theirs == pytest.approx(ours, rel=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["tokenizer", "denoiser"])
def test_a_training_goes_on_with_another_number_of_processes(tmp_path: Path, stage: str) -> None:
    runs = [tmp_path / "one", tmp_path / "changing"]
    for run in runs:
        run.mkdir()
        give_tokenizer(run)
    one = train(runs[0], stage, batch=4, processes=1)
    train(runs[1], stage, batch=2, processes=2)
    shutil.rmtree(runs[1] / "checkpoints" / stage / "step-00000004")  # as if it had been killed after that of update 2
    check_alike(one, train(runs[1], stage, batch=4, processes=1), stage)


def check_alike(one: Checkpoint, two: Checkpoint, stage: str) -> None:
    """The same but for rounding."""
    names = ["model", "ema", "optimizer"]
    names += ["discriminators", "discriminators_optimizer"] if stage == "tokenizer" else []
    for name in names:
        ours, theirs = one.tensors(name), two.tensors(name)
        assert ours.keys() == theirs.keys()
        assert ours
        if "optimizer" in name:  # the moving averages of the gradients, one by one
            for key, value in ours.items():
                apart, size = (value - theirs[key]).float().norm().item(), value.float().norm().item()
                assert apart <= 1e-2 * size + 1e-6, f"{name} {key}: {apart} apart at a size of {size}"
        else:  # Adam magnifies the rounding of gradients that are almost zero, so the weights as a whole
            a, b = (torch.cat([tensors[key].float().flatten() for key in ours]) for tensors in (ours, theirs))
            assert (a - b).norm() <= 1e-3 * a.norm(), name


SHOWN = ("step", "loss", "gradient_norm")


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def in_shards(recipe: Recipe, fsdp: bool = True, **changes: Any) -> Recipe:
    part = recipe.denoiser
    return replace(recipe, denoiser=replace(part, training=replace(part.training, fsdp=fsdp, **changes)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_shards_learn_what_whole_copies_do(tmp_path: Path, optimizer: str) -> None:
    """FSDP2 and DDP: with two batches an update, clipping, and first estimates shown to some clips."""
    recipe = recipe_of(1)
    model = {**recipe.denoiser.model, "transformer": optimizer == "muon"}
    recipe = replace(recipe, denoiser=replace(recipe.denoiser, model=model, self_conditioning=0.3))
    changes = {"optimizer": optimizer, "accumulate": 2, "clip_norm": 0.5, "sample_every": 2, "learning_rate": 1e-3}
    found = []
    for fsdp in (False, True):
        run = tmp_path / f"fsdp-{fsdp}"
        give_tokenizer(run)
        found.append(train(run, "denoiser", 1, 2, in_shards(recipe, fsdp, **changes)))
        assert [path.suffix for path in sorted((run / "samples").glob("*4.*"))] == [".mp4", ".png"]
    whole, shards = found
    for name in ("model", "ema", "optimizer", *(["muon"] if optimizer == "muon" else [])):
        ours, theirs = whole.tensors(name), shards.tensors(name)
        assert list(ours) == list(theirs) and ours
        for key, value in ours.items():
            apart = (value.float() - theirs[key].float()).norm()
            assert apart <= 2e-3 * value.float().norm() + 1e-7, f"{name} {key}: {apart} apart of {value.norm()}"
        a, b = (torch.cat([tensors[key].float().flatten() for key in ours]) for tensors in (ours, theirs))
        assert (a - b).norm() <= 1e-5 * a.norm(), name
    for one, other in zip(*(records(tmp_path / f"fsdp-{fsdp}") for fsdp in (False, True)), strict=True):
        assert [one[name] for name in SHOWN] == pytest.approx([other[name] for name in SHOWN], rel=1e-4)
    exported, average = (
        VQVDMPipeline.from_pretrained(tmp_path / "fsdp-True" / "pipeline").denoiser,
        shards.tensors("ema"),
    )
    assert all(torch.equal(value, average[name]) for name, value in exported.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sharded_first", [True, False])
def test_a_training_goes_on_in_shards_or_out_of_them(tmp_path: Path, sharded_first: bool) -> None:
    runs = [tmp_path / "one", tmp_path / "changing"]
    for run in runs:
        run.mkdir()
        give_tokenizer(run)
    one = train(runs[0], "denoiser", batch=4, processes=1)
    for sharded in (sharded_first, not sharded_first):
        shutil.rmtree(runs[1] / "checkpoints" / "denoiser" / "step-00000004", ignore_errors=True)
        batch = 2 if sharded else 4
        last = train(runs[1], "denoiser", batch, 4 // batch, in_shards(recipe_of(batch), sharded))
    check_alike(one, last, "denoiser")
    ours, theirs = one.tensors("optimizer"), last.tensors("optimizer")
    assert list(ours) == list(theirs)
    assert [tensor.shape for tensor in ours.values()] == [tensor.shape for tensor in theirs.values()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_process_holds_its_share_alone(tmp_path: Path) -> None:
    program = tmp_path / "share.py"
    program.write_text(f"""
import json, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from dataclasses import replace
from pathlib import Path
from tiny_training import TinyClips, tiny_recipe
from vqvdm.train.denoiser import DenoiserStage
from vqvdm.train.dry_run import last_batches
from vqvdm.train.loop import make_accelerator

recipe = replace(tiny_recipe(), tokenizer=None)
part = replace(recipe.denoiser, training=replace(recipe.denoiser.training, fsdp=True))
accelerator = make_accelerator(part.training, Path({str(tmp_path)!r}))
stage = DenoiserStage(replace(recipe, denoiser=part), accelerator, TinyClips(), None)
stage.update(*last_batches(part.training, TinyClips(), accelerator.device))
weights = list(stage.denoiser.parameters())
held = {{
    "whole": weights,
    "weights": [weight.to_local() for weight in weights],
    "gradients": [weight.grad.to_local() for weight in weights],
    "average": [weight.to_local() for weight in stage.average.parameters()],
    "moments": [state["exp_avg"].to_local() for state in stage.optimizers["optimizer"].state.values()],
}}
share = {{name: sum(tensor.numel() for tensor in tensors) for name, tensors in held.items()}}
Path({str(tmp_path)!r}, f"{{accelerator.process_index}}.json").write_text(json.dumps(share))
accelerator.wait_for_everyone()
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name in ("weights", "gradients", "average", "moments"):
        assert sum(share[name] for share in shares) == shares[0]["whole"], name
        assert max(share[name] for share in shares) < 0.55 * shares[0]["whole"], name


def launched(processes: int, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command line in so many processes, each with one thread."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--", "vqvdm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run([sys.executable, *launch, *words], capture_output=True, text=True, env=environment)


TINY = ("data.size=16", "data.frames=4", "data.toy_clips=10", "data.workers=0", "latents.batch=2", "latents.shard=3")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_encode_and_sample_what_one_does(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        run = tmp_path / name
        give_tokenizer(run)
        shutil.rmtree(run / "latents")
        done = launched(processes, "encode", "demo", *TINY, "--run", str(run))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("latents in") == 1
        tiny_pipeline().save_pretrained(tmp_path / "model")
        words = ["--classes", "0,1", "--count", "3", "--steps", "2", "--batch", "1", "--format", "png"]
        done = launched(processes, "sample", str(tmp_path / "model"), *words, "--out", str(run / "samples"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("6 videos and sheet.png") == 1
    compared = [path for part in ("latents", "samples") for path in sorted((tmp_path / "one" / part).iterdir())]
    assert len(compared) == 4 + 1 + 6 + 1
    for path in compared:
        assert path.read_bytes() == (tmp_path / "two" / path.parent.name / path.name).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("patience", "met"), [(5, False), (120, True)])
def test_processes_wait_for_one_that_works_for_all(tmp_path: Path, patience: int, met: bool) -> None:
    program = tmp_path / "waiting.py"
    program.write_text(
        "import time\nfrom datetime import timedelta\nfrom vqvdm import processes\n"
        f"processes.PATIENCE = timedelta(seconds={patience})\n"
        "here = processes.this_process()\nprint('known', flush=True)\n"
        "time.sleep(12 * here.is_main_process)\n"
        "here.wait_for_everyone()\nprint('met')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (result.returncode == 0) == met, result.stderr
    assert result.stdout.count("met") == (2 if met else 0)
    assert result.stdout.count("known") == 2, "it is the barrier that did not wait"


def worker_of(launcher: int, rank: int) -> int | None:
    """The process of this rank below a launcher; None if it is not there yet."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            told = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if parent == launcher and f"LOCAL_RANK={rank}".encode() in told:
            return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in Linux' /proc")
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_worker_ends_the_others_or_all_go_on(tmp_path: Path, restarts: int) -> None:
    runs = [tmp_path / "whole", tmp_path / "killed"]
    recipe = replace(recipe_of(2), name="tiny")
    assert recipe.denoiser is not None
    training = replace(recipe.denoiser.training, steps=60, checkpoint_every=10, keep_checkpoints=1)
    for run in runs:
        run.mkdir()
        give_tokenizer(run)
        replace(recipe, denoiser=replace(recipe.denoiser, training=training)).save(run / "recipe.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["--max-restarts", str(restarts), str(SCRIPT), "denoiser"]
    # torch's launcher would hand a restart the addresses of those before it (pytorch issue 135712).
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen([*launch, str(runs[1])], text=True, stderr=subprocess.PIPE, env=environment) as process:
        while not (runs[1] / "checkpoints" / "denoiser" / "step-00000020").exists():
            assert process.poll() is None
            time.sleep(0.01)
        victim = worker_of(process.pid, 1)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        _, said = process.communicate(timeout=300)
    assert "exitcode: -9" in said, said  # of the one that was killed
    if restarts == 0:
        assert process.returncode != 0
        assert time.monotonic() - killed < 60
        return
    assert process.returncode == 0, said
    assert "going on from" in said
    done = subprocess.run([*launch, str(runs[0])], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    whole, gone_on = (latest_checkpoint(run / "checkpoints" / "denoiser") for run in runs)
    assert whole is not None and gone_on is not None and whole.step == gone_on.step == 60
    for name in ("model", "ema", "optimizer"):
        ours, theirs = whole.tensors(name), gone_on.tensors(name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_on_the_launcher_saves_once(tmp_path: Path) -> None:
    """The terminal sends it to all processes, and the launcher passes it on to the workers besides."""
    give_tokenizer(tmp_path)
    recipe = recipe_of(2)
    assert recipe.denoiser is not None
    training = replace(recipe.denoiser.training, steps=10_000, checkpoint_every=10_000)
    replace(recipe, denoiser=replace(recipe.denoiser, training=training)).save(tmp_path / "recipe.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command, environment = [*launch, str(SCRIPT), "denoiser", str(tmp_path)], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, text=True, stderr=subprocess.PIPE, env=environment, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("denoiser "):
                break
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    found = latest_checkpoint(tmp_path / "checkpoints" / "denoiser")
    assert found is not None and found.step > 0
    assert f"stopped at update {found.step}; run the same command again" in said


def can_make_namespaces() -> bool:
    """Whether this is Linux, root, with iproute2."""
    if shutil.which("ip") is None or os.getuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "vqvdm-probe"], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "delete", "vqvdm-probe"], capture_output=True)
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_equal_two_processes_of_one(tmp_path: Path) -> None:
    if not can_make_namespaces():
        pytest.skip("needs Linux, root and iproute2 for network namespaces")
    recipe = replace(recipe_of(2), name="tiny")
    recipe = replace(recipe, data=replace(recipe.data, path="toy", toy_clips=10))
    recipe.save(tmp_path / "tiny.yaml")
    words = ["tokenizer", str(tmp_path / "tiny.yaml"), "--run"]
    environment = {**os.environ, "TORCHRUN": str(Path(sys.executable).with_name("torchrun"))}
    hosts = [str(SCRIPT.parents[1] / "scripts" / "two_hosts.sh"), *words, str(tmp_path / "hosts")]
    done = subprocess.run(hosts, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    done = launched(2, "train", *words, str(tmp_path / "processes"))
    assert done.returncode == 0, done.stderr
    ours, theirs = (latest_checkpoint(tmp_path / run / "checkpoints" / "tokenizer") for run in ("hosts", "processes"))
    assert ours is not None and theirs is not None and ours.step == theirs.step == 4
    for name in ("model", "ema", "optimizer", "discriminators"):
        tensors, others = ours.tensors(name), theirs.tensors(name)
        assert tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors), name

"""Recorded steps: the same results as plain calls, and plain calls wherever a recording would be wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tiny_pipeline import tiny_denoiser, tiny_pipeline
from vqvdm.benchmark.resources import work_of
from vqvdm.graphs import Call, GraphedDenoiser


class Recorder:
    """In the place of CUDA's graphs: a replay calls again, on what lies in the recorded inputs by then."""

    def __init__(self, off: float = 0.0, idle: bool = False) -> None:
        self.made, self.replayed, self.off, self.idle = 0, 0, off, idle

    def __call__(self, call: Call) -> tuple[Call, Tensor]:
        self.made += 1
        result = call()

        def replay() -> None:
            self.replayed += 1
            if not self.idle:
                result.copy_(call() + self.off)

        return replay, result


def arguments(denoiser, seed: int, batch: int = 2) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(batch, 4, 2, 4, 4, generator=generator)
    timestep, labels, fps = torch.tensor(100.0 * seed), torch.zeros(batch, dtype=torch.int64), torch.full((batch,), 8.0)
    return noisy, timestep, labels, fps, denoiser.modulations(timestep.expand(batch), labels, fps)


@torch.no_grad()
def test_replays_give_what_plain_calls_give():
    denoiser, recorder = tiny_denoiser(), Recorder()
    graphed = GraphedDenoiser(denoiser, recorder, on="cpu").of(denoiser)
    results = []
    for seed, batch in ((1, 2), (2, 2), (3, 1), (4, 2)):
        given = arguments(denoiser, seed, batch)
        results.append((graphed(*given), denoiser(*given)))
    for found, wanted in results:  # also when later replays have been made
        assert torch.equal(found, wanted)
    assert recorder.made == 2  # one for each shape
    assert recorder.replayed == 2 + 4


@torch.no_grad()
@pytest.mark.parametrize("estimated", [False, True])
def test_replays_see_the_context_of_each_call(estimated: bool):
    denoiser, recorder = tiny_denoiser(self_condition=True, context=True), Recorder()
    graphed = GraphedDenoiser(denoiser, recorder, on="cpu").of(denoiser)
    for seed in (1, 2, 3):
        given, generator = arguments(denoiser, seed), torch.Generator().manual_seed(seed)
        estimate = torch.randn(given[0].shape, generator=generator) if estimated else None
        context = torch.randn(2, 6, 2, 4, 4, generator=generator)
        assert torch.equal(graphed(*given, estimate, context), denoiser(*given, estimate, context))
    assert (recorder.made, recorder.replayed) == (1, 4)


@torch.no_grad()
def test_replays_see_the_estimate_of_each_call():
    denoiser, recorder = tiny_denoiser(self_condition=True), Recorder()
    graphed = GraphedDenoiser(denoiser, recorder, on="cpu").of(denoiser)
    for seed in (1, 2, 3):
        given = arguments(denoiser, seed)
        estimate = None if seed == 1 else torch.randn(given[0].shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(graphed(*given, estimate), denoiser(*given, estimate))
    assert recorder.made == 2  # without one and with one


@torch.no_grad()
def test_moved_weights_are_recorded_anew():
    denoiser, recorder = tiny_denoiser(), Recorder()
    graphed = GraphedDenoiser(denoiser, recorder, on="cpu")
    for _ in range(2):
        graphed.of(denoiser)(*arguments(denoiser, 1))
    assert recorder.made == 1
    other = tiny_denoiser()
    for parameter in other.parameters():
        parameter.mul_(1.5)
    given = arguments(other, 1)
    assert torch.equal(graphed.of(other)(*given), other(*given))
    assert recorder.made == 2


@torch.no_grad()
@pytest.mark.parametrize("recorder", [Recorder(off=1.0), Recorder(off=float("nan")), Recorder(idle=True)])
def test_a_replay_that_differs_is_not_used(recorder, caplog):
    denoiser = tiny_denoiser()
    graphed = GraphedDenoiser(denoiser, recorder, on="cpu")
    for seed in (1, 2):
        given = arguments(denoiser, seed)
        assert torch.equal(graphed.of(denoiser)(*given), denoiser(*given))
    assert recorder.made == 1  # and not tried again
    assert "differs from the plain call" in caplog.text


@torch.no_grad()
def test_what_cannot_be_recorded_is_called(caplog):
    def refuse(call: Call) -> tuple[Call, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    denoiser = tiny_denoiser()
    given = arguments(denoiser, 1)
    assert torch.equal(GraphedDenoiser(denoiser, refuse, on="cpu").of(denoiser)(*given), denoiser(*given))
    assert "(operation not permitted when stream is capturing)" in caplog.text


@torch.no_grad()
def test_counters_see_all_operations_and_modes_have_recordings_of_their_own():
    denoiser, recorder = tiny_denoiser(), Recorder()
    graphed = GraphedDenoiser(denoiser, recorder, on="cpu").of(denoiser)
    given = arguments(denoiser, 1)
    graphed(*given)
    assert work_of(lambda: graphed(*given)) == work_of(lambda: denoiser(*given))
    with torch.inference_mode():
        graphed(*given)
    assert torch.equal(graphed(*given), denoiser(*given))
    assert recorder.made == 2
    graphed.forget()
    graphed(*given)
    assert recorder.made == 3


REASONS = ["adapter", "offloading", "casting", "hook", "training", "no modulations", "gradient", "device"]


@pytest.mark.parametrize("reason", REASONS)
def test_what_a_recording_would_not_repeat_is_called(reason):
    denoiser, recorder = tiny_denoiser(), Recorder()
    given = arguments(denoiser, 1)
    if reason == "adapter":
        denoiser.peft_config = {"style": None}
    if reason == "offloading":
        denoiser._hf_hook = object()
    if reason == "casting":
        denoiser.stem._diffusers_hook = object()
    if reason == "hook":
        denoiser.middle[0].register_forward_hook(lambda *given: None)
    if reason == "training":
        denoiser.train()
    if reason == "no modulations":
        given = (*given[:4], None)
    graphed = GraphedDenoiser(denoiser, recorder, on="cuda" if reason == "device" else "cpu").of(denoiser)
    with torch.set_grad_enabled(reason == "gradient"):
        graphed(*given)
    assert recorder.made == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    pipeline = tiny_pipeline().to("cuda")
    frames = [pipeline("left", generator=torch.Generator().manual_seed(0), output_type="pt").frames for _ in range(2)]
    assert torch.equal(*frames)
    assert pipeline._graphed._recordings
    pipeline._graphed._on = "none"
    plain = pipeline("left", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    torch.testing.assert_close(frames[0], plain, atol=1e-3, rtol=0)

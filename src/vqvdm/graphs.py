"""A denoiser whose GPU kernels are recorded once and launched together from then on (CUDA graphs).

One step of a light network is hundreds of small kernels, and launching them one by one takes longer than running them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vqvdm.denoiser import VideoDenoiser
from vqvdm.errors import logger_of

logger = logger_of(__name__)

_KEPT = 4  # shapes, each with its own memory
_WARM_UP = 3  # calls before recording, in which libraries choose their kernels
_CLOSE = 0.02  # of the largest value: what a replay may differ from the plain call

Call = Callable[[], Tensor]
_Recording = tuple[list[Tensor], Callable[[], None], Tensor]  # inputs, replay, result
Record = Callable[[Call], tuple[Callable[[], None], Tensor]]  # a call -> (replay it, where its result will lie)


class GraphedDenoiser:
    """Calls a denoiser, by a recording of its kernels where that is possible and right.

    A recording holds for one shape, and for weights that stay where they are in memory. Each is compared with the plain
    call when it is made; where it differs, or cannot be made, the plain calls go on.
    """

    def __init__(self, denoiser: VideoDenoiser, record: Record | None = None, on: str = "cuda") -> None:
        """Nothing is recorded yet.

        Args:
            denoiser: to be called.
            record: `record_cuda`, or what a test puts in its place.
            on: the kind of device on which to record.
        """
        self._denoiser, self._record, self._on = denoiser, record or record_cuda, on
        self._weights: tuple[int, ...] = ()
        self._usable = False
        self.forget()

    def forget(self) -> None:
        """Drop all recordings, as after a change that they would not notice."""
        self._recordings: dict[Any, _Recording] = {}
        self._failed = False

    def of(self, denoiser: VideoDenoiser) -> GraphedDenoiser:
        """Itself, at the beginning of a sampling: recordings of other weights, or of moved ones, are dropped."""
        self._denoiser = denoiser
        weights = tuple(tensor.data_ptr() for tensor in (*denoiser.parameters(), *denoiser.buffers()))
        if weights != self._weights:
            self.forget()
            self._weights = weights
        # What hooks and adapters do in Python, a recording would not repeat.
        changed = denoiser.training or bool(getattr(denoiser, "peft_config", None)) or _is_hooked(denoiser)
        self._usable = not changed and denoiser.device.type == self._on
        return self

    def __call__(
        self,
        noisy: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None,
        fps: Tensor,
        modulations: Sequence[Tensor] | None,
        estimate: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """As `VideoDenoiser.forward`."""
        # Modes that watch operations, such as counters of FLOPs, would not see those of a replay.
        watched = torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() > 0
        beside = {name: x for name, x in (("estimate", estimate), ("context", context)) if x is not None}
        if not self._usable or self._failed or modulations is None or watched:
            return self._denoiser(noisy, timestep, class_labels, fps, modulations, **beside)
        key = (noisy.shape, noisy.dtype, tuple(beside), torch.is_inference_mode_enabled())
        given = [noisy, *beside.values(), *modulations]
        if key not in self._recordings:
            plain = self._denoiser(noisy, timestep, class_labels, fps, modulations, **beside)
            recording = self._made(given, tuple(beside), timestep, class_labels, fps, plain)
            if recording is None:
                self._failed = True
                return plain
            while len(self._recordings) >= _KEPT:
                self._recordings.pop(next(iter(self._recordings)))
            self._recordings[key] = recording
        inputs, replay, result = self._recordings[key]
        torch._foreach_copy_(inputs, given)
        replay()
        return result.clone()  # the next replay writes over it

    def _made(
        self,
        given: Sequence[Tensor],
        beside: tuple[str, ...],
        timestep: Tensor,
        class_labels: Tensor | None,
        fps: Tensor,
        plain: Tensor,
    ) -> _Recording | None:
        """A recording that gives what the plain call gives; None if there is none."""
        inputs = [tensor.clone() for tensor in given]
        noisy, modulations = inputs[0], inputs[1 + len(beside) :]
        named: dict[str, Any] = dict(zip(beside, inputs[1:], strict=False))

        def call() -> Tensor:
            return self._denoiser(noisy, timestep, class_labels, fps, modulations, **named)

        try:
            replay, result = self._record(call)
            result.fill_(math.nan)  # so that a replay that does nothing is noticed
            replay()
        except (RuntimeError, AssertionError) as error:
            logger.warning("steps are not recorded as a CUDA graph (%s)", str(error).partition("\n")[0])
            return None
        if not (result - plain).abs().max() <= _CLOSE * plain.abs().max():  # NaN is not close
            logger.warning("steps are not recorded as a CUDA graph (a replay differs from the plain call)")
            return None
        return inputs, replay, result


def _is_hooked(network: VideoDenoiser) -> bool:
    """Whether offloading, layerwise casting or anybody's hooks act before or after any of its parts."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
        or hasattr(module, "_diffusers_hook")
        for module in network.modules()
    )  # fmt: skip


def record_cuda(call: Call) -> tuple[Callable[[], None], Tensor]:
    """Record a call's kernels: (replay them, the tensor that each replay writes)."""
    with torch.cuda.device(call().device):  # streams belong to the current device, which is each thread's own
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: one measures or writes what was made before.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = call()
    return graph.replay, result

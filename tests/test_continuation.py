"""Long videos: windows that follow on each other, whatever is given kept, the end where it was asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from test_given import picture, pixel_pipeline
from vqvdm import VQVDMPipeline
from vqvdm.continuation import continue_video, spans
from vqvdm.errors import InputError
from vqvdm.output import VQVDMPipelineOutput

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe() -> VQVDMPipeline:
    """Eight frames of 16x16 at a time, of pixels, in three steps."""
    made = pixel_pipeline("flow", context=True)
    made.register_to_config(height=16, width=16, num_inference_steps=3)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("total", "given", "expected"),
    [
        (8, 0, [(0, 8)]),
        (20, 0, [(0, 8), (5, 13), (10, 18), (12, 20)]),
        (16, 8, [(5, 13), (8, 16)]),
        (16, 2, [(0, 8), (5, 13), (8, 16)]),
        (10, 40, []),
        (9, 8, [(1, 9)]),
    ],
)
def test_windows_overlap_by_three_frames_and_end_with_the_video(total: int, given: int, expected: list) -> None:
    assert spans(total, 8, 3, given) == expected


def test_a_long_video_is_its_windows(pipe: VQVDMPipeline) -> None:
    long = continue_video(
        pipe, 20, overlap=3, class_labels="left", generator=torch.Generator().manual_seed(3), output_type="np"
    )
    assert long.frames.shape == (1, 20, 16, 16, 3) and long.fps == [pipe.config["fps"]]
    generator = [torch.Generator().manual_seed(long.seeds[0])]
    first = pipe("left", generator=generator, output_type="np").frames
    np.testing.assert_allclose(long.frames[:, :8], first, atol=1e-5)
    second = pipe("left", video=first[:, 5:], generator=generator, output_type="np").frames
    np.testing.assert_allclose(long.frames[:, 8:13], second[:, 3:], atol=1e-5)
    assert np.abs(np.diff(long.frames, axis=1)).max(axis=(0, 2, 3, 4)).min() > 1e-4, "no frame is a copy"


def test_what_is_given_stays(pipe: VQVDMPipeline) -> None:
    video, last = np.stack([picture(k) for k in range(11)]), picture(20)
    long = continue_video(pipe, 20, video, overlap=3, class_labels=["left", "left"], last_image=last, output_type="np")
    for made in long.frames:
        np.testing.assert_allclose(made[:11], video / 255, atol=1e-5)
        np.testing.assert_allclose(made[-1], last / 255, atol=1e-5)
    assert np.abs(long.frames[0, 11:-1] - long.frames[1, 11:-1]).max() > 1e-3
    begun = continue_video(pipe, 12, image=video[0], overlap=3, class_labels="left", output_type="pt").frames
    np.testing.assert_allclose(begun[0, 0].permute(1, 2, 0), video[0] / 255, atol=1e-5)


def test_a_video_that_is_too_short_for_the_overlap_is_continued_whole(pipe: VQVDMPipeline) -> None:
    long = continue_video(pipe, 10, picture()[None], overlap=5, class_labels="left", output_type="pil")
    assert len(long.frames[0]) == 10
    assert np.abs(np.asarray(long.frames[0][0]).astype(int) - picture()).max() <= 1


def test_interrupted_it_returns_what_there_is(pipe: VQVDMPipeline) -> None:
    calls = []

    def stop(pipeline, step, timestep, tensors):
        calls.append(step)
        pipeline._interrupt = len(calls) == 4  # in the second window
        return tensors

    long = continue_video(pipe, 40, overlap=4, class_labels="left", callback_on_step_end=stop, output_type="pt")
    assert long.frames.shape[1] == 8, "the window that was broken off shows noise"


def test_a_picture_that_is_all_that_is_missing_is_put_at_the_end(pipe: VQVDMPipeline) -> None:
    last = picture(20)
    made = continue_video(pipe, 13, overlap=4, class_labels="left", last_image=last, output_type="np")
    assert made.frames.shape[1] == 13 and made.fps == [pipe.config["fps"]]
    np.testing.assert_allclose(made.frames[0, -1], last / 255, atol=1e-5)
    video = np.stack([picture(k) for k in range(8)])
    appended = continue_video(pipe, 9, video, overlap=4, class_labels="left", last_image=last, output_type="np")
    np.testing.assert_allclose(appended.frames[0], np.stack([*video, last]) / 255, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"overlap": 8}, "overlap is 8, but a window has 8 frames"),
        ({"video": np.zeros((20, 16, 16, 3))}, "video has 20 frames already; num_frames must be more, not 20"),
        ({"video": picture()[None], "image": picture()}, "image and video both"),
        ({"last_image": picture(), "num_frames": 5}, "num_frames is 5, fewer than the 8 of a window"),
        ({"mask": np.zeros((16, 16))}, "mask is for a single call"),
        ({"output_type": "latent"}, "output_type must be pil, np or pt"),
        ({"video": np.zeros((3, 4, 16, 16, 3))}, "video is given 3 times for 1 videos"),
    ],
)
def test_bad_input(pipe: VQVDMPipeline, arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        continue_video(pipe, **{"num_frames": 20, "class_labels": "left", "overlap": 3, **arguments})


class Brightening(VQVDMPipeline):
    """Stands in for a tokenizer that errs: every frame comes back lighter by 0.01, and by 0.02 in the next window."""

    calls = 0

    def __call__(self, *_: object, video: torch.Tensor | None = None, **__: object) -> VQVDMPipelineOutput:
        self.calls += 1
        shade = 0.5 if video is None else float(video[0, 0].mean())
        frames = torch.full((1, 8, 3, 16, 16), shade + 0.01 * self.calls)
        return VQVDMPipelineOutput(frames=frames, fps=[8.0], seeds=[0])


def test_neither_what_is_given_nor_a_window_ends_in_a_jump(pipe: VQVDMPipeline) -> None:
    erring = Brightening(**pipe.components, id2label=pipe.id2label, num_frames=8, height=16, width=16, fps=8.0)
    given = np.full((4, 16, 16, 3), 0.5, np.float32)
    long = continue_video(erring, 12, given, overlap=4, class_labels="left", output_type="np").frames[0]
    shades = long.mean(axis=(1, 2, 3))
    # The first window decodes to 0.51: its first new frame is what was given, the others fade towards 0.51. The second
    # is given these four, decodes to 0.52 in their place, and they fade into that.
    decoded = 0.51 - 0.01 * np.array([1, 0.75, 0.5, 0.25])
    again = decoded[0] + 0.02
    overlap = decoded + np.array([0.2, 0.4, 0.6, 0.8]) * (again - decoded)
    np.testing.assert_allclose(shades, [*[0.5] * 4, *overlap, *[again] * 4], atol=1e-6)
    assert np.abs(np.diff(shades)).max() < 0.007, "where a plain cut jumps by 0.01 and 0.02"

"""Given frames: read from any form, shown as latents, kept to the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from tiny_pipeline import tiny_denoiser, tiny_pipeline, tiny_tokenizer
from vqvdm import VQVDMPipeline, bundled
from vqvdm.context import context_of
from vqvdm.data.toy import ToyMotions
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError
from vqvdm.given import Keeper, read_given
from vqvdm.video import to_clip

SIZE = (8, 16, 16)
torch.set_num_threads(1)


def picture(seed: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pictures_of_any_form_are_the_same() -> None:
    pixels = picture()
    forms = [
        pixels, PIL.Image.fromarray(pixels), pixels / 255.0, torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255.0,
    ]  # fmt: skip
    for form in forms:
        given = read_given(form, None, None, None, SIZE)
        assert given is not None
        torch.testing.assert_close(given.clip[0, :, 0], torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
        assert given.frames.tolist() == [[True] + [False] * 7] and given.whole


def test_videos_of_any_form_are_the_same_as_what_a_pipeline_returns() -> None:
    pipe = tiny_pipeline()
    seed = {"generator": torch.Generator().manual_seed(0), "num_frames": 4, "height": 16, "width": 16}
    found = []
    for form in ("np", "pt", "pil"):
        seed["generator"].manual_seed(0)
        video = pipe("left", **seed, output_type=form).frames[0]
        found.append(read_given(None, None, video, None, SIZE))
        assert found[-1].frames.tolist() == [[True] * 4 + [False] * 4]
    torch.testing.assert_close(found[0].clip, found[1].clip)
    torch.testing.assert_close(found[0].clip, found[2].clip, atol=0.01, rtol=0)  # rounded to 255 levels


def test_pictures_of_other_sizes_cover_the_frame_by_their_middle() -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 28:68] = 255
    given = read_given(wide, wide, None, None, SIZE)
    assert given is not None and given.frames.tolist() == [[True] + [False] * 6 + [True]]
    assert given.clip[0, :, 0].min() > 0.99 and torch.equal(given.clip[:, :, 0], given.clip[:, :, -1])


def test_each_video_may_have_its_own() -> None:
    pixels = [picture(k) for k in range(2)]
    for several in (pixels, np.stack(pixels), [PIL.Image.fromarray(each) for each in pixels]):
        given = read_given(several, picture(7), None, None, SIZE, videos=2)
        assert given is not None and given.clip.shape[0] == given.known.shape[0] == 2
        for k in range(2):
            expected = torch.from_numpy(pixels[k]).permute(2, 0, 1) / 127.5 - 1
            torch.testing.assert_close(given.clip[k, :, 0], expected)
        assert torch.equal(given.clip[0, :, -1], given.clip[1, :, -1])


def test_a_mask_says_what_is_made_anew() -> None:
    video, mask = np.stack([picture(k) for k in range(8)]), np.zeros((16, 16))
    mask[4:8, 4:] = 1
    given = read_given(None, None, video, mask, SIZE)
    assert given is not None and not given.whole
    assert torch.equal(given.known[0, 0, 3], torch.from_numpy(mask == 0))
    as_picture = read_given(None, None, video, PIL.Image.fromarray((mask * 255).astype(np.uint8)), SIZE)
    assert torch.equal(as_picture.known, given.known)
    later = np.zeros((8, 16, 16), dtype=bool)
    later[5:] = True
    assert read_given(None, None, video, later, SIZE).frames.tolist() == [[True] * 5 + [False] * 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": "cat.png"}, "image must be an image, an array .* not str"),
        ({"image": np.zeros((4, 4))}, r"image must be an image in RGB; an array of shape \(4, 4\)"),
        ({"image": np.full((4, 4, 3), 7.0)}, "image: values must lie in 0..1"),
        ({"image": np.full((4, 4, 3), np.nan)}, "image: values must lie in 0..1"),
        ({"video": picture()}, "video must be a sequence of images in RGB"),
        ({"video": []}, "video must be"),
        ({"video": [picture(), picture(0, 8)]}, "video: pictures of one list must have one size"),
        ({"image": [picture()] * 3}, "image is given 3 times for 1 videos"),
        ({"video": np.zeros((9, 8, 8, 3))}, "video has 9 frames, more than the 8 to make"),
        ({"video": np.zeros((8, 8, 8, 3))}, "all 8 frames are given"),
        ({"image": picture(), "video": picture()[None]}, "image and video both say"),
        ({"mask": np.zeros((4, 4))}, "mask says which pixels of a video"),
        ({"video": np.zeros((4, 8, 8, 3)), "mask": np.ones((8, 8))}, "mask covers the whole video"),
        ({"video": np.zeros((8, 8, 8, 3)), "mask": np.zeros((8, 8))}, "nothing to make"),
        (
            {"video": np.zeros((4, 8, 8, 3)), "mask": np.zeros((3, 8, 8))},
            r"mask must be of shape \(h, w\) or \(4, h, w\)",
        ),
    ],
)
def test_what_cannot_be_given(arguments: dict, words: str) -> None:
    given = {"image": None, "last_image": None, "video": None, "mask": None, **arguments}
    with pytest.raises(InputError, match=words):
        read_given(**given, size=SIZE)


def test_nothing_given() -> None:
    assert read_given(None, None, None, None, SIZE) is None


def test_context_is_whole_latents_and_stills_at_the_ends() -> None:
    tokenizer = tiny_tokenizer()  # two frames a latent
    video = np.stack([picture(k) for k in range(5)])
    given = read_given(None, picture(9), video, None, SIZE)
    context = Keeper(given, tokenizer, wanted=True).context
    known = torch.tensor([[True, True, False, False]])  # the fifth frame has no latent of its own
    latents = torch.zeros(1, 4, 4, 4, 4)
    held = given.clip[:, :, [0, 1, 2, 3, 4, 4, 7, 7]]
    latents[:, :, :2] = tokenizer.encode(held)[:, :, :2]
    stills = torch.zeros(1, 2, 4, 4, 4)
    stills[:, 1] = tokenizer.encode(given.clip[:, :, -1:].repeat(1, 1, 2, 1, 1))[:, :, 0]
    torch.testing.assert_close(context, context_of(latents, known, stills, torch.tensor([[False, True]])))
    assert Keeper(given, tokenizer, wanted=False).context is None
    parts = read_given(None, None, video, np.eye(16), SIZE)
    assert Keeper(parts, tokenizer, wanted=True).context is None


def test_context_is_near_to_the_latents_of_the_whole_clip_which_training_shows() -> None:
    """Frames encoded by themselves end with latents of an end, whose colours are others."""
    tokenizer = VQVDMPipeline.from_pretrained(bundled()).tokenizer
    videos = np.stack([ToyMotions(size=64, frames=16).render(k, fps=12.0).video for k in range(4)])
    clip = torch.stack([to_clip(video) for video in videos])
    context = Keeper(read_given(None, None, videos[:, :8], None, (16, 64, 64), 4), tokenizer, wanted=True).context
    with torch.inference_mode():
        whole, alone = tokenizer.encode(clip)[:, :, :2], tokenizer.encode(clip[:, :, :8])

    def shift(latents: torch.Tensor) -> float:
        return (latents - whole).mean((3, 4)).square().mean().sqrt().item()

    assert shift(context[:, :16, :2]) < 0.2 * shift(alone)


def test_context_is_encoded_once_more_with_the_clip_that_comes_to_be() -> None:
    tokenizer = VQVDMPipeline.from_pretrained(bundled()).tokenizer
    video = ToyMotions(size=64, frames=16).render(0, label=7, fps=12.0).video  # spinning, so that holding is wrong
    with torch.inference_mode():
        whole = tokenizer.encode(to_clip(video)[None])
    keeper = Keeper(read_given(None, None, video[:8], None, (16, 64, 64)), tokenizer, wanted=True)
    assert keeper.refined(whole, noise=0.9) is None, "nothing is to be seen yet"
    two = whole.repeat(2, 1, 1, 1, 1)
    better = keeper.refined(two, noise=0.7)
    assert better.shape == (2, 18, 4, 8, 8) and torch.equal(
        better[:, 16:], keeper.context[:, 16:].expand(2, -1, -1, -1, -1)
    )
    assert not better[:, :16, 2:].any(), "what is made is not shown"
    held, now = ((each[:1, :16, 1] - whole[:, :, 1]).square().mean() for each in (keeper.context, better))
    assert now < 0.1 * held
    assert keeper.refined(two, noise=0.5) is None, "once is enough"
    still = Keeper(read_given(video[0], None, None, None, (16, 64, 64)), tokenizer, wanted=True)
    assert still.refined(whole, noise=0.5) is None, "a still picture is encoded by itself"


def test_a_sampling_shows_its_denoiser_the_better_context() -> None:
    base = tiny_pipeline()
    parts = {**base.components, "denoiser": tiny_denoiser(context=True)}
    pipe = VQVDMPipeline(**parts, id2label=base.id2label, num_frames=8, height=16, width=16, num_inference_steps=4)
    pipe.set_progress_bar_config(disable=True)
    shown: list[torch.Tensor] = []
    forward = parts["denoiser"].forward

    def watched(*arguments: Any, **named: Any) -> torch.Tensor:
        shown.append(named["context"])
        return forward(*arguments, **named)

    parts["denoiser"].forward = watched
    pipe("left", video=np.stack([picture(k) for k in range(4)]), guidance_scale=1.0)
    changed = [not torch.equal(a, b) for a, b in pairwise(shown)]
    assert sum(changed) == 1 and not changed[0]


def pixel_pipeline(prediction: str, context: bool) -> VQVDMPipeline:
    objective = Objective(prediction)
    denoiser = tiny_denoiser(in_channels=3, context=context).eval()
    return VQVDMPipeline(None, denoiser, objective.make_scheduler("ddim"), id2label={0: "left"}, num_frames=8)


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "sample"])
@pytest.mark.parametrize("context", [False, True])
def test_given_pixels_come_back(prediction: str, context: bool) -> None:
    pipe = pixel_pipeline(prediction, context)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "np"}
    video, seed = np.stack([picture(k) for k in range(3)]), torch.Generator()
    made = pipe("left", video=video, last_image=picture(9), generator=seed.manual_seed(0), **arguments).frames[0]
    np.testing.assert_allclose(made[:3], video / 255, atol=1e-5)
    np.testing.assert_allclose(made[-1], picture(9) / 255, atol=1e-5)
    free = pipe("left", generator=seed.manual_seed(0), **arguments).frames[0]
    assert np.abs(made[3:-1] - free[3:-1]).max() > 1e-3, "the other frames must heed what is given"


def test_latents_that_show_nothing_given_are_left_alone() -> None:
    tokenizer = tiny_tokenizer()
    keeper = Keeper(read_given(picture(), None, None, None, SIZE), tokenizer, wanted=False)
    latents = torch.randn(2, 4, 4, 4, 4)
    kept = keeper.kept(latents)
    assert torch.equal(kept[:, :, 1:], latents[:, :, 1:]) and not torch.equal(kept[:, :, 0], latents[:, :, 0])


def test_one_picture_serves_all_videos_of_a_call() -> None:
    pipe = tiny_pipeline()
    arguments = {"num_frames": 8, "height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    both = pipe(["left", "right"], image=picture(), generator=generators, **arguments).frames
    alone = pipe("right", image=picture(), generator=torch.Generator().manual_seed(1), **arguments)
    again = pipe("right", image=picture(), generator=[torch.Generator().manual_seed(1)], **arguments).frames
    torch.testing.assert_close(both[1:], again, atol=1e-5, rtol=1e-4)
    assert alone.frames.shape == again.shape

"""The tokenizer: decode reproduces what training saw, latents are normalised, nothing depends on batch or tiles."""

from __future__ import annotations

import pytest
import torch

from vqvdm import VideoTokenizer
from vqvdm.autoencoder import Decoder, Downsample, Strided, TATSDecoder, TATSEncoder, Transposed, Upsample
from vqvdm.errors import InputError
from vqvdm.identity import changed_settings
from vqvdm.layers import fold, unfold


def tiny(**settings: object) -> VideoTokenizer:
    torch.manual_seed(0)
    arguments: dict[str, object] = {
        "channels": (8, 16),
        "patch": (2, 4, 4),
        "strides": ((2, 2, 2),),
        "latent_channels": 3,
        "codebook_size": 32,
    }
    model = VideoTokenizer(**{**arguments, **settings})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def clip(frames: int = 8, size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_fold_and_unfold_are_inverse_and_keep_neighbours_together() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 1, 2, 4, 4)
    folded = fold(x, (2, 2, 2))
    assert folded.shape == (1, 8, 1, 2, 2)
    assert folded[0, :, 0, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    torch.testing.assert_close(unfold(folded, (2, 2, 2)), x)


@torch.no_grad()
def test_the_shortcuts_are_average_and_repetition() -> None:
    """DC-AE's shortcuts: without the convolutions, down is a mean over neighbours and up repeats them."""
    down, up = Downsample(4, 4, (2, 2, 2)), Upsample(4, 4, (2, 2, 2))
    for conv in (down.conv, up.conv):
        conv.weight.zero_()
        assert conv.bias is not None
        conv.bias.zero_()
    x = torch.randn(1, 4, 4, 4, 4)
    torch.testing.assert_close(down(x), torch.nn.functional.avg_pool3d(x, 2))
    torch.testing.assert_close(up(x), torch.nn.functional.interpolate(x, scale_factor=2.0))


@torch.no_grad()
def test_pixels_are_products_beside_whole_patches() -> None:
    """The last layers against their formula: patches + conv(a * SiLU(b)), a and b of SiLU(up) at every pixel."""
    decoder = tiny(pixel_channels=4).decoder
    assert isinstance(decoder, Decoder) and decoder.pixels is not None
    z = torch.randn(2, 3, 2, 4, 4)
    x = torch.nn.functional.silu(decoder.norm(decoder.run(decoder.stem(z))))
    up, gate, head = decoder.pixels.up, decoder.pixels.gate, decoder.head
    pixels = torch.nn.functional.silu(unfold(up(x), (2, 4, 4)))
    both = torch.nn.functional.conv3d(pixels, gate.weight, gate.bias, padding=(0, 1, 1))
    product = both[:, :4] * torch.nn.functional.silu(both[:, 4:])
    made = torch.nn.functional.conv3d(product, head.weight, head.bias, padding=(0, 1, 1))
    torch.testing.assert_close(decoder(z), made + unfold(decoder.patches(x), (2, 4, 4)))
    assert decoder(z).shape == (2, 3, 8, 32, 32)


@torch.no_grad()
def test_pixel_blocks_begin_as_identity_and_then_see_frames_beside_one() -> None:
    """A block against its formula: x + conv(a * SiLU(b)), a and b of one convolution over 3x3x3 pixels."""
    decoder = tiny(pixel_channels=4, pixel_blocks=2).decoder
    assert isinstance(decoder, Decoder) and decoder.pixels is not None
    x = torch.randn(1, 4, 5, 6, 6)
    for block in decoder.pixels.blocks:
        torch.nn.init.zeros_(block.out.bias)  # from `tiny`
        block.begin_as_identity()
    torch.testing.assert_close(decoder.pixels.blocks(x), x)
    block = decoder.pixels.blocks[1]
    block.out.weight.normal_()
    both = torch.nn.functional.conv3d(x, block.gate.weight, block.gate.bias, padding=1)
    product = both[:, :4] * torch.nn.functional.silu(both[:, 4:])
    made = torch.nn.functional.conv3d(product, block.out.weight, block.out.bias, padding=(0, 1, 1))
    torch.testing.assert_close(decoder.pixels.blocks(x), x + made)
    changed = decoder.pixels.blocks(torch.cat([x[:, :, :4], x[:, :, 4:] + 1], dim=2)) - x - made
    assert changed[:, :, 3].abs().max() > 0.01 and changed[:, :, :3].abs().max() < 1e-5


@pytest.mark.parametrize(("quantizer", "codebooks"), [("ema", 1), ("ema", 3), ("fsq", 1), ("none", 1)])
@pytest.mark.parametrize("latents", ["before", "after"])
def test_decode_of_encode_is_what_training_saw(quantizer: str, codebooks: int, latents: str) -> None:
    model, x = tiny(quantizer=quantizer, codebooks=codebooks, latents=latents), clip()
    model(x)  # the codebook takes its first codes from data
    model.eval()
    model.set_latent_statistics(torch.tensor([0.1, -0.3, 0.2]), torch.tensor([0.5, 2.0, 1.0]))
    with torch.no_grad():
        seen = model(x).reconstruction
    torch.testing.assert_close(model.decode(model.encode(x)), seen, atol=1e-4, rtol=1e-3)
    if quantizer != "none":
        assert torch.equal(model.tokens(x), model(x).tokens)
        torch.testing.assert_close(model.decode_tokens(model.tokens(x)), seen, atol=1e-4, rtol=1e-3)
        again = model.quantize(model.quantize(model.encode(x)).quantized)
        assert torch.equal(again.tokens, model.tokens(x)), "codes must be their own nearest codes"


@pytest.mark.parametrize("quantizer", ["ema", "fsq", "none"])
def test_noise_is_added_before_the_codes(quantizer: str) -> None:
    model, x = tiny(quantizer=quantizer), clip()
    model(x)  # the codebook takes its first codes from data
    model.eval()
    latents = model.running_norm(model.encoder(x)).detach()
    noise = 0.5 * torch.randn_like(latents)
    found = model(x, noise=noise)
    assert not torch.allclose(found.reconstruction, model(x).reconstruction)
    bounded = latents + noise if model.codebook is None else model.codebook.bound(latents + noise)
    torch.testing.assert_close(found.reconstruction, model.decode(bounded), atol=1e-4, rtol=1e-3)
    found.reconstruction.square().mean().backward()
    assert model.encoder.stem.weight.grad.abs().max() > 0, "the encoder must learn through noise and codes"


@pytest.mark.parametrize("latents", ["before", "after"])
def test_before_the_quantiser_has_entered_decode_is_what_training_saw(latents: str, tmp_path) -> None:
    """The export of a training that has not reached `quantize_after`: codes are noise, the decoder never met them."""
    model, x = tiny(latents=latents), clip()
    model(x, quantize=False)
    with torch.no_grad():
        seen = model.eval()(x, quantize=False).reconstruction
        assert torch.equal(model(x).reconstruction, seen)
    model.save_pretrained(tmp_path)
    loaded = VideoTokenizer.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.decode(loaded.encode(x)), seen, atol=1e-4, rtol=1e-3)
    for call in (lambda: loaded.tokens(x), lambda: loaded.decode_tokens(torch.zeros(1, 2, 4, 4, dtype=torch.int64))):
        with pytest.raises(InputError, match=r"codebook is untrained.*quantize_after.*latents, not tokens"):
            call()
    loaded.train()(x)  # the quantiser enters
    loaded.eval()
    assert not torch.allclose(loaded.decode(loaded.encode(x)), loaded(x, quantize=False).reconstruction)


def test_latents_are_normalised_by_their_own_statistics() -> None:
    model, x = tiny(quantizer="none").eval(), clip(batch=4)
    raw = model.encode(x)
    model.set_latent_statistics(raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4)))
    z = model.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4)), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 8, 8), (8, 16, 32), (20, 40, 24)], ids=lambda n: str(n))
def test_any_extent_that_the_factors_divide(frames: int, height: int, width: int) -> None:
    model = tiny().eval()
    assert model.factors == (4, 8, 8)
    z = model.encode(torch.zeros(1, 3, frames, height, width))
    assert tuple(z.shape[1:]) == model.latent_shape(frames, height, width)
    assert model.decode(z).shape == (1, 3, frames, height, width)


def test_an_extent_that_does_not_divide_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"15 frames of 32x30.*16 frames of 32x32"):
        tiny().encode(torch.zeros(1, 3, 15, 32, 30))


@pytest.mark.parametrize(("quantizer", "codebooks"), [("ema", 1), ("ema", 3), ("fsq", 1), ("none", 1)])
def test_save_and_load_bit_for_bit(quantizer: str, codebooks: int, tmp_path) -> None:
    model, x = tiny(quantizer=quantizer, codebooks=codebooks, pixel_channels=4), clip()
    model(x)
    model.eval()
    model.set_latent_statistics(torch.randn(3), torch.rand(3) + 0.5)
    model.save_pretrained(tmp_path)
    loaded = VideoTokenizer.from_pretrained(tmp_path).eval()
    assert loaded.fingerprint() == model.fingerprint()
    assert torch.equal(loaded.encode(x), model.encode(x))
    assert torch.equal(loaded.decode(loaded.encode(x)), model.decode(model.encode(x)))


def test_the_fingerprint_sees_weights_and_settings() -> None:
    model = tiny()
    prints = {model.fingerprint(), tiny(latents="after").fingerprint()}
    with torch.no_grad():
        model.decoder.head.bias[0] += 1e-6
    prints.add(model.fingerprint())
    model.set_latent_statistics(torch.ones(3), torch.ones(3))
    prints.add(model.fingerprint())
    assert len(prints) == 4


def test_the_fingerprint_of_latents_does_not_see_the_decoder() -> None:
    model = tiny()
    before = model.latents_fingerprint()
    with torch.no_grad():
        model.decoder.head.bias[0] += 1e-6
    assert model.latents_fingerprint() == before
    with torch.no_grad():
        model.encoder.head.bias[0] += 1e-6
    assert model.latents_fingerprint() != before


def test_the_fingerprint_does_not_see_settings_at_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model from before the setting would have it; lists are tuples read from a file."""
    model = tiny(strides=((2, 2, 2),))
    before = model.fingerprint()
    monkeypatch.setattr(model, "_internal_dict", {k: v for k, v in model.config.items() if k != "resampling"})
    assert model.fingerprint() == before
    monkeypatch.setattr(model, "_internal_dict", {**model.config, "strides": [[2, 2, 2]]})
    assert model.fingerprint() == before
    assert set(changed_settings(model)) == {"channels", "patch", "strides", "codebook_size"}


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    model, x = tiny(quantizer="fsq").eval(), clip(batch=3)
    torch.testing.assert_close(model.encode(x)[1:2], model.encode(x[1:2]), atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, x = tiny(quantizer="fsq"), clip()

    def gradient() -> torch.Tensor:
        model.zero_grad()
        (model(x).reconstruction - x).square().mean().backward()
        assert model.encoder.stem.weight.grad is not None
        return model.encoder.stem.weight.grad.clone()

    plain = gradient()
    model.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)


def test_tiles_join_without_seams() -> None:
    """Where tiles begin and end, what tiling changes may not jump more than between any other cells of 8 pixels."""
    model = tiny(quantizer="none", channels=(16, 32)).eval()
    z = torch.randn(2, 3, 2, 4, 24, generator=torch.Generator().manual_seed(0))
    whole = model.decode(z)

    def seam(overlap: int) -> float:
        model.enable_tiling((8, 32, 64), (4, 16, overlap))
        jumps = (model.decode(z) - whole).diff(dim=-1).abs().mean((0, 1, 2, 3))
        model.disable_tiling()
        starts = range(0, 192 - 64 + 1, 64 - overlap)
        edges = {edge for start in starts for edge in (start, start + 64)} - {0, 192}
        cells = set(range(8, 192, 8)) - edges
        at_edges, elsewhere = (jumps[[place - 1 for place in sorted(places)]].mean() for places in (edges, cells))
        return (at_edges / elsewhere).item()

    assert seam(32) < 1.1  # 1.6 if overlapping tiles were averaged instead of blended
    assert seam(0) > 2


def test_tiling_needs_multiples_of_the_factors() -> None:
    with pytest.raises(InputError, match="multiples"):
        tiny().enable_tiling((8, 30, 32), (4, 8, 8))


@pytest.mark.parametrize("quantizer", ["ema", "fsq"])
def test_it_learns_one_clip_by_heart(quantizer: str) -> None:
    model = tiny(quantizer=quantizer, channels=(16, 32), fsq_levels=(8, 8, 8), restart_after=20)
    ramp = torch.linspace(-0.8, 0.8, 32)
    x = torch.stack([ramp.expand(8, 32, 32), ramp[:, None].expand(8, 32, 32), torch.zeros(8, 32, 32)])[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        out = model(x)
        loss = (out.reconstruction - x).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).reconstruction - x).square().mean() < 0.01  # 26 dB


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strides": ()}, "need 1 strides"),
        ({"quantizer": "vq"}, '"ema", "fsq" or "none"'),
        ({"quantizer": "fsq", "fsq_levels": (8, 8)}, "3 channels"),
        ({"codebooks": 2}, "must divide the 3 latent channels"),
        ({"channels": (8, 24)}, "must divide"),
        ({"channels": (0, 16)}, "widths of at least 1"),
        ({"strides": ((0, 2, 2),)}, "each stride"),
        ({"strides": ((-2, 2, 2),)}, "each stride"),
        ({"blocks": -1}, "blocks must be"),
        ({"pixel_channels": -1}, "pixel_channels and pixel_blocks must be"),
        ({"pixel_blocks": 1}, "pixel_blocks 1 need a width"),
        ({"layout": "tats", "patch": (1, 1, 1), "strides": ((2, 4, 4),), "pixel_channels": 4}, "no layers of single"),
        ({"layout": "taming"}, '"vqvdm" or "tats"'),
        ({"layout": "tats"}, "without a patch"),
        ({"resampling": "bilinear"}, "shortcut, pooled, strided"),
        ({"resampling": "strided", "strides": ((8, 2, 2),)}, "too small"),
        ({"latent_channels": 0}, "latent_channels must be"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny(**settings)


def test_a_tokenizer_without_codebook_has_no_tokens() -> None:
    with pytest.raises(InputError, match="no codebook"):
        tiny(quantizer="none").tokens(clip())


TATS = {"layout": "tats", "patch": (1, 1, 1), "channels": (8, 8, 16, 16), "strides": ((2, 2, 2), (2, 2, 2), (1, 2, 2))}


@pytest.mark.parametrize("settings", [{"resampling": "pooled"}, {"resampling": "strided"}, TATS])
def test_other_layouts_have_the_same_extents_and_gradients(settings: dict[str, object]) -> None:
    model, x = tiny(quantizer="none", **settings), clip(frames=16, size=32)
    assert model.encode(x).shape == (2, 3, 4, 4, 4)
    model(x).reconstruction.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_strided_and_transposed_convolutions_keep_places(stride: tuple[int, int, int]) -> None:
    """With single taps they are what can be written down: every second place, and each place repeated."""
    down, up, x = Strided(1, 1, stride), Transposed(1, 1, stride), torch.randn(1, 1, 4, 6, 8)
    for layer in (down, up):
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
    first = [2 if step == 1 else 1 for step in stride]  # the padding before is 2 where the stride is 1
    down.conv.weight[0, 0, first[0], first[1], first[2]] = 1
    up.conv.weight[0, 0, 1 : 1 + stride[0], 1:3, 1:3] = 1
    torch.testing.assert_close(down(x), x[:, :, :: stride[0], ::2, ::2])
    torch.testing.assert_close(up(x), torch.nn.functional.interpolate(x, scale_factor=tuple(map(float, stride))))


def test_the_layout_of_tats_halves_and_stretches_time_first() -> None:
    """Both in its code go by `n_times_downsample`, which counts down from the first layer of either."""
    channels, strides = (8, 8, 8, 8), ((2, 2, 2), (2, 2, 2), (1, 2, 2))
    encoder, decoder = TATSEncoder(3, channels, strides, 4), TATSDecoder(4, channels, strides, 3)
    halving = [layer.conv.stride for layer in encoder.layers if isinstance(layer, Strided)]
    stretching = [layer.conv.stride for layer in decoder.layers if isinstance(layer, Transposed)]
    assert halving == stretching == list(strides)


def test_the_layout_of_tats_has_its_parameters() -> None:
    """7.40M and 16.12M without the 1x1x1 convolutions around the codebook: counted in TATS' own code, n_hiddens 32."""
    channels, strides = (32, 64, 128, 256), ((2, 2, 2), (2, 2, 2), (1, 2, 2))
    encoder, decoder = TATSEncoder(3, channels, strides, 256), TATSDecoder(256, channels, strides, 3)
    found = [
        sum(p.numel() for p in part.parameters()) - sum(p.numel() for p in end.parameters())
        for part, end in ((encoder, encoder.head), (decoder, decoder.stem))
    ]
    assert [round(number / 1e6, 2) for number in found] == [7.40, 16.12]

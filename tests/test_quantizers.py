"""Quantisers against brute force, closed forms and the paper's own arithmetic."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqvdm.errors import InputError
from vqvdm.quantizers import EMACodebook, FiniteScalarQuantizer, ProductCodebook, RunningNorm, codebook
from vqvdm.quantizers.codebook import nearest_codes
from vqvdm.quantizers.output import rotated_through


def latents(seed: int, batch: int = 2, dim: int = 3, grid: tuple[int, int, int] = (2, 4, 4)) -> Tensor:
    return torch.randn(batch, dim, *grid, generator=torch.Generator().manual_seed(seed))


def vectors_of(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 4, 1).reshape(-1, z.shape[1])


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b)); the difference first, because torch.cdist loses digits."""
    return (a[:, None] - b[None]).norm(dim=-1)


def filled(codes: Tensor, **settings: object) -> EMACodebook:
    """A codebook that already has `codes`, each with moving count 1."""
    book = EMACodebook(*codes.shape, **settings)  # type: ignore[arg-type]
    book.codes.copy_(codes)
    book.counts.fill_(1.0)
    book.sums.copy_(codes)
    book.updates.fill_(1)
    return book


@pytest.mark.parametrize("elements", [codebook.DISTANCE_ELEMENTS, 100, 1])
def test_nearest_codes_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(codebook, "DISTANCE_ELEMENTS", elements)  # 1: one vector at a time
    rng = np.random.default_rng(0)
    vectors, codes = rng.normal(size=(57, 5)), rng.normal(size=(23, 5))
    expected = ((vectors[:, None] - codes[None]) ** 2).sum(-1).argmin(1)
    found = nearest_codes(torch.tensor(vectors).float(), torch.tensor(codes).float())
    assert found.tolist() == expected.tolist()


def test_codebook_replaces_each_vector_in_its_own_place() -> None:
    book = filled(torch.randn(11, 3, generator=torch.Generator().manual_seed(1))).eval()
    z = latents(0)
    out = book(z)
    for b, t, h, w in product(range(2), range(2), range(4), range(4)):
        nearest = int(np.argmin([float((z[b, :, t, h, w] - code).square().sum()) for code in book.codes]))
        assert out.tokens[b, t, h, w] == nearest
        assert torch.equal(out.quantized[b, :, t, h, w], book.codes[nearest])
    assert torch.equal(book.embed(out.tokens), out.quantized)
    assert out.tokens.dtype == torch.int64


def test_moving_averages_follow_their_closed_form() -> None:
    """N and m after k updates as sums over the batches; codes are m over the smoothed N (van den Oord et al. 2017)."""
    decay, epsilon, steps, start = 0.9, 1e-2, 6, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    book = filled(start, decay=decay, epsilon=epsilon, restart_after=0)
    count, total, codes = np.ones(3), start.double().numpy(), start.double().numpy()
    for step in range(steps):
        z = latents(step, dim=2)
        points = vectors_of(z).double().numpy()
        nearest = ((points[:, None] - codes[None]) ** 2).sum(-1).argmin(1)
        book(z)
        n = np.array([(nearest == k).sum() for k in range(3)])
        m = np.array([points[nearest == k].sum(0) for k in range(3)])
        count, total = decay * count + (1 - decay) * n, decay * total + (1 - decay) * m
        codes = total / ((count + epsilon) / (count.sum() + 3 * epsilon) * count.sum())[:, None]
        np.testing.assert_allclose(book.counts, count, rtol=1e-5)
        np.testing.assert_allclose(book.sums, total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(book.codes, codes, rtol=1e-4, atol=1e-5)


def test_a_constant_batch_draws_its_code_by_the_geometric_law() -> None:
    """One code, all vectors equal v: after k updates it is v + (e - v) gamma^k / (gamma^k + n (1 - gamma^k))."""
    start, v, n, gamma, k = torch.tensor([[4.0]]), 1.5, 8, 0.8, 5
    book = filled(start, decay=gamma, epsilon=0.0, restart_after=0)
    for _ in range(k):
        book(torch.full((1, 1, 2, 2, 2), v))
    rest = gamma**k
    assert float(book.codes) == pytest.approx((4.0 * rest + n * v * (1 - rest)) / (rest + n * (1 - rest)), rel=1e-5)


def test_dead_codes_restart_on_vectors_of_the_batch() -> None:
    """Codes far from the data come back as vectors of it, after `restart_after` updates and not before."""
    start = torch.cat([torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.full((4, 3), 100.0)])
    book = filled(start, decay=0.9, restart_after=10, epsilon=1e-9)
    batches = [latents(seed, batch=4) for seed in range(14)]
    book.counts.fill_(4 * 32 / 8)  # as of average use
    book.sums.copy_(start * 4 * 32 / 8)
    for z in batches[:9]:
        book(z)
        assert (book.codes[4:] > 99).all()
    for z in batches[9:12]:
        book(z)
    distance = distances(book.codes[4:], torch.cat([vectors_of(z) for z in batches[9:12]])).min(dim=1).values
    assert (book.codes.abs() < 10).all()
    assert (distance < 1.0).all()
    assert book.eval()(batches[0]).usage == 1.0

    never = filled(start, decay=0.9, restart_after=0)
    for z in batches:
        never(z)
    assert never.eval()(batches[0]).usage <= 0.5


def test_a_restarted_code_is_a_vector_of_the_batch() -> None:
    start = torch.tensor([[0.0, 0.0, 0.0], [100.0, 100.0, 100.0]])
    book = filled(start, restart_after=1, epsilon=0.0)
    book.counts[1] = 1e-6
    z = latents(3)
    book(z)
    assert distances(book.codes[1:], vectors_of(z)).min() < 1e-5


def test_data_start_takes_different_vectors_of_the_first_batch() -> None:
    book = EMACodebook(16, 3, decay=1 - 1e-7)
    z = latents(0)
    out = book(z)
    between = distances(book.codes, vectors_of(z))
    assert (between.min(dim=1).values < 1e-4).all()
    assert len(between.argmin(dim=1).unique()) == 16
    assert out.usage == 1.0
    small = EMACodebook(100, 3)  # more codes than vectors
    small(z)
    assert torch.isfinite(small.codes).all()
    assert (distances(small.codes, small.codes) + torch.eye(100)).min() > 1e-4  # repeated vectors can part ways


def test_kmeans_start_finds_separated_clusters() -> None:
    """Four tight clusters whose means are known; a fixed point of Lloyd's iterations beats the data start."""
    centres = torch.tensor([[3.0, 3.0], [-3.0, 3.0], [3.0, -3.0], [-3.0, -3.0]])
    noise = 0.3 * torch.randn(4, 64, 2, generator=torch.Generator().manual_seed(0))
    points = (centres[:, None] + noise).reshape(-1, 2)
    z = points.view(1, 4, 8, 8, 2).movedim(-1, 1)
    for seed in range(5):
        drawn, refined = (EMACodebook(8, 2, init=init, seed=seed)(z).loss for init in ("data", "kmeans"))
        assert refined < drawn
    book = EMACodebook(8, 2, init="kmeans", kmeans_iterations=50, decay=1 - 1e-7, epsilon=0.0)
    book(z)
    tokens = nearest_codes(points, book.codes)
    for token in tokens.unique():
        torch.testing.assert_close(book.codes[token], points[tokens == token].mean(dim=0), rtol=0, atol=1e-4)


def test_perplexity_and_usage_of_known_shares() -> None:
    """Shares 1/2, 1/4, 1/4 of 4 codes: entropy 1.5 ln 2, so perplexity 2^1.5, usage 3/4."""
    codes = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    z = torch.tensor([0.0, 0.1, 10.0, 20.0]).view(1, 1, 1, 2, 2)
    for training in (True, False):
        out = filled(codes).train(training)(z)
        assert float(out.perplexity) == pytest.approx(2**1.5, rel=1e-6)
        assert float(out.usage) == 0.75
    fsq = FiniteScalarQuantizer((4,))
    values = torch.tensor([-9.0, -9.0, 0.0, 9.0]).view(1, 1, 1, 2, 2)
    assert float(fsq(values).perplexity) == pytest.approx(2**1.5, rel=1e-6)
    assert float(fsq(values).usage) == 0.75


def test_gradient_passes_straight_through_and_commits() -> None:
    """d/dz of sum(a * quantized) is a; of the commitment loss 2 beta (z - e) / numel."""
    book = filled(torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), commitment=0.4)
    z = latents(0).requires_grad_()
    a = latents(9)
    out = book(z)
    (through,) = torch.autograd.grad((a * out.quantized).sum(), z, retain_graph=True)
    assert torch.equal(through, a)
    (commit,) = torch.autograd.grad(out.loss, z)
    torch.testing.assert_close(commit, 2 * 0.4 * (z - out.quantized).detach() / z.numel())


@pytest.mark.parametrize("cosine", [False, True])
def test_evaluation_changes_nothing(cosine: bool) -> None:
    book = EMACodebook(16, 3, cosine=cosine)
    book(latents(0))
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.eval()
    first, second = book(latents(1)), book(latents(1))
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())
    assert torch.equal(first.quantized, second.quantized)
    book.train()(latents(1))
    assert not torch.equal(book.codes, before["codes"])


def test_draws_leave_the_global_random_state_alone_and_state_resumes_bitwise(tmp_path: Path) -> None:
    """3 + 3 updates with a safetensors file between equal 6 updates bit for bit, restarts included."""
    through, first, second = (EMACodebook(32, 3, decay=0.7, restart_after=3) for _ in range(3))
    state = torch.get_rng_state()
    for seed in range(6):
        through(latents(seed))
    assert torch.equal(torch.get_rng_state(), state)
    for seed in range(3):
        first(latents(seed))
    save_file(first.state_dict(), tmp_path / "book.safetensors")
    second.load_state_dict(load_file(tmp_path / "book.safetensors"))
    for seed in range(3, 6):
        second(latents(seed))
    assert all(torch.equal(value, through.state_dict()[name]) for name, value in second.state_dict().items())


def test_cosine_codes_are_unit_vectors_of_least_angle() -> None:
    book = EMACodebook(16, 3, cosine=True)
    for seed in range(5):
        book(latents(seed))
    torch.testing.assert_close(book.codes.norm(dim=1), torch.ones(16))
    z = latents(7) * 5
    out = book.eval()(z)
    angles = torch.nn.functional.cosine_similarity(vectors_of(z)[:, None], book.codes[None], dim=-1)
    assert torch.equal(out.tokens.flatten(), angles.argmax(dim=1))
    assert torch.equal(book(book.bound(z)).tokens, out.tokens)


@pytest.mark.parametrize("quantizer", [EMACodebook(64, 3), FiniteScalarQuantizer((8, 5, 4))])
def test_autocast_does_not_reach_the_arithmetic(quantizer: EMACodebook | FiniteScalarQuantizer) -> None:
    """The same bf16 input gives the same tokens, loss and codebook with autocast as without; the dtype is kept."""
    z = latents(0, batch=4).bfloat16()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    plain = quantizer.train()(z)
    after = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
    assert torch.equal(plain.tokens, cast.tokens)
    assert torch.equal(plain.loss, cast.loss)
    assert cast.loss.dtype == torch.float32
    assert cast.quantized.dtype == torch.bfloat16
    assert all(torch.equal(value, after[name]) for name, value in quantizer.state_dict().items())


def test_channels_last_and_meta_inputs() -> None:
    z = latents(0)
    for quantizer in (EMACodebook(16, 3).eval(), FiniteScalarQuantizer((8, 5, 4)).eval()):
        last = quantizer(z.contiguous(memory_format=torch.channels_last_3d))
        assert torch.equal(last.quantized, quantizer(z).quantized)
        assert last.quantized.is_contiguous(memory_format=torch.channels_last_3d)
        shapes = quantizer.to("meta")(z.to("meta"))
        assert shapes.quantized.shape == z.shape
        assert shapes.tokens.shape == (2, 2, 4, 4)


SETTINGS: dict[str, dict[str, object]] = {
    "data": {"decay": 0.8, "restart_after": 2},
    "kmeans": {"decay": 0.8, "restart_after": 2, "init": "kmeans", "kmeans_iterations": 3},
    "more codes than vectors": {"num_codes": 300, "decay": 0.8, "restart_after": 2},
}


def _learn(settings: dict[str, object], rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """State and perplexities after 6 batches, of which this process sees its share."""
    book = EMACodebook(**{"num_codes": 24, "dim": 3, **settings})  # type: ignore[arg-type]
    perplexities = [float(book(latents(step, batch=4).chunk(world)[rank]).perplexity) for step in range(6)]
    return {**book.state_dict(), "perplexity": torch.tensor(perplexities)}


def _learn_as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, settings in SETTINGS.items():
        save_file(_learn(settings, rank, world=2), f"{folder}/{name} {rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow  # importing torch in two fresh processes
def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_learn_as_rank, args=(str(tmp_path),), nprocs=2)
    for name, settings in SETTINGS.items():
        first, second = (load_file(tmp_path / f"{name} {rank}.safetensors") for rank in (0, 1))
        alone, without = _learn(settings), _learn({**settings, "restart_after": 0})
        assert not torch.allclose(alone["codes"], without["codes"])  # restarts did happen
        for key, value in alone.items():
            assert torch.equal(first[key], second[key]), (name, key)
            torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [(2,), (3, 4), (8, 5, 5), (7, 2, 6, 3)])
def test_fsq_tokens_and_values_are_a_bijection(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalarQuantizer(levels)
    assert fsq.num_codes == math.prod(levels)
    tokens = torch.arange(fsq.num_codes).view(1, 1, 1, -1)
    values = fsq.embed(tokens)
    assert values.abs().max() <= fsq.span
    assert len(vectors_of(values).unique(dim=0)) == fsq.num_codes
    for channel, level in enumerate(levels):
        grid = (torch.arange(level) - level // 2) * 4.0 / (level // 2)
        torch.testing.assert_close(values[:, channel].unique(), grid)
    # every code is reached: a large enough grid of inputs gives exactly these values and tokens
    axes = [torch.linspace(-5, 5, 60)] * len(levels) if len(levels) < 4 else [torch.linspace(-5, 5, 33)] * 4
    z = torch.cartesian_prod(*axes).view(-1, len(levels)).T.view(1, len(levels), 1, 1, -1)
    out = fsq(z)
    assert torch.equal(out.tokens.unique(), tokens.flatten())
    assert torch.equal(fsq.embed(out.tokens), out.quantized)
    assert out.usage == 1.0
    assert out.loss == 0.0


def test_fsq_follows_the_papers_arithmetic() -> None:
    """Mentzer et al. 2023, appendix A.1, in numpy, with a cut at `span` deviations in place of tanh."""
    levels = np.array([8, 5, 4, 2])
    z = latents(0, dim=4, grid=(3, 5, 5)) * 2
    lowest, highest = -(levels // 2), (levels - 1) // 2
    bounded = np.clip(vectors_of(z).numpy() / 2.5 * (levels // 2), lowest, highest)
    codes = np.round(bounded)
    tokens = ((codes - lowest) * np.concatenate([[1], np.cumprod(levels[:-1])])).sum(1)
    fsq = FiniteScalarQuantizer((8, 5, 4, 2), span=2.5)
    out = fsq(z)
    np.testing.assert_allclose(vectors_of(out.quantized), codes * 2.5 / (levels // 2), atol=1e-6)
    np.testing.assert_allclose(vectors_of(fsq.bound(z)), bounded * 2.5 / (levels // 2), atol=1e-5)
    assert out.tokens.flatten().tolist() == tokens.astype(int).tolist()


def test_running_norm_follows_its_averages() -> None:
    norm = RunningNorm(3, decay=0.9)
    batches = [latents(seed) * (seed + 1) + seed for seed in range(30)]
    mean, variance = np.zeros(3), np.ones(3)
    for n, z in enumerate(batches):
        out = norm(z)
        vectors, keep = vectors_of(z).numpy(), min(0.9, n / (n + 1))
        mean = keep * mean + (1 - keep) * vectors.mean(0)
        variance = keep * variance + (1 - keep) * vectors.var(0)
        np.testing.assert_allclose(vectors_of(out), (vectors - mean) / np.sqrt(variance), atol=1e-4)
    np.testing.assert_allclose(norm.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.variance, variance, rtol=1e-4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    out = norm.eval()(batches[3])
    np.testing.assert_allclose(vectors_of(out), (vectors_of(batches[3]).numpy() - mean) / np.sqrt(variance), atol=1e-4)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())


def test_running_norm_rewards_neither_growth_nor_shift() -> None:
    """Batch renormalisation: whatever is wanted of its output, the gradient has no part along z or along 1."""
    norm, z = RunningNorm(3), latents(0).requires_grad_()
    norm(latents(1) * 3 + 1)
    (gradient,) = torch.autograd.grad((latents(2) * norm(z)).sum(), z)
    along = (gradient * (z - z.mean((0, 2, 3, 4), keepdim=True))).sum((0, 2, 3, 4))
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(along, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(gradient.sum((0, 2, 3, 4)), torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["euclidean", "cosine", "fsq"])
def test_snapping_the_bounded_value_is_quantising(kind: str) -> None:
    quantizer = FiniteScalarQuantizer((8, 5, 4)) if kind == "fsq" else EMACodebook(16, 3, cosine=kind == "cosine")
    quantizer(latents(0))
    z = latents(1) * 3
    out = quantizer.eval()(z)
    snapped = quantizer.train().snap(quantizer.bound(z))
    assert torch.equal(snapped.tokens, out.tokens)
    assert torch.equal(snapped.quantized, out.quantized)
    assert torch.equal(quantizer.eval()(z).quantized, out.quantized)  # snap taught it nothing
    far = quantizer.snap(latents(2) * 10)  # a generator may leave the range
    assert torch.equal(far.quantized, quantizer.embed(far.tokens))
    assert far.tokens.min() >= 0
    assert far.tokens.max() < quantizer.num_codes


def test_fsq_gradient_is_that_of_the_bound() -> None:
    fsq = FiniteScalarQuantizer((8, 5, 5))
    z, a = (latents(0) / 2).requires_grad_(), latents(1)  # within the span
    (through,) = torch.autograd.grad((a * fsq(z).quantized).sum(), z)
    (bound,) = torch.autograd.grad((a * fsq.bound(z)).sum(), z)
    torch.testing.assert_close(through, bound)
    assert (through != 0).all()
    assert not fsq.state_dict()


def test_impossible_settings_are_the_users_mistake() -> None:
    with pytest.raises(InputError, match="num_codes"):
        EMACodebook(0, 3)
    with pytest.raises(InputError, match="decay"):
        EMACodebook(8, 3, decay=1.0)
    with pytest.raises(InputError, match="init"):
        EMACodebook(8, 3, init="zeros")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="restart_after"):
        EMACodebook(8, 3, restart_after=-1)
    for levels in ((), (8, 1)):
        with pytest.raises(InputError, match="levels"):
            FiniteScalarQuantizer(levels)


def test_product_codebook_is_its_books_side_by_side() -> None:
    books = [EMACodebook(5, 2, seed=number) for number in range(3)]
    alone = [EMACodebook(5, 2, seed=number) for number in range(3)]
    for one, other in zip(books, alone, strict=True):
        other.load_state_dict(one.state_dict())
    product_book = ProductCodebook(books)
    assert (product_book.num_codes, product_book.ready) == (5, False)
    for seed in range(4):  # they learn, too
        z = latents(seed, dim=6).requires_grad_()
        out = product_book(z)
        single = [book(part) for book, part in zip(alone, z.detach().split(2, dim=1), strict=True)]
        torch.testing.assert_close(out.quantized, torch.cat([one.quantized for one in single], dim=1))
        torch.testing.assert_close(out.loss, torch.stack([one.loss for one in single]).mean())
        torch.testing.assert_close(out.usage, torch.stack([one.usage for one in single]).mean())
    assert product_book.ready
    torch.testing.assert_close(out.tokens, torch.stack([one.tokens for one in single], dim=-1))
    assert out.tokens.shape == (2, 2, 4, 4, 3)
    torch.testing.assert_close(product_book.eval()(z).quantized, product_book.embed(product_book(z).tokens))
    out.quantized.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))  # straight through


def test_product_codebook_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="equally many"):
        ProductCodebook([EMACodebook(4, 1), EMACodebook(5, 1)])
    with pytest.raises(InputError, match="one or more"):
        ProductCodebook([])


def test_rotation_keeps_the_angle_between_gradient_and_vector() -> None:
    torch.manual_seed(0)
    e, q = torch.randn(2, 4, 3, 2, 2, requires_grad=True), torch.randn(2, 4, 3, 2, 2)
    out = rotated_through(e, q)
    assert torch.equal(out, q)
    gradient = torch.randn_like(q)
    out.backward(gradient)
    assert e.grad is not None
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(e.grad, e.detach(), dim=1), cosine(gradient, q, dim=1), atol=1e-5, rtol=1e-4)
    scale = q.norm(dim=1) / e.detach().norm(dim=1)
    torch.testing.assert_close(e.grad.norm(dim=1), scale * gradient.norm(dim=1), atol=1e-5, rtol=1e-4)


def test_a_codebook_passes_gradients_as_asked() -> None:
    codes, z = torch.randn(6, 3), latents(0).requires_grad_()
    straight, rotated = (filled(codes, gradient=kind).eval()(z) for kind in ("straight", "rotation"))
    assert torch.equal(straight.quantized, rotated.quantized)
    (first,), (second,) = (
        torch.autograd.grad(out.quantized.sum(), z, retain_graph=True) for out in (straight, rotated)
    )
    assert torch.equal(first, torch.ones_like(z))
    assert (second - first).abs().max() > 0.1
    with pytest.raises(InputError, match="straight, rotation"):
        EMACodebook(4, 2, gradient="none")  # type: ignore[arg-type]

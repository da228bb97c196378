"""Several codebooks side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvdm.errors import InputError
from vqvdm.quantizers.codebook import EMACodebook
from vqvdm.quantizers.output import QuantizerOutput


class ProductCodebook(nn.Module):
    """Product quantisation (Jegou et al. 2011): each of several codebooks serves an equal part of the channels.

    With k codes in each of m books a position has k^m values at the price of searching m k. Tokens are (b, t, h, w, m),
    0..k-1, one of each book. `loss`, `perplexity` and `usage` are means over the books.
    """

    def __init__(self, books: list[EMACodebook]) -> None:
        """Put books of equal size side by side.

        Raises:
            InputError: fewer than one book, or books of different sizes.
        """
        super().__init__()
        if not books or len({book.num_codes for book in books}) > 1:
            raise InputError("a product codebook needs one or more books of equally many codes")
        self.num_codes = books[0].num_codes  # of each book
        self.books = nn.ModuleList(books)
        self.dims = [book.dim for book in books]

    @property
    def ready(self) -> bool:
        """Whether all books hold codes of data."""
        return all(book.ready for book in self._books)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Replace each part of each vector of `z` (b, dim, t, h, w) by its nearest code; in training mode learn."""
        return self._together([book(part) for book, part in zip(self._books, self._split(z), strict=True)])

    def snap(self, values: Tensor) -> QuantizerOutput:
        """The nearest codes of `values` (b, dim, t, h, w), this process alone and learning nothing in any mode."""
        return self._together([book.snap(part) for book, part in zip(self._books, self._split(values), strict=True)])

    def bound(self, z: Tensor) -> Tensor:
        """The value before quantisation."""
        return torch.cat([book.bound(part) for book, part in zip(self._books, self._split(z), strict=True)], dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Codes of `tokens` (b, t, h, w, m) as (b, dim, t, h, w)."""
        return torch.cat([book.embed(part) for book, part in zip(self._books, tokens.unbind(-1), strict=True)], dim=1)

    @property
    def _books(self) -> list[EMACodebook]:
        return list(self.books)  # type: ignore[arg-type]

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.split(self.dims, dim=1)

    def _together(self, outputs: list[QuantizerOutput]) -> QuantizerOutput:
        quantized, tokens, loss, perplexity, usage = zip(*outputs, strict=True)
        means = (torch.stack(values).mean() for values in (loss, perplexity, usage))
        return QuantizerOutput(torch.cat(quantized, dim=1), torch.stack(tokens, dim=-1), *means)

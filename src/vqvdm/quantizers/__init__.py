"""Quantisers of the tokenizer: codebooks learnt by moving averages, and finite scalar quantisation.

All are called the same way: `forward(z)` quantises, and in training learns; `bound(z)` is the continuous value just
before quantisation, `snap(bounded)` quantises that or what a generator made in its place, and `embed(tokens)` gives the
very values that `forward` returned with these tokens; `num_codes` is how many each token could be. All compute in
float32 whatever the autocast state, return values in the dtype of their input, and change nothing in evaluation mode.
"""

from vqvdm.quantizers.codebook import EMACodebook, Gradient
from vqvdm.quantizers.norm import RunningNorm
from vqvdm.quantizers.output import QuantizerOutput
from vqvdm.quantizers.product import ProductCodebook
from vqvdm.quantizers.scalar import FiniteScalarQuantizer

Quantizer = EMACodebook | ProductCodebook | FiniteScalarQuantizer

__all__ = [
    "EMACodebook",
    "FiniteScalarQuantizer",
    "Gradient",
    "ProductCodebook",
    "Quantizer",
    "QuantizerOutput",
    "RunningNorm",
]

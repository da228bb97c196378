"""Training of both stages: `tokenizer.py` and `denoiser.py`, and what they share."""

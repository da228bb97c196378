"""Scoring videos: where clips come from, their features, reports, and how they compare with published ones.

One code path over iterables of clips serves files of any system, the live pipeline and the tokenizer.
"""

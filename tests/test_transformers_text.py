"""Text encoders of transformers' folders give the hidden states that transformers itself gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sde_diffusion import (
    VPSDE,
    ScoreModel,
    UNet,
    context_of,
    encoder_from_transformers,
)

TEXTS = ["three seven", "one"]


def saved(folder: Path, vocabulary: int = 384) -> Any:
    """The encoder of a small T5 of random weights; the whole T5 is saved, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.T5Model(config).eval()
    model.save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return model.encoder


def test_hidden_states_are_those_of_each_text_alone_and_masked_ones_never_matter(
    tmp_path: Path,
) -> None:
    own = saved(tmp_path)
    state = torch.get_rng_state()
    tokens, mask = encoder_from_transformers(tmp_path)(TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert mask.sum(1).tolist() == [len(text) + 1 for text in TEXTS]  # bytes and an end
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([[byte + 3 for byte in text.encode()] + [1]])  # ByT5's numbers
        with torch.no_grad():
            alone = own(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(tokens[row, : len(alone)], alone, atol=1e-5, rtol=0)

    context = context_of(encoder_from_transformers(tmp_path), TEXTS)
    network = UNet(1, 8, (1, 2), 1, (1,), context=16)
    with torch.no_grad():
        for cross in network.crosses:
            for weight in cross.parameters():  # those of the output are 0 at first
                weight.add_(0.1)
        network.head.weight.add_(0.1)
    model = ScoreModel(network, VPSDE()).eval()
    x, t = torch.ones(2, 1, 4, 8), torch.tensor(0.5)
    both = model.given(context=context).eps(x, t)
    short = model.given(context=context[1:, : len("one") + 1]).eps(x[1:], t)
    assert not torch.equal(both[0], both[1])  # the text is read
    torch.testing.assert_close(both[1:], short, atol=1e-5, rtol=0)


def test_what_is_no_encoder_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="folder must be an existing folder, got t5-small; save"):
        encoder_from_transformers("t5-small")
    with pytest.raises(TypeError, match="folder must be the path of a folder, got 3"):
        encoder_from_transformers(3)  # type: ignore[arg-type]
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="must hold a text model of transformers in safetensors"):
        encoder_from_transformers(tmp_path)
    saved(tmp_path / "small", 100)
    with pytest.raises(ValueError, match=r"texts must have tokens below 100, .*, got 122; save"):
        encoder_from_transformers(tmp_path / "small")(["two"])  # w is 119 + 3
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"transformers must be installed, .*; type pip install tr"
    ):
        encoder_from_transformers(tmp_path)


def test_a_text_longer_than_the_models_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    transformers = pytest.importorskip("transformers")
    transformers.ByT5Tokenizer(model_max_length=6).save_pretrained(tmp_path)
    encoder = encoder_from_transformers(tmp_path)
    assert encoder(["seven"])[0].shape == (1, 6, 16)
    with pytest.raises(
        ValueError, match=r"texts must have at most 6 tokens each, .*, got 12; sho"
    ):
        encoder(["three seven"])


def test_a_folder_without_some_weights_is_refused_and_none_is_drawn(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"must hold all weights of a T5EncoderModel, got none fo"
    ):
        encoder_from_transformers(tmp_path)

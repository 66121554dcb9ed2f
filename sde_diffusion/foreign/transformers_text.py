"""Text encoders of transformers, from the folders that it saves.

A folder is data: its weights are safetensors, no code in it is run and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sde_diffusion._check import Reason, wrong_type, wrong_value
from sde_diffusion.foreign.installed import program

_WHAT: Final = "encoder_from_transformers"
_REMEDY: Final = "save model and tokenizer there with save_pretrained(folder)"
_LOCAL: Final = {"local_files_only": True, "trust_remote_code": False}


def encoder_from_transformers(
    folder: str | Path,
) -> Callable[[Sequence[str]], tuple[Tensor, Tensor]]:
    """Return texts ↦ (tokens, mask), the last hidden states of a text model of transformers.

    Of a model of two halves, such as T5, it is the encoder. `context_of` takes the function, and
    a network of ``context=D`` what that returns. Its weights stay as they are: no gradient flows.

    Shapes: tokens (B, L, D) with L that of the longest text; mask bool (B, L).
    Errors: ValueError for a folder that holds no such model, or without transformers; the
    function's own for texts longer than the model's, or of another vocabulary.
    """
    if not isinstance(folder, str | Path):
        rule = "be the path of a folder"
        raise wrong_type(_WHAT, "folder", rule, folder, "pass for example 'encoder'")
    if not Path(folder).is_dir():  # what is no folder would be a name in the network's store
        raise wrong_value(_WHAT, "folder", "be an existing folder", str(folder), _REMEDY)
    transformers = program("transformers", "transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **_LOCAL)
        model, told = transformers.AutoModelForTextEncoding.from_pretrained(
            str(folder), use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    except Exception as error:  # of many kinds
        rule = f"hold a text model of transformers in safetensors ({folder})"
        raise wrong_value(_WHAT, "folder", rule, Reason(error), _REMEDY) from error
    if told["missing_keys"]:  # which transformers would draw at random
        rule = f"hold all weights of a {type(model).__name__}"
        got = Reason("none for " + ", ".join(sorted(told["missing_keys"])))
        raise wrong_value(_WHAT, "folder", rule, got, _REMEDY)
    model.eval().requires_grad_(False)

    def encoder(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = found["input_ids"], found["attention_mask"]
        _check_tokens(ids, model.config, tokenizer.model_max_length)
        with torch.no_grad():
            tokens: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return tokens, mask.bool()

    return encoder


def _check_tokens(ids: Tensor, config: Any, most: int) -> None:  # noqa: ANN401
    """Refuse texts of more tokens than the model has places for, or of others than it knows."""
    places = min(most, config.to_dict().get("max_position_embeddings", most))
    if ids.shape[1] > places:
        rule = f"have at most {places} tokens each, as the model has places"
        raise wrong_value(_WHAT, "texts", rule, ids.shape[1], "shorten the texts")
    if ids.max() >= config.vocab_size:
        rule = f"have tokens below {config.vocab_size}, those of the model's vocabulary"
        raise wrong_value(_WHAT, "texts", rule, int(ids.max()), "save the model's own tokenizer")

"""Whether a text model, driven layer by layer, gives what the stock model itself gives, and its
attention can be read."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_contracts.errors import one_line
from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.attention.kernels import SDPA
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.decoder import Decoder, DecoderInput
from sdrpn_core.models.errors import ModelError

NUM_COLUMNS = 8
"""A prompt's: enough for all that does not depend on its length."""
TOLERANCE = 0.1
"""Of the largest output. Rounding makes far less of a difference, what is left out far more."""


@contextmanager
def unknown_layers_explained(model_id: str) -> Iterator[None]:
    """Turn what Python, torch or transformers say of a text model of another kind into one line.

    Raises:
        ModelError: instead of theirs.
    """
    try:
        yield
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"{model_id}: its text model cannot be run layer by layer ({one_line(error)}); use a "
            "model with another text model"
        ) from error


@torch.inference_mode()
def check_decoder(decoder: Decoder, model_id: str) -> None:
    """Refuse a text model that does more than run its layers: its labels would be wrong.

    Raises:
        ModelError: if the stock model's output is another, or a layer's attention is not seen.
    """
    recorder = _recorder(decoder)
    ours, stock = _both_ways(decoder, recorder)
    if unseen := sorted(set(decoder.attention_layers) - recorder.sums.keys()):
        raise ModelError(
            f"{model_id}: the attention of its text model ({type(decoder.text_model).__name__}) "
            f"cannot be read in layer {unseen[0]}; use a model with another text model"
        )
    if not stock.isfinite().all():
        return  # its own affair: half precision, say
    if (ours - stock).abs().max() > TOLERANCE * stock.abs().max():
        raise ModelError(
            f"{model_id}: its text model ({type(decoder.text_model).__name__}) does more than run "
            "its layers, so that labels and answers would be wrong; use a model with another text "
            "model"
        )


def _recorder(decoder: Decoder) -> AttentionRecorder:
    """One that reads what the last column pays to all, in every layer."""
    columns = torch.arange(NUM_COLUMNS, device=decoder.device)[None]
    heads = dict.fromkeys(decoder.attention_layers)
    return AttentionRecorder.of_last_row(heads, columns, NUM_COLUMNS)


def _both_ways(decoder: Decoder, recorder: AttentionRecorder) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, L, d) outputs of the final norm, by layers and by the stock forward pass."""
    text_positions = torch.arange(NUM_COLUMNS, device=decoder.device)[None]
    embeds = decoder.embedding(text_positions % decoder.embedding.num_embeddings)
    positions = decoder.text_positions(text_positions)
    masks = ColumnMasks(torch.zeros_like(text_positions))
    inputs = DecoderInput(embeds, masks, positions)
    layers = range(len(decoder.layers))
    # With the kernel that the stock model runs.
    ours = decoder.norm(decoder.run(inputs, layers, recorder=recorder, kernel=SDPA))
    stock = decoder.text_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
    return ours.float(), stock.last_hidden_state.to(ours.device).float()

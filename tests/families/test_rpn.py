"""The RPN of a family: it starts as the frozen model's own attention, and comes back from disk."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data_contracts.label_settings import RegionSettings
from data_contracts.training import TrainingConfig
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.features import FrozenPrefix, collate
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.training import train_rpn
from sdrpn_core.zoom.first_stage import first_stage
from tests.families.conftest import QUESTIONS, Loaded
from tests.rpn_scenes import randomly_labelled


def test_untrained_scores_are_the_frozen_models_query_times_key(
    loaded: Loaded, images: list[Image.Image]
) -> None:
    """Query and key as the stock kernel gets them: rotary axes, head norms, grouped keys."""
    assert (loaded.shape.final_norm, loaded.shape.rotary_scores) == (False, True)
    network = RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)
    scored_layer = loaded.shape.branch_layer + loaded.shape.depth - 1
    features = loaded.adapter.encode_images(images)
    maps = first_stage(loaded.adapter, network, features, QUESTIONS).roi_logits
    for question, image, ours in zip(QUESTIONS, images, maps, strict=True):
        inputs = loaded.inputs(question, [image])
        query, key, scaling = stock_query_and_key(loaded.stock, inputs, scored_layer)
        key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        products = (query[:, -1:] * key[:, loaded.is_cell(inputs)]).sum(dim=-1) * scaling
        expected = products.mean(dim=0)
        torch.testing.assert_close(ours.flatten(), expected, atol=2e-5, rtol=1e-4)
        assert expected.std() > 1e-3


def test_training_sees_what_answering_sees(loaded: Loaded, images: list[Image.Image]) -> None:
    """The frozen prefix and padded batches of questions of all lengths, layer by layer the masks of
    one prompt alone."""
    network = RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)
    examples = randomly_labelled(loaded.adapter, images, QUESTIONS)
    prefix = FrozenPrefix(
        loaded.adapter,
        lambda example: images[int(example.image_uri)],
        branch_layer=loaded.shape.branch_layer,
        cache_bytes=2**20,
    )
    ((part, features),) = prefix.of_parts([examples])
    with torch.inference_mode():
        logits = collate(features, part).logits(network)
    encoded = loaded.adapter.encode_images(images, for_labels=True)
    maps = first_stage(loaded.adapter, network, encoded, QUESTIONS).roi_logits
    assert [example.question for example in part] == QUESTIONS
    for own, answering in zip(logits, maps, strict=True):
        loaded.assert_close(own[: answering.numel()], answering.flatten())


def test_scores_depend_on_rotary_embedding_and_head_norms(
    loaded: Loaded, images: list[Image.Image]
) -> None:
    """The comparison above would not notice parts that do nothing in a tiny model."""
    features = loaded.adapter.encode_images(images[:1])

    def roi_map(network: RegionProposalNetwork) -> Tensor:
        (found,) = first_stage(loaded.adapter, network, features, QUESTIONS[:1]).roi_logits
        return found

    whole = RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)
    still = loaded.shape.model_copy(update={"rotary_scores": False})
    without_rotary = RegionProposalNetwork.from_adapter(loaded.adapter, still)
    assert (roi_map(without_rotary) - roi_map(whole)).abs().max() > 1e-3
    for name in ("q_norm", "k_norm"):
        if getattr(whole.scoring, name) is None:
            continue
        without_norm = RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)
        setattr(without_norm.scoring, name, None)
        assert (roi_map(without_norm) - roi_map(whole)).abs().max() > 1e-3


def stock_query_and_key(
    stock: Any, inputs: dict[str, Any], layer: int
) -> tuple[Tensor, Tensor, float]:
    """(H, L, D), (K, L, D) and their scaling that a stock layer hands to its attention kernel."""
    seen: list[tuple[Tensor, Tensor, float]] = []

    def spy(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        if module.layer_idx == layer:
            seen.append((query[0], key[0], kwargs["scaling"]))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("query_key_spy", spy)
    AttentionMaskInterface.register("query_key_spy", sdpa_mask)
    try:
        stock.set_attn_implementation({"text_config": "query_key_spy"})
        with torch.inference_mode():
            stock(**inputs)
    finally:
        stock.set_attn_implementation({"text_config": "eager"})
    return seen[0]


def test_trained_rpn_survives_saving_and_loading(
    loaded: Loaded, images: list[Image.Image], tmp_path: Path
) -> None:
    examples = randomly_labelled(loaded.adapter, images, QUESTIONS)
    checkpoint = train_rpn(
        loaded.adapter,
        examples,
        lambda example: images[int(example.image_uri)],
        TrainingConfig(batch_size=3, learning_rate=1e-2),
        shape=loaded.shape,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=3,
        cache_bytes=2**20,
    )
    for name, data in checkpoint.to_files().items():
        (tmp_path / name).write_bytes(data)
    trained = checkpoint.build(loaded.adapter)
    restored = RpnCheckpoint.load_directory(tmp_path).build(loaded.adapter)
    untrained = RegionProposalNetwork.from_adapter(loaded.adapter, loaded.shape)
    features = loaded.adapter.encode_images(images)
    before, one, other = (
        first_stage(loaded.adapter, network, features, QUESTIONS).roi_logits
        for network in (untrained, trained, restored)
    )
    for start, saved, read in zip(before, one, other, strict=True):
        assert torch.equal(saved, read)
        assert not torch.allclose(start, saved, atol=1e-4)

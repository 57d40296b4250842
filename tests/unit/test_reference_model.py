"""The packaged reference model: loads, is what its digest says, reads and selects."""

from functools import cache

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data_contracts.json_lines import json_lines
from sdrpn_core.reference.evaluation import accuracy, load_reference
from sdrpn_core.reference.export import weights_digest
from sdrpn_core.reference.grounding_probe import probe
from sdrpn_core.reference.model import (
    NUM_IMAGE_TOKENS,
    TOKEN_IDS,
    prompt_for,
    reference_model_path,
)
from sdrpn_core.reference.training_decoder import PREFIX, question_ids
from sdrpn_core.reference.vocabulary import QUESTION_TEMPLATES, question_about

NUM_SCENES = 48


@cache
def reference() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    return load_reference()


def test_weights_are_those_of_the_digest_and_small() -> None:
    folder = reference_model_path()
    assert (folder / "model.sha256").read_text().split()[0] == weights_digest(folder)
    assert weights_digest(folder) in (folder / "TRAINING.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6


def test_training_log_covers_every_stage() -> None:
    rows = json_lines((reference_model_path() / "training_log.jsonl").read_bytes())
    assert {row["stage"] for row in rows} >= {"windows", "tower", "decoder", "joint"}


def test_model_is_a_stock_llava_with_a_twelve_by_twelve_grid() -> None:
    model, _ = reference()
    assert type(model) is LlavaForConditionalGeneration
    assert model.config.text_config.num_hidden_layers >= 8
    features = model.get_image_features(pixel_values=torch.zeros(1, 3, 96, 96))
    tokens = features.pooler_output if hasattr(features, "pooler_output") else features
    assert tokens[0].shape == (NUM_IMAGE_TOKENS, model.config.text_config.hidden_size)


def test_embeddings_and_output_share_their_weights() -> None:
    model, _ = reference()
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize("num_images", [1, 2])
def test_processor_expands_images_and_training_saw_the_same_tokens(num_images: int) -> None:
    _, processor = reference()
    for index in range(len(QUESTION_TEMPLATES)):
        question = question_about("red", "circle", index)
        inputs = processor(
            images=[Image.new("RGB", (96, 96))] * num_images,
            text=prompt_for(question, num_images),
            return_tensors="pt",
        )
        image_tokens = [TOKEN_IDS["<image>"]] * (NUM_IMAGE_TOKENS * num_images)
        expected = [*PREFIX, *image_tokens, *question_ids("red", "circle", index)]
        assert inputs["input_ids"][0].tolist() == expected
        assert inputs["pixel_values"].shape == (num_images, 3, 96, 96)


def test_processor_neither_crops_nor_moves_a_canvas() -> None:
    _, processor = reference()
    canvas = Image.effect_noise((96, 96), 80).convert("RGB")
    pixels = processor.image_processor(canvas, return_tensors="pt")["pixel_values"][0]
    mean = torch.tensor(processor.image_processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)
    restored = ((pixels * std + mean) * 255).round().byte().permute(1, 2, 0)
    assert restored.numpy().tobytes() == canvas.tobytes()


def test_tokenizer_knows_every_word_of_its_prompts() -> None:
    _, processor = reference()
    ids = processor.tokenizer(prompt_for("What is the code on the pink line?"))["input_ids"]
    assert TOKEN_IDS["<unk>"] not in ids
    answer = processor.tokenizer("Red circle C 3", add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(answer) == "red circle c 3"


@pytest.mark.parametrize(
    ("mode", "least", "most"),
    [
        ("base", 0.0, 0.1),
        ("oracle", 0.9, 1.0),
        ("readable", 0.81, 1.0),
        ("wrong", 0.0, 0.1),
        ("random", 0.0, 0.2),
    ],
)
def test_accuracy_on_held_out_scenes(mode: str, least: float, most: float) -> None:
    """Bounds are the figures of TRAINING.md less three standard errors of 48 scenes."""
    model, processor = reference()
    assert least <= accuracy(model, processor, mode, NUM_SCENES)["all"] <= most


def test_a_middle_layer_looks_at_the_object_asked_about_in_small_print() -> None:
    model, processor = load_reference()
    model.set_attn_implementation("eager")
    heads = probe(model, processor, num_scenes=16)["heads"]
    middle = [head for head in heads if 2 <= head["layer"] <= 5]
    assert max(head["precision"] for head in middle) > 0.7

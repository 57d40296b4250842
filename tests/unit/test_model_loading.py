"""Models from directories: what users read when something is wrong, devices, and silence."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from data_contracts.enums import QuestionKind
from data_contracts.profiles import ExtractionInstruction, ModelProfile, RpnShape
from sdrpn_core.extraction.generated_answers import Request, capture_attention
from sdrpn_core.generation.greedy import answer_plain
from sdrpn_core.geometry import GridBox
from sdrpn_core.models import devices
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import DTYPES, dtype_name, resolve_dtype
from sdrpn_core.models.dimensions import model_dimensions
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.hub import quiet_transformers
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.stock_model import load_stock_model
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.tiny_models import tiny_llava, with_text_model
from tests.tiny_qwen import tiny_qwen3_vl
from tests.zoom_checks import check_batched_equals_alone, random_images, random_pipeline

QUERY = "layers.3.self_attn.q_proj.weight"
STORED = f"language_model.model.{QUERY}"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("model"))


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def drop_a_weight(model: Path) -> None:
    edit_weights(model, lambda weights: {k: v for k, v in weights.items() if k != STORED})


def cut_a_weight(model: Path) -> None:
    edit_weights(model, lambda weights: weights | {STORED: weights[STORED][:4].clone()})


def edit_weights(
    model: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    assert STORED in weights
    save_file(edit(weights), file, metadata={"format": "pt"})


def spoil_config(model: Path) -> None:
    (model / "config.json").write_text("{nope")


def nest_config(model: Path) -> None:
    (model / "config.json").write_text("[" * 100_000 + "]" * 100_000)


def spoil_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{nope")


def remove_processor(model: Path) -> None:
    for file in model.glob("*processor_config.json"):
        file.unlink()


def change_family(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_vl"}))


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (truncate, ("has corrupted weights (model.safetensors: ", "copy the directory anew")),
        (remove_weights, ("no file named model.safetensors",)),
        (drop_a_weight, ("1 of its weights are missing", QUERY, "incomplete")),
        (cut_a_weight, ("1 of its weights are mismatched", QUERY)),
        (spoil_config, ("configuration file that is not JSON", "copy the directory anew")),
        (nest_config, ("has settings that transformers cannot use", "mend its JSON files")),
        (spoil_tokenizer, ("configuration file that is not JSON",)),
        (remove_processor, ("image processor",)),
        (change_family, ("is for models of family 'llava'", "'deepseek_vl'", "its own profile")),
    ],
)
def test_spoilt_directories(
    profile: ModelProfile, tmp_path: Path, spoil: Callable[[Path], None], texts: tuple[str, ...]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(profile.model_id, copy)
    spoil(copy)
    with pytest.raises(ModelError) as caught:
        load_adapter(profile.model_copy(update={"model_id": str(copy)}), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message


def test_a_model_of_another_family_is_not_planned_for(
    profile: ModelProfile, tmp_path: Path
) -> None:
    """A plan took its sizes as if it could be run; the run refused it, once data was fetched."""
    shutil.copy(Path(profile.model_id) / "config.json", tmp_path)
    change_family(tmp_path)
    with pytest.raises(ModelError, match=r"is for models of family 'llava'.* its own profile"):
        model_dimensions(profile.model_copy(update={"model_id": str(tmp_path)}))


def test_a_model_of_another_size_is_not_planned_for(profile: ModelProfile) -> None:
    larger = profile.model_copy(update={"num_layers": profile.num_layers + 2})
    with pytest.raises(ModelError, match=r"is for 8 layers x 4 heads, the model has 6 x 4: choose"):
        model_dimensions(larger)


def test_a_prompt_that_ends_with_its_image_is_refused_when_questions_are_extracted(
    profile: ModelProfile,
) -> None:
    """Nothing was left to ask the RPN with: a traceback, after training."""
    ending = profile.model_copy(update={"prompt": "USER: {question} {images}"})
    adapter = load_adapter(ending, device="cpu")
    request = Request(Image.new("RGB", (40, 40)), "what is it ?", QuestionKind.NATURAL)
    with pytest.raises(ModelError, match=r"'tiny-llava' ends with the image: let text follow"):
        capture_attention(adapter, [request], {}, max_new_tokens=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", "<image>{images}{question}"),
        ("next_turn", "<image>{question}"),
        (
            "extraction_instructions.natural",
            {QuestionKind.NATURAL: ExtractionInstruction(replaces="x", instruction="<image> ?")},
        ),
    ],
)
def test_a_profile_whose_words_hold_the_image_is_refused_when_the_model_is_loaded(
    profile: ModelProfile, key: str, value: object
) -> None:
    """Each question was said to hold it, after half of the work."""
    worded = profile.model_copy(update={key.partition(".")[0]: value})
    with pytest.raises(ModelError, match=rf"'tiny-llava': {key} holds .*: take '<image>' out"):
        load_adapter(worded, device="cpu")


def test_an_rpn_that_cannot_branch_off_is_not_planned_for(tmp_path: Path) -> None:
    """A run with a plan ended when the model was loaded, once all data was fetched."""
    deep = tiny_qwen3_vl(tmp_path)
    early = deep.model_copy(update={"rpn": RpnShape(branch_layer=1, depth=3)})
    with pytest.raises(ModelError, match=r"branches off at layer 1.*branch_layer to at least 2"):
        model_dimensions(early)


@pytest.mark.parametrize("model_id", ["/no/such/directory", "./models/none", "a/b/c"])
def test_a_directory_that_is_not_there(profile: ModelProfile, model_id: str) -> None:
    """A plan ended in a traceback."""
    absent = profile.model_copy(update={"model_id": model_id})
    with pytest.raises(ModelError, match="neither a directory nor a hub id"):
        load_adapter(absent, device="cpu")
    with pytest.raises(ModelError, match="neither a directory nor a hub id"):
        model_dimensions(absent)


@pytest.mark.parametrize("device", ["cuda:97", "abacus", "meta"])
def test_a_device_that_is_not_there(profile: ModelProfile, device: str) -> None:
    """``meta`` was taken, and the first answer ended in an error of torch."""
    with pytest.raises(ModelError, match=f"device '{device}' cannot be used .*: choose auto"):
        load_adapter(profile, device=device)


@pytest.mark.parametrize("dtype", ["bf16", "nn", "float64"])
def test_a_dtype_that_models_do_not_run_in(profile: ModelProfile, dtype: str) -> None:
    """Names of other things in torch among them."""
    with pytest.raises(
        ModelError, match=f"^dtype '{dtype}' is not known: choose float32, bfloat16 or float16$"
    ):
        load_adapter(profile, device="cpu", dtype=dtype)


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_has_one_name(name: str) -> None:
    assert dtype_name(resolve_dtype(name)) == name


def test_a_stock_model_keeps_the_precision_that_it_is_stored_in(
    profile: ModelProfile, tmp_path: Path
) -> None:
    load_stock_model(profile.model_id, None).model.bfloat16().save_pretrained(tmp_path)
    for file in Path(profile.model_id).iterdir():
        if not (tmp_path / file.name).exists():
            shutil.copy(file, tmp_path)
    stored, wanted = (
        load_stock_model(str(tmp_path), None, **named).model
        for named in ({}, {"dtype": torch.float32})
    )
    assert (stored.dtype, wanted.dtype) == (torch.bfloat16, torch.float32)


def test_a_stock_model_with_holes_is_refused(profile: ModelProfile, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(profile.model_id, copy)
    drop_a_weight(copy)
    with pytest.raises(ModelError, match="1 of its weights are missing"):
        load_stock_model(str(copy), None)


def test_a_device_map_needs_accelerate(
    profile: ModelProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "is_accelerate_available", lambda: False)
    with pytest.raises(ModelError, match=r"accelerate: run `pip install 'sdrpn\[multi-gpu\]'`"):
        load_adapter(profile, device_map="auto")


@pytest.mark.parametrize("bars", [True, False])
def test_loading_is_silent_and_leaves_settings_as_they_were(
    profile: ModelProfile, capfd: pytest.CaptureFixture[str], bars: bool
) -> None:
    switch = {
        True: transformers_logging.enable_progress_bar,
        False: transformers_logging.disable_progress_bar,
    }
    before = transformers_logging.get_verbosity()
    switch[bars]()
    transformers_logging.set_verbosity(logging.INFO)
    try:
        load_adapter(profile, device="cpu")
        assert transformers_logging.is_progress_bar_enabled() is bars
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        switch[True]()
        transformers_logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


def test_models_loaded_by_two_threads_leave_settings_as_they_were() -> None:
    """The second took the first one's silence for the host's, and left it behind."""
    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(quiet_transformers())
        second.enter_context(quiet_transformers())
        first.close()
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
    after = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    assert after == before


def test_models_loaded_at_once_are_whole_and_leave_the_precision_of_the_process(
    profile: ModelProfile,
) -> None:
    """Some were said to be incomplete, and tensors were made in bfloat16 from then on."""
    with ThreadPoolExecutor(8) as pool:
        loaded = pool.map(
            lambda _: load_adapter(profile, device="cpu", dtype="bfloat16"), range(24)
        )
        assert {adapter.dtype for adapter in loaded} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_a_local_model_keeps_its_profile(profile: ModelProfile) -> None:
    assert load_adapter(profile, device="cpu").profile == profile


def spread(*, disk: str) -> dict[str, int | str]:
    """Everything on the CPU but one module, which is read from disk whenever it runs."""
    text = "model.language_model"
    names = [f"{text}.layers.{index}" for index in range(6)]
    names += [f"{text}.embed_tokens", f"{text}.norm", f"{text}.rotary_emb"]
    names += ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    assert disk in names
    return dict.fromkeys(names, "cpu") | {disk: "disk"}


def test_a_spread_model_answers_and_attends_as_a_whole_one(profile: ModelProfile) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    asked = [Request(image, "what is it ?", QuestionKind.NATURAL)]
    whole = load_adapter(profile, device="cpu")
    placement = spread(disk="model.language_model.layers.5")
    parted = load_adapter(profile, device_map=placement)
    assert parted.decoder.layers[5].self_attn.q_proj.weight.is_meta
    every_layer = dict.fromkeys(range(6))
    wanted, found = (
        capture_attention(adapter, asked, every_layer, max_new_tokens=4)
        for adapter in (whole, parted)
    )
    assert found.responses == wanted.responses
    for layer in every_layer:
        torch.testing.assert_close(found.prompt_attention[layer], wanted.prompt_attention[layer])
    assert RegionProposalNetwork.from_adapter(parted, RpnShape(branch_layer=2, depth=3))
    with pytest.raises(ModelError, match=r"device_map keeps some of layers 4 to 5 outside"):
        RegionProposalNetwork.from_adapter(parted, RpnShape(branch_layer=4, depth=2))


def test_prompts_start_at_an_embedding_in_memory(profile: ModelProfile) -> None:
    placement = spread(disk="model.language_model.embed_tokens")
    with pytest.raises(ModelError, match="device_map puts the token embedding outside"):
        load_adapter(profile, device_map=placement)


def test_a_text_model_that_does_more_than_run_its_layers_is_refused(
    profile: ModelProfile, tmp_path: Path
):
    """NanoChat norms embeddings first: its labels and answers would be silently wrong."""
    other = with_text_model(profile, tmp_path, "nanochat")
    told = r"text model \(NanoChatModel\) does more than run its layers"
    with pytest.raises(ModelError, match=told):
        load_adapter(other, device="cpu")


def test_a_text_model_that_sees_images_whole_is_refused_where_they_are_not_shown_so(
    profile: ModelProfile, tmp_path: Path
):
    """Gemma 3's text model beside LLaVA's tower is causal; it got masks as in Gemma 3."""
    other = with_text_model(profile, tmp_path, "gemma3_text", head_dim=12)
    with pytest.raises(ModelError, match=r"a llava model does not show them so"):
        load_adapter(other, device="cpu")


def test_a_prompt_that_is_longer_than_the_model_was_made_for_is_told_once(
    profile: ModelProfile, caplog: pytest.LogCaptureFixture
):
    """It was answered without a word."""
    adapter = load_adapter(profile, device="cpu")
    most = adapter.model.config.get_text_config().max_position_embeddings
    (image,) = adapter.encode_images([Image.new("RGB", (40, 40))])
    room = most - len(adapter.embed_prompt("", [image]).embeds)
    for question in ("it " * room, "it " * (room + 1), "is " * (room + 1)):
        adapter.embed_prompt(question.strip(), [image])
    (told,) = [record.getMessage() for record in caplog.records if "positions" in record.message]
    assert told.startswith("the prompt of 'it it it ")
    assert f"takes {most + 1} positions, and {profile.model_id} was made for {most}: " in told


@pytest.mark.parametrize("kind", ["gemma2", "phi"])
def test_a_text_model_that_cannot_be_driven_is_refused(
    profile: ModelProfile, tmp_path: Path, kind: str
):
    """It was an error of torch or Python, with a traceback. On transformers 5.18 Gemma 2 was not
    refused: its cap on attention logits was left out without a word."""
    other = with_text_model(profile, tmp_path, kind)
    with pytest.raises(ModelError, match=r"its text model cannot be run layer by layer \("):
        load_adapter(other, device="cpu")


def test_generation_settings_that_answers_leave_out_are_told(
    profile: ModelProfile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Greedy answers differed from the stock model's, and nothing said so."""
    caplog.set_level(logging.WARNING)
    load_adapter(profile, device="cpu")
    assert "leave out" not in caplog.text
    folder = tmp_path / "model"
    shutil.copytree(profile.model_id, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"no_repeat_ngram_size": 3, "num_beams": 4, "suppress_tokens": [7]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    load_adapter(profile.model_copy(update={"model_id": str(folder)}), device="cpu")
    told = f"{folder}: answers are greedy and leave out its generation settings "
    assert told + "no_repeat_ngram_size=3, num_beams=4" in caplog.messages[-1]
    assert "suppress_tokens" not in caplog.text


def test_cells_show_what_geometry_says_where_patches_do_not_fill_the_input(
    profile: ModelProfile, tmp_path: Path
) -> None:
    """The tower drops 7 of 47 pixels: its cells were up to one off, and the last pixels unseen."""
    folder = tmp_path / "model"
    shutil.copytree(profile.model_id, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["image_size"] = 47
    (folder / "config.json").write_text(json.dumps(settings))
    adapter = load_adapter(profile.model_copy(update={"model_id": str(folder)}), device="cpu")
    patches: list[torch.Tensor] = []
    tower = next(m for n, m in adapter.model.named_modules() if n.endswith("patch_embedding"))
    hook = tower.register_forward_hook(lambda *args: patches.append(args[2][0]))
    (plain,) = adapter.encode_images([Image.new("RGB", (100, 100))])
    for cell in range(plain.grid.num_cells):
        row, column = divmod(cell, plain.grid.width)
        box = plain.letterbox.cells_to_image(GridBox(column, row, column + 1, row + 1), plain.grid)
        picture = Image.new("RGB", (100, 100))
        x0, y0, x1, y1 = (round(side) for side in box)
        picture.paste("white", (x0 + 3, y0 + 3, x1 - 3, y1 - 3))
        adapter.encode_images([picture])
        changed = (patches[-1] != patches[0]).any(dim=0).flatten().nonzero().flatten()
        assert changed.tolist() == [cell]
    hook.remove()
    assert adapter.pixels_seen(plain) == (40, 40)


def test_a_token_of_no_cell_is_refused(profile: ModelProfile, tmp_path: Path) -> None:
    """It ended in torch's remark about sizes."""
    folder = tmp_path / "model"
    shutil.copytree(profile.model_id, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_feature_select_strategy"] = "full"
    (folder / "config.json").write_text(json.dumps(settings))
    adapter = load_adapter(profile.model_copy(update={"model_id": str(folder)}), device="cpu")
    with pytest.raises(ModelError, match="gives 26 tokens for a grid of 5 by 5 cells"):
        adapter.encode_images(random_images([(40, 40)]))


@pytest.fixture(scope="module")
def windowed(profile: ModelProfile, tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    """Its layers look back at fewer tokens than an image has."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("windowed")
    other = with_text_model(profile, folder, "mistral", sliding_window=20, initializer_range=0.25)
    return load_adapter(other, device="cpu")


def test_layers_with_a_window_answer_as_the_stock_model_does(windowed: ModelAdapter):
    """Windows were left out, and answers were others; later such prompts were refused."""
    images = random_images([(60, 40), (30, 50)])
    asked = ["what is it ?", "what is it ? " * 10]
    features = windowed.encode_images(images)
    found = answer_plain(windowed, asked, [[image] for image in features], max_new_tokens=6)
    stock = LlavaForConditionalGeneration.from_pretrained(windowed.profile.model_id).eval()
    for question, image, answer in zip(asked, features, found, strict=True):
        embeds = windowed.embed_prompt(question, [image]).embeds[None]
        (tokens,) = stock.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
            suppress_tokens=[windowed.image_token_id],
        )
        wanted = [token for token in tokens.tolist() if token not in windowed.eos_ids]
        assert list(answer.tokens) == wanted
    assert any(answer.tokens for answer in found)


def test_a_zoom_with_windows_in_a_batch_equals_one_by_one(windowed: ModelAdapter):
    """Columns of joined and cut caches lie anywhere; windows count the tokens between them."""
    images, asked = random_images([(60, 40), (30, 50), (64, 64)]), ["what ?", "it", "red blue ?"]
    for withdraw_image in (False, True):
        pipeline = random_pipeline(windowed, withdraw_image=withdraw_image)
        num_crops = check_batched_equals_alone(pipeline, images, asked, max_new_tokens=4)
        assert num_crops.total() > num_crops[0]

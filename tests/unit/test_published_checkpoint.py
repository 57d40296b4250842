"""The RPN of published full models: found, checked, and the same network as was put in."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile
from data_contracts.settings_files import ConfigError
from sdrpn_core.interop.published_checkpoint import Overrides, read_published_rpn
from sdrpn_core.interop.tensor_folder import ForeignCheckpointError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.checkpoint_files import CARD, CheckpointError
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.parameters import load_parameters, network_state
from sdrpn_core.zoom.first_stage import first_stage
from tasks.foreign_checkpoints import import_checkpoint
from tests.mixes import write_image
from tests.published import (
    llava_tensors,
    published_config,
    published_llava,
    qwen_tensors,
    random_rpn,
    twig_tensors,
    write_checkpoint,
)
from tests.tiny_models import tiny_llava
from tests.tiny_qwen import tiny_qwen2_5_vl

Published = tuple[Path, ModelProfile, RegionProposalNetwork]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published_llava(tmp_path_factory.mktemp("published"))


def read(folder: Path, known: ModelProfile, **overrides: Any) -> RpnCheckpoint:
    return read_published_rpn(folder, [known], Overrides(**overrides))


def copy_of(folder: Path, to: Path, drop: tuple[str, ...] = (), **config: Any) -> Path:
    """The same checkpoint with another configuration."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    settings = json.loads((to / "config.json").read_text()) | config
    kept = {key: value for key, value in settings.items() if key not in drop}
    (to / "config.json").write_text(json.dumps(kept))
    return to


def assert_same(state: dict[str, torch.Tensor], network: RegionProposalNetwork) -> None:
    wanted = network_state(network)
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(state[name], value), name


def test_the_rpn_comes_out_as_it_was_put_in(published: Published) -> None:
    folder, profile, network = published
    rpn = read(folder, profile)
    assert rpn.config.shape == profile.rpn
    assert rpn.config.regions == RegionSettings.preset("reference-boxes")
    assert rpn.config.imported is not None
    assert rpn.config.imported.checkpoint == "tiny-roi-K2T3-filled"
    assert_same(rpn.state, network)


def test_zoom_with_the_imported_rpn_scores_as_the_original(
    published: Published, tmp_path: Path
) -> None:
    folder, profile, network = published
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    found = import_checkpoint(
        folder, tmp_path / "rpn", profile=f"{tmp_path}/profile.yaml", threshold=0.4
    )
    assert (found.branch_layer, found.depth) == (2, 3)
    assert "trained\nby the authors" in (tmp_path / "rpn" / CARD).read_text()
    pipeline = ZoomPipeline.from_pretrained(profile.model_id, tmp_path / "rpn", device="cpu")
    assert pipeline.threshold == 0.4
    write_image(tmp_path / "wide.png", 1, (90, 40))
    write_image(tmp_path / "tall.png", 2, (30, 70))
    images = [Image.open(tmp_path / name) for name in ("wide.png", "tall.png")]
    questions = ["what is the small red word ?", "what is it ?"]
    features = pipeline.adapter.encode_images(images)
    theirs = first_stage(pipeline.adapter, pipeline.rpn, features, questions).roi_logits
    original = load_adapter(profile, device="cpu")
    ours = first_stage(original, network, original.encode_images(images), questions).roi_logits
    untrained = RegionProposalNetwork.from_adapter(original, profile.rpn)
    others = first_stage(original, untrained, features, questions).roi_logits
    for imported, expected, other in zip(theirs, ours, others, strict=True):
        assert torch.equal(imported, expected)
        assert not torch.allclose(imported, other, atol=1e-2)
    answers = pipeline.answer(images, questions, max_new_tokens=4)
    assert [answer.roi_map.shape for answer in answers] == [(5, 5), (5, 5)]


def test_only_the_files_with_the_rpn_are_opened(published: Published, tmp_path: Path) -> None:
    folder, profile, network = published
    damaged = copy_of(folder, tmp_path / "damaged")
    (damaged / "model-00001-of-00003.safetensors").write_bytes(b"cut")
    (damaged / "model-00002-of-00003.safetensors").unlink()
    assert_same(read(damaged, profile).state, network)


def test_b_is_found_where_the_configuration_does_not_tell(
    published: Published, tmp_path: Path
) -> None:
    folder, profile, _ = published
    bare = copy_of(folder, tmp_path / "bare", drop=("twig_K", "twig_T"))
    config = read(bare, profile).config
    assert config.shape == profile.rpn
    assert config.imported is not None
    assert config.imported.branch_layer_source == "equal weights of the last layer"


def test_b_of_a_model_cut_off_behind_the_branch(tmp_path: Path) -> None:
    """The 13B checkpoint is published as training saved it: layers 0 to B+R-1, no norm, no head."""
    profile = tiny_llava(tmp_path / "model")
    model = load_adapter(profile, device="cpu").model
    shape = profile.rpn.model_copy(update={"branch_layer": 1})
    network = random_rpn(model.get_decoder(), shape)
    twig = twig_tensors(model.get_decoder(), network, shape)
    # Even a value projection that was trained leaves the number of layers.
    twig["model.twig_layers.2.self_attn.v_proj.weight"] += 1
    kept = {
        name: tensor
        for name, tensor in llava_tensors(model).items()
        if not name.startswith(("model.layers.4", "model.layers.5", "model.norm", "lm_head"))
    }
    config = published_config(model, "llava_llama", shape)
    del config["twig_K"]
    folder = write_checkpoint(tmp_path / "cut", kept | twig, config)
    rpn = read(folder, profile)
    assert rpn.config.shape == shape
    assert_same(rpn.state, network)


def test_b_must_be_given_where_nothing_tells(published: Published, tmp_path: Path) -> None:
    _, profile, network = published
    model = load_adapter(profile, device="cpu").model
    twig = twig_tensors(model.get_decoder(), network, profile.rpn)
    config = published_config(model, "llava_llama", profile.rpn)
    del config["twig_K"]
    folder = write_checkpoint(tmp_path / "rpn-only", twig, config)
    with pytest.raises(ForeignCheckpointError, match="give --branch-layer"):
        read(folder, profile)
    assert read(folder, profile, branch_layer=2).config.shape == profile.rpn
    with pytest.raises(
        ForeignCheckpointError, match="layers 4 to 6 does not fit into a model of 6"
    ):
        read(folder, profile, branch_layer=4)


def test_labels_of_the_data_set_train_an_rpn_without_final_norm(
    published: Published, tmp_path: Path
) -> None:
    folder, profile, _ = published
    rpn = read(copy_of(folder, tmp_path / "lazy", roi_super_type="lazy"), profile)
    assert not rpn.config.shape.final_norm
    assert "scoring.final_norm.weight" not in rpn.state


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"twig_T": 2}, "twig_T = 2, but there are 3 twig_layers"),
        ({"model_type": "mpt"}, "model_type 'mpt'; known are llava_llama, qwen2_5_vl"),
        ({"num_hidden_layers": 40}, "40 layers x 4 heads, packaged profiles that fit: none"),
        ({"hidden_size": 64}, r"is \(48,\), config.json asks for \(64,\)|asks for \(64"),
        ({"roi_source": "hidden_states"}, "only 'qk' can be imported"),
        ({"roi_multi_head": False}, "only True can be imported"),
        ({"roi_loss": "mse"}, "roi_loss = 'mse'"),
        ({"twig_K": 5}, "layers 5 to 7 does not fit"),
        ({"twig_K": 0}, "layers 0 to 2 does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(
    changed: dict[str, Any], message: str, published: Published, tmp_path: Path
) -> None:
    folder, profile, _ = published
    with pytest.raises(ForeignCheckpointError, match=message):
        read(copy_of(folder, tmp_path / "changed", **changed), profile)


def test_a_layer_given_against_the_configuration_is_refused(published: Published) -> None:
    folder, profile, _ = published
    with pytest.raises(ForeignCheckpointError, match="twig_K = 2, not 3"):
        read(folder, profile, branch_layer=3)


def test_another_models_profile_is_refused(published: Published) -> None:
    folder, profile, _ = published
    other = profile.model_copy(update={"name": "big", "num_layers": 40})
    with pytest.raises(ForeignCheckpointError, match="'big' of a llava model of 40 x 4"):
        read(folder, profile, profile=other)


def without(folder: Path, to: Path, name: str) -> Path:
    """The checkpoint without one tensor in its index."""
    copy_of(folder, to)
    index = json.loads((to / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return to


@pytest.mark.parametrize(
    "name", ["model.twig_norm.weight", "model.twig_layers.1.mlp.up_proj.weight"]
)
def test_a_missing_tensor_is_named(name: str, published: Published, tmp_path: Path) -> None:
    folder, profile, _ = published
    with pytest.raises(ForeignCheckpointError, match=f"has no {name}"):
        read(without(folder, tmp_path / "less", name), profile)


INDEX = "model.safetensors.index.json"
LAST = "model-00003-of-00003.safetensors"
FLOAT8 = torch.ones(48, 48).to(torch.float8_e4m3fn)
VALUES = "model.twig_layers.2.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({VALUES: "model-00001-of-00003.safetensors"}, r"00001-of-00003\.safetensors: damaged"),
        ({VALUES: "\ud800.safetensors"}, r"index\.json: names '\\ud800\.safetensors'"),
        ({VALUES: "a\0.safetensors"}, r"index\.json: names 'a\\x00\.safetensors'"),
        ({VALUES: "."}, "missing, but the index names it"),
        ({VALUES: "9" * 5000}, "damaged .*File name too long"),
        ({f"model.twig_layers.{'9' * 5000}.{n}": LAST for n in "ab"}, None),
        ({"model.layers.x.self_attn.v_proj.weight": LAST}, None),
    ],
)
def test_a_damaged_index_is_explained(
    named: dict[str, str], message: str | None, published: Published, tmp_path: Path
) -> None:
    """Each of these was a traceback; the last two name what no part of the RPN is called."""
    folder, profile, network = published
    damaged = copy_of(folder, tmp_path / "damaged", drop=("twig_K",))
    index = json.loads((damaged / INDEX).read_text())
    index["weight_map"] |= named
    (damaged / INDEX).write_text(json.dumps(index))
    if message is None:
        assert_same(read(damaged, profile).state, network)
        return
    with pytest.raises(ForeignCheckpointError, match=message):
        read(damaged, profile)


def with_tensor(folder: Path, to: Path, name: str, tensor: torch.Tensor) -> Path:
    """The checkpoint with another tensor of this name, where the configuration tells no B."""
    copy_of(folder, to, drop=("twig_K",))
    tensors = load_file(to / LAST) | {name: tensor}
    save_file(tensors, to / LAST, {"format": "pt"})
    return to


@pytest.mark.parametrize(
    "tensor",
    [*(torch.zeros(shape) for shape in ((), (0,), (48,), (1, 2, 3))), FLOAT8],
    ids=lambda tensor: str(tuple(tensor.shape)),
)
def test_a_value_projection_that_is_no_matrix_of_weights_tells_no_b(
    tensor: torch.Tensor, published: Published, tmp_path: Path
) -> None:
    folder, profile, _ = published
    odd = with_tensor(folder, tmp_path / "odd", VALUES, tensor)
    with pytest.raises(ForeignCheckpointError, match="give --branch-layer"):
        read(odd, profile)


def not_finite(dtype: torch.dtype, value: float) -> torch.Tensor:
    tensor = torch.ones(48, 48, dtype=dtype)
    tensor[3, 5] = value
    return tensor


NO_WEIGHTS = [
    (torch.ones(48, 48, dtype=torch.int8), "holds int8, and weights are"),
    (torch.ones(48, 48, dtype=torch.bool), "holds bool"),
    (FLOAT8, "holds float8_e4m3fn"),
    (torch.ones(48, 48, dtype=torch.complex64), "holds complex64"),
    (torch.ones(48, 48, dtype=torch.float64), r"holds float64: save it as float32 "),
    (not_finite(torch.bfloat16, torch.nan), "holds values that are not finite"),
    (not_finite(torch.float32, -torch.inf), "holds values that are not finite"),
]


@pytest.mark.parametrize(("tensor", "message"), NO_WEIGHTS)
def test_what_are_no_weights_is_refused(
    tensor: torch.Tensor, message: str, published: Published, tmp_path: Path
) -> None:
    """They were imported, and every answer was made of them."""
    folder, profile, network = published
    name = "model.twig_layers.2.self_attn.q_proj.weight"
    with pytest.raises(ForeignCheckpointError, match=rf"2\.self_attn\.q_proj\.weight {message}"):
        read(with_tensor(folder, tmp_path / "odd", name, tensor), profile)
    state = network_state(network) | {"scoring.q_proj.weight": tensor}
    with pytest.raises(CheckpointError, match=rf"scoring\.q_proj\.weight {message}"):
        load_parameters(network, state)


def test_folders_of_something_else_are_explained(published: Published, tmp_path: Path) -> None:
    folder, profile, _ = published
    with pytest.raises(ForeignCheckpointError, match=r"holds no model\.twig_layers"):
        read(Path(profile.model_id), profile)
    with pytest.raises(ForeignCheckpointError, match="no such folder"):
        read(tmp_path / "none", profile)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForeignCheckpointError, match=r"holds no \.safetensors"):
        read(tmp_path / "empty", profile)
    (tmp_path / "empty" / "pytorch_model.bin").touch()
    with pytest.raises(ForeignCheckpointError, match=r"\.bin pickles, which are not read"):
        read(tmp_path / "empty", profile)
    damaged = copy_of(folder, tmp_path / "damaged")
    (damaged / "model-00003-of-00003.safetensors").write_bytes(b"cut")
    with pytest.raises(ForeignCheckpointError, match=r"00003\.safetensors: damaged"):
        read(damaged, profile)
    (damaged / "config.json").write_text("{")
    with pytest.raises(ForeignCheckpointError, match=r"config\.json: is not JSON"):
        read(damaged, profile)


def test_an_output_folder_that_is_taken_is_left_alone(published: Published, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="give a new or empty folder"):
        import_checkpoint(published[0], tmp_path)


def test_qwen_naming_gives_the_same_scores_beside_the_stock_model(tmp_path: Path) -> None:
    profile = tiny_qwen2_5_vl(tmp_path / "model")
    adapter = load_adapter(profile, device="cpu")
    shape, decoder = profile.rpn, adapter.model.get_decoder()
    network = random_rpn(decoder, shape)
    tensors = qwen_tensors(adapter.model) | twig_tensors(decoder, network, shape)
    config = published_config(adapter.model, "qwen2_5_vl", shape)
    folder = write_checkpoint(tmp_path / "qwen-roi-K2T3", tensors, config, num_shards=4)
    rpn = read(folder, profile, profile=profile)
    assert rpn.config.shape == shape
    assert rpn.config.regions == RegionSettings.preset("reference-mask")
    assert_same(rpn.state, network)
    assert {"scoring.q_proj.bias", "layers.0.self_attn.v_proj.bias"} <= rpn.state.keys()
    pipeline = ZoomPipeline.from_checkpoint(rpn, device="cpu")
    image = Image.new("RGB", (90, 40), "red")
    features = adapter.encode_images([image])
    questions = ["what is the small red word ?"]
    (ours,) = first_stage(adapter, network, features, questions).roi_logits
    (theirs,) = first_stage(pipeline.adapter, pipeline.rpn, features, questions).roi_logits
    assert torch.equal(theirs, ours)


def test_published_qwen_networks_are_asked_as_they_were_trained(tmp_path: Path) -> None:
    """Image before the question, unless the user's own profile says otherwise."""
    profile = tiny_qwen2_5_vl(tmp_path / "model")
    model = load_adapter(profile, device="cpu").model
    network = random_rpn(model.get_decoder(), profile.rpn)
    folder = write_checkpoint(
        tmp_path / "qwen",
        twig_tensors(model.get_decoder(), network, profile.rpn),
        published_config(model, "qwen2_5_vl", profile.rpn),
    )
    found = read(folder, profile).config.profile
    assert found.prompt.index("{images}") < found.prompt.index("{question}")
    assert read(folder, profile, profile=profile).config.profile.prompt == profile.prompt


READ_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from sdrpn_core.interop.tensor_folder import ForeignCheckpointError, TensorFolder

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    TensorFolder(Path(sys.argv[1])).read(["a"])
except ForeignCheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no figure of mapped memory")
@pytest.mark.parametrize("times", [0.5, 1.25], ids=["to open it", "to read it"])
def test_a_file_that_memory_does_not_hold_is_not_called_damaged(
    times: float, tmp_path: Path
) -> None:
    """Whoever followed the advice downloaded gigabytes again, to no avail."""
    size = 1 << 30
    layout = {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    header = json.dumps(layout).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # sparse
    command = [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, str(tmp_path), str(int(size * times))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "model.safetensors: there is not enough memory to read it" in told

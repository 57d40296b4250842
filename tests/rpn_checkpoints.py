"""RPN checkpoints that need no training."""

from pathlib import Path

from data_contracts.interop import ImportedFrom
from data_contracts.label_settings import RegionSettings
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.config import FORMAT_VERSION, RpnConfig
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.parameters import network_state
from tests.tiny_models import tiny_llava


def imported_checkpoint(
    model: Path, *, dtype: str = "float32", revision: str | None = None
) -> RpnCheckpoint:
    """An RPN from elsewhere, for a tiny LLaVA.

    Args:
        model: folder that the LLaVA is written to.
        dtype: precision that the checkpoint names.
        revision: commit that its profile is pinned to.
    """
    profile = tiny_llava(model)
    network = RegionProposalNetwork.from_adapter(load_adapter(profile, device="cpu"), profile.rpn)
    config = RpnConfig(
        format_version=FORMAT_VERSION,
        profile=profile.model_copy(update={"revision": revision}),
        shape=profile.rpn,
        dtype=dtype,
        threshold=0.5,
        regions=RegionSettings(),
        imported=ImportedFrom(checkpoint="a", architecture="b", branch_layer_source="c"),
    )
    return RpnCheckpoint(config, network_state(network))

"""Parameters of an RPN by name: taken out of a network, put into one, and their digest."""

import hashlib
from collections.abc import Mapping

from safetensors.torch import save as save_safetensors
from torch import Tensor

from sdrpn_core.rpn.checkpoint_files import WEIGHTS, CheckpointError
from sdrpn_core.rpn.network import RegionProposalNetwork

_REMEDY = "use the checkpoint with the model and RPN shape it was trained for"


def network_state(network: RegionProposalNetwork) -> dict[str, Tensor]:
    """Parameters by name, contiguous and on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def weights_digest(network: RegionProposalNetwork) -> str:
    """Digest of every parameter."""
    return hashlib.sha256(save_safetensors(network_state(network))).hexdigest()


def load_parameters(network: RegionProposalNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy parameters into a network.

    Raises:
        CheckpointError: naming the first parameter that is missing, unknown or of another shape.
    """
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() - state.keys()):
        raise CheckpointError(f"{WEIGHTS}: parameter {missing[0]} is missing; {_REMEDY}")
    if unknown := sorted(state.keys() - wanted.keys()):
        raise CheckpointError(f"{WEIGHTS}: parameter {unknown[0]} is not known; {_REMEDY}")
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise CheckpointError(
                f"{WEIGHTS}: parameter {name} is {tuple(state[name].shape)}, the model needs "
                f"{tuple(value.shape)}; {_REMEDY}"
            )
    network.load_state_dict(dict(state))

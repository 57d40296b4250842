"""Parameters of an RPN by name: taken out of a network, put into one, and their digest."""

import hashlib
from collections.abc import Mapping

from safetensors.torch import save as save_safetensors
from torch import Tensor

from sdrpn_core.models.devices import DTYPES, dtype_name
from sdrpn_core.rpn.checkpoint_files import WEIGHTS, CheckpointError
from sdrpn_core.rpn.network import RegionProposalNetwork

_REMEDY = "use the checkpoint with the model and RPN shape it was trained for"


def network_state(network: RegionProposalNetwork) -> dict[str, Tensor]:
    """Parameters by name, contiguous and on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def weights_digest(network: RegionProposalNetwork) -> str:
    """Digest of every parameter."""
    return hashlib.sha256(save_safetensors(network_state(network))).hexdigest()


def weights_problem(tensor: Tensor) -> str | None:
    """Why a tensor cannot be weights, whatever its shape; None if it can.

    Integers are a quantized network's, which mean nothing without their scales, and one value that
    is not finite makes every score one.
    """
    name = dtype_name(tensor.dtype)
    if name == "float64":  # a network in NumPy's precision; nothing is lost but size
        return "holds float64: save it as float32 (tensor.float()) first"
    if name not in DTYPES:
        return f"holds {name}, and weights are {', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
    return None if tensor.isfinite().all() else "holds values that are not finite"


def load_parameters(network: RegionProposalNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy parameters into a network.

    Raises:
        CheckpointError: naming the first parameter that is missing, unknown, of another shape or
            no weights.
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
        if (problem := weights_problem(state[name])) is not None:
            raise CheckpointError(
                f"{WEIGHTS}: parameter {name} {problem}; copy it anew, or train it again"
            )
    network.load_state_dict(dict(state))

"""Resume points of a training run: parameters, optimiser state, progress; no pickle.

There is no random state to keep: the order of examples is a function of seed and epoch, and
nothing else in training is random.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from data_contracts.json_lines import json_lines
from sdrpn_core.rpn.checkpoint_files import METRICS, metrics_to_jsonl
from sdrpn_core.rpn.data import TrainingError
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.parameters import load_parameters, network_state

PARAMETERS, OPTIMIZER, PROGRESS = "parameters.safetensors", "optimizer.safetensors", "progress.json"
_SLOTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    """Optimiser steps done; epoch and place in it follow from this."""
    identity: str
    """Digest of configuration and examples: a resume point fits no other run."""
    metrics: tuple[dict[str, Any], ...]


def pack(
    network: RegionProposalNetwork, optimizer: torch.optim.Optimizer, progress: Progress
) -> dict[str, bytes]:
    """Files of a resume point."""
    moments = {
        f"{slot}/{name}": optimizer.state[parameter][slot].detach().cpu().contiguous()
        for name, parameter in network.named_parameters()
        for slot in _SLOTS
    }
    plain = {"step": progress.step, "identity": progress.identity}
    return {
        PARAMETERS: save_safetensors(network_state(network)),
        OPTIMIZER: save_safetensors(moments),
        PROGRESS: (json.dumps(plain, indent=2) + "\n").encode(),
        METRICS: metrics_to_jsonl(progress.metrics),
    }


def unpack(
    files: Mapping[str, bytes],
    network: RegionProposalNetwork,
    optimizer: torch.optim.Optimizer,
    identity: str,
) -> Progress:
    """Put a resume point's state into the network and the optimiser.

    Raises:
        TrainingError: if the resume point belongs to another configuration or other examples.
    """
    plain = json.loads(files[PROGRESS])
    if plain["identity"] != identity:
        raise TrainingError(
            f"the resume point at step {plain['step']} was made with other settings, examples or "
            "frozen model: remove it to start afresh"
        )
    load_parameters(network, load_safetensors(files[PARAMETERS]))
    moments = load_safetensors(files[OPTIMIZER])
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {
            slot: _placed(moments[f"{slot}/{name}"], slot, parameter) for slot in _SLOTS
        }
    return Progress(plain["step"], identity, tuple(json_lines(files[METRICS])))


def _placed(value: Tensor, slot: str, parameter: Tensor) -> Tensor:
    """Moments live beside their parameter; AdamW keeps its step count on the CPU."""
    return value if slot == "step" else value.to(parameter.device)

"""How many parameters a region proposal network has, without the weights of its model."""

import torch
from transformers import AutoModel, PreTrainedConfig

from data_contracts.profiles import RpnShape
from sdrpn_core.rpn.network import RegionProposalNetwork


def num_rpn_parameters(text: PreTrainedConfig, shape: RpnShape) -> int:
    """Parameters of a network beside a model with this configuration of its text part."""
    with torch.device("meta"):  # the stock class, without memory for its weights
        text_model = AutoModel.from_config(text)
    network = RegionProposalNetwork.copied_from(text_model, shape)
    return sum(parameter.numel() for parameter in network.parameters())

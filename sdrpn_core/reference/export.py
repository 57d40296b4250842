"""Write a trained reference model as an ordinary Hugging Face folder."""

import hashlib
import shutil
from pathlib import Path

import torch

from sdrpn_core.reference.model import new_model, new_processor
from sdrpn_core.reference.training_joint import load_stages


def export_model(out: Path, destination: Path, seed: int) -> str:
    """Export the checkpoint of ``out`` in half precision; returns the weights' SHA-256.

    Args:
        out: folder of the stages' checkpoints and log.
        destination: folder for config, weights, tokenizer, processor and log.
        seed: seed of the untrained model.
    """
    model = new_model(seed)
    load_stages(model, out)
    model.to(torch.float16).save_pretrained(destination)
    new_processor().save_pretrained(destination)
    shutil.copyfile(out / "training_log.jsonl", destination / "training_log.jsonl")
    digest = weights_digest(destination)
    (destination / "model.sha256").write_text(f"{digest}  model.safetensors\n")
    return digest


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's ``model.safetensors``."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

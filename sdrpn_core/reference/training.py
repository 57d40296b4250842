"""Train the reference model: stages ``windows`` and ``tower``, ``decoder``, then ``joint``.

    python -m sdrpn_core.reference.view_cache --out CACHE --count 64
    python -m sdrpn_core.reference.training --stage windows --seed 0 --out OUT
    python -m sdrpn_core.reference.training --stage tower --seed 0 --cache CACHE --out OUT
    python -m sdrpn_core.reference.training --stage decoder --seed 0 --out OUT
    python -m sdrpn_core.reference.training --stage joint --seed 0 --cache CACHE --out OUT
    python -m sdrpn_core.reference.training --stage export --seed 0 --out OUT --weights DIR

A stage that finds its own checkpoint in ``--out`` goes on from it.
"""

import argparse
from pathlib import Path

import torch

from sdrpn_core.reference.export import export_model
from sdrpn_core.reference.training_decoder import train_decoder
from sdrpn_core.reference.training_joint import train_joint
from sdrpn_core.reference.training_tower import train_tower
from sdrpn_core.reference.training_windows import train_windows

_USUAL = {
    "windows": (2000, 160, 2e-3),
    "tower": (7000, 48, 1e-3),
    "decoder": (1100, 64, 2e-3),
    "joint": (2000, 32, 7e-4),
}
"""Steps, batch size and peak learning rate of the stages."""


def main() -> None:
    """Run one stage."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    out, seed = arguments.out, arguments.seed
    if arguments.stage == "export":
        print(export_model(out, arguments.weights, seed))
        return
    num_steps, batch_size, peak_rate = _USUAL[arguments.stage]
    settings = {
        "seed": seed,
        "num_steps": arguments.steps or num_steps,
        "batch_size": arguments.batch_size or batch_size,
        "peak_rate": arguments.rate or peak_rate,
    }
    match arguments.stage:
        case "windows":
            train_windows(out, **settings)
        case "tower":
            train_tower(arguments.cache, out, page_share=0.34, **settings)
        case "decoder":
            train_decoder(out, **settings)
        case "joint":
            train_joint(arguments.cache, out, cells_shown=arguments.cells_shown, **settings)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*_USUAL, "export"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None)
    parser.add_argument("--cells-shown", type=int, default=144)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Generated scenes as files, as a user's data would lie."""

from pathlib import Path

from data_contracts.sources import LlavaMixSource, SceneSource


def write_scenes(folder: Path, source: SceneSource) -> LlavaMixSource:
    """Write a source's scenes as a LLaVA mix; returns the mix.

    Raises:
        ScenesUnavailable: before anything is written, if scenes cannot be generated here.
    """
    from sdrpn_core.reference.backgrounds import photograph_folder
    from sdrpn_core.reference.mix import write_mix

    photograph_folder()
    written = write_mix(
        folder,
        num_images=source.num_images,
        seed=source.seed,
        split=source.split,
        print_scale=source.print_scale,
    )
    return LlavaMixSource(
        name=source.name,
        records=str(written.json_path),
        images=str(written.image_root),
        boxes=str(written.boxes_path),
    )

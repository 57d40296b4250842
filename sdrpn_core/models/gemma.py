"""What Gemma 3 and Gemma 4 share: how a prompt marks an image."""

from sdrpn_core.models.base import ModelAdapter


def marked_image_token(adapter: ModelAdapter) -> str:
    """One image token between the markers that the model's configuration names."""
    config = adapter.model.config
    ids = [config.boi_token_id, adapter.image_token_id, config.eoi_token_id]
    return "".join(adapter.tokenizer.convert_ids_to_tokens(ids))

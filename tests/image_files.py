"""Pictures as the bytes of image files."""

import io

from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The file that Pillow writes of a picture in a format, with the format's options."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()

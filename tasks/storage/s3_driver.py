"""fsspec's S3 driver, sparing: the original asks for an object's size before it reads it whole."""

from contextlib import suppress
from typing import Any

from s3fs.core import S3_RETRYABLE_ERRORS, S3FileSystem


class SparingS3FileSystem(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """Objects on S3.

    What is read whole is mostly small: images, receipts, shards. One request brings it. Where an
    object turns out to be large, or is cut off, the original reads it, in parts side by side.
    """

    async def _cat_file(
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        **options: Any,
    ) -> bytes:
        bucket, key, version = self.split_path(path)
        if start is None and end is None and (version_id or version) is None:
            response = await self._call_s3("get_object", Bucket=bucket, Key=key)
            body = response["Body"]
            try:
                # Gateways that answer in chunks do not say how many bytes are to come.
                length = response.get("ContentLength")
                if length is not None and length <= self.default_block_size:
                    with suppress(*S3_RETRYABLE_ERRORS):
                        return bytes(await body.read())
            finally:
                body.close()
        data: bytes = await super()._cat_file(path, version_id, start, end, **options)
        return data

"""fsspec's S3 driver, sparing: it asks nothing that its callers do not want to know."""

from contextlib import suppress
from typing import Any

from s3fs.core import S3_RETRYABLE_ERRORS, S3FileSystem


class SparingS3FileSystem(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """Objects on S3.

    What is read whole is mostly small: images, receipts, shards. One request brings it, where the
    original asks for its size first. Where an object turns out to be large, or is cut off, the
    original reads it, in parts side by side. One request also tells that an object is not there.
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

    async def _info(
        self,
        path: str,
        bucket: str | None = None,
        key: str | None = None,
        refresh: bool = False,
        version_id: str | None = None,
    ) -> dict[str, Any]:
        bucket, key, version = self.split_path(path)
        if not key or (version_id or version) is not None:
            info: dict[str, Any] = await super()._info(path, bucket, key, refresh, version_id)
            return info
        # Of what is not there, the original asks whether it is a folder. Nothing here is one.
        found = await self._call_s3("head_object", self.kwargs, Bucket=bucket, Key=key)
        return {
            "name": f"{bucket}/{key}",
            "type": "file",
            "size": found["ContentLength"],
            "ETag": found.get("ETag", ""),
            "LastModified": found.get("LastModified", ""),
            "VersionId": found.get("VersionId"),
        }

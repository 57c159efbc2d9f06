"""A prefix of a bucket in a store that speaks S3, by s3fs. Credentials, region, endpoint and CA are botocore's to find.

An object appears whole or not at all: what is written is a multipart upload (or one request, when it is small), which
is completed on the condition that nothing has that name (`If-None-Match: *`). Stores that do not know the condition
ignore it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import s3fs
from botocore import exceptions as boto

from etcdops.snapshots.addresses import Address
from etcdops.snapshots.depot import Depot, Entry, Upload

__all__ = ["S3Depot"]

#: The smallest that S3 allows: progress, and that there is none, is seen part by part. There may be 10,000 of them, so
#: a snapshot may have 48 GiB.
_PART_BYTES = 5 * 2**20

_CONNECT_S = 10.0

#: How long the connection may take to be closed.
_END_S = 5.0


class S3Depot(Depot):
    """The objects under a prefix; names with a further slash are not seen."""

    def __init__(self, address: Address, *, endpoint_url: str, stall_s: float) -> None:
        super().__init__(address)
        self._bucket, _, prefix = address.path.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        # A loop of our own, which can be ended without doing harm to others' work.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="etcdops-s3", daemon=True)
        self._thread.start()
        self._fs = s3fs.S3FileSystem(
            endpoint_url=endpoint_url or None,
            loop=self._loop,
            skip_instance_cache=True,
            use_listings_cache=False,
            fixed_upload_size=True,
            # That nothing moves is for transfer.watch to say, so botocore waits longer.
            config_kwargs={"connect_timeout": min(_CONNECT_S, stall_s), "read_timeout": 2 * stall_s},
        )
        self._aborted = False
        # botocore tries again by itself.
        self._fs.retries = 1

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._fs.call_s3(method, Bucket=self._bucket, **parameters)

    def _path(self, name: str) -> str:
        return f"{self._bucket}/{self._prefix}{name}"

    def check(self) -> None:
        """Raise FileNotFoundError where there is no such bucket."""
        self._call("head_bucket")

    def entries(self) -> dict[str, Entry]:
        """Give the objects, by name."""
        found: dict[str, Entry] = {}
        more: dict[str, str] = {}
        while True:
            answer = self._call("list_objects_v2", Prefix=self._prefix, Delimiter="/", **more)
            for each in answer.get("Contents", ()):
                name = each["Key"][len(self._prefix) :]
                if name:
                    found[name] = Entry(int(each["Size"]), each["LastModified"].isoformat(timespec="seconds"))
            if not answer.get("IsTruncated"):
                return found
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def size(self, name: str) -> int | None:
        """Give an object's size in bytes, None if there is none of that name."""
        try:
            return int(self._call("head_object", Key=f"{self._prefix}{name}")["ContentLength"])
        except FileNotFoundError:
            return None

    def pieces(self, name: str) -> Iterator[bytes]:
        """Give what is in an object, in ranges that all are of one version of it."""
        with self._fs.open(self._path(name), "rb", cache_type="none") as file:
            while piece := file.read(_PART_BYTES):
                yield piece

    @contextmanager
    def upload(self, name: str) -> Iterator[Upload]:
        """Begin to put an object there."""
        part = _Part(self._fs.open(self._path(name), "xb", block_size=_PART_BYTES))
        try:
            yield part
        finally:
            part.discard(tell=not self._aborted)

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._call("delete_object", Key=f"{self._prefix}{name}")

    def explain(self, error: Exception) -> tuple[str, str]:
        """Give what an error means."""
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, boto.BotoCoreError):
            cause = cause.__cause__
        if isinstance(cause, boto.SSLError):
            return text, "AWS_CA_BUNDLE names the file of the authority that signed its certificate."
        if isinstance(cause, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)):
            keys = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws by AWS_PROFILE."
            return text, keys
        if isinstance(cause, (boto.HTTPClientError, boto.ConnectionError)):
            return text, "For a store that is not AWS, --endpoint-url or AWS_ENDPOINT_URL says where it is."
        if isinstance(error, PermissionError):
            return f"the store refuses: {text}", (
                "See whose keys are used (`aws sts get-caller-identity`). Needed are s3:ListBucket, s3:GetObject,"
                " s3:PutObject and s3:AbortMultipartUpload."
            )
        if isinstance(error, FileNotFoundError):
            return text, f"See whether there is a bucket {self._bucket}: `aws s3 mb s3://{self._bucket}` makes it."
        return text or type(error).__name__, "See whether `aws s3 ls` works there, and try again."

    def abort(self) -> None:
        """End what is under way: whoever waits for it gets an error, or nothing."""
        self._aborted = True
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Let go of the connection, and end the loop."""
        if self._loop.is_closed():
            return
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        await self._cancel()
        client, self._fs._s3 = self._fs._s3, None
        if client is not None:
            await client.close()


class _Part:
    #: What is not yet complete cannot be read.
    staged = ""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._published = False
        self.write = file.write

    def finish(self) -> None:
        pass

    def publish(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            if "PreconditionFailed" in str(error) or "At least one of the pre-conditions" in str(error):
                raise FileExistsError(self._file.path) from error
            raise
        self._published = True

    def discard(self, *, tell: bool) -> None:
        """Let it go; the store is told, where it still listens, and otherwise keeps the parts, which nobody sees."""
        if self._published:
            return
        if tell:
            with suppress(Exception):
                self._file.discard()
        # Whoever collects it would otherwise close it, and that completes it.
        self._file.closed = True

"""Downloads one file into memory, within a time limit that holds in every phase."""

from __future__ import annotations

import time

from etcdops.errors import BinaryError

TYPE_CHECKING = False  # see etcdops.versions
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from queue import SimpleQueue
    from typing import Any

__all__ = ["NotServed", "download"]

#: A transfer that stands still for this long has failed, whatever the deadline.
_STALL_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 18
_MOST_BYTES = 256 << 20


class NotServed(BinaryError):
    """What was asked for could not be had from there; `status` is the HTTP status, where that was the reason."""

    def __init__(self, message: str, *, remedy: str = "", status: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


def download(
    url: str,
    *,
    deadline: float,
    connect_timeout_s: float,
    progress: Callable[[int, int | None], None] | None = None,
) -> bytes:
    """Give what `url` serves, at most 256 MiB. The user's proxy variables are honoured.

    `deadline` is a point of `time.monotonic()`; the answer must begin within `connect_timeout_s`. `progress` is called
    in this thread with the bytes that have come and their total, None if the server does not tell. A redirect never
    leaves https. Raises NotServed.
    """
    # A thread does the work, because nothing else bounds the time that name resolution or a trickling server can
    # take. Left alone at the deadline, it ends by itself when the transfer moves or stalls.
    import threading
    from queue import Empty, SimpleQueue

    events: SimpleQueue[Any] = SimpleQueue()
    abandoned = threading.Event()
    threading.Thread(target=_pull, args=(url, events, abandoned), name="etcdops-download", daemon=True).start()
    limit = min(deadline, time.monotonic() + connect_timeout_s)
    seen, done, total = "there was no answer", 0, None
    try:
        while True:
            try:
                kind, value = events.get(timeout=max(0.0, limit - time.monotonic()))
            except Empty:
                raise NotServed(f"{url} took too long: {seen}") from None
            if kind == "begun":
                limit, total = deadline, value
                seen = f"none of {total or 'unknown'} bytes had come"
            elif kind == "bytes":
                done = value
                seen = f"{done} of {total or 'unknown'} bytes had come"
                if progress:
                    progress(done, total)
            elif kind == "done":
                return bytes(value)
            elif kind == "status":
                raise NotServed(f"{url} answered {value}", status=value)
            else:
                raise NotServed(f"{url} cannot be fetched: {value}")
    finally:
        abandoned.set()


def _pull(url: str, events: SimpleQueue[Any], abandoned: threading.Event) -> None:
    """Read `url`, in a thread: pairs of a kind and a value go into `events`, the last one "done" or a failure."""
    import http.client
    import urllib.error
    import urllib.request

    class StayOnHttps(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if req.full_url.startswith("https:") and not newurl.startswith("https:"):
                raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    try:
        opener = urllib.request.build_opener(StayOnHttps)
        request = urllib.request.Request(url, headers={"User-Agent": "etcdops"})
        with opener.open(request, timeout=_STALL_TIMEOUT_S) as response:
            length = response.headers.get("Content-Length") or ""
            total = int(length) if length.isdigit() else None
            events.put(("begun", total))
            body = bytearray()
            # read1 gives what has come; read would wait for a whole chunk, however slowly it trickles in.
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if abandoned.is_set():
                    return
                if len(body) > _MOST_BYTES:
                    raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
                events.put(("bytes", len(body)))
            if total is not None and len(body) < total:
                raise ValueError(f"it ended after {len(body)} of {total} bytes")
            events.put(("done", body))
    except urllib.error.HTTPError as error:
        events.put(("status", error.code))
        error.close()
    except urllib.error.URLError as error:
        events.put(("failed", error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:
        events.put(("failed", str(error) or type(error).__name__))

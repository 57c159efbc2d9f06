"""What a member says of itself at `/metrics`, in the text format of Prometheus."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from etcdops import reach

if TYPE_CHECKING:
    from etcdops.state import ClusterRecord

__all__ = ["gauge", "histogram", "metrics_of"]

_BUCKET = re.compile(r'(\w+)_bucket\{(?:.*,)?le="([^"]+)"\} (\S+)')


def metrics_of(record: ClusterRecord, url: str) -> str:
    """Give a member's metrics, "" where it does not tell them: some keep them on another port, or behind a proxy."""
    import http.client
    import ssl
    import urllib.request

    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    try:
        if tls := record.spec.tls:
            context = ssl.create_default_context(cafile=tls.ca)
            context.load_cert_chain(tls.client_cert, tls.client_key)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(f"{reach.through(url)}/metrics", timeout=2.0) as answer:
            text: str = answer.read(2**23).decode(errors="replace")
            return text
    except (OSError, ValueError, http.client.HTTPException):
        return ""


def gauge(text: str, name: str) -> float | None:
    """Give the value of a metric without labels, or None where the text has none."""
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            try:
                return float(line.partition(" ")[2])
            except ValueError:
                return None
    return None


def histogram(text: str, name: str) -> dict[float, int]:
    """Give how many observations were at most each bucket's bound, the last of which is infinity; {} without any."""
    found = {}
    for line in text.splitlines():
        if line.startswith(f"{name}_bucket") and (bucket := _BUCKET.fullmatch(line)):
            found[float(bucket[2])] = int(float(bucket[3]))
    return found

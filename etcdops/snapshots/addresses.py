"""Where snapshots are kept away from here, as URLs: a directory, a prefix of an S3 bucket, a directory by SFTP."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from etcdops.errors import SpecError

__all__ = ["Address", "is_url", "parse"]

_KINDS = "Give a directory, file:///DIR, s3://BUCKET/PREFIX or sftp://USER@HOST/DIR."

#: What a bucket, or an access point's alias, may be called, on AWS and elsewhere.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class Address(NamedTuple):
    """A place, or a file in one.

    `path` is absolute for a directory here; BUCKET/PREFIX for S3; for SFTP absolute, or relative to the home directory.
    `port` is 0, and `user` "", where the URL says nothing of them.
    """

    kind: Literal["path", "s3", "sftp"]
    path: str
    host: str = ""
    user: str = ""
    port: int = 0

    @property
    def text(self) -> str:
        """The address as a path or URL, without a slash at its end."""
        if self.kind == "path":
            return self.path
        if self.kind == "s3":
            return f"s3://{self.path}"
        at = f"{quote(self.user)}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        path = self.path if self.path.startswith("/") else f"/~/{self.path}"
        return f"sftp://{at}{host}{port}{quote(path, safe='/~')}".rstrip("/")

    def split(self) -> tuple[Address, str]:
        """Give the place that this is in, and its name there; a bucket alone has none."""
        directory, _, name = self.path.rpartition("/")
        if not directory and self.kind == "s3":
            return self, ""
        if not directory and self.path.startswith("/"):
            directory = "/"
        return self._replace(path=directory), name


def is_url(text: str) -> bool:
    """Whether this is meant as a URL, and not as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse(url: str) -> Address:
    """Give what a path or URL stands for; raise SpecError for what is none, and for one that has a password in it."""
    if not url:
        raise SpecError("no URL is given", remedy=_KINDS)
    if not is_url(url):
        return Address("path", os.path.abspath(url))
    kind, _, rest = url.partition("://")
    if kind == "s3":
        return _s3(url, rest)
    if kind not in ("file", "sftp"):
        raise SpecError(f"{kind}:// is not known", remedy=_KINDS)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        raise SpecError(f"{url} is no URL: {error}", remedy=_KINDS) from error
    if parts.password is not None:
        raise SpecError(
            f"a password is in {kind}://…@{host}, for all to see who list processes",
            remedy="Leave it out, and use a key: `ssh-copy-id` installs one.",
        )
    if parts.query or parts.fragment:
        raise SpecError(f"{url} has a ? or # in it", remedy="Write %3F or %23 where a name has one.")
    path = unquote(parts.path)
    if kind == "file":
        if host not in ("", "localhost") or not path:
            raise SpecError(f"{url} is no file of this machine", remedy="Write file:///DIR, with three slashes.")
        return Address("path", os.path.abspath(path))
    if not host:
        raise SpecError(f"{url} names no host", remedy=_KINDS)
    return Address("sftp", _sftp_path(path), host, unquote(parts.username or ""), port)


def _sftp_path(path: str) -> str:
    """Give the path that the server is asked for: absolute, or after /~/ relative to the home directory, as in curl."""
    if path == "/~" or path.startswith("/~/"):
        return path[3:].strip("/")
    return "/" + path.strip("/")


def _s3(url: str, rest: str) -> Address:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise SpecError(
            "there are credentials in the URL, for all to see who list processes",
            remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile by AWS_PROFILE.",
        )
    if not _BUCKET.fullmatch(bucket):
        raise SpecError(f"{url} names no bucket", remedy="Write s3://BUCKET/PREFIX.")
    return Address("s3", f"{bucket}/{prefix.strip('/')}".rstrip("/"))

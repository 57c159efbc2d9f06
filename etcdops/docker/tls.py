"""TLS files in containers, which have no shell: put there by `docker cp` as they are made, and again when renewed."""

from __future__ import annotations

import secrets

from etcdops.docker.engine import Engine
from etcdops.docker.files import archive, names_in
from etcdops.spec import MemberSpec
from etcdops.state import ClusterRecord

__all__ = ["client_variables", "give", "paths_of"]

_DIRECTORY = "/etc/etcd-tls"
_CA, _CERT, _KEY = (f"{_DIRECTORY}/{name}.pem" for name in ("ca", "cert", "key"))

#: A pair that is one file: a link to it, as what `docker cp` writes over is not whole meanwhile. The link is.
_PAIR = f"{_DIRECTORY}/pair.pem"


def paths_of(cert: str, key: str) -> tuple[str, str, str]:
    """Give where in its container a member finds the CA's certificate, its own, and its key, which are these here."""
    return (_CA, _PAIR, _PAIR) if cert == key else (_CA, _CERT, _KEY)


def client_variables(record: ClusterRecord) -> dict[str, str]:
    """Give the variables by which a bare etcdctl in the client container finds the operator's certificate."""
    if record.spec.tls is None:
        return {}
    ca, cert, key = paths_of(record.spec.tls.client_cert, record.spec.tls.client_key)
    return {"ETCDCTL_CACERT": ca, "ETCDCTL_CERT": cert, "ETCDCTL_KEY": key}


def give(engine: Engine, record: ClusterRecord, container: str, member: str, *, new: bool = False) -> None:
    """Put into a container what it needs to speak TLS: a member's files, or for "" the operator's.

    One that was just made, `new`, is not looked into for older ones.

    It may run: at the next handshake etcd reads the new pair. A reader that comes between removing the old link and
    making the new one, which is microseconds, finds no file; its handshake fails, and is tried again.
    """
    tls = record.spec.tls
    assert tls
    own = record.spec.member(member) if member else MemberSpec("operator", cert=tls.client_cert, key=tls.client_key)
    user = engine.run("inspect", "--format", "{{.Config.User}}", container).strip()
    if own.cert != own.key:
        files = {_CA: tls.ca, _CERT: own.cert, _KEY: own.key}
        engine.run("cp", "-", f"{container}:/", stdin=archive(files, user))
        return
    pair = f"{_DIRECTORY}/pair-{secrets.token_hex(6)}.pem"
    files = {_CA: tls.ca, pair: own.cert}
    old: list[str] = []
    there = None if new else engine.try_run("cp", f"{container}:{_DIRECTORY}", "-")
    if there and there.exit_code == 0:
        # etcd reads the authority's certificate when it starts, and never again.
        del files[_CA]
        old = [f"{_DIRECTORY}/{name}" for name in names_in(there.stdout) if name.startswith("pair-")]
    engine.run("cp", "-", f"{container}:/", stdin=archive(files, user, links={_PAIR: pair}))
    if old:
        # Nothing can be removed from a container without a shell; old keys can be made empty.
        engine.run("cp", "-", f"{container}:/", stdin=archive(dict.fromkeys(old, ""), user))

"""Tasks about container images: image.build, image.list, image.push."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import PartlyChanged, SpecError
from etcdops.tasks.common import HELP, command, emit, emit_json, emit_table, flag, is_offline, output_of, say

__all__ = ["build", "list_images", "push"]


@task(
    help={
        "etcd-version": "which etcd, such as 3.5.16 (default: the one at hand that members would run as processes)",
        "etcd-bin": HELP["etcd-bin"],
        "tag": "the name of the image (default: etcdops/etcd:VERSION)",
        "offline": HELP["offline"],
        "output": HELP["output"],
    }
)
@command
def build(
    c: Context,
    etcd_version: str | None = None,
    etcd_bin: str | None = None,
    tag: str | None = None,
    output: str | None = None,
    offline: bool = False,
) -> None:
    """Make a container image from the etcd at hand: its binaries and their libraries, and no network is needed.

    Members run in it as a user without rights, 10001. Clusters that are created from then on with --runtime compose
    use it where etcd's official image is not here; one with a --tag of its own is used where --image names it. Prints
    the image's name.
    """
    from etcdops.docker import images
    from etcdops.docker.engine import Engine

    out = output_of(c, output)
    made = images.build(
        Engine(),
        version=flag(c, "etcd_version", etcd_version),
        etcd_bin=flag(c, "etcd_bin", etcd_bin),
        tag=flag(c, "tag", tag),
        offline=is_offline(c, offline),
        progress=say,
    )
    if out == "json":
        emit_json({"schema": 1, "image": made})
    else:
        emit(made.reference)


@task(name="list", help={"output": HELP["output"]})
@command
def list_images(c: Context, output: str | None = None) -> None:
    """List the images of etcd that the Docker engine has: those that image.build made, and official ones."""
    from etcdops.docker import images
    from etcdops.docker.engine import Engine
    from etcdops.versions import is_unsafe

    out = output_of(c, output)
    engine = Engine()
    found = images.list_images(engine)
    if out == "json":
        emit_json({"schema": 1, "images": found})
        return
    if not found:
        say(f"the Docker engine ({engine.described}) has no image of etcd; `image.build` makes one")
        return
    rows = [("IMAGE", "ETCD", "FOR", "USER", "MB", "CREATED", "FROM")]
    for each in found:
        unsafe = " (known-bad)" if each.etcd_version and is_unsafe(each.etcd_version) else ""
        rows.append(
            (
                each.reference,
                f"{each.etcd_version or '?'}{unsafe}",
                each.architecture or "?",
                each.user or "root",
                f"{each.size / 1e6:.1f}",
                each.created[:19],
                "image.build" if each.built else "etcd",
            )
        )
    emit_table(rows)


@task(
    help={
        "image": "which image (default: the one that a new cluster in containers would run)",
        "hosts": HELP["hosts"],
        "output": HELP["output"],
    },
)
@command
def push(c: Context, image: str | None = None, hosts: str | None = None, output: str | None = None) -> None:
    """Copy an image of this machine's Docker engine to other hosts, all at the same time; no registry is needed.

    Hosts that have it already are left as they are. Where one of them cannot have it, nothing is sent to any.
    Example: image.push --hosts hosts.toml
    """
    from etcdops.docker import images
    from etcdops.docker.pushing import Source
    from etcdops.docker.pushing import push as push_image
    from etcdops.remote.fan_out import Hosts
    from etcdops.remote.inventory import read_inventory

    out = output_of(c, output)
    named = flag(c, "hosts", hosts)
    if not named:
        raise SpecError("image.push needs hosts", remedy="Name them: `image.push --hosts hosts.toml`.")
    engine = Source()
    with Hosts(read_inventory(named)) as there:
        found = images.find(engine, image=flag(c, "image", image), offline=True, progress=say)
        pushed = push_image(engine, found, list(there), progress=say)
    failed = {name: outcome.error for name, outcome in pushed.items() if outcome.error}
    if out == "json":
        rows = [
            {
                "name": name,
                "sent_bytes": outcome.checked().sent if not outcome.error else 0,
                "error": str(outcome.error or ""),
            }
            for name, outcome in pushed.items()
        ]
        emit_json({"schema": 1, "image": found, "hosts": rows})
    else:
        for name, outcome in pushed.items():
            if outcome.error:
                continue
            sent = outcome.checked().sent
            emit(f"{name}: {f'{sent / 1e6:.1f} MB sent' if sent else 'had it already'}")
    if failed:
        said = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise PartlyChanged(said, remedy="The other hosts have it now. Type the same again for the rest.")

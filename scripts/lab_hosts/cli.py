"""The command line of `scripts/lab-hosts`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from types import FrameType

from etcdops.errors import EtcdopsError, Interrupted
from scripts.lab_hosts.bed import DIRECTORY, SUBNET, Bed, HostStatus

__all__ = ["main"]

_DESCRIPTION = """\
Several Docker hosts on one Linux machine, to try etcdops' remote clusters without machines.

Each host has an address, a process space, a Docker engine and an sshd of its own. They are called h1, h2, ...;
`up` prints the path of an inventory file that names them. Needs root; `down` removes all of it.
See docs/lab-hosts.md.
"""

#: What is done to one host: the verb, the method, and the help.
_ACTS = {
    "engine-stop": ("stop_engine", "stop a host's Docker engine, and its containers with it"),
    "engine-start": ("start_engine", "start it again (the containers stay stopped)"),
    "sshd-stop": ("stop_sshd", "end a host's sshd and all sessions; containers go on"),
    "sshd-start": ("start_sshd", "start it again"),
    "power-off": ("power_off", "end everything on a host at once, as a loss of power does; its disk stays"),
    "power-on": ("power_on", "switch it on again, with its link up (the containers stay stopped)"),
}


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/lab-hosts", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", default=DIRECTORY, metavar="DIR", help="where the bed is kept (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verbs.add_parser("up", parents=[common], help="make the hosts, or bring back what is off or cut of them")
    up.add_argument("--hosts", type=int, default=3, metavar="N", help="how many (default: %(default)s)")
    up.add_argument("--subnet", default=SUBNET, metavar="NET", help="h1 gets its first address (default: %(default)s)")
    up.add_argument("--no-engine", action="store_true", help="with sshd alone, and no Docker engines")
    up.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="REF",
        help="copy this image of the machine's own engine to every host; can be given more than once",
    )
    verbs.add_parser("down", parents=[common], help="remove the hosts and all that is on them, in whatever state")
    verbs.add_parser("status", parents=[common], help="show what each host is; exit code 4 if not all is well")
    for verb, text in (
        ("cut", "pull a host's cable; or, with two hosts, have them drop what the other sends"),
        ("mend", "undo `cut` with the same names"),
    ):
        parts = verbs.add_parser(verb, parents=[common], help=text)
        parts.add_argument("host", metavar="HOST")
        parts.add_argument("other", nargs="?", default="", metavar="HOST2")
    for verb, (_, text) in _ACTS.items():
        verbs.add_parser(verb, parents=[common], help=text).add_argument("host", metavar="HOST")
    return parser


def _table(seen: list[HostStatus]) -> str:
    rows = [("HOST", "ADDRESS", "POWER", "LINK", "SSHD", "ENGINE", "CONTAINERS")]
    for each in seen:
        containers = "-" if each.containers is None else str(each.containers)
        power, sshd = "on" if each.on else "off", "running" if each.sshd else "stopped"
        rows.append((each.name, each.address, power, each.link if each.on else "-", sshd, each.engine, containers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _run(args: argparse.Namespace) -> int:
    bed = Bed(args.dir, _say)
    if args.verb == "up":
        began = time.monotonic()
        path = bed.up(args.hosts, subnet=args.subnet, with_engine=not args.no_engine, images=args.image)
        _say(f"{args.hosts} hosts are up after {time.monotonic() - began:.1f} s; their inventory:")
        print(path)
    elif args.verb == "down":
        _say("nothing is left" if bed.down() else f"there is no bed in {bed.directory}")
    elif args.verb == "status":
        seen = bed.status()
        sys.stdout.write(_table(seen))
        return 0 if all(each.well for each in seen) else 4
    elif args.verb in ("cut", "mend"):
        getattr(bed, args.verb)(args.host, args.other)
    else:
        getattr(bed, _ACTS[args.verb][0])(args.host)
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def main() -> int:
    """Run the command line; give the exit code."""
    args = _parser().parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        return _run(args)
    except Interrupted as error:
        _say(str(error))
        return error.exit_code
    except EtcdopsError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.remedy:
            sys.stderr.write(f"  -> {error.remedy}\n")
        return error.exit_code

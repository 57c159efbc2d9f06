"""Pulling an image: how far it is, an end within a time limit, and why it failed in words."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from etcdops.docker.engine import Engine
from etcdops.docker.problems import explain, first_line
from etcdops.errors import CommandMissing, EtcdopsError, Refused

__all__ = ["Layers", "pull"]

_SAY_EVERY_S = 2.0


class Layers:
    """How far a pull is, from what `docker pull` writes where it has no terminal."""

    def __init__(self) -> None:
        self.last = ""
        self._done: dict[str, bool] = {}

    def take(self, line: str) -> None:
        """Take a line in."""
        self.last = line.strip() or self.last
        if match := re.match(r"([0-9a-f]{12}): (.+)", line):
            self._done[match[1]] = match[2].startswith(("Pull complete", "Already exists"))

    def __str__(self) -> str:
        if not self._done:
            return "asking the registry"
        return f"{sum(self._done.values())} of {len(self._done)} layers"


def pull(
    engine: Engine, reference: str, *, architecture: str, timeout_s: float, progress: Callable[[str], None]
) -> str:
    """Pull an image, and give "", or why it cannot be had; says every two seconds how far it is.

    `architecture` is the engine's: DOCKER_DEFAULT_PLATFORM in the environment may ask for another.

    Raises what the engine's own failures mean (none that answers, a full disk, see `etcdops.docker.problems`), and
    ImageError for an image that is not published for the engine's architecture.
    """
    begun = time.monotonic()
    layers, over = Layers(), threading.Event()

    def tell() -> None:
        while not over.wait(_SAY_EVERY_S):
            progress(f"pulling {reference}: {layers}, {time.monotonic() - begun:.0f} s")

    progress(f"pulling {reference}")
    teller = threading.Thread(target=tell, name="pull", daemon=True)
    teller.start()
    try:
        argv = engine.argv("pull", "--platform", f"linux/{architecture}", reference)
        done = engine.host.run(argv, timeout_s=timeout_s, on_line=layers.take)
    except CommandMissing:
        raise
    except EtcdopsError:
        # The engine gives a pull up as soon as nobody waits for it.
        return f"it took longer than {timeout_s:.0f} s ({layers}{f'; last: {layers.last}' if layers.last else ''})"
    finally:
        over.set()
        teller.join()
    if done.exit_code == 0:
        progress(f"pulled {reference} in {time.monotonic() - begun:.1f} s")
        return ""
    said = done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace")
    error = explain("docker pull", engine.described, said)
    if isinstance(error, Refused) and not _registry_said(said):
        raise error
    return first_line(said) or layers.last or f"docker ended with {done.exit_code}"


def _registry_said(said: str) -> bool:
    """Whether a refusal is that of a registry, or of the way to it, in words that could be those of an engine."""
    return bool(
        re.search(r'Get "https?://|registry|pull access denied|manifest unknown|not found', said, re.IGNORECASE)
    )

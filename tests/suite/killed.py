"""Operations that are killed half-way: etcdops in a process of its own, which ends itself by SIGKILL at one instant.

Instants are counted: each entry of the operation's journal, and each write of the cluster's record, once it is on disk.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import os, signal, sys
from etcdops import facts
from etcdops.cluster import Cluster
from etcdops.operations import reconfigure
from etcdops.report.journal import Journal
from etcdops.state import Store

left = int(sys.argv[2])

def killing(original):
    def call(*args, **options):
        global left
        done = original(*args, **options)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

# Two looks a second apart are tested elsewhere.
reconfigure.GAP_S = 0.0
cluster = Cluster.attach(sys.argv[3], store=Store(sys.argv[1]))
Journal.note, Store.save = killing(Journal.note), killing(Store.save)
getattr(cluster, sys.argv[4])(*sys.argv[5:])
"""


def killed(store: Path | str, instant: int, cluster: str, operation: str, *args: str) -> bool:
    """Carry out a method of a cluster in another process, and say whether it was killed at its n-th instant.

    False means that there are not so many: it came to its end.
    """
    argv = [sys.executable, "-c", _SCRIPT, str(store), str(instant), cluster, operation, *args]
    done = subprocess.run(argv, capture_output=True, timeout=90, check=False)
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode == 0, done.stderr.decode()
    return False

"""Timers on a host that have gone off: who learns it, and who removes what tells it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from etcdops.remote.dead_man import DeadMan, armed_on, disarm_all
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import load
from scripts.lab_hosts.bed import Bed

#: An operator who dies right after he has armed a timer.
_ARM = """
import os, sys
from etcdops.remote.dead_man import DeadMan
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import load
DeadMan(SSHHost(load(sys.argv[1]).host("h1")), "of-nobody", "thor", ["true"], limit_s=1).arm()
os._exit(0)
"""


def test_who_is_told_that_a_timer_has_gone_off(bed: Bed, wait_until: Callable[..., None]) -> None:
    """Who has armed it and is still there, by disarming it; of one whose operator is dead, whoever heals after him."""
    with SSHHost(load(bed.inventory).host("h1")) as host:
        ours = DeadMan(host, "of-nobody", "ironman", ["true"], limit_s=1)
        ours.arm()
        subprocess.run([sys.executable, "-c", _ARM, str(bed.inventory)], check=True, timeout=60)
        wait_until(lambda: sorted(armed_on(host, "of-nobody")) == ["ironman.fired", "thor.fired"], 60)
        assert disarm_all(host, "of-nobody") == ["thor.fired"]
        assert armed_on(host, "of-nobody") == ["ironman.fired"]
        ours.disarm()
        assert ours.fired
        assert armed_on(host, "of-nobody") == []


def test_timers_that_have_not_gone_off_are_ended(bed: Bed) -> None:
    """Healing ends those of the cluster, whoever armed them; they have done nothing."""
    with SSHHost(load(bed.inventory).host("h1")) as host:
        timer = DeadMan(host, "others", "ironman", ["true"])
        timer.arm()
        assert disarm_all(host, "nobodys") == []
        assert disarm_all(host, "others") == ["ironman"]
        timer.disarm()
        assert not timer.fired

"""Traffic against a cluster while a drill runs: a process of its own, and the handle by which a drill holds it.

The process is in a session of its own and shares nothing with the drill but two pipes: what the drill does (spawn
commands, wait, draw) does not delay an operation, and when the drill dies, however it dies, the traffic ends by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from etcdops.errors import ClusterError, StateError, WaitTimeout
from etcdops.workload.plan import Closed, Counts, Progress, Summary, TrafficPlan, failover_rule

__all__ = ["Closed", "Counts", "Progress", "Summary", "Traffic", "TrafficPlan", "failover_rule"]

_TAIL_LINES = 10
_END_S = 2.0
#: How long the end of the process may take beyond the wait for the watches, and beyond that for each operation, since
#: the files are compressed.
_FILES_S = 10.0
_PACK_S = 1e-4


class Traffic:
    """Traffic that runs. Made by `Traffic.start`; as a context manager it leaves no process behind.

    Every method raises ClusterError, with the end of the process's log, when the process has died of itself.
    """

    def __init__(self, process: subprocess.Popen[bytes], plan: TrafficPlan, log_path: Path) -> None:
        self.plan = plan
        self.log_path = log_path
        self._process = process
        self._changed = threading.Condition()
        self._progress = Progress(0, {name: Counts() for name in (*plan.streams, *plan.client_streams)})
        self._summary: Summary | None = None
        self._closed: Closed | None = None
        self._silent = False
        self._ending = False
        self._reader = threading.Thread(target=self._read, name="etcdops-traffic", daemon=True)
        self._reader.start()

    @classmethod
    def start(cls, plan: TrafficPlan, log_path: str | os.PathLike[str]) -> Traffic:
        """Start a process that sends `plan`, with what it has to say of itself appended to `log_path`.

        It returns at once; the first operation goes out some 0.2 s later. Raises StateError when the log cannot be
        written.
        """
        log_path = Path(log_path).absolute()
        plan = _with_absolute_paths(plan)
        # From "/", so that no file of the directory we happen to be in is imported instead of a library.
        package_root = Path(__file__).resolve().parents[2]
        search = [
            str(package_root),
            *(os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p),
        ]
        try:
            with open(log_path, "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "etcdops.workload.traffic"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
                    start_new_session=True,
                )
        except OSError as error:
            raise StateError(
                f"cannot start the traffic, its log being {log_path}: {error.strerror}",
                remedy="Free some space, or choose another state directory.",
            ) from error
        traffic = cls(process, plan, log_path)
        try:
            traffic._tell(msgspec.json.encode(plan) + b"\n")
        except BaseException:
            traffic.kill()
            raise
        return traffic

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def progress(self) -> Progress:
        """Give the newest report, at most some 50 ms old; its `at_ns` is 0 before the first one."""
        self._check_alive()
        with self._changed:
            return self._progress

    def last_ok_ns(self, stream: str) -> int:
        """Give when the latest acknowledgement of `stream` came (monotonic ns), 0 if none did."""
        return self.progress().streams[stream].last_ok_return_ns

    def wait_running(self, timeout_s: float, streams: Iterable[str] | None = None) -> Progress:
        """Wait until each of `streams` (default: all probes) has had an acknowledgement; give the report that shows it.

        Raises WaitTimeout naming the streams that had none.
        """
        return self.wait_acknowledged(0, timeout_s, streams)

    def wait_acknowledged(self, after_ns: int, timeout_s: float, streams: Iterable[str] | None = None) -> Progress:
        """Wait until each of `streams` (default: all probes) has had a *call* made after `after_ns` acknowledged.

        Such an operation proves service after that instant; an acknowledgement alone might answer an earlier call.
        Raises WaitTimeout naming the streams that had none.
        """
        wanted = tuple(streams) if streams is not None else self.plan.streams
        end = time.monotonic() + timeout_s
        with self._changed:
            while True:
                waiting = [name for name in wanted if self._progress.streams[name].last_ok_call_ns <= after_ns]
                if not waiting:
                    return self._progress
                left = end - time.monotonic()
                if self._silent or left <= 0:
                    break
                self._changed.wait(left)
        self._check_alive()
        raise WaitTimeout(
            f"no operation was acknowledged within {timeout_s:.1f} s on {', '.join(waiting)}",
            remedy=f"Look at the members' logs, and at {self.plan.output}.",
        )

    def stop(self, timeout_s: float = 10.0) -> Summary:
        """Stop sending, wait for the answers that are due, close the record, end the process; give its summary.

        Beyond the plan's deadline it waits at most `timeout_s`, then kills the process and raises WaitTimeout. A second
        time it gives the same summary. The watches end without waiting for anything: `stop_sending` and `close` do
        better by them.
        """
        summary = self.stop_sending(timeout_s)
        self.close(timeout_s=0.0, compress=False)
        return summary

    def stop_sending(self, timeout_s: float = 10.0) -> Summary:
        """Stop sending, wait for the answers that are due, and give the summary; the watches go on for `close` to end.

        `close` must follow within a minute. Beyond the plan's deadline it waits at most `timeout_s`, then kills the
        process and raises WaitTimeout. A second time it gives the same summary.
        """
        if self._summary is None:
            self._tell(b"stop\n")
            self._wait_for(lambda: self._summary, self.plan.deadline_s + timeout_s, "stop")
        assert self._summary is not None
        return self._summary

    def close(self, until_revision: int = 0, timeout_s: float = 10.0, *, compress: bool = True) -> Closed:
        """Wait until every watch has delivered all up to `until_revision`, close the files, end the process.

        Waits for the watches at most `timeout_s` (60 at most), whereupon the answer says which have not. `compress`
        replaces the files by compressed ones, which are read alike. Raises WaitTimeout when the process does not end,
        and has then killed it. A second time it gives the same answer.
        """
        if self._closed is None:
            summary = self.stop_sending()
            how = " compress" if compress else ""
            self._tell(f"close {until_revision} {timeout_s}{how}\n".encode())
            self._ending = True
            sent = sum(counts.sent for counts in summary.streams.values())
            self._wait_for(lambda: self._closed, timeout_s + _FILES_S + sent * _PACK_S, "end")
        self.kill()
        assert self._closed is not None
        return self._closed

    def _wait_for(self, told: Callable[[], object], wait_s: float, what: str) -> None:
        end = time.monotonic() + wait_s
        with self._changed:
            while told() is None and not self._silent and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            silent = self._silent
        if told() is not None:
            return
        self.kill()
        if silent:
            raise self._died()
        raise WaitTimeout(f"the traffic did not {what} within {wait_s:.1f} s and was killed", remedy=self._where())

    def kill(self) -> None:
        """End the process, if it runs, within about 2 s; the operations under way are recorded as abandoned.

        Without its input the process ends by itself and closes the record; it is killed if it does not.
        """
        self._ending = True
        process = self._process
        if process.stdin:
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        if process.stdout:
            process.stdout.close()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            # It has ended; the reader says how.
            pass

    def _read(self) -> None:
        """Keep the newest report, until the process closes its output."""
        assert self._process.stdout is not None
        decode = msgspec.json.Decoder(Progress | Summary | Closed).decode
        for line in self._process.stdout:
            message = decode(line)
            with self._changed:
                if isinstance(message, Summary):
                    self._summary = message
                    self._progress = Progress(time.monotonic_ns(), message.streams, message.kinds)
                elif isinstance(message, Closed):
                    self._closed = message
                else:
                    self._progress = message
                self._changed.notify_all()
        with self._changed:
            self._silent = True
            self._changed.notify_all()

    def _check_alive(self) -> None:
        if self._silent and not self._ending:
            if self._summary is not None:
                raise ClusterError(
                    f"the traffic has ended by itself after its {self.plan.max_s:.0f} s", remedy=self._where()
                )
            raise self._died()

    def _died(self) -> ClusterError:
        try:
            code: int | None = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        try:
            tail = self.log_path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            tail = []
        said = "\n".join(tail) or "(it wrote nothing)"
        return ClusterError(
            f"the traffic process {self.pid} {how} before it was stopped:\n{said}", remedy=self._where()
        )

    def _where(self) -> str:
        return f"Its log is {self.log_path}; what it recorded until then is in {self.plan.output}."


def _with_absolute_paths(plan: TrafficPlan) -> TrafficPlan:
    tls = plan.tls
    if tls:
        tls = msgspec.structs.replace(
            tls,
            ca=os.path.abspath(tls.ca),
            client_cert=os.path.abspath(tls.client_cert),
            client_key=os.path.abspath(tls.client_key),
        )
    return msgspec.structs.replace(plan, output=os.path.abspath(plan.output), tls=tls)


if __name__ == "__main__":
    from etcdops.workload.sender import main

    main()

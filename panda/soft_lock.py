"""Lock by files, on file systems that have no locks.

The holders of a lock are the files `1`, `2`, … of one folder, and the file with the highest number is the lock. A
process takes the lock by creating the next number, which exactly one process can do, if the last holder released its
file or is gone. It writes only to its own file and removes lower numbers only, so that two takeovers cannot meet. The
last file stays.

The holder is gone if this machine runs its process no more. A holder on another machine is gone if its file was not
touched for `STALE_SECONDS`, by the clock, and for `WATCH_SECONDS` while this process watched it.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError

from panda.errors import LockedError, PandaError
from panda.stored import Plain

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
WATCH_SECONDS = 60.0
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 1.0
"""How long a process waits for a lock before it says so."""
_RELEASED = b"released\n"


class Holder(Plain, frozen=True):
    """A process that holds a lock.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        since: When it took the lock, by the clock of its machine.
        machine: The boot and the namespaces in which `pid` has a meaning, empty if unknown.
        started: Start of the process in ticks since the boot, None if unknown.
    """

    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    since: str
    machine: str
    started: int | None

    @classmethod
    def describe_self(cls) -> Holder:
        """Return this process as a holder from now on."""
        pid, now = os.getpid(), datetime.now().astimezone().isoformat(" ", "seconds")
        stat = _read_process(pid)
        started = stat.started if stat else None
        return cls(host=socket.gethostname(), pid=pid, since=now, machine=_identify_machine(), started=started)

    @classmethod
    def parse(cls, record: bytes) -> Holder | None:
        """Return the holder in a record, or None for any other bytes."""
        with contextlib.suppress(ValidationError):
            return cls.model_validate_json(record)
        return None

    def format_record(self) -> bytes:
        """Return the record of the holder, one line of JSON."""
        return self.model_dump_json().encode() + b"\n"

    @property
    def is_here(self) -> bool:
        """Whether the process runs, or ran, among the processes that this one sees."""
        return self.machine == _identify_machine() != ""

    @property
    def has_ended(self) -> bool:
        """Whether a process that `is_here` certainly runs no more; its number may belong to a later process."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is the process of another user
        stat = _read_process(self.pid)
        return stat is not None and (stat.is_dead or (self.started is not None and stat.started != self.started))

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host} since {self.since}"


class _Process(NamedTuple):
    is_dead: bool
    started: int


@functools.cache
def _identify_machine() -> str:
    """Return what must be equal for a process number to mean the same process; empty if the system cannot say it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        spaces = [os.readlink(path) for kind in ("pid", "time") if os.path.lexists(path := f"/proc/self/ns/{kind}")]
    except OSError:
        return ""
    return " ".join([boot, *spaces])


def _read_process(pid: int) -> _Process | None:
    """Return the state of a process, and its start in ticks since the boot; None if the system does not show it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rfind(b")") + 1 :].split()  # the name of a program can have spaces and parentheses
    return _Process(fields[0] in (b"Z", b"X"), int(fields[19]))


def interrupt_main_thread() -> None:
    """Interrupt the main thread as Ctrl-C does; by SIGTERM in a process that a shell started in the background.

    Shells without job control let such a process ignore SIGINT.
    """
    number = signal.SIGTERM if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else signal.SIGINT
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:  # Windows
        _thread.interrupt_main(number)


@contextlib.contextmanager
def hold_soft_lock(folder: Path, name: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock whose holders are files in `folder`, which is made.

    If another process takes over the lock of this one, for example because the machine was suspended, this process is
    interrupted as by Ctrl-C.

    Args:
        folder: The folder of the lock.
        name: What is locked, for messages.
        wait: Wait for another holder, instead of raising LockedError.

    Raises:
        LockedError: If another process holds the lock.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise PandaError(f"{folder} is no plain folder, and a lock is written there: move it, or use another folder")
    folder.mkdir(exist_ok=True)
    claim = _Claim(folder, name)
    claim.take(wait=wait)
    try:
        yield
    finally:
        claim.release()


def is_soft_lock_held(folder: Path, name: Path) -> bool:
    """Return whether a process holds a lock of `hold_soft_lock`, by its last file; the lock is not taken."""
    return _Claim(folder, name).look().kind == "held"


@dataclass(frozen=True)
class _State:
    """The state of a lock by its last file, and who holds it or held it last."""

    kind: Literal["free", "held", "silent"]
    holder: str = ""
    was_released: bool = False


class _Claim:
    """One attempt to hold a lock, until it is released."""

    def __init__(self, folder: Path, name: Path) -> None:
        self._folder, self._name, self._pid = folder, name, os.getpid()
        self._path, self._handle = folder, -1
        self._seen = (folder, 0.0)  # the last file and its time of change
        self._seen_since = 0.0
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock heartbeat", daemon=True)

    def look(self) -> _State:
        """Return the state of the lock, without taking it."""
        return self._judge(self._folder / str(self._find_last()))

    def take(self, *, wait: bool) -> None:
        """Take the lock."""
        said, started = "", time.monotonic()
        while True:
            number = self._find_last()
            state = self._judge(self._folder / str(number))
            if state.kind == "free" and self._create(number + 1):
                break
            if state.kind == "held" and not wait:
                raise LockedError(f"{self._name}: another run holds its lock ({state.holder})")
            if state.kind not in ("free", said) and time.monotonic() - started > PATIENCE_SECONDS:
                said = state.kind
                doing = "waiting" if said == "held" else f"no sign of life from it, watching for {WATCH_SECONDS:.0f} s"
                log.warning("%s: another run is at work on it; %s (%s)", self._name, doing, state.holder)
            time.sleep(POLL_SECONDS)
        if not state.was_released:
            log.warning("%s: took over the lock of a run that has ended (%s)", self._name, state.holder)
        self._heart.start()

    def release(self) -> None:
        """Release the lock. A forked child does not hold it."""
        if os.getpid() != self._pid:
            return
        self._released.set()
        self._heart.join()
        try:
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, _RELEASED)
            os.ftruncate(self._handle, len(_RELEASED))
        except OSError as error:  # for example, the file was removed on another machine
            log.warning("%s: its lock %s cannot be written (%s)", self._name, self._path, error.strerror)
        finally:
            os.close(self._handle)

    def _find_last(self) -> int:
        """Return the highest number, 0 if there is none."""
        return max((int(name) for name in os.listdir(self._folder) if name.isdecimal()), default=0)

    def _judge(self, last: Path) -> _State:
        if last.name == "0":
            return _State("free", was_released=True)
        try:
            changed, record = last.stat().st_mtime, last.read_bytes()
        except FileNotFoundError:
            return _State("free", was_released=True)  # a higher number exists, so that none is created
        if record.startswith(_RELEASED):
            return _State("free", was_released=True)
        holder = Holder.parse(record)
        if holder and holder.is_here:
            return _State("free" if holder.has_ended else "held", str(holder))
        who = f"{holder or 'unknown'}; a lock ends {STALE_SECONDS / 60:.0f} minutes after the last sign of life"
        is_alive = time.time() - changed <= STALE_SECONDS
        if self._seen != (last, changed):
            is_alive |= self._seen[0] == last  # it was touched since, by a machine whose clock differs
            self._seen, self._seen_since = (last, changed), time.monotonic()
        if is_alive:
            return _State("held", who)
        return _State("silent" if time.monotonic() - self._seen_since < WATCH_SECONDS else "free", who)

    def _create(self, number: int) -> bool:
        """Create the file of a number, and return whether it is the lock."""
        path = self._folder / str(number)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        # If this fails, the file stays, because a number must not be free again before a higher one exists.
        os.write(handle, Holder.describe_self().format_record())
        if self._find_last() != number:  # the number was free again, because a later holder had removed its file
            os.close(handle)
            path.unlink(missing_ok=True)
            return False
        self._path, self._handle = path, handle
        for lower in os.listdir(self._folder):
            if lower.isdecimal() and int(lower) < number:
                (self._folder / lower).unlink(missing_ok=True)
        return True

    def _beat(self) -> None:
        """Touch the file until the lock is released or lost."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                log.error("%s: another run took over the lock of this one, which stops", self._name)
                interrupt_main_thread()
                return
            except OSError as error:  # a network file system may be away for a while
                log.warning("%s: its lock %s cannot be touched (%s)", self._name, self._path, error.strerror)

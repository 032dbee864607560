"""Work in a process of its own, beneath one that lives to tell how it ended.

Ray's core ends its whole process where the head of the cluster dies: no exception, no exit code of ours. So the process
is forked before Ray is loaded; the child goes on with the work, and the parent waits.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys

from miner.errors import ProviderStop

PASSED_ON = (signal.SIGINT, signal.SIGTERM)
KERNEL = 0x80  # si_code of a signal that the terminal sent, which the child got as well
PARENT_DEATH = 1  # PR_SET_PDEATHSIG


def fork(what: str, again: str) -> None:
    """Return in a child, which does the work. The parent never returns: it ends as the child ended.

    Raises SystemExit in the parent, with the child's exit code; ProviderStop where the child was ended from outside, by
    a signal or by code that is none of Python's. what: that which may have ended it; again: the command that goes on.
    Signals sent to the parent reach the child. Where the platform is not Linux, the work stays in this process.
    """
    if sys.platform != "linux":
        return
    heard = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would leave no exit code to read
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*heard, signal.SIGCHLD})
    told, tell = os.pipe()
    parent = os.getpid()
    if child := os.fork():
        os.close(tell)
        _end(_wait(child, heard), bool(os.read(told, 1)), what, again)
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.close(told)
    atexit.register(os.write, tell, b".")  # Python's own end, whatever the exit code
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(child: int, heard: set[signal.Signals]) -> int:
    """Pass signals on until the child is gone; its exit code, or minus the signal that ended it."""
    while True:
        signalled = signal.sigwaitinfo({*heard, signal.SIGCHLD})
        if signalled.si_signo != signal.SIGCHLD:
            if signalled.si_code != KERNEL:
                os.kill(child, signalled.si_signo)
            continue
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)


def _end(code: int, by_itself: bool, what: str, again: str) -> None:
    if -code in PASSED_ON:  # what reached it before it could end in order
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    if by_itself:
        raise SystemExit(code)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    cause = "out of memory, or killed by hand" if code == -signal.SIGKILL else f"{what} is gone"
    raise ProviderStop(f"the process that did the work was ended ({how}): {cause}; what is done is kept. {again}")

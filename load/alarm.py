"""Waiting until a moment, to the microsecond: gevent's own timers are late by up to a millisecond, epoll's unit.

Only the generator imports this: it belongs to gevent's world.
"""

import ctypes
import os
import sys
import time

import gevent

CLOCK_MONOTONIC = 1  # what time.monotonic() reads, on Linux
ABSOLUTE = 1  # TFD_TIMER_ABSTIME
FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC are these
READ = 1
NS = 1_000_000_000


class Moment(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Setting(ctypes.Structure):
    """`struct itimerspec`: again and again after so long, and when first."""

    _fields_ = (("interval", Moment), ("value", Moment))


class Alarm:
    """Rings once at a moment; of one greenlet at a time. Where there is no timerfd(2), gevent's own timers do."""

    def __init__(self) -> None:
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, FLAGS)
        if self._fd >= 0:
            self._hub = gevent.get_hub()
            self._readable = self._hub.loop.io(self._fd, READ)

    def wait_until(self, at_s: float) -> None:
        """Let others go on until `time.monotonic()` is `at_s`; where that has passed, they have their turn as well.

        Raises OSError where the kernel takes no such time.
        """
        if self._fd < 0 or at_s <= time.monotonic():
            gevent.sleep(max(0.0, at_s - time.monotonic()))
            return
        seconds, nanoseconds = divmod(int(at_s * NS), NS)
        wanted = Setting(Moment(0, 0), Moment(seconds, nanoseconds))
        if self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(wanted), None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._hub.wait(self._readable)
        os.read(self._fd, 8)

    def close(self) -> None:
        """The file behind it."""
        if self._fd >= 0:
            self._readable.close()
            os.close(self._fd)
            self._fd = -1

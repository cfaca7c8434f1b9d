"""The one way to wait: a deadline, an interval, what is awaited, and the last state seen."""

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

Value = TypeVar("Value")


class NotYet(Exception):
    """Raised by a probe: not so now; the message is the state that was seen."""


class DeadlineExceeded(Exception):
    """What was awaited did not come in time; carries and names the last state seen."""

    def __init__(self, what: str, waited_s: float, last_state: str) -> None:
        self.what = what
        self.last_state = last_state
        super().__init__(f"{what}: not so after {waited_s:.0f} s; last seen: {last_state}")


def poll(
    what: str,
    probe: Callable[[], Value | None],
    *,
    timeout_s: float,
    interval_s: float = 0.5,
    sleep: Callable[[float], None] = time.sleep,
) -> Value:
    """Call `probe` until it returns something other than None or False, and return that.

    A probe says "not yet" by returning None or False, or by raising NotYet with the state it saw; any other
    exception ends the wait. Raises DeadlineExceeded after `timeout_s`.
    """

    def attempt() -> Value:
        value = probe()
        if value is None or value is False:
            raise NotYet("nothing")
        return value

    retrying = Retrying(
        stop=stop_after_delay(timeout_s),
        wait=wait_fixed(interval_s),
        retry=retry_if_exception_type(NotYet),
        sleep=sleep,
    )
    try:
        return retrying(attempt)
    except RetryError as error:
        last = error.last_attempt.exception()
        raise DeadlineExceeded(what, timeout_s, str(last)) from last

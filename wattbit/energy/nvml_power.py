"""Energy of GPUs that have no counter: a thread samples instant power, the trapezoid rule integrates it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from wattbit.errors import MeterError

_NS_PER_S = 1e9
_LONGEST_GAP_PERIODS = 10
"""Power between two samples further apart than this was not seen."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at_ns: int
    watts: tuple[float, ...]


class PowerSampler:
    """Samples the power of several devices until it is stopped.

    Args:
        read_watts: Reads the power of every device, watts; may raise.
        period_s: Time between samples, seconds.
        clock_ns: Monotonic clock, nanoseconds.
        pause: Waits up to a time in seconds, and returns True as soon as the event is set.
    """

    def __init__(
        self,
        read_watts: Callable[[], Sequence[float]],
        period_s: float,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        pause: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._read_watts = read_watts
        self._period_s = period_s
        self._clock_ns = clock_ns
        self._pause = pause
        self._samples: list[_Sample] = []
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattbit-power", daemon=True)

    def start(self) -> None:
        """Take the first sample, here, and begin to sample."""
        self._take()
        self._thread.start()

    def stop(self) -> tuple[float, ...]:
        """Take the last sample, and return each device's energy, joules.

        Raises:
            MeterError: If sampling failed, hung or left a gap, or there was no time for two samples.
        """
        self._end_thread()
        if self._error is None:
            self._guarded(self._take)
        return integrate(self._samples_or_error(), self._period_s)

    def abandon(self) -> None:
        """Stop sampling; there is no result."""
        self._end_thread()

    def _end_thread(self) -> None:
        self._stop.set()
        self._thread.join(timeout=max(1.0, 10 * self._period_s))

    def _samples_or_error(self) -> list[_Sample]:
        if self._error is not None:
            raise MeterError(
                f"reading the power failed in the window ({self._error}); check the device with nvidia-smi"
            ) from None
        if self._thread.is_alive():
            raise MeterError("reading the power hangs; check the device with nvidia-smi")
        return self._samples

    def _run(self) -> None:
        self._guarded(self._sample_until_stopped)

    def _sample_until_stopped(self) -> None:
        while not self._pause(self._stop, self._period_s):
            self._take()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error  # whatever it is, `stop` reports it

    def _take(self) -> None:
        watts = tuple(self._read_watts())
        self._samples.append(_Sample(self._clock_ns(), watts))


def integrate(samples: Sequence[_Sample], period_s: float) -> tuple[float, ...]:
    """The area under each device's power by the trapezoid rule, joules.

    Raises:
        MeterError: If there are fewer than two samples, time went back, or two lie too far apart.
    """
    if len(samples) < 2 or samples[-1].at_ns == samples[0].at_ns:
        raise MeterError(
            f"{len(samples)} power samples in the window, needs 2 apart in time; repeat the work more often"
        )
    energies_j = [0.0] * len(samples[0].watts)
    for before, after in pairwise(samples):
        seconds = (after.at_ns - before.at_ns) / _NS_PER_S
        if seconds < 0:
            raise MeterError(f"the clock went back by {-seconds:g} s between power samples; measure it again")
        if seconds > _LONGEST_GAP_PERIODS * period_s:
            raise MeterError(
                f"no power sample for {seconds:.3g} s, {_LONGEST_GAP_PERIODS * period_s:g} s is the longest "
                "gap that can be bridged; free the CPU, or raise energy.meter.sampling_s"
            )
        for device, (first_w, second_w) in enumerate(zip(before.watts, after.watts, strict=True)):
            energies_j[device] += 0.5 * (first_w + second_w) * seconds
    return tuple(energies_j)

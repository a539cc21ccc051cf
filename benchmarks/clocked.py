"""A denoiser with a clock, for the benchmarks beside it."""

import time


class Clocked:
    """A denoiser that adds up the seconds spent inside."""

    def __init__(self, denoiser):
        self.denoiser, self.seconds = denoiser, 0.0

    def __call__(self, x_t, t):
        began = time.perf_counter()
        result = self.denoiser(x_t, t)
        self.seconds += time.perf_counter() - began
        return result

"""A function with a clock, for the benchmarks beside it."""

import time


class Clocked:
    """A function (a denoiser, say) that adds up the seconds spent inside."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments):
        began = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - began
        return result

"""Work on threads: in order, nested, and with its exceptions."""

import threading

import pytest

from ddpm_codec import parallel


@pytest.fixture(autouse=True)
def _cores(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 3)


def test_results_stand_in_the_order_of_the_items():
    together = threading.Barrier(3, timeout=20)  # passes only if three run at once

    def slowest_first(item):
        together.wait()
        return 10 * item

    assert parallel.parallel_map(slowest_first, range(3)) == [0, 10, 20]
    assert parallel.parallel_map(abs, []) == []


def test_a_thread_of_its_own_starts_no_others():
    """Blocks inside pictures: threads that wait for threads of the same cores gain nothing."""

    def names(_):
        inside = parallel.parallel_map(lambda _: threading.current_thread().name, range(4))
        return set(inside) == {threading.current_thread().name}

    assert all(parallel.parallel_map(names, range(5)))


def test_the_first_exception_is_raised():
    def fail(item):
        raise ValueError(str(item))

    with pytest.raises(ValueError, match="0"):
        parallel.parallel_map(fail, range(3))

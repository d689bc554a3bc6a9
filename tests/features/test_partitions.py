import os

import pytest

from features.partitions import ONE_THREAD, Workers, parse_workers


def settings_of_worker(place):
    return {"place": place, "process": os.getpid(), **{n: os.environ.get(n) for n in ONE_THREAD}}


def fails(place):
    raise ValueError(f"task {place} cannot be done")


def test_results_come_in_the_order_of_the_tasks():
    with Workers("local:1") as workers:
        results = list(workers.run(settings_of_worker, [(place,) for place in range(5)]))
    assert [result["place"] for result in results] == list(range(5))
    assert {result["process"] for result in results} == {os.getpid()}


def test_workers_get_one_thread_each_and_this_process_keeps_its_own():
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    with Workers("local:2") as workers:
        results = list(workers.run(settings_of_worker, [(0,), (1,), (2,)]))
        with pytest.raises(ValueError, match="task 7 cannot be done"):
            list(workers.run(fails, [(7,), (8,)]))
    assert all({n: r[n] for n in ONE_THREAD} == ONE_THREAD for r in results)
    assert os.getpid() not in {result["process"] for result in results}
    assert {name: os.environ.get(name) for name in ONE_THREAD} == before


@pytest.mark.parametrize("given", ["local:0", "local:two", "threads:2", "ray:", ""])
def test_workers_that_do_not_exist_are_refused(given):
    with pytest.raises(ValueError, match="must be local:N, ray or ray:N"):
        parse_workers(given)


def test_without_a_number_there_are_as_many_as_processors():
    assert parse_workers("local") == ("local", os.cpu_count())
    assert parse_workers("ray") == ("ray", None) and parse_workers("ray:2") == ("ray", 2)

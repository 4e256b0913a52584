# SPDX-License-Identifier: Apache-2.0
"""The interpreter's lock, threads of the module and threads of the caller."""

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from reference import relative_error
from test_cache import filled

import innerkv


@pytest.fixture
def threads():
    before = innerkv.get_num_threads()
    yield innerkv.set_num_threads
    innerkv.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(rng, threads, count):
    cache, sequence, _, _, q = filled(rng, "base", tokens=1500)
    threads(1)
    alone = cache.attend(0, sequence, q[-3:])
    threads(count)
    assert innerkv.get_num_threads() == count
    again, other, *_ = filled(np.random.default_rng(7), "base", tokens=1500)
    assert relative_error(again.attend(0, other, q[-3:]), alone) < 1e-4


def at_once(function, arguments):
    """Results of a call for each argument, every one in a thread of its own."""
    with ThreadPoolExecutor(len(arguments)) as callers:
        return list(callers.map(function, arguments))


def work(seed, rounds):
    """Appends and attends; returns all outputs."""
    cache, sequence, k, v, q = filled(np.random.default_rng(seed), "base", tokens=300)
    outs = []
    for i in range(rounds):
        part = slice(i, i + 1)
        cache.append(0, sequence, k[part], v[part], q[part])
        outs.append(cache.attend(0, sequence, q[part]))
    return np.concatenate(outs)


def test_two_caches_from_two_threads(threads):
    threads(1)
    expected = [work(seed, 200) for seed in (1, 2)]
    threads(2)
    for result, right in zip(at_once(lambda seed: work(seed, 200), (1, 2)), expected):
        assert relative_error(result, right) < 1e-4


def share(cache, seed):
    """What one of several callers does: a sequence of rows of its own, an output every 10 tokens."""
    rng = np.random.default_rng(seed)
    k, v, q = (rng.standard_normal((400, heads, 64)).astype(np.float32) for heads in (2, 2, 4))
    sequence = cache.create()
    outs = []
    for first in range(0, 400, 10):
        part = slice(first, first + 10)
        cache.append(0, sequence, k[part], v[part], q[part])
        outs.append(cache.attend(0, sequence, q[part]))
    return np.concatenate(outs)


def test_one_cache_from_four_threads(threads):
    """Each caller finds its own rows, as if it were alone."""
    threads(2)
    cache = innerkv.Cache(1, 2, 64, "base", max_sequences=4, max_tokens=8192)
    outs = at_once(lambda seed: share(cache, seed), range(4))
    threads(1)
    alone = innerkv.Cache(1, 2, 64, "base", max_sequences=4, max_tokens=8192)
    for i, out in enumerate(outs):
        assert relative_error(out, share(alone, i)) < 1e-4
    assert relative_error(outs[1], outs[0]) > 0.5
    assert cache.nbytes == alone.nbytes


def test_python_goes_on_meanwhile(rng):
    """While this thread computes, another runs Python: it could not, if the interpreter's lock were held."""
    cache, sequence, _, _, q = filled(rng, "base", tokens=4000, chunk=500)
    turns = 0
    stop = False

    def count():
        nonlocal turns
        while not stop:
            turns += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to give the lock up
    counter = threading.Thread(target=count)
    try:
        counter.start()
        before = turns
        cache.attend(0, sequence, q[-500:], exact=True)
        after = turns
    finally:
        stop = True
        sys.setswitchinterval(interval)
        counter.join()
    assert after > before


def test_python_goes_on_while_pages_are_waited_for(rng):
    """A copy of pages waits for the cache, which attends for another thread, without the interpreter's lock."""
    cache, sequence, _, _, q = filled(rng, "base", tokens=4000, chunk=500)
    outs, turns, stop = [], 0, False

    def count():
        nonlocal turns
        while not stop:
            turns += 1
            time.sleep(0.001)

    def attend():
        outs.append(cache.attend(0, sequence, np.concatenate([q[-500:]] * 3, 1), exact=True))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    counter, attender = threading.Thread(target=count), threading.Thread(target=attend)
    try:
        counter.start()
        attender.start()
        while not outs and attender.is_alive() and turns < 5:
            time.sleep(0.001)  # until it attends
        assert not outs, "attention is over before anything waits for it"
        before = turns
        pages = cache.pages(0, sequence)
        after = turns
    finally:
        stop = True
        sys.setswitchinterval(interval)
        counter.join()
        attender.join()
    assert after > before and len(pages) > 100


LIMITED = """
import resource, innerkv
before = {before}
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), resource.RLIM_INFINITY))  # room for some stacks of 8 MB
try:
    {call}
except RuntimeError as error:
    print(error)
print("goes on")
innerkv.set_num_threads(2)
print(innerkv.get_num_threads())
"""


@pytest.mark.parametrize(
    ("before", "call", "threads"),
    [("innerkv.get_num_threads()", "innerkv.set_num_threads(1024)", "2"), ("0", "innerkv.get_num_threads()", "1024")],
)
def test_fewer_threads_than_asked(before, call, threads):
    """The system has no more: an error, and the interpreter goes on, with fewer where it is told so."""
    code = LIMITED.format(before=before, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"INNERKV_NUM_THREADS": threads})
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert re.search(r"the system starts \d+ of 1024 threads .*to fewer", first), first
    assert rest == ["goes on", "2"]


def test_set_num_threads_starts_no_others():
    """Not those of the environment, which it replaces."""
    code = LIMITED.format(before="0", call="innerkv.set_num_threads(2)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"INNERKV_NUM_THREADS": "1024"})
    assert done.stdout.split() == ["goes", "on", "2"], done.stderr


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(rng, threads):
    threads(3)
    cache, sequence, _, _, q = filled(rng, "base", tokens=1000)
    expected = cache.attend(0, sequence, q[-1:])
    child = os.fork()
    if child == 0:
        same = np.array_equal(cache.attend(0, sequence, q[-1:]), expected)
        os._exit(0 if same and innerkv.get_num_threads() == 3 else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert status == 0

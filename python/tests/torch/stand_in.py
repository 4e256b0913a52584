# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a device cache, on the CPU's: what innerkv/device.py and transformers/device.py do with one is tested
without a device. Tests on a device are in python/tests/device."""

from types import SimpleNamespace

import torch

import innerkv
from innerkv import _core
from innerkv.transformers import cache as transformers_cache


class StandIn:
    """_core.SharedDeviceCache. A slot is a sequence of a cache on the CPU."""

    def __init__(self, config, index):
        assert index == 0
        self.host = _core.SharedCache(config)
        self.sequences = {}
        self.asking = {}
        self.reserved = {}
        self.refused = {}
        self.max_append = 128

    @staticmethod
    def plan(config):
        return 77  # unlike the CPU's

    def create(self):
        slot = next(i for i in range(1000) if i not in self.sequences)
        self.sequences[slot] = self.host.create()
        return slot

    def remove(self, slot):
        self.host.remove(self.sequences.pop(slot))
        self.reserved.pop(slot, None)
        self.refused.pop(slot, None)

    def fork(self, slot):
        new = self.create()
        self.host.remove(self.sequences[new])
        self.sequences[new] = self.host.fork(self.sequences[slot])
        return new

    def reorder(self, sources):
        for slot in set(self.sequences) - set(sources):
            self.host.remove(self.sequences[slot])
        used, new = set(), []
        for source in sources:
            new.append(self.host.fork(self.sequences[source]) if source in used else self.sequences[source])
            used.add(source)
        self.sequences = dict(enumerate(new))

    def truncate(self, slots, lengths):
        self.host.truncate([self.sequences[slot] for slot in slots], lengths)

    def reserve(self, slot, length):
        self.reserved[slot] = length

    def take(self, layer, first_slot, count, tokens, stream):
        lengths = {slot: self.length(slot, layer) + tokens for slot in range(first_slot, first_slot + count)}
        for slot, length in lengths.items():
            if length > self.reserved.get(slot, 0):
                self.host.reserve(self.sequences[slot], tokens)  # OutOfPages where a device has none
        for slot, length in lengths.items():
            self.reserved[slot] = max(length, self.reserved.get(slot, 0))

    def length(self, slot, layer=0):
        return self.host.length(self.sequences[slot], layer)

    def usage(self):
        return self.host.usage()

    def bytes(self):
        return self.host.usage()["bytes_reserved"]

    def verify(self):
        """Raises what appends refused, the lowest slot's; layers of such slots are then as long as the shortest."""
        refused, self.refused = sorted(self.refused.items()), {}
        for slot, _ in refused:
            self.truncate([slot], [min(self.length(slot, layer) for layer in self.asking)])
        if refused:
            raise refused[0][1]

    def pages(self, slot, layer):
        return self.host.pages(self.sequences[slot], layer)

    def query_limit(self, tokens):
        return 1 if tokens == 1 else self.max_append

    def prepare(self, heads, scaling, softcap, window):
        self.prepared = heads, scaling, softcap, window

    def append(self, layer, first_slot, k, v, q, counts, stream):
        k, v, q = (None if rows is None else torch.from_dlpack(rows) for rows in (k, v, q))
        counts = [k.shape[1]] * len(k) if counts is None else torch.from_dlpack(counts).tolist()
        assert k.shape[1] <= self.max_append
        self.asking[layer] = k.shape[1]
        for row, count in enumerate(counts):
            slot = first_slot + row
            assert self.length(slot, layer) + count <= self.reserved[slot]
            if count and slot not in self.refused:
                rows = [None if all_rows is None else all_rows[row : row + 1] for all_rows in (k, v, q)]
                try:
                    self.host.append(layer, [self.sequences[slot]], *rows, [(0, count)])
                except ValueError as error:  # verify() tells
                    self.refused[slot] = error
        self.counts = [0 if first_slot + row in self.refused else count for row, count in enumerate(counts)]

    def attend(self, layer, first_slot, q, out, sums, scale, softcap, window, stream):
        q, out, sums = (None if array is None else torch.from_dlpack(array) for array in (q, out, sums))
        if q.shape[1] > self.max_append:
            raise ValueError("attend: more queries than max_append")
        assert q.shape[1] == self.asking.get(layer, q.shape[1])
        for row, count in enumerate(self.counts):
            if count:
                result = torch.empty_like(q[row : row + 1])
                result_sums = None if sums is None else torch.empty(result.shape[:3])
                self.host.attend(layer, [self.sequences[first_slot + row]], q[row : row + 1], result, result_sums,
                                 [(0, count)], None, scale, softcap, window, False, "")
                out[row, :count] = result[0, :count]  # the rest stays as it was
                if sums is not None:
                    sums[row, :count] = result_sums[0, :count]

    def step(self, layer, k, v, q, out, counts, scale, softcap, window, stream):
        k, v, q = (torch.from_dlpack(rows).transpose(1, 2) for rows in (k, v, q))
        self.append(layer, 0, k, v, q, counts, stream)
        self.attend(layer, 0, q, out, None, scale, softcap, window, stream)


def opener(monkeypatch):
    """A function that opens an InnerKVCache for a batch as if the CPU were a device."""
    monkeypatch.setattr(_core, "SharedDeviceCache", StandIn)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def opened(cache, batch):
        with monkeypatch.context() as patch:
            patch.setattr(innerkv.cache, "device_index", lambda device: 0)
            patch.setattr(transformers_cache, "has_own_memory", lambda device: True)
            cache.open(torch.empty(batch, cache.shape.kv_heads, 1, cache.shape.head_dim))
        return cache

    return opened

"""Sequences → ``(maps, labels, weights)`` for Keras: shuffled and sampled, in order inside.

* `sampling`: which sequences an epoch shows, and what that does to the odds.
* `plans`: how an epoch is laid out: windows of one length, alone or in blocks, or runs of many.
* `epochs`: what a batch of it holds.
* `reading`: which maps are read at a time, and how long they stay in memory.
* `dataset`: `SequenceBatches`, which hands the maps of a batch to Keras.
"""

from medicane.batches.dataset import Batch, SequenceBatches
from medicane.batches.plans import LONGEST_RUN, RandomRuns

__all__ = ["LONGEST_RUN", "Batch", "RandomRuns", "SequenceBatches"]

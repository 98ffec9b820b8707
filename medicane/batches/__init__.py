"""Sequences → ``(maps, labels, weights)`` for Keras: shuffled and sampled, in order inside.

* `sampling`: which sequences an epoch shows, and what that does to the odds.
* `plans`: how an epoch is laid out in batches: windows of one length, or runs of many.
* `dataset`: `SequenceBatches`, which reads the maps of a batch and hands them to Keras.
"""

from medicane.batches.dataset import Batch, SequenceBatches
from medicane.batches.plans import LONGEST_RUN, RandomRuns

__all__ = ["LONGEST_RUN", "Batch", "RandomRuns", "SequenceBatches"]

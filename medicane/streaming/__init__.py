"""One map at a time: each new map is labelled at once, from what is kept of those before it.

`StreamingDetector` labels a series as `predict` does in causal mode, but the maps come one by one,
and between two runs of a service what it remembers is one small file. Each map is encoded once.

* By default the *features* of the last window are kept: the label of map *t* is that of the window
  that ends at *t*, the number that `predict` gives.
* With ``carry_state`` the *state* of the recurrent layer is kept, and the label of map *t* follows
  from all maps since the last gap. That is another function than the windowed one, and a network
  has to be trained for it (``train.variable_length``). `carried_drift` measures how far the two
  part beyond the sequences of the training.
"""

from medicane.streaming.detector import LabelledMap, StreamingDetector
from medicane.streaming.drift import carried_drift

__all__ = ["LabelledMap", "StreamingDetector", "carried_drift"]

"""Short sequences in large batches first, doubled in length at each plateau.

After Re3 (Gordon et al. 2018, arXiv 1705.06368): a recurrent network first learns to read a map,
then what to keep of the last ones. Each batch holds the same maps in all stages: a window of 12 is
first read as four sequences of 3, then as two of 6, then whole. So the steps of an epoch, the
sampling and the learning rate are those of a training without a curriculum.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Maps in a sequence of the first stage, at least.
SHORTEST = 3
#: Epochs without a better AUC-PR on validation after which a stage has given what it can.
PLATEAU_EPOCHS = 2
#: Largest share of the epochs that one short stage may take: most are left for whole sequences.
STAGE_SHARE = 0.2


def stage_lengths(length: int) -> tuple[int, ...]:
    """Maps in the sequences of each stage, the last of them `length`: 12 → 3, 6, 12.

    Lengths that do not halve evenly are rounded up (10 → 3, 5, 10): the window is then read as
    pieces that overlap by a map.
    """
    found = [length]
    while -(-found[0] // 2) >= SHORTEST and found[0] > SHORTEST:
        found.insert(0, -(-found[0] // 2))
    return tuple(found)


@dataclass
class Unroll:
    """Where a training stands in its curriculum; plain values, so that a checkpoint can keep it.

    Attributes
    ----------
    lengths
        Maps in the sequences of each stage.
    epochs
        Epochs of the whole training.
    stage, began
        The current stage, and the epochs that were done when it began.
    best, best_epoch
        Highest score of this stage, and the number (from 1) of its epoch.
    """

    lengths: tuple[int, ...]
    epochs: int
    stage: int = 0
    began: int = 0
    best: float = float("-inf")
    best_epoch: int = 0

    @property
    def length(self) -> int:
        """Maps in a sequence now."""
        return self.lengths[self.stage]

    @property
    def whole(self) -> bool:
        """Whether sequences are whole: the last stage, which early stopping waits for."""
        return self.stage == len(self.lengths) - 1

    def follow(self, epoch: int, score: float) -> bool:
        """Note an epoch (from 1) and its score; True if the next one begins another stage."""
        if self.whole:
            return False
        if score > self.best:
            self.best, self.best_epoch = score, epoch
        plateau = epoch - max(self.best_epoch, self.began) >= PLATEAU_EPOCHS
        if not plateau and epoch - self.began < max(1, int(STAGE_SHARE * self.epochs)):
            return False
        self.stage += 1
        self.began = epoch
        self.best, self.best_epoch = float("-inf"), 0
        return True

    def to_json(self) -> dict[str, Any]:
        """JSON values; `Unroll.from_json` gives the same curriculum back."""
        kept = asdict(self)
        return {
            **kept,
            "lengths": list(self.lengths),
            "best": self.best if self.best_epoch else None,
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Unroll:
        """The inverse of `to_json`."""
        best = float("-inf") if kept["best"] is None else kept["best"]
        return cls(**{**kept, "lengths": tuple(kept["lengths"]), "best": best})

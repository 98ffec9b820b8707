"""Several processes that train one network together, by the collectives of `tf.distribute`.

Each worker takes its share of every batch; gradients and the statistics of batch normalisation are
summed over all. From the same weights each then takes the same step: weights stay equal to the bit,
and the loss is that of the whole batch. The weights are ordinary variables, so the network is saved
and scored as any other.

`tf.distribute.MultiWorkerMirroredStrategy` lends its cluster and its sums. Keras 3 cannot fit under
its scope (it averages scalar metrics along an axis that they do not have), and clips gradients
before they are summed; so `Shared` has a training step of its own. This module and `fused`
alone know TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from medicane.errors import InputError

#: Seconds to wait for the other workers at the start.
PATIENCE = 300
#: The standard environment variable that names all workers, and says which of them this one is.
CLUSTER = "TF_CONFIG"
#: Between the dropout generators of two workers, which would drop the same places otherwise.
SEEDS_APART = 1_000_003


class WorkerLostError(RuntimeError):
    """Another worker ended, or could not be reached; this one cannot go on."""


class Team:
    """One worker among those that train together; a single one is a team too.

    Attributes
    ----------
    rank, size
        Number of this worker, from 0, and of all. Worker 0 keeps the checkpoint and decides.
    """

    def __init__(self, *, rank: int = 0, size: int = 1, strategy: Any = None) -> None:
        self.rank, self.size, self._strategy = rank, size, strategy

    @property
    def first(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.rank == 0

    def shared(self, network: keras.Model) -> keras.Model:
        """The network as Keras fits it: with a training step that is taken together."""
        if self.size == 1:
            return network
        return Shared(inputs=network.input, outputs=network.output, strategy=self._strategy)

    @contextlib.contextmanager
    def together(self, network: keras.Model) -> Iterator[None]:
        """While the network is fitted: batch statistics of all workers, dropout of each its own.

        Raises
        ------
        WorkerLostError
            If another worker ends.
        """
        if self.size == 1:
            yield
            return
        normalisations = [
            layer
            for layer in network._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        for variable in network.variables:
            if "seed_generator" in variable.path:
                state = np.asarray(variable) + np.array([self.rank * SEEDS_APART, 0])
                variable.assign(state.astype(np.uint32))
        for layer in normalisations:
            layer.synchronized = True
        try:
            with _lost_is_told():
                yield
        finally:
            for layer in normalisations:
                layer.synchronized = False

    def from_first(self, content: bytes) -> bytes:
        """What worker 0 has, on all of them.

        Raises
        ------
        WorkerLostError
            If another worker has ended.
        """
        if self.size == 1:
            return content
        mine = content if self.first else b""
        n = int(self._sum(np.array([len(mine)], np.int64))[0])
        words = np.zeros(-(-n // 4), np.int32)
        if self.first and n:
            words[:] = np.frombuffer(mine.ljust(4 * words.size, b"\0"), np.int32)
        return self._sum(words).tobytes()[:n] if n else b""

    def total(self, value: float) -> float:
        """The sum over all workers; it also waits for them. Raises as `from_first` does."""
        return value if self.size == 1 else float(self._sum(np.array([value], np.float64))[0])

    def agree(self, digest: str, *, where: object, law: str) -> None:
        """Refuse to go on where this worker has another digest than worker 0.

        Raises
        ------
        InputError
            On each worker that differs; the others lose it.
        """
        found = self.from_first(digest.encode()).decode()
        if found != digest:
            raise InputError(where, law, found=f"{digest[:12]}… on worker {self.rank}")

    def _sum(self, values: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        def share() -> Any:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(values))

        with _lost_is_told():
            found = tf.function(lambda: self._strategy.run(share), autograph=False)()
            return np.asarray(self._strategy.experimental_local_results(found)[0])


class Shared(keras.Model):
    """A network whose training step is taken by all workers together, each with its share."""

    def __init__(self, *, strategy: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._strategy = strategy
        self._mean_loss = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self._mean_loss]

    def train_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        def share(inputs: Any, labels: Any, weights: Any) -> Any:
            with tf.GradientTape() as tape:
                probability = self(inputs, training=True)
                # Keras divides by the number of workers, and `share_of` has weighted the shares.
                loss = self.compute_loss(inputs, labels, probability, weights, training=True)
            gradients = tape.gradient(loss, self.trainable_variables)
            rows = tf.cast(tf.shape(labels)[0], tf.float32)
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, [loss, rows, *gradients])

        loss, rows, *gradients = self._strategy.run(share, args=data)
        # Outside of the strategy: the optimiser clips the sum, and does not sum again.
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self._mean_loss.update_state(loss, sample_weight=rows)
        return {"loss": self._mean_loss.result()}


@functools.cache
def join(workers: int) -> Team:
    """Meet the other workers that ``TF_CONFIG`` names; before the process uses any device.

    Parameters
    ----------
    workers
        ``train.workers``; with 1, ``TF_CONFIG`` is not looked at.

    Raises
    ------
    InputError
        If ``TF_CONFIG`` is missing or does not name so many workers, this worker's address is not
        free, or it sees several devices.
    WorkerLostError
        If not all workers are there within five minutes.
    """
    if workers == 1:
        return Team()
    addresses, rank = named_workers(workers)
    meet(addresses, rank, patience=PATIENCE)
    import tensorflow as tf

    with _lost_is_told():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    if strategy.num_replicas_in_sync != workers:
        raise InputError(
            "train.workers",
            "each worker must see one device, as CUDA_VISIBLE_DEVICES says",
            found=f"{strategy.num_replicas_in_sync} devices of {workers} workers",
        )
    return Team(rank=rank, size=workers, strategy=strategy)


def named_workers(workers: int) -> tuple[list[str], int]:
    """Addresses of the workers, and the number of this one, as ``TF_CONFIG`` says.

    Raises
    ------
    InputError
        If it is missing, is not what TensorFlow reads, or names another number of workers.
    """
    law = (
        f'must name {workers} workers: {{"cluster": {{"worker": ["host:port", …]}}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    text = os.environ.get(CLUSTER)
    if not text:
        raise InputError(f"train.workers: {CLUSTER}", law, found="not set")
    try:
        told = json.loads(text)
        addresses, task = told["cluster"]["worker"], told["task"]
        kind, rank = task["type"], int(task["index"])
        whole = all(":" in address and int(address.rsplit(":", 1)[1]) for address in addresses)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"train.workers: {CLUSTER}", law, found=text) from None
    if len(told["cluster"]) != 1 or kind != "worker" or not whole or not 0 <= rank < len(addresses):
        raise InputError(f"train.workers: {CLUSTER}", law, found=text)
    if len(addresses) != workers or len(set(addresses)) != workers:
        raise InputError(f"train.workers: {CLUSTER}", law, found=f"{len(set(addresses))} of them")
    return list(addresses), rank


def meet(addresses: Sequence[str], rank: int, *, patience: float) -> None:
    """Wait until all workers are there: TensorFlow would wait for hours, deaf to interrupts.

    The others call at the address of worker 0, which TensorFlow takes over afterwards.

    Raises
    ------
    InputError
        If this worker's address is taken, or is not one of this machine.
    WorkerLostError
        If they are not all there after `patience` seconds.
    """
    end = time.monotonic() + patience
    host, port = _host_and_port(addresses[rank])
    try:
        door = socket.create_server((host, port), backlog=len(addresses))
    except OSError as error:
        law = "must be an address of this machine, and free"
        raise InputError(f"{CLUSTER}: {addresses[rank]}", law, found=error.strerror) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(door)
        there = {rank}
        try:
            if rank == 0:
                callers = []
                while len(there) < len(addresses):
                    door.settimeout(max(end - time.monotonic(), 0.01))
                    caller = stack.enter_context(door.accept()[0])
                    caller.settimeout(5)
                    name = caller.recv(8).strip()
                    if name.isdigit():  # anything may call at a port
                        there.add(int(name))
                        callers.append(caller)
                for caller in callers:
                    caller.sendall(b"go")
                return
            caller = stack.enter_context(_called(addresses[0], end))
            caller.sendall(f"{rank:<8}".encode())
            caller.settimeout(max(end - time.monotonic(), 0.01))
            if caller.recv(2) == b"go":
                return
        except TimeoutError:
            pass
        missing = sorted(set(range(len(addresses))) - there) if rank == 0 else [0]
        raise WorkerLostError(
            f"after {patience:g} seconds these workers were not there: "
            + ", ".join(f"{number} ({addresses[number]})" for number in missing)
            + ("" if rank == 0 else ", or it still waits for others")
        )


def _called(address: str, end: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(_host_and_port(address), timeout=5)
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(0.2)


def _host_and_port(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _lost_is_told() -> Iterator[None]:
    import tensorflow as tf

    lost = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    )
    try:
        yield
    except lost as error:
        raise WorkerLostError(
            "a worker ended or cannot be reached; start all of them again, and training goes on "
            f"after its last whole epoch ({str(error).strip().splitlines()[-1]:.200})"
        ) from error

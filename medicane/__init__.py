"""Find Mediterranean hurricanes in sequences of weather maps.

Importing the package is cheap: TensorFlow, MLflow and xarray are imported by the rooms that use
them, when they are used.
"""

import os

# TensorFlow reads these when it starts; what is set already stands. An allocator that keeps its
# memory for the next step, where fresh pages were cleared, and the kernels of oneDNN, which it
# takes by itself only on processors with instructions for int8: a fifth off a step of training.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

__version__ = "0.1.0"

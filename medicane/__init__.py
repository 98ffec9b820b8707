"""Find Mediterranean hurricanes in sequences of weather maps.

Importing the package is cheap: TensorFlow, MLflow and xarray are imported by the rooms that use
them, when they are used.
"""

__version__ = "0.1.0"

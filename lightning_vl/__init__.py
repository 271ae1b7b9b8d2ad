"""The bench on which the transformer vision-language lineage is trained, measured and compared."""

__version__ = "0.1.0"

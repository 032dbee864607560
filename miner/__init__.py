"""Hard-negative mining: corpus -> candidates -> judgments -> decisions -> training files."""

__version__ = "0.1.0"

"""Version of this package, read by the build and at run time."""

__all__ = ["__version__"]

#: Version of this package.
__version__ = "0.2.0"

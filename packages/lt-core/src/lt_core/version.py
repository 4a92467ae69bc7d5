"""Define the version of this package, read by the build and at run time."""

#: Version of this package.
__version__ = "0.1.0"

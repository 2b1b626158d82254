"""The official files of CIFAR-10, CIFAR-100 and STL-10, mapped where they lie."""

from featx.sources.official.folder import is_official, open_official

__all__ = ["is_official", "open_official"]

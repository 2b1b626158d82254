"""Data sets of Hugging Face that lie on this machine, read by pyarrow alone."""

from featx.sources.hub.dataset import HubSource, is_hub_dataset, open_hub

__all__ = ["HubSource", "is_hub_dataset", "open_hub"]

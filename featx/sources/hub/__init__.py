"""Data sets of Hugging Face: by name from the Hub, or on this machine, read by pyarrow alone."""

from featx.sources.hub.dataset import HubSource, is_hub_dataset, open_hub
from featx.sources.hub.download import HUB, fetch_dataset

__all__ = ["HUB", "HubSource", "fetch_dataset", "is_hub_dataset", "open_hub"]

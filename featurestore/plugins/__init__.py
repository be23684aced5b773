"""The Feast plug-ins that three lines of feature_store.yaml name."""

from featurestore.plugins.engine import ArrowEngine, ArrowEngineConfig
from featurestore.plugins.offline_store import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from featurestore.plugins.online_store import RedisOnlineStore, RedisOnlineStoreConfig

__all__ = [
    "ArrowEngine",
    "ArrowEngineConfig",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "RedisOnlineStore",
    "RedisOnlineStoreConfig",
]

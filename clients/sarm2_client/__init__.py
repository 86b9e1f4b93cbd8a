"""The robot's side of sarm2: stream frames, get dense progress rewards back.

Start with `RewardClient`, or `AsyncRewardClient` inside an event loop.
"""

from sarm2_client.aio import AsyncRewardClient
from sarm2_client.client import Episode, RewardClient
from sarm2_client.errors import Sarm2Error
from sarm2_client.options import EpisodeOptions
from sarm2_client.stream import AsyncEpisode
from sarm2_client.timeouts import Backoff, Timeouts
from sarm2_client.wire import Score, Summary

__all__ = [
    "AsyncEpisode",
    "AsyncRewardClient",
    "Backoff",
    "Episode",
    "EpisodeOptions",
    "RewardClient",
    "Sarm2Error",
    "Score",
    "Summary",
    "Timeouts",
]

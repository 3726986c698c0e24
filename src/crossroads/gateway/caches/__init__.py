"""Answers given before: an exact and a semantic cache, in memory or in Redis."""

from crossroads.gateway.caches.answer_cache import AnswerCache, build_cache
from crossroads.gateway.caches.settings import CacheSettings, ExactSettings, SemanticSettings

__all__ = ["AnswerCache", "CacheSettings", "ExactSettings", "SemanticSettings", "build_cache"]

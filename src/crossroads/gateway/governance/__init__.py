"""Governance: virtual keys, limits, budgets, paced spend and prices."""

from __future__ import annotations

from crossroads.gateway.governance.governor import KeyGovernor
from crossroads.gateway.governance.keyfile import KeyFile
from crossroads.gateway.governance.keys import fingerprint, hash_secret, new_secret
from crossroads.gateway.governance.keystore import KeyStore
from crossroads.gateway.governance.periods import SteadyClock
from crossroads.gateway.governance.prices import PriceBook, price_of
from crossroads.gateway.governance.settings import (
    BudgetSettings,
    GovernanceSettings,
    KeySettings,
    LimitSettings,
    TeamSettings,
)

__all__ = [
    "BudgetSettings",
    "GovernanceSettings",
    "KeyFile",
    "KeyGovernor",
    "KeySettings",
    "KeyStore",
    "LimitSettings",
    "PriceBook",
    "SteadyClock",
    "TeamSettings",
    "fingerprint",
    "hash_secret",
    "new_secret",
    "price_of",
]

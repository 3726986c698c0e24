"""Policies: who answers a request, and why.

``compile_policies`` turns ``policies:`` and ``fallbacks:`` of the configuration into what the
gateway asks for every request.
"""

from crossroads.gateway.policies.compiled import CompiledPolicies
from crossroads.gateway.policies.compiling import AskModel, compile_policies
from crossroads.gateway.policies.eligibility import IneligibleError
from crossroads.gateway.policies.settings import PoliciesSettings, PolicySettings

__all__ = [
    "AskModel",
    "CompiledPolicies",
    "IneligibleError",
    "PoliciesSettings",
    "PolicySettings",
    "compile_policies",
]

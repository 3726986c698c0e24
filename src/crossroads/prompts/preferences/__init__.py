"""Routing by stated preferences: policies in plain language, conversations, models.

Arch-Router: Aligning LLM Routing with Human Preferences (2025, arXiv 2506.16655). The operator
describes policies; a back end names the policy of a conversation's latest intent, or none; a
table outside the back end maps policies to models. Ours differ from the paper's 1.5-billion
router: an embedding matcher, a constrained scorer on SmolLM2-135M, and the same scorer with a
low-rank adapter trained on synthetic conversations.
"""

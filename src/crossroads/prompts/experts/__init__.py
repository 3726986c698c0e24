"""Experts that can answer a prompt: HTTP endpoints, a local language model, exact tools."""

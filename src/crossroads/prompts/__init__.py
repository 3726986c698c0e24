"""Prompts to language models: outcome tables, pools, encoders, routers, decision rules, arena."""

"""Inputs to adapters: a folder of LoRA adapters becomes one routed model.

``AdapterBank`` holds the adapters, a ``Router`` chooses among them for every token, sequence or
task, and ``RoutedModel`` puts both into a Hugging Face model and takes them out again.
"""

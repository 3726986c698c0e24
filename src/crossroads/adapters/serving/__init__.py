"""A folder of adapters as one model behind OpenAI's API, in a process of its own.

``engine`` writes answers in one thread, ``wishes`` reads requests, ``app`` speaks HTTP. The process
that has torch is this one: a gateway in front of it reaches it by its address and stays small.
"""

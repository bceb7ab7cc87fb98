"""A stand-in for SGLang 0.5.23, which cannot run without a GPU: its command line and its PD protocol, no model.

What it does is taken from SGLang's documentation and source as facts; none of its code is here. Where SGLang's
processes talk to each other (bootstrap's answers, KV) the stand-in has a framing of its own.
"""

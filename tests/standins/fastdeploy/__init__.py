"""A stand-in for FastDeploy 2.5, which cannot run without a GPU: its command lines and its router's protocol, no model.

What it does is taken from FastDeploy's documentation and source as facts; none of its code is here. Where P and D talk
to each other (ZeroMQ, RDMA) the stand-in has a framing of its own, with the real messages' names, members and order.
"""

"""Runs on the machine of tests/rdma/softroce.sh only."""

from engine.transfer.transports.rdma.pyverbs_package import make_importable

make_importable()

"""The RDMA transport, for InfiniBand and RoCE, through pyverbs."""

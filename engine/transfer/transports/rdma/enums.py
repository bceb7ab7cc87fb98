"""The constants of verbs, under whichever name this version of pyverbs has them."""

try:
    from pyverbs import libibverbs_enums as enums  # since rdma-core 58
except ImportError:
    from pyverbs import enums

__all__ = ["enums"]

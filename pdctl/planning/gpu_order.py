"""In which order free GPUs are taken: those with a NIC nearby first, so that engines spread over the NICs."""

from collections.abc import Sequence

from pdctl.planning.inventory import Inventory
from pdctl.planning.nics import nics_by_gpu
from pdctl.planning.pci_distance import Distance
from pdctl.planning.running import Gpus


class GpuOrder:
    """The GPUs of one host."""

    def __init__(self, inventory: Inventory) -> None:
        self._near = {found.gpu: found for found in nics_by_gpu(inventory)}

    def best(self, free: Sequence[int], count: int, used: Sequence[int]) -> Gpus:
        """Return that many of the free ones; `used`: those that other engines have.

        By the distance to the nearest NIC, then by number, so that the GPUs of one engine are neighbours. A single one
        is rather taken where fewer engines use that NIC.
        """
        if count == 1:
            return (min(free, key=lambda gpu: (self._distance(gpu), self._others_at_its_nic(gpu, used), gpu)),)
        return tuple(sorted(sorted(free, key=lambda gpu: (self._distance(gpu), gpu))[:count]))

    def _distance(self, gpu: int) -> Distance:
        return self._near[gpu].distance

    def _others_at_its_nic(self, gpu: int, used: Sequence[int]) -> int:
        return sum(self._near[other].nics[:1] == self._near[gpu].nics[:1] for other in used if self._near[gpu].nics)

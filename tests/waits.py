"""Operations that make the host wait for a GPU, counted where there is none."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Notes operations whose result a GPU is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        is_chosen = name in ("index", "index_put", "_index_put_impl_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if is_chosen or name in ("nonzero", "_local_scalar_dense"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))

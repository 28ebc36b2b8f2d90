"""In which numbers a network is trained: float32 on a CPU, mixed precision on a GPU.

bfloat16 where the GPU has it, because it needs no scaling; else float16 with a loss scaler. The trade-off:
bit-identical repetition is promised on a CPU only.
"""

from __future__ import annotations

from typing import Literal

import torch


class Precision:
    """The type that a device's matrix products are cast to (None: none), and the scaler of the loss."""

    def __init__(self, device: torch.device, wanted: Literal["auto", "float32"] = "auto") -> None:
        self.device = device
        self.dtype: torch.dtype | None = None
        if device.type == "cuda" and wanted == "auto":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def cast(self) -> torch.autocast:
        """Return the context in which the network and its loss are computed."""
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

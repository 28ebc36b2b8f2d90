"""A frozen network that answers batches: the fastest way to its features that this machine has.

On a CPU that is OpenVINO where it is installed, about four times as fast as torch; without it, and on any other device,
it is torch. OpenVINO gets one radiograph at a time, each computed by a single thread, as many side by side as torch has
threads. So neither the radiographs around one nor the number of threads changes a bit of its features. The trade-off: a
second of CPU to compile a network, which pays from 50 radiographs on.

The network reaches OpenVINO as torch's trace, read by OpenVINO's own frontend. OpenVINO reports over the Internet that
it is imported and what it converts, by a package that it works without; that package is kept from being imported.

This file travels with each logged model, so a server answers by the engine that it has.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.models.backbones import Network, digest_of

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails
try:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
except ImportError:  # a server may do without
    openvino = None

Wanted = Literal["auto", "torch"]

TOLERANCES = {None: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference to torch's features in float32: of the Euclidean norms of difference and features."""
KEPT, KEPT_WEIGHTS = 4, 150_000_000
"""Compiled networks that a process keeps, and how many weights they have at most together, if there are several."""


class Engine(Protocol):
    """What computes features; `name` says which engine of which version, and in which numbers.

    They are the mean over `views` views, as `Network.features` has it.
    """

    name: str
    views: int
    multiple: int  # of radiographs in a batch, for features that don't depend on the batch

    def features(self, pixels: Tensor) -> Tensor:
        """Return features float32 [N, F], on the network's device, of pixels [N, S, S] or [N, 1, S, S] in 0..255.

        Raises EvaluationError when the engine can't compute this network, or computes something else than torch does.
        """
        ...


def engine_for(network: Network, dtype: torch.dtype | None = None, wanted: Wanted = "auto", views: int = 1) -> Engine:
    """Return the engine of a network that is not trained any further, computing in `dtype` (None: float32)."""
    name = engine_name(network.head.weight.device, dtype, wanted)
    made = _OpenVino if name.startswith("openvino") else _Torch
    return made(network, dtype, name, views)


def engine_name(device: torch.device, dtype: torch.dtype | None = None, wanted: Wanted = "auto") -> str:
    """Return engine, version and numbers that features are computed by and in: "openvino 2026.4.1 float32"."""
    numbers = str(dtype or torch.float32).removeprefix("torch.")
    if wanted == "auto" and openvino is not None and device.type == "cpu":
        return f"openvino {openvino.__version__.partition('-')[0]} {numbers}"
    return f"torch {torch.__version__} {numbers}"


class _Torch:
    """The network itself, in mixed precision where a type is given."""

    multiple = 8  # one radiograph alone may take another path through a convolution

    def __init__(self, network: Network, dtype: torch.dtype | None, name: str, views: int) -> None:
        self.network, self.dtype, self.name, self.views = network, dtype, name, views
        self._checked = dtype is None
        self._lock = threading.Lock()  # a server asks from several threads, and a network notes its levels as it goes

    def features(self, pixels: Tensor) -> Tensor:
        self.network.eval()
        device = self.network.head.weight.device
        pixels = pixels.to(device)
        with self._lock, torch.inference_mode():
            if not self._checked:
                probe = _probe(pixels.shape[-1]).to(device)
                _check(self.name, self.network.features(probe, self.views), self._cast(probe), self.dtype)
                self._checked = True
            return self._cast(pixels)

    def _cast(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.network.features(pixels, self.views).float()


class _OpenVino:
    """A compiled copy of the network; what becomes of the network afterwards does not change it."""

    multiple = 1

    def __init__(self, network: Network, dtype: torch.dtype | None, name: str, views: int) -> None:
        self.network, self.dtype, self.name, self.views = network, dtype, name, views
        self._compiled: _Compiled | None = None

    def features(self, pixels: Tensor) -> Tensor:
        side = pixels.shape[-1]
        if self._compiled is None or self._compiled.side != side:
            self._compiled = _compiled(self.network, self.views, side, self.dtype, self.name)
        pixels = pixels.reshape(len(pixels), 1, 1, side, side).float()
        return torch.from_numpy(self._compiled(pixels.numpy(), self.network.head.in_features))


class _Compiled:
    """A network compiled for one radiograph of one side, and requests that compute side by side."""

    def __init__(self, network: Network, views: int, side: int, dtype: torch.dtype | None, name: str) -> None:
        self.side, self.weights = side, _weights(network)
        frozen = copy.deepcopy(network).eval().requires_grad_(False)  # its tensors stay part of the graph
        probe = _probe(side)
        threads = torch.get_num_threads()
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same core
        }
        with torch.inference_mode(), torch_threads(1):
            expected = frozen.features(probe, views)

        def answer(pixels: Tensor) -> Tensor:
            return frozen.features(pixels, views)

        try:
            with warnings.catch_warnings(), torch.no_grad(), torch_threads(1):
                warnings.simplefilter("ignore")  # torch calls its trace deprecated; shapes are meant to be constant
                # The trace of a function: that of a module wraps each of its layers, which takes half as long again.
                trace = torch.jit.trace(answer, probe, check_trace=False)  # type: ignore[no-untyped-call]
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(trace)  # must live as long as the conversion does
            graph = frontend.convert(frontend.load(decoder))
            graph.reshape({graph.inputs[0]: openvino.PartialShape(list(probe.shape))})
            compiled = openvino.Core().compile_model(graph, "CPU", hints)
        except Exception as error:  # trace, conversion and compilation each have errors of their own
            reason = (str(error).strip().splitlines() or ["?"])[-1]
            raise EvaluationError(f"{name} can't compile this network ({reason}); set XRAY_ENGINE=torch") from error
        self._queue = openvino.AsyncInferQueue(compiled)
        self._queue.set_callback(_take)
        self._lock = threading.Lock()  # a server may ask from several threads
        _check(name, expected, torch.from_numpy(self(probe[None].numpy(), expected.shape[1])), dtype)

    def __call__(self, pixels: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """Return features [N, `width`] of pixels [N, 1, 1, S, S]."""
        answers = np.empty((len(pixels), width), np.float32)
        with self._lock:
            for index, radiograph in enumerate(pixels):
                self._queue.start_async({0: radiograph}, (answers, index))
            self._queue.wait_all()
        return answers


_kept: dict[str, _Compiled] = {}
_compiling = threading.Lock()


def _compiled(network: Network, views: int, side: int, dtype: torch.dtype | None, name: str) -> _Compiled:
    """Return a compiled network, compiled once for all models of this process that have the same frozen part."""
    about = (str(network.backbone), network.crop, network.levels, network.mean, network.std, views)
    with _compiling:  # which takes torch's threads for a while
        key = f"{digest_of(network.backbone)} {about} {side} {dtype} {torch.get_num_threads()}"
        key = hashlib.sha256(key.encode()).hexdigest()
        if key not in _kept:
            weights = _weights(network)
            while _kept and (len(_kept) >= KEPT or weights + sum(one.weights for one in _kept.values()) > KEPT_WEIGHTS):
                del _kept[next(iter(_kept))]
            _kept[key] = _Compiled(network, views, side, dtype, name)
        return _kept[key]


def _weights(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.backbone.parameters())


def _take(request: openvino.InferRequest, place: tuple[npt.NDArray[np.float32], int]) -> None:
    answers, index = place
    answers[index] = request.get_output_tensor(0).data[0]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads in the block; of several, for one radiograph, most wait, and busily."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe(side: int) -> Tensor:
    """Return one made-up radiograph [1, 1, side, side], bright in the middle and grainy, float in 0..255."""
    slope = torch.linspace(-1, 1, side)
    bright = 1 - (slope.square()[:, None] + slope.square()) / 2
    grain = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    return (255 * (bright + grain) / 2)[None, None]


def _check(name: str, expected: Tensor, answer: Tensor, dtype: torch.dtype | None) -> None:
    off = float(torch.linalg.vector_norm(answer - expected) / torch.linalg.vector_norm(expected).clamp(min=1e-6))
    allowed = TOLERANCES[dtype]
    if not off <= allowed:
        raise EvaluationError(
            f"{name} gives other features than torch does in float32, by {off:.2g} of their norm (allowed: "
            f"{allowed:g}); set XRAY_ENGINE=torch, or precision=float32 in the recipe"
        )

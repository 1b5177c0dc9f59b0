"""From pixels to probabilities: the one place where predict and the handler run the network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from components import loading
from components.logged_model import LoggedModel


class NonFiniteScoresError(ArithmeticError):
    """The network answers with NaN or infinities."""


class Scorer:
    """A model on a device. Any number of threads may call it.

    Sums are done in full float32 and in a fixed order, on a GPU too, so that the scores of a
    batch job and of a server agree. That costs speed on a GPU, where TF32 would be used.

    Args:
        model: What `logged_model.load` gave; its network moves to the device.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        threads: torch's threads for one call, for this whole process; None leaves them.

    Raises:
        DeviceError: The device asked for is not there.
    """

    def __init__(
        self, model: LoggedModel, *, device: str = "auto", threads: int | None = None
    ) -> None:
        self.model = model
        cuda = torch.cuda.device_count()
        self.device = loading.pick_device(device, cuda=cuda, where="--device")
        if threads is not None:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self._network = model.network.to(self.device)

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities `float32[B, classes]` of `uint8[B, S, S, 3]`, RGB.

        Raises:
            NonFiniteScoresError: A score is not a number: the weights are broken.
        """
        with torch.inference_mode():
            # uint8 travels to the device, a quarter of float32's bytes
            pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
            logits = self._network(pixels.contiguous())
            scores: npt.NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
        if not np.isfinite(scores).all():
            raise NonFiniteScoresError(
                f"{self.model.uri}: found scores that are no numbers, expected probabilities; "
                "its weights are broken: train again, or take an earlier version"
            )
        return scores

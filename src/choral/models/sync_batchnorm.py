"""Synchronized batch normalization: the statistics of the global batch, on any device.

GPUs use PyTorch's SyncBatchNorm through timm's converter, because PyTorch's converter drops the activation that timm
fuses into `BatchNormAct2d`. PyTorch's SyncBatchNorm rejects CPU tensors, so CPU ranks use `CpuSyncBatchNorm`: the same
numbers from one all-reduce of (sum, sum of squares, count), also for ranks with different batch sizes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F


def synchronize_batchnorm(model: nn.Module, device_type: str) -> nn.Module:
    """Return `model` with every BatchNorm replaced by a synchronized one; parameter names do not change."""
    if device_type != "cpu":
        converted = convert_sync_batchnorm(model)
        assert isinstance(converted, nn.Module)
        return converted
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return CpuSyncBatchNorm.from_batchnorm(model)
    for name, child in model.named_children():
        setattr(model, name, synchronize_batchnorm(child, device_type))
    return model


class _AllReduceSum(torch.autograd.Function):
    """Sums a tensor over ranks. Every rank uses the sum, so its gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all ranks, followed by the dropout and activation of timm's `BatchNormAct2d`.

    Input and output: (B, C, ...) float. B may differ between ranks, but in training every rank must call `forward`.
    """

    drop: nn.Module
    act: nn.Module

    @classmethod
    def from_batchnorm(cls, source: nn.modules.batchnorm._BatchNorm) -> CpuSyncBatchNorm:
        """Return a module that shares the parameters and buffers of `source` and has its fused activation."""
        if source.momentum is None or not source.track_running_stats:
            raise NotImplementedError(
                "BatchNorm without running averages, or with cumulative ones, is not synchronized on CPU"
            )
        module = cls(source.num_features, source.eps, source.momentum, source.affine)
        module.weight, module.bias = source.weight, source.bias
        module.running_mean, module.running_var = source.running_mean, source.running_var
        module.num_batches_tracked = source.num_batches_tracked
        module.drop = getattr(source, "drop", nn.Identity())
        module.act = getattr(source, "act", nn.Identity())
        module.train(source.training)
        return module

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; training uses the statistics of the global batch and updates the running averages with them."""
        self._check_input_dim(input)
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            normalized = F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum or 0.0,
                self.eps,
            )
            return self.act(self.drop(normalized))  # type: ignore[no-any-return]
        channels = input.shape[1]
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, channels] + [1] * (input.ndim - 2)
        values = input.float()
        local = torch.cat(
            [values.sum(axes), values.square().sum(axes), values.new_full((1,), values.numel() / channels)]
        )
        total = _AllReduceSum.apply(local)
        count = total[-1].detach()
        mean = total[:channels] / count
        variance = (total[channels:-1] / count - mean.square()).clamp_min(0)
        self._update_running_averages(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
            shift = self.bias - mean * scale
        else:
            shift = -mean * scale
        normalized = torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)
        return self.act(self.drop(normalized))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _update_running_averages(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

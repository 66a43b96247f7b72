"""vLLM's attention backend on append_kv and delta_prefill. vLLM loads it by the path that vllm.register() left there.

    vLLM                                               stateful_kv
    kv_cache [blocks, kv_heads, block_size, 2 * head]  k_cache, v_cache (split_cache: views)
    query_start_loc, seq_lens, block_table             cu_seqlens_q, seqused_k, block_table
    max_query_len                                      max_seqlen_q
    sliding_window w (the token itself included)       window_left = w - 1
    logits_soft_cap, sinks                             softcap, sinks
    VLLM_BATCH_INVARIANT=1                             num_splits = -1

A layer costs two calls of ops and no new memory: its views are made once, the work list once per step for all layers.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from vllm import envs
from vllm.config import VllmConfig, get_current_vllm_config, get_layers_from_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from .. import ops

_log = init_logger("vllm.stateful_kv")
_FP8 = ("fp8", "fp8_e4m3")
_CUDA_HEAD_SIZES = [64, 96, 128, 192, 256]


def split_cache(kv_cache: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """vLLM's cache of a layer, [blocks, kv_heads, block_size, K then V], as k_cache, v_cache of the ops: views."""
    if kv_cache.ndim != 4 or kv_cache.shape[3] != 2 * head_size:
        raise NotImplementedError(
            f"stateful_kv: the KV cache has shape {list(kv_cache.shape)}, expected [blocks, kv_heads, block_size, "
            f"{2 * head_size}]; a value head size of its own and packed scales are not supported"
        )
    pool = kv_cache.transpose(1, 2)
    return pool[..., :head_size], pool[..., head_size:]


def unsupported(
    head_size: int,
    alibi_slopes: list[float] | None,
    kv_cache_dtype: str,
    attn_type: str,
    config: VllmConfig,
    on_cpu: bool,
) -> str | None:
    """What the ops cannot do of what a layer asks for, in words; None: nothing."""
    model = config.model_config
    if attn_type != AttentionType.DECODER:
        return f"attention of type {str(getattr(attn_type, 'value', attn_type))!r}"
    if alibi_slopes is not None:
        return "ALiBi"
    if kv_cache_dtype not in ("auto", str(model.dtype).removeprefix("torch."), *_FP8):
        return f"a KV cache of {kv_cache_dtype} beside a model of {model.dtype}"
    if head_size % 8 if on_cpu else head_size not in _CUDA_HEAD_SIZES:
        return f"a head size of {head_size}"
    if config.attention_config.use_non_causal:
        return "causality that differs between requests"
    if model.is_mm_prefix_lm:
        return "prefixes that see themselves whole (multimodal)"
    if model.rswa_window is not None:
        return "reference sliding windows (R-SWA)"
    return None


@dataclass
class Metadata:
    """The ops' arguments of one step, the same for all layers of a KV cache group; vLLM's names, which it reads too."""

    num_actual_tokens: int
    query_start_loc: Tensor  # int32 [num_reqs + 1]
    max_query_len: int
    seq_lens: Tensor  # int32 [num_reqs], new tokens included
    max_seq_len: int
    block_table: Tensor  # int32 [num_reqs, max_blocks]
    slot_mapping: Tensor  # int64 [num_actual_tokens], -1 for padding
    causal: bool
    num_splits: int
    schedules: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by Layer.schedule_key


class Layer:
    """What a layer of either device does: the part of vLLM's AttentionImpl that calls the ops."""

    def set_up(self, sliding_window: int | None, logits_soft_cap: float | None, sinks: Tensor | None) -> None:
        """After vLLM's own attributes (num_heads, head_size, scale, kv_cache_dtype, ...) are there."""
        self.window_left = -1 if sliding_window is None else sliding_window - 1
        self.softcap = float(logits_soft_cap or 0)
        self.sinks = sinks
        self.schedule_key = (self.num_heads, self.window_left)
        self.bound: Tensor | None = None

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        if self.sinks is not None:
            self.sinks = self.sinks.float()

    def bind(self, layer, kv_cache: Tensor) -> None:
        """Makes the views of the cache that vLLM gave this layer, once."""
        self.k_scale = self.v_scale = None
        pool = kv_cache
        if self.kv_cache_dtype in _FP8:
            pool = kv_cache.view(torch.float8_e4m3fn)
            self.k_scale, self.v_scale = (s.squeeze() for s in (layer._k_scale, layer._v_scale))
        self.k_cache, self.v_cache = split_cache(pool, self.head_size)
        self.bound = kv_cache

    def attend(
        self, layer, query: Tensor, key: Tensor | None, value: Tensor | None, kv_cache: Tensor, step: Metadata,
        output: Tensor,
    ) -> Tensor:  # fmt: skip
        """Writes the step's keys and values, unless another layer owns the cache, and attends."""
        if kv_cache is not self.bound:
            self.bind(layer, kv_cache)
        if key is not None and self.kv_sharing_target_layer_name is None:
            ops.append_kv(self.k_cache, self.v_cache, key, value, step.slot_mapping, self.k_scale, self.v_scale)
        return ops.delta_prefill(
            query, self.k_cache, self.v_cache, step.query_start_loc, step.seq_lens, step.block_table,
            step.max_query_len, self.scale, step.causal, self.window_left, self.softcap, None, self.sinks,
            self.k_scale, self.v_scale, step.num_splits, step.schedules[self.schedule_key], output,
        )  # fmt: skip


class Steps:
    """What a metadata builder of either device does: one Metadata per step, with a work list per kind of layer."""

    def set_up(self, layers: list[Layer], vllm_config: VllmConfig, device: torch.device) -> None:
        self.num_splits = -1 if envs.VLLM_BATCH_INVARIANT else 0
        self.kinds = {layer.schedule_key: layer for layer in layers}
        self.device = device
        # Work lists stay where they are, and grow with the largest batch (virtual ones pass max_num_seqs).
        self.lists: dict[tuple[int, int], Tensor] = {}

    def step(self, common: CommonAttentionMetadata) -> Metadata:
        if not isinstance(common.causal, bool):
            raise NotImplementedError("stateful_kv: causality that differs between requests is not supported")
        batch, tokens = common.num_reqs, common.num_actual_tokens
        step = Metadata(
            num_actual_tokens=tokens,
            query_start_loc=common.query_start_loc[: batch + 1],
            max_query_len=common.max_query_len,
            seq_lens=common.seq_lens[:batch],
            max_seq_len=common.max_seq_len,
            block_table=common.block_table_tensor[:batch],
            slot_mapping=common.slot_mapping[:tokens],
            causal=common.causal,
            num_splits=self.num_splits,
        )
        for key, layer in self.kinds.items():
            step.schedules[key] = ops.schedule_delta_prefill(
                step.query_start_loc, step.seq_lens, layer.num_heads, layer.num_kv_heads, layer.head_size,
                step.max_query_len, self.num_splits, step.causal, layer.window_left, self.work_list(key, batch),
            )  # fmt: skip
        return step

    def work_list(self, key: tuple[int, int], batch: int) -> Tensor:
        size = ops.schedule_size(batch)
        found = self.lists.get(key)
        if found is None or found.numel() < size:
            found = self.lists[key] = torch.empty(max(size, 512), dtype=torch.int32, device=self.device)
        return found


def _layers(vllm_config: VllmConfig, names: list[str]) -> list:
    return [layer.impl for layer in get_layers_from_vllm_config(vllm_config, Attention, names).values()]


# ---- CUDA: a backend of its own, which vLLM refuses by name where it lacks something ---------------------------------


class CudaImpl(Layer, AttentionImpl):
    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ):
        reason = unsupported(
            head_size, alibi_slopes, kv_cache_dtype, attn_type, get_current_vllm_config(), on_cpu=False
        )
        if reason:
            raise NotImplementedError(f"stateful_kv: {reason} is not supported; choose another --attention-backend")
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.set_up(sliding_window, logits_soft_cap, sinks)

    def forward(
        self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None
    ) -> Tensor:
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("stateful_kv: quantised outputs are not supported")
        if attn_metadata is None:  # vLLM measures memory
            return output.zero_()
        return self.attend(layer, query, key, value, kv_cache, attn_metadata, output)


class CudaBuilder(Steps, AttentionMetadataBuilder[Metadata]):
    # vLLM captures the model around attention, not attention itself: that has not run on a GPU under vLLM yet.

    def __init__(self, kv_cache_spec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.set_up(_layers(vllm_config, layer_names), vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Metadata:
        return self.step(common_attn_metadata)


class CudaBackend(AttentionBackend):
    forward_includes_kv_cache_update = True
    supported_dtypes = [torch.float16, torch.bfloat16]  # noqa: RUF012 (vLLM's class attributes)
    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16", *_FP8]  # noqa: RUF012

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[CudaImpl]:
        return CudaImpl

    @staticmethod
    def get_builder_cls() -> type[CudaBuilder]:
        return CudaBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int]:
        return [16, 32, 64, 128, 256]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return _CUDA_HEAD_SIZES

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True


# ---- CPU: in vLLM's place, which keeps the layers that we lack something for -----------------------------------------


class CpuImpl(Layer, CPUAttentionBackendImpl):
    """A layer on our ops, or vLLM's own where unsupported() names something."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ):
        CPUAttentionBackendImpl.__init__(
            self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype,
            logits_soft_cap, attn_type, kv_sharing_target_layer_name, sinks,
        )  # fmt: skip
        reason = unsupported(head_size, alibi_slopes, kv_cache_dtype, attn_type, get_current_vllm_config(), on_cpu=True)
        self.is_ours = reason is None
        if self.is_ours:
            self.set_up(sliding_window, logits_soft_cap, sinks)
        else:
            _log.warning_once("stateful_kv: %s is not supported; such layers stay with vLLM's own attention", reason)

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        if self.is_ours:
            Layer.process_weights_after_loading(self, act_dtype)

    def forward(
        self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None
    ) -> Tensor:
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("stateful_kv: quantised outputs are not supported")
        if attn_metadata is None:  # vLLM compiles and measures memory
            return output.zero_()
        if self.is_ours:
            return self.attend(layer, query, key, value, kv_cache, attn_metadata, output)
        if key is not None and self.kv_sharing_target_layer_name is None:
            self.do_kv_cache_update(layer, key, value, kv_cache, attn_metadata.slot_mapping)
        return CPUAttentionBackendImpl.forward(self, layer, query, key, value, kv_cache, attn_metadata, output)


class CpuBuilder(Steps, CPUAttentionMetadataBuilder):
    """Steps of a group whose layers are all ours, or vLLM's own of a group that is all vLLM's."""

    def __init__(self, kv_cache_spec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device):
        layers = _layers(vllm_config, layer_names)
        owners = {layer.is_ours for layer in layers}
        if len(owners) > 1:
            raise NotImplementedError(
                "stateful_kv: of layers that share a KV cache group some are not supported and some are: "
                f"{', '.join(layer_names)}; run without our attention"
            )
        self.is_ours = owners == {True}
        if self.is_ours:
            AttentionMetadataBuilder.__init__(self, kv_cache_spec, layer_names, vllm_config, device)
            self.set_up(layers, vllm_config, device)
        else:
            CPUAttentionMetadataBuilder.__init__(self, kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False):
        if self.is_ours:
            return self.step(common_attn_metadata)
        return CPUAttentionMetadataBuilder.build(self, common_prefix_len, common_attn_metadata, fast_build)


class CpuBackend(CPUAttentionBackend):
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_impl_cls() -> type[CpuImpl]:
        return CpuImpl

    @staticmethod
    def get_builder_cls() -> type[CpuBuilder]:
        return CpuBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int]:
        return [32, 64, 128, 256]  # the ops end at 256, vLLM's own attention wants multiples of 32

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True

"""Llama 2 and 3."""

from ..arguments import shown
from .decoder import DecoderConfig
from .fields import Fields
from .rope import rope_config

# Here and in the other families: what Hugging Face's config class takes for an entry that is left out.
DEFAULTS = dict(max_position_embeddings=2048)
LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}  # name -> whether it slides


def base_config(config: Fields, family: str, **extra) -> DecoderConfig:
    """What the Llama-like families have in common; `extra` overrides."""
    config = config.with_defaults(rms_norm_eps=1e-6, hidden_act="silu", is_causal=True)
    if config["hidden_act"] != "silu":
        raise config.wrong("hidden_act", "'silu'", NotImplementedError)
    if not config["is_causal"]:
        raise config.wrong("is_causal", "true: a token that sees later ones is not supported", NotImplementedError)
    sliding_layers(config)  # also where a family ignores it, it has to fit the layers
    heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    # Null is "left out" here, in Hugging Face too.
    kv_heads = heads if config.get("num_key_value_heads") is None else config.integer("num_key_value_heads")
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    has_head_dim = config.get("head_dim") is not None
    head_dim = config.integer("head_dim") if has_head_dim else hidden_size // heads
    if head_dim % 8 or not head_dim:
        name = "head_dim" if has_head_dim else f"head_dim (hidden_size {hidden_size} / num_attention_heads {heads})"
        raise NotImplementedError(f"{config.where}: {name} is {head_dim}, expected a multiple of 8")
    rope, max_position = rope_config(config, head_dim), config.integer("max_position_embeddings")
    if rope.kind == "yarn":  # some checkpoints keep the trained length there and leave the extended one to the factor
        max_position = max(max_position, int(rope.original_max_position * dict(rope.scaling)["factor"]))
    fields = dict(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.real("rms_norm_eps", low=0),
        max_position=max_position,
        rope=rope,
        tie_word_embeddings=config.flag("tie_word_embeddings"),
    )
    return DecoderConfig(**{**fields, **extra})


def sliding_layers(config: Fields) -> list[bool] | None:
    """Which layers slide by layer_types; None without it."""
    types, layers = config.get("layer_types"), config.integer("num_hidden_layers")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        raise config.wrong("layer_types", f"a list as long as num_hidden_layers, {layers}")
    for i, kind in enumerate(types):
        if not isinstance(kind, str) or kind not in LAYER_TYPES:
            raise NotImplementedError(
                f"{config.where}: layer_types[{i}] is {shown(kind)}, expected 'full_attention' or 'sliding_attention'"
            )
    return [LAYER_TYPES[kind] for kind in types]


def windows(config: Fields, slides: list[bool]) -> tuple[int, ...]:
    """Per layer: a window of w tokens, the current one among them, hides keys more than w - 1 to the left."""
    if not any(slides):
        return ()
    window = config.integer("sliding_window")
    return tuple(window - 1 if s else -1 for s in slides)


def parse(config: Fields) -> DecoderConfig:
    bias, mlp_bias = config.flag("attention_bias"), config.flag("mlp_bias")
    return base_config(config.with_defaults(**DEFAULTS), "llama", qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)

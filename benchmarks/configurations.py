"""What `quality.py` compares: named sets of configurations."""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = dict(dim=256, depth=6)  # of the transformer, on both sides


@dataclass(frozen=True)
class Configuration:
    """What to train, and how to draw from it. All that is not given is the library's default.

    Args:
        name: of the row.
        is_peer: version 0.4.0, of which only `head`, `patch_size`, `image_size`, `model`, `trainer` and `seed` can be chosen.
        head: "diffusion" or "flow".
        model, head_kwargs, image, dataset, trainer: arguments of the sequence model, its head, the image model, `ImageDataset` and
            `ImageTrainer`.
        variant, trainer_variant: functions of `variants.py` that change the model and the trainer.
        average: the weights to draw from: "" for the trainer's average, "raw", or one of `average_widths`.
        average_widths: further averages to keep, by their width relative to the training.
        samplings: arguments of `sample`, and `average`, by the name of the row.
    """

    name: str
    is_peer: bool = False
    head: str = "flow"
    patch_size: int = 4
    image_size: int = 32
    labels: bool = False
    seed: int = 0
    model: dict = field(default_factory=dict)
    head_kwargs: dict = field(default_factory=dict)
    image: dict = field(default_factory=dict)
    dataset: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    variant: str | None = None
    trainer_variant: str | None = None
    average: str = ""
    average_widths: tuple[float, ...] = ()
    samplings: dict[str, dict] = field(default_factory=lambda: {"": {}})


OF_PEER = dict(raw=dict(average="raw"), averaged=dict(average="averaged"))


def patch_sizes() -> list[Configuration]:
    """Which patch size suits each side: the same images as 256 tokens, or as few as 4."""
    return [
        Configuration(
            f"{'0.4.0' if is_peer else 'this'}, {head}, patches of {patch_size}",
            is_peer=is_peer,
            head=head,
            patch_size=patch_size,
            samplings=OF_PEER if is_peer else {"": {}},
        )
        for is_peer in (True, False)
        for head in ("diffusion", "flow")
        for patch_size in (2, 4, 8, 16)
    ]


def comparison(image_size: int, patch_size: int, peer_patch_size: int) -> list[Configuration]:
    """Both heads of both sides, each side at its best patch size."""
    sizes = dict(image_size=image_size)
    peers = [
        Configuration(
            f"0.4.0, {head}", is_peer=True, head=head, patch_size=peer_patch_size, samplings=OF_PEER, average="raw", **sizes
        )
        for head in ("diffusion", "flow")
    ]
    ours = [Configuration(f"this, {head}", head=head, patch_size=patch_size, **sizes) for head in ("diffusion", "flow")]
    return peers + ours


# what the ablations change: "ardiff train --size small"
RECIPE = dict(
    patch_size=8,
    model=dict(heads=4, mlp_width=384),
    head_kwargs=dict(num_noise_draws=2),
    trainer=dict(learning_rate=1e-3, batch_size=16, warmup_steps=20),
)


def change(name: str, **changes) -> Configuration:
    """A row of the ablations: the recipe with changes, of dictionaries entry by entry."""
    merged = {
        field_name: RECIPE[field_name] | value if isinstance(value, dict) and field_name in RECIPE else value
        for field_name, value in changes.items()
    }
    return Configuration(name, **RECIPE | merged)


def ablations() -> list[Configuration]:
    recipe = change(
        "recipe",
        average_widths=(0.05, 0.1, 0.15, 0.2, 0.25),
        samplings={
            "": {},
            "raw weights": dict(average="raw"),
            **{f"average of width {width}": dict(average=str(width)) for width in (0.05, 0.1, 0.15, 0.2, 0.25)},
            "temperature 0.95": dict(temperature=0.95),
            "12 steps": dict(num_steps=12),
        },
    )
    return [
        recipe,
        change("another seed", seed=1),
        change("a third seed", seed=2),
        # the head
        *(change(f"{n} noise draws", head_kwargs=dict(num_noise_draws=n)) for n in (1, 4)),
        *(change(f"head of width {width}", model=dict(mlp_width=width)) for width in (256, 512, 768)),
        *(change(f"{depth} blocks", model=dict(mlp_depth=depth)) for depth in (2, 6)),
        change("modulation by block", variant="modulation_by_block"),
        change("times even", head_kwargs=dict(time_distribution="uniform")),
        *(change(f"times around {mean}", head_kwargs=dict(logit_mean=mean)) for mean in (-0.5, 0.5)),
        *(change(f"times spread {std}", head_kwargs=dict(logit_std=std)) for std in (0.75, 1.5)),
        change("velocity", head_kwargs=dict(model_output_clean=False)),
        # tokens
        change("half whitened", variant="half_whitened"),
        change("whitened", variant="whitened"),
        # the transformer
        change("plain positions", variant="plain_positions"),
        change("rotary, along the sequence", model=dict(decoder_kwargs=dict(rotary_pos_emb=True))),
        change("rotary, by rows and columns", model=dict(decoder_kwargs=dict(rotary_pos_emb=True)), variant="rotary_2d"),
        change("positions before the head", variant="positions_before_head"),
        change("qk-norm", model=dict(decoder_kwargs=dict(attn_qk_norm=True))),
        change("GLU", model=dict(decoder_kwargs=dict(ff_glu=True, ff_mult=8 / 3))),
        change("RMS norm", model=dict(decoder_kwargs=dict(use_rmsnorm=True))),
        *(change(f"context noised up to {noise}", image=dict(train_max_noise=noise)) for noise in (0.1, 0.3)),
        # training
        *(change(f"learning rate {rate:g}", trainer=dict(learning_rate=rate)) for rate in (5e-4, 2e-3)),
        *(change(f"batches of {size}", trainer=dict(batch_size=size)) for size in (8, 32)),
        *(change(f"{steps} steps of warm-up", trainer=dict(warmup_steps=steps)) for steps in (0, 100)),
        change("beta2 of 0.95", trainer=dict(adam_kwargs=dict(betas=(0.9, 0.95)))),
        change("no weight decay", trainer=dict(adam_kwargs=dict(weight_decay=0.0))),
        change("Muon", trainer_variant="muon"),
        change("mirrored images", dataset=dict(augment_horizontal_flip=True)),
        # the other head
        change("diffusion", head="diffusion"),
        *(change(f"diffusion, P_mean {mean}", head="diffusion", head_kwargs=dict(P_mean=mean)) for mean in (-0.8, -0.4)),
        *(change(f"diffusion, P_std {std}", head="diffusion", head_kwargs=dict(P_std=std)) for std in (1.0, 1.5)),
    ]


SETS = {
    "patch-sizes": patch_sizes(),
    "comparison": comparison(32, 8, 8),
    "comparison-64": comparison(64, 8, 8),
    "ablations": ablations(),
}

"""What `quality.py` compares: named sets of configurations."""

from __future__ import annotations

from dataclasses import replace

from quality_worker import Configuration

from autoregressive_diffusion_pytorch.cli.train import ANY_ORDER, FOLDER, SIZES
from autoregressive_diffusion_pytorch.heads import HEADS
from autoregressive_diffusion_pytorch.heads.head import head_class

# "ardiff train FOLDER", but for the patch size
SMALL = SIZES["small"]
RECIPE = dict(
    patch_size=8,
    model={name: SMALL[name] for name in ("heads", "mlp_width", "mlp_depth")},
    head_kwargs=dict(num_noise_draws=FOLDER["num_noise_draws"]),
    trainer=dict(learning_rate=SMALL["learning_rate"], batch_size=FOLDER["batch_size"]),
)


# samples are drawn as learned, and in some rows with guidance by context or in more steps
GUIDED = {"": {}} | {
    f"context guidance {scale}": dict(context_guidance=scale)
    for scale in (1.25, 1.5, 2.0, 2.5, 3.0)
}
BY_STEPS = {"": {}} | {f"{n} steps": dict(num_steps=n) for n in (16, 32)}


def change(name: str, **changes) -> Configuration:
    """A row of the ablations: the recipe with changes, of dictionaries entry by entry."""
    merged = {
        field_name: RECIPE[field_name] | value
        if isinstance(value, dict) and field_name in RECIPE
        else value
        for field_name, value in changes.items()
    }
    return Configuration(name, **RECIPE | merged)


def peer(name: str, **arguments) -> Configuration:
    """Version 0.4.0 with its trainer's defaults. Its averaged weights are not always the better
    ones."""
    samplings = dict(raw=dict(average="raw"), averaged=dict(average="averaged"))
    return Configuration(name, is_peer=True, average="raw", samplings=samplings, **arguments)


def patch_sizes() -> list[Configuration]:
    """Which patch size suits each side: the same images as 256 tokens, or as few as 4."""
    return [
        row(f"{version}, {head}, patches of {patch_size}", head=head, patch_size=patch_size)
        for version, row in (("0.4.0", peer), ("this", change))
        for head in ("diffusion", "flow")
        for patch_size in (2, 4, 8, 16)
    ]


def comparison(image_size: int, patch_size: int, peer_patch_size: int) -> list[Configuration]:
    """Both heads of both sides, each side at its best patch size."""
    heads = ("diffusion", "flow")
    arguments = dict(image_size=image_size)
    samplings = GUIDED | BY_STEPS
    return [
        *(
            peer(f"0.4.0, {head}", head=head, patch_size=peer_patch_size, **arguments)
            for head in heads
        ),
        *(
            change(
                f"this, {head}", head=head, patch_size=patch_size, samplings=samplings, **arguments
            )
            for head in heads
        ),
    ]


def labelled_comparison() -> list[Configuration]:
    """Of images in a folder for each class: with labels here, without in version 0.4.0, which knows
    none."""
    guided = {f"guidance {scale}": dict(guidance_scale=scale) for scale in (1.5, 2.0)}
    return [
        peer("0.4.0, flow", head="flow", patch_size=8),
        *(
            change(f"this, {head}, labels", head=head, labels=True, samplings=BY_STEPS | guided)
            for head in ("flow", "diffusion")
        ),
    ]


def long() -> list[Configuration]:
    """One model for as long as one likes."""
    return [change("this, flow", samplings=GUIDED | BY_STEPS)]


def ablations() -> list[Configuration]:
    widths = (0.05, 0.1, 0.15, 0.2, 0.25)
    return [
        change(
            "recipe",
            samplings=GUIDED
            | {"raw weights": dict(average="raw"), "temperature 0.95": dict(temperature=0.95)},
        ),
        *(change(f"patches of {size}", patch_size=size, samplings=GUIDED) for size in (4, 16)),
        change("another seed", seed=1),
        change("a third seed", seed=2),
        # the head
        *(change(f"{n} noise draws", head_kwargs=dict(num_noise_draws=n)) for n in (1, 4)),
        *(
            change(f"head of width {width}", model=dict(mlp_width=width))
            for width in (256, 512, 768)
        ),
        *(change(f"{depth} blocks", model=dict(mlp_depth=depth)) for depth in (2, 6)),
        change("modulation by block", variant="modulation_by_block"),
        change("64 features of the time", variant="few_time_features"),
        change("times even", head_kwargs=dict(time_distribution="uniform")),
        *(
            change(f"times around {mean}", head_kwargs=dict(logit_mean=mean))
            for mean in (-1.0, -0.5, 0.5)
        ),
        change("times around -0.5, another seed", seed=1, head_kwargs=dict(logit_mean=-0.5)),
        *(change(f"times spread {std}", head_kwargs=dict(logit_std=std)) for std in (0.75, 1.5)),
        change("times stratified", variant="stratified_times"),
        change("velocity", head_kwargs=dict(model_output_clean=False)),
        change("0% learned without context", model=dict(context_drop_prob=0.0)),
        *(
            change(
                f"{share:.0%} learned without context",
                model=dict(context_drop_prob=share),
                samplings=GUIDED,
            )
            for share in (0.05, 0.2)
        ),
        # tokens
        change("half whitened", variant="half_whitened"),
        change("whitened", variant="whitened"),
        # the transformer
        change("plain positions", variant="plain_positions"),
        change("rotary, along the sequence", model=dict(decoder_kwargs=dict(rotary_pos_emb=True))),
        change(
            "rotary, by rows and columns",
            model=dict(decoder_kwargs=dict(rotary_pos_emb=True)),
            variant="rotary_2d",
        ),
        change("positions before the head", variant="positions_before_head"),
        change("qk-norm", model=dict(decoder_kwargs=dict(attn_qk_norm=True))),
        change("GLU", model=dict(decoder_kwargs=dict(ff_glu=True, ff_mult=8 / 3))),
        change("RMS norm", model=dict(decoder_kwargs=dict(use_rmsnorm=True))),
        *(
            change(f"context noised up to {noise}", image=dict(train_max_noise=noise))
            for noise in (0.1, 0.3)
        ),
        # training
        *(
            change(f"learning rate {rate:g}", trainer=dict(learning_rate=rate))
            for rate in (5e-4, 2e-3)
        ),
        *(change(f"batches of {size}", trainer=dict(batch_size=size)) for size in (8, 32)),
        *(
            change(f"{steps} steps of warm-up", trainer=dict(warmup_steps=steps))
            for steps in (0, 100)
        ),
        # for 4 minutes on one of 2 cores of a machine that takes 0.22 s a step, in single precision
        change("cosine schedule", trainer=dict(lr_schedule="cosine", num_train_steps=1075)),
        change("beta2 of 0.95", trainer=dict(adam_kwargs=dict(betas=(0.9, 0.95)))),
        change("no weight decay", trainer=dict(adam_kwargs=dict(weight_decay=0.0))),
        change("bf16", precision="bf16"),
        change("Muon", trainer_variant="muon"),
        change("mirrored images", dataset=dict(augment_horizontal_flip=True)),
        # keeping them takes time
        change(
            "other averages",
            average_widths=widths,
            samplings={"": {}, **{f"width {width}": dict(average=str(width)) for width in widths}},
        ),
        # the other head
        *(
            change(
                f"diffusion, P_mean {mean}, P_std {std}",
                head="diffusion",
                head_kwargs=dict(P_mean=mean, P_std=std),
                samplings=GUIDED,
            )
            for mean, std in (
                (-1.2, 1.2),
                (-0.8, 1.2),
                (-0.4, 1.2),
                (0.0, 1.2),
                (0.4, 1.2),
                (-0.4, 1.0),
                (0.0, 1.0),
            )
        ),
    ]


def solvers() -> list[Configuration]:
    """Every solver at 4 to 32 evaluations of the head's network per token."""
    evaluations = (4, 6, 8, 12, 16, 32)
    one = {
        f"{solver}, {n} steps": dict(solver=solver, num_steps=n)
        for solver in ("dpmpp_2m", "euler")
        for n in evaluations
    }
    two = {
        f"heun, {n // 2 + 1} steps": dict(solver="heun", num_steps=n // 2 + 1) for n in evaluations
    }
    return [change(head, head=head, samplings=one | two) for head in ("diffusion", "flow")]


def heads(patch_size: int) -> list[Configuration]:
    """Every head, as "ardiff train" makes it, in 1 to 16 evaluations of its network per token, as
    learned and guided."""
    by_steps = {f"NFE {n}": dict(num_steps=n) for n in (1, 2, 4, 8, 16)}
    rows = []
    for head in HEADS:
        takes_steps = "num_noise_draws" in head_class(head).argument_names()
        samplings = by_steps if takes_steps else {"NFE 1": {}}
        own = next(iter(samplings)) if head in ("flow_map", "energy") else "NFE 8"
        samplings = {own: samplings[own]} | samplings  # the first is drawn on the way too
        guided = {
            f"{own}, context guidance {scale}": samplings[own] | dict(context_guidance=scale)
            for scale in (1.1, 1.2, 1.5, 2.0)
        }
        row = change(head, head=head, patch_size=patch_size, samplings=samplings | guided)
        rows.append(row if takes_steps else replace(row, head_kwargs={}))
    return rows


def heads_ablations() -> list[Configuration]:
    """What the heads of one evaluation learn from."""

    def row(name: str, head: str, **head_kwargs) -> Configuration:
        guided = {f"context guidance {s}": dict(context_guidance=s) for s in (1.2, 1.5)}
        row = change(name, head=head, samplings={"": {}} | guided)
        return replace(row, head_kwargs=head_kwargs)

    return [
        row("flow map, Lagrangian", "flow_map", objective="lsd"),
        row("flow map, progressive", "flow_map", objective="psd"),
        row("flow map, progressive, ends as drawn", "flow_map", objective="psd", at_ends=0.0),
        row("energy score", "energy"),
        row("energy score, whole tokens alone", "energy", block_weight=0.0),
        row("energy score, 8 samples", "energy", num_samples=8),
        row("energy score, no coins", "energy", num_coins=0),
    ]


def orders(labels: bool) -> list[Configuration]:
    """The orders, as "ardiff train --order" makes them, by iterations, as learned and guided."""
    rows = []
    for order, iterations in (("raster", ()), ("random", (8, 4)), ("masked", (16, 4))):
        by_iterations = {f"{n} iterations": dict(num_iterations=n) for n in iterations}
        guided = {f"context guidance {s}": dict(context_guidance=s) for s in (1.2, 1.5)}
        if labels:
            linear = dict(guidance_scale=2.0, guidance_schedule="linear")
            guided = {"guidance 1.5": dict(guidance_scale=1.5), "guidance to 2.0": linear}
        samplings = {"": {}} | by_iterations | guided
        own = {} if order == "raster" else dict(head_kwargs=ANY_ORDER)
        rows.append(change(order, order=order, labels=labels, samplings=samplings, **own))
    return rows


def orders_ablations() -> list[Configuration]:
    """How models of many orders are trained."""
    rates = [dict(learning_rate=rate) for rate in (1e-3, 5e-4)]
    return [
        change(
            f"{order}, {draws} noise draws, rate {trainer['learning_rate']:g}",
            order=order,
            head_kwargs=dict(num_noise_draws=draws),
            trainer=trainer,
        )
        for order in ("masked", "random")
        for draws in (2, 4, 8)
        for trainer in rates
    ]


def labels() -> list[Configuration]:
    """With the names of folders as labels and without, by guidance and temperature."""
    guided = {
        f"guidance {scale}, temperature {temperature}": dict(
            guidance_scale=scale, temperature=temperature
        )
        for scale, temperature in (
            (1.0, 1.0),
            (1.25, 1.0),
            (1.5, 1.0),
            (2.0, 1.0),
            (3.0, 1.0),
            (1.5, 0.95),
            (2.0, 0.95),
            (3.0, 0.95),
        )
    }
    return [
        change(
            "no labels",
            samplings={"temperature 1.0": {}, "temperature 0.95": dict(temperature=0.95)},
        ),
        change("labels", labels=True, samplings=guided),
    ]


SETS = {
    "patch-sizes": patch_sizes(),
    "long": long(),
    "comparison": comparison(32, 8, 8),
    "comparison-64": comparison(64, 8, 8),
    "labelled-comparison": labelled_comparison(),
    "ablations": ablations(),
    "solvers": solvers(),
    "heads": heads(8),
    "heads-4": heads(4),
    "heads-ablations": heads_ablations(),
    "orders": orders(labels=False),
    "orders-ablations": orders_ablations(),
    "orders-labels": orders(labels=True),
    "labels": labels(),
}

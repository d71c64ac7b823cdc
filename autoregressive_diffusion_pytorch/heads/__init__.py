"""The heads: what one token is drawn from, given its condition z. They know no sequences."""

# a head is one file and one line here: the name that models, commands and saved models know it by
HEADS = {
    "diffusion": f"{__name__}.elucidated_diffusion:ElucidatedDiffusion",
    "flow": f"{__name__}.rectified_flow:RectifiedFlow",
    "flow_map": f"{__name__}.flow_map:FlowMap",
    "energy": f"{__name__}.energy:EnergyScore",
}

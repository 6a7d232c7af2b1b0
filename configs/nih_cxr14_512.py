"""python -m progemu_jax.main --config=configs/nih_cxr14_512.py --config.data.root=DIR --workdir=runs/nih-512

The whole of NIH ChestX-ray14 at 512 x 512 on one machine of eight GPUs of 80 GB: 32 x 32 codes of 16 x 16 pixels, a
transformer three times as large as that of `nih_cxr14_256`. By `--stages=plan --config.plan.devices=8
--config.plan.rows=16` a training step takes 0.23 s on H100s at best (229 TFLOP a device): stage 1, stage 2 and reading,
80,000 steps, 5.2 hours at best. Count on three times that, and on some hours for tokenizer and scorers, which are not
planned. Not run: no accelerator was lent; no score is known.
"""

from progemu_jax.configs import nih_cxr14_256


def get_config():
    """See the module."""
    config = nih_cxr14_256.get_config()
    config.name = "NIH ChestX-ray14 at 512 x 512"
    config.data.update(tree_size=768, image_size=512)
    config.tokenizer.model.update(ch_mult=(1, 2, 4), codebook_size=8192)
    config.progemu.model.update(
        hidden_size=1536, num_layers=32, num_heads=24, num_kv_heads=24, head_dim=64, intermediate_size=4096
    )
    for stage in (config.tokenizer, config.decoder, config.scorer, config.identity):
        stage.train.batch_size = 64
    for stage in ("words", "stage1", "stage2"):
        config.progemu[stage].batch_size = 128
    config.progemu.reading.train.batch_size = 128
    config.mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    return config

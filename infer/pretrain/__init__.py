"""Self-supervised pretraining and distillation of small v2 students on tiles: `python -m infer.pretrain`.

See docs/pretraining.md.
"""

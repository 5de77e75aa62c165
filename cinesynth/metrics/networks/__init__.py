"""The networks that metrics run, under torch; and, here, what is known of them without torch."""

I3D_WEIGHTS = "i3d-kinetics-400"
I3D_FEATURES = 400
I3D_MIN_FRAMES = 10
"""With fewer, I3D's temporal pooling has nothing left."""
LPIPS_MIN_SIDE = 32
"""Pixels; smaller pictures do not reach the last layer of the trunks."""
ST_LPIPS_WEIGHTS = "st-lpips-alex"
INCEPTION_WEIGHTS = "inception-2015"
INCEPTION_FEATURES = 2048
CLIP_WEIGHTS = "clip-vit-b-32"
CLIP_FEATURES = 512
CLIP_MODEL = "ViT-B-32-quickgelu"
"""Of open_clip: OpenAI trained with the quick approximation of GELU."""

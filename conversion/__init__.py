"""Conversion of other systems' weights, in and out; installed as `ko_en_clip.conversion`."""

"""Read tiled pyramidal TIFFs at their stored pixels, several times as fast as OpenSlide."""

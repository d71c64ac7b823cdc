"""Which files are pictures, by their endings, and which of them the installed Pillow reads."""

from __future__ import annotations

from functools import cache

from PIL import Image

PICTURES = (
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "tif", "tiff", "webp", "bmp", "dib"),
    *("gif", "avif", "heic", "heif", "hif", "jp2", "j2k", "jpf", "jpx", "ppm", "pgm", "pbm"),
    *("pnm", "tga", "qoi"),
)
# looked for, to name them: drawings, sources of pictures, and raw files of cameras
OTHER_PICTURES = (
    *("svg", "svgz", "eps", "ai", "psd", "xcf", "kra", "ico", "icns", "cur", "dds", "exr", "hdr"),
    *("jxl", "jxr", "wdp", "bpg", "flif", "pcx", "sgi", "ras", "xbm", "xpm", "wmf", "emf", "pfm"),
    *("raw", "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "orf", "rw2", "raf", "pef", "srw"),
    *("fits", "dcm"),
)


@cache
def readable_endings() -> tuple[str, ...]:
    """Those of `PICTURES` that are read here: avif and heic need a Pillow or a plugin for them."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    known = Image.registered_extensions()
    return tuple(ending for ending in PICTURES if f".{ending}" in known)


def suffixes(endings) -> tuple[str, ...]:
    return tuple(f".{ending.lower().lstrip('.')}" for ending in endings)

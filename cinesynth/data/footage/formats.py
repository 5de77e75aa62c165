"""What a file is, before it is read whole: its name says it where FFmpeg knows the suffix, else its header does.

PyAV is imported by the functions that ask it: a worker that only hashes files does without.
"""

from __future__ import annotations

import io
import mimetypes
from functools import cache

from cinesynth.errors import MediaError, StorageError
from cinesynth.storage import Storage, public_uri

_STILL = {"avif", "fits", "ico", "image2", "image2pipe", "webp"}
# Playlists and manifests name video, and raw video says nothing of its size.
_NO_VIDEO_OF_ITS_OWN = {"dash", "hls", "rawvideo", "webm_dash_manifest"}
_EITHER = {".isma", ".m4a", ".m4b", ".mka", ".mks", ".ogg", ".ra", ".wma"}  # sound as a rule: the header is asked
# What lies beside footage in a studio, and is known neither to FFmpeg's writers nor to the MIME table.
_OTHER = {
    "a picture": "arw cin cr2 cr3 dds dng heic heics heif jxr mpo nef orf psb psd raf rw2 thm xcf",
    "a project or a scene": "3dl abc aaf aep als blend cdl cube cprj drp edl fbx fcpxml hip ma mb nk otio ptx prproj "
    "usd usda usdc usdz veg xmp",
    "data": "7z arrow avro cfg ckpt db gguf gz hdf5 ini ipynb jsonl log md5 npy npz parquet pek pkf pkl pt pth rar "
    "safetensors sha256 sqlite tfrecord toml tmp whl xz yaml yml zst",
    "a text": "csv docx json md odt srt txt xlsx",
    "subtitles": "idx smi stl sub",
}
# Demuxers that take nearly anything for video (text, pictures), or that open what a file names.
_NOT_ASKED = {"adf", "bin", "concat", "data", "ffmetadata", "idf", "lavfi", "rtp", "rtsp", "sap", "sdp", "tty", "xbin"}
_HEADER_BYTES = 1_000_000


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, with its dot; empty where it has none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return f".{last.lower()}" if dot and stem else ""


def is_video_name(name: str) -> bool:
    """Whether a file's name ends like that of a video: FFmpeg writes moving pictures to files with this suffix."""
    return _kinds().get(suffix_of(name)) == "video"


def named_otherwise(name: str) -> str:
    """What a file's name says that it is, such as `a picture`; empty for video, and where the name says nothing."""
    suffix = suffix_of(name)
    kind = _kinds().get(suffix)
    if kind is None:
        mime = _mime_types().guess_type(f"x{suffix}")[0] or ""
        kinds = {"image": "a picture", "audio": "sound", "text": "a text", "application": "data", "message": "a text"}
        kind = "" if mime == "application/octet-stream" else kinds.get(mime.partition("/")[0], "")
    return "" if kind == "video" else kind


def holds_video(location: str) -> bool:
    """Whether FFmpeg finds moving pictures in a file or object, by its header. A cover picture is none.

    Raises MediaError when it cannot be read.
    """
    import av
    from av.stream import Disposition

    storage = Storage.open(location)
    options = {
        "format_whitelist": _asked(),
        "probesize": str(_HEADER_BYTES),
        "analyzeduration": "0",
    }
    try:
        with (
            storage.filesystem.open_input_file(storage.path) as file,
            av.open(file, options=options) as container,
        ):
            return any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)
    except av.error.FFmpegError:
        return False
    except (OSError, StorageError) as e:
        raise MediaError(f"{public_uri(location)} cannot be read: {e}") from e


@cache
def _kinds() -> dict[str, str]:
    """Suffix to what it stands for, as FFmpeg's writers say it by the codecs that they choose."""
    import av

    kinds = {f".{suffix}": kind for kind, names in _OTHER.items() for suffix in names.split()}
    found: dict[str, set[str]] = {"video": set(), "a picture": set(), "sound": set(), "subtitles": set()}
    for name in sorted(av.formats_available - _NO_VIDEO_OF_ITS_OWN):
        try:
            container = av.open(io.BytesIO(), "w", format=name)
        except (ValueError, OSError, av.error.FFmpegError):  # it only reads
            continue
        with container:
            video, audio = container.default_video_codec, container.default_audio_codec
            subtitles, suffixes = container.default_subtitle_codec, container.format.extensions
        if name in _STILL:
            kind = "a picture"
        elif video not in ("none", "png"):  # a cover picture of a piece of music is a PNG
            kind = "video"
        elif audio != "none":
            kind = "sound"
        elif subtitles != "none":
            kind = "subtitles"
        else:
            continue
        found[kind] |= {f".{suffix.strip().lower()}" for suffix in suffixes}
    found["video"] -= found["a picture"] | kinds.keys()
    for kind in ("subtitles", "sound", "a picture", "video"):
        kinds |= dict.fromkeys(found[kind], kind)
    return {suffix: kind for suffix, kind in kinds.items() if suffix not in _EITHER}


@cache
def _asked() -> str:
    """The demuxers that may say what a file without a telling name is."""
    import av

    names = (n for n in av.formats_available if not n.endswith("_pipe"))
    return ",".join(sorted(n for n in names if n not in _STILL | _NO_VIDEO_OF_ITS_OWN | _NOT_ASKED))


@cache
def _mime_types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()  # Python's own table: the machine's would give other answers elsewhere

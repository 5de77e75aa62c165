"""What a file is, by its name and by its header."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cinesynth.data.footage.formats import holds_video, is_video_name, named_otherwise
from cinesynth.errors import MediaError


def test_names_of_video_are_those_that_ffmpeg_writes() -> None:
    names = (
        "a.mp4 00001.MTS b.m2ts c.mxf D.VOB e.wmv f.flv g.3gp h.mpeg i.gif j.apng k.y4m l.dv m.MOV n.mkv o.webm p.ts"
    )
    assert [name for name in names.split() if not is_video_name(name)] == []
    assert [name for name in names.split() if named_otherwise(name)] == []


def test_names_of_other_things_say_what_they_are() -> None:
    kinds = {
        "a picture": "a.png b.JPG c.tiff d.exr e.dpx f.psd g.webp h.avif i.dng j.heic",
        "sound": "a.wav b.mp3 c.flac d.aac",
        "subtitles": "a.srt b.vtt c.ass",
        "a project or a scene": "a.prproj b.drp c.blend d.xmp",
        "data": "a.zip b.parquet c.pdf d.m3u8 e.safetensors",
        "a text": "a.txt b.json c.csv d.md e.py",
    }
    assert {kind: [n for n in names.split() if named_otherwise(n) != kind] for kind, names in kinds.items()} == {
        kind: [] for kind in kinds
    }


@pytest.mark.parametrize("name", ["clip", "takes.v2/clip", ".mp4", "a.r3d", "a.dat", "a.m4a", "a.bin", "clip."])
def test_a_name_may_leave_it_open(name: str) -> None:
    assert not is_video_name(name)
    assert not named_otherwise(name)


def _video(path: Path, container: str, codec: str, pixel_format: str) -> Path:
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for picture in np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            out.mux(stream.encode(frame.reformat(format=pixel_format)))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("container", "codec", "pixel_format"),
    [
        ("mpegts", "mpeg2video", "yuv420p"),
        ("mxf", "mpeg2video", "yuv422p"),
        ("vob", "mpeg2video", "yuv420p"),
        ("asf", "msmpeg4v3", "yuv420p"),
        ("flv", "flv1", "yuv420p"),
        ("mp4", "mpeg4", "yuv420p"),
        ("yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_a_header_says_that_a_file_without_a_telling_name_is_video(
    container: str, codec: str, pixel_format: str, tmp_path: Path
) -> None:
    assert holds_video(str(_video(tmp_path / "clip", container, codec, pixel_format)))


def test_pictures_sound_texts_and_playlists_are_no_video(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "picture", format="PNG")
    with wave.open(str(tmp_path / "sound"), "wb") as sound:
        sound.setparams((1, 2, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(16_000))
    with av.open(str(tmp_path / "covered"), "w", format="mp3") as song:
        audio = song.add_stream("mp3", rate=44_100)
        cover = song.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152 * 2), np.int16), format="s16", layout="stereo")
        samples.sample_rate = 44_100
        song.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))
        song.mux(audio.encode(samples))
        song.mux(audio.encode(None))
    clip = _video(tmp_path / "clip.mp4", "mp4", "mpeg4", "yuv420p")
    (tmp_path / "playlist").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "script").write_text(f"ffconcat version 1.0\nfile '{clip}'\n")
    (tmp_path / "text").write_text("a dog runs over a beach\n" * 50)
    (tmp_path / "nothing").touch()
    for name in ("picture", "sound", "covered", "playlist", "script", "text", "nothing"):
        assert not holds_video(str(tmp_path / name)), name
    with pytest.raises(MediaError, match="gone cannot be read"):
        holds_video(str(tmp_path / "gone"))

"""The real weights, from the Hugging Face hub into its cache: announced first, resumable, verified before they count.

huggingface_hub (2.4) keeps nothing of a download that was cut off. Of 4 GB that would be a pity: here its `http_get`
appends to one `.incomplete` file beside the cache's blobs, which takes a blob's name only when size and sha256 are
right; then the library links it as it links its own downloads.
"""

import errno
import hashlib
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from tqdm import tqdm


@dataclass(frozen=True)
class HubFile:
    """A file on the hub and how to know it; the defaults are Stable Diffusion v1.5's."""

    repo: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    name: str = "v1-5-pruned-emaonly.safetensors"
    size: int = 4_265_146_304  # bytes
    sha256: str = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
    licence: str = "CreativeML OpenRAIL-M: free to use, but not for the harms that its attachment A lists"

    @property
    def url(self) -> str:
        """Where it is fetched from, on the server of HF_ENDPOINT."""
        return hf_hub_url(self.repo, self.name)

    def folder(self, cache_dir: str | Path | None = None) -> Path:
        """The repository's folder in the cache."""
        return Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo, repo_type="model")

    def cached(self, cache_dir: str | Path | None = None) -> Path | None:
        """Its path in the cache, where there is one, verified or not."""
        path = try_to_load_from_cache(self.repo, self.name, cache_dir)
        return Path(path) if isinstance(path, str) else None


SD_V1_5 = HubFile()


def download_sd_v1_5(file: HubFile = SD_V1_5, cache_dir: str | Path | None = None) -> Path:
    """Fetch the file unless the cache has it, verify it, and return its path in the cache.

    cache_dir: the hub's own (HF_HOME, HF_HUB_CACHE) if None. HF_ENDPOINT names another server.
    Size, free space, licence and progress go to stderr. An interrupted run is continued by the next.

    Raises ValueError, one line with what to do, where the disk is too small, the server cannot be reached or has no
    such file, or what came is not the file: a broken file is deleted, a half one is kept under another name.
    """
    folder = file.folder(cache_dir)
    partial = folder / "blobs" / f"{file.sha256}.incomplete"
    elsewhere = "check that HF_ENDPOINT, if set, names a server that has this file"
    try:
        if path := file.cached(cache_dir):
            if not (fault := _fault(path, file, folder)):
                return path
            print(f"{path} is broken ({fault}): deleted, to be fetched again", file=sys.stderr)
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        _announce(file, partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(partial.with_suffix(".lock")):  # two runs would append to the same file
            metadata = get_hf_file_metadata(file.url, token=False)
            if metadata.size not in (None, file.size):
                raise ValueError(f"{file.url} has {metadata.size:,} bytes instead of {file.size:,}: {elsewhere}")
            blob = partial.with_name(metadata.etag or file.sha256)
            if not blob.exists():
                _fetch(file, partial)
                if fault := _fault(partial, file, folder):
                    partial.unlink()
                    raise ValueError(f"{file.url} came broken ({fault}), deleted: run this again, or {elsewhere}")
                partial.replace(blob)
            path = Path(hf_hub_download(file.repo, file.name, cache_dir=cache_dir, token=False))
            if not path.is_symlink():  # a system without links: the library made a copy
                blob.unlink(missing_ok=True)
        if fault := _fault(path, file, folder):
            raise ValueError(f"{path} is broken ({fault}): run this again")
        return path
    except OfflineModeIsEnabled:
        switch = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
        raise ValueError(f"{file.name} cannot be fetched while {switch} is set: unset it") from None
    except HfHubHTTPError as error:
        raise ValueError(f"{file.url}: the server answered {error.response.status_code}: {elsewhere}") from None
    except (HTTPError, LocalEntryNotFoundError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{file.url} cannot be fetched ({why}): check the network, then run this again to go on where it stopped"
        ) from None
    except OSError as error:
        if error.errno is None:  # http_get, of an answer of another length
            raise ValueError(f"{file.url} came incomplete: run this again to go on where it stopped") from None
        remedy = "make room, or set HF_HOME" if error.errno == errno.ENOSPC else "set HF_HOME"
        raise ValueError(f"cannot write to {folder} ({error.strerror}): {remedy} to a folder elsewhere") from None


def find_sd_v1_5(file: HubFile = SD_V1_5, cache_dir: str | Path | None = None) -> Path | None:
    """The verified file in the cache, or None; asks no network. Hashed once, then remembered until it changes.

    Raises ValueError, naming it, for a file that is there and broken.
    """
    path = file.cached(cache_dir)
    if path and (fault := _fault(path, file, file.folder(cache_dir))):
        raise ValueError(f"{path} is broken ({fault}): get it again with python -m sd_teach download sd-v1-5")
    return path


def sha256_of(*paths: Path) -> str:
    """The sha256 over files, one after the other, in hexadecimal digits; over large ones with progress on stderr."""
    digest, size = hashlib.sha256(), sum(path.stat().st_size for path in paths)
    small = size < 1 << 28  # bytes: done in less than a second
    bar = tqdm(total=size, desc="sha256", unit="B", unit_scale=True, disable=small, file=sys.stderr)
    with bar:
        for path in paths:
            with path.open("rb") as data:
                while block := data.read(1 << 20):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()


def _announce(file: HubFile, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    cache = partial.absolute().parents[2]
    # the folder may not be there yet: then the disk is that of the nearest above it
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    here = f", {have / 1e9:.2f} GB of it here already" if have else ""
    print(f"fetching {file.url}\nlicence  {file.licence}", file=sys.stderr)
    print(f"size     {file.size / 1e9:.2f} GB{here}\nto       {cache}, {free / 1e9:.2f} GB free", file=sys.stderr)
    if lack := max(0, file.size - have - free):
        raise ValueError(f"{cache} lacks {lack / 1e9:.2f} GB of room: make room, or set HF_HOME to a folder elsewhere")


def _fetch(file: HubFile, partial: Path) -> None:
    """Append to `partial` what it lacks."""
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    # compressed answers cannot be continued; the hub's own address, since those it redirects to expire
    headers = build_hf_headers(token=False) | {"Accept-Encoding": "identity"}
    with partial.open("ab") as out:
        told = {"expected_size": file.size, "displayed_filename": file.name}
        http_get(file.url, out, resume_size=out.tell(), headers=headers, **told)


def _fault(path: Path, file: HubFile, folder: Path) -> str | None:
    """What is wrong with the bytes in `path`, or None; a good hash is remembered beside the file's size and time."""
    stat, stamp = path.stat(), folder / f"{file.sha256}.verified"
    if stat.st_size != file.size:
        return f"{stat.st_size:,} bytes instead of {file.size:,}"
    good = f"{stat.st_size} {stat.st_mtime_ns}"
    if stamp.exists() and stamp.read_text() == good:
        return None
    if (digest := sha256_of(path)) != file.sha256:
        return f"sha256 {digest} instead of {file.sha256}"
    with suppress(OSError):  # a cache that is read only is hashed each time
        stamp.write_text(good)
    return None

"""An HTTP service of an exported model: POST an image to /embed or /search.

python service.py model.onnx embeddings.npz --port 8000
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import uvicorn
from embedder import Embedder, Floats
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
MOST_BYTES = 20_000_000
MOST_HITS = 100


class Service:
    """Embeds images and searches a gallery for the most similar ones.

    Args:
        model: file of ``mlbench export --format onnx``.
        gallery: file of ``mlbench embed`` with the same model.
    """

    def __init__(self, model: Path, gallery: Path) -> None:
        self.embedder = Embedder(model)
        with np.load(gallery, allow_pickle=False) as arrays:
            self.paths: list[str] = arrays["paths"].tolist()
            self.embeddings: Floats = arrays["embeddings"]
        if self.embeddings.shape != (len(self.paths), self.embedder.dim):
            raise ValueError(f"{gallery}: embeddings of another model than {model}")

    async def embed(self, request: Request) -> JSONResponse:
        """Answer with the embedding of the image in the request's body."""
        embedding = await self._embedding(request)
        return JSONResponse({"embedding": embedding.tolist()})

    async def search(self, request: Request) -> JSONResponse:
        """Answer with the images of the gallery that are most similar, the best first."""
        top = _top(request)
        similarities = self.embeddings @ await self._embedding(request)
        best = np.argsort(-similarities, kind="stable")[:top]
        hits = [{"path": self.paths[i], "similarity": float(similarities[i])} for i in best]
        return JSONResponse({"hits": hits})

    async def _embedding(self, request: Request) -> Floats:
        body = await _body(request)
        # In a thread, so that other requests are answered meanwhile.
        return await run_in_threadpool(self._embed, body)

    def _embed(self, body: bytes) -> Floats:
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as image:
                return self.embedder.embed(image)
        except UnidentifiedImageError:
            raise HTTPException(415, f"the body must be an image: {', '.join(FORMATS)}") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise HTTPException(422, f"the image cannot be read: {error}") from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"the image has more than {MOST_BYTES:,} bytes")
    return bytes(body)


def _top(request: Request) -> int:
    given = request.query_params.get("top", "5")
    if not (given.isascii() and given.isdecimal() and 1 <= int(given) <= MOST_HITS):
        raise HTTPException(422, f"top must be a whole number from 1 to {MOST_HITS}")
    return int(given)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def application(model: Path, gallery: Path) -> Starlette:
    """Return the service as an ASGI application."""
    service = Service(model, gallery)
    routes = [
        Route("/embed", service.embed, methods=["POST"]),
        Route("/search", service.search, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refuse})


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve an exported model over HTTP.")
    parser.add_argument("model", type=Path, help="file of mlbench export --format onnx")
    parser.add_argument("gallery", type=Path, help="file of mlbench embed, of the same model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(application(given.model, given.gallery), host=given.host, port=given.port)


if __name__ == "__main__":
    main()

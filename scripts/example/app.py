"""A whole application that serves a model: one linear layer, out of safetensors, mapped and not copied.

    pip install 'lazyfs[fastapi]' uvicorn safetensors numpy
    export LAZYFS_SOURCE=s3://my-models/llm/ MODEL=tiny VERSION=v1
    uvicorn --app-dir scripts/example app:app

    curl localhost:8000/cache/health                        503 while it arrives, then 200
    curl localhost:8000/predict -H 'content-type: application/json' -d '{"x": [1, 2, 3]}'

The same code runs beside a mount of the bucket, whose files it maps as they arrive, and without one.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from safetensors.numpy import load_file

from lazyfs.fastapi import Model

Weights = dict[str, Any]


class Question(BaseModel):
    """The input of the layer."""

    x: list[float]


class Answer(BaseModel):
    """Its output."""

    y: list[float]


def load(path: Path) -> Weights:
    """The tensors of the model's one file."""
    return dict(load_file(path / "model.safetensors"))


model = Model(
    os.environ.get("MODEL", "tiny"),
    os.environ.get("VERSION", "v1"),
    load=load,
    start_jitter=os.environ.get("START_JITTER", "0s"),
)
app = FastAPI(title="A linear layer", lifespan=model.lifespan)
app.include_router(model.router)


@app.post("/predict")
def predict(question: Question, weights: Annotated[Weights, Depends(model.loaded)]) -> Answer:
    """y = Wx + b; 503 until the model is here."""
    if len(question.x) != weights["weight"].shape[1]:
        raise HTTPException(422, f"x must have {weights['weight'].shape[1]} numbers")
    return Answer(y=(weights["weight"] @ question.x + weights["bias"]).tolist())

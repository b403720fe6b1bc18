"""Encoders: what turns patches into embeddings, under which name, version, weights and licence."""

from histoflow.pp.encoders.dense import Dense
from histoflow.pp.encoders.network import EncodeFunction
from histoflow.pp.encoders.record import Card, Encoder, EncoderInfo
from histoflow.pp.encoders.registry import available_encoders, get_encoder, unavailable
from histoflow.pp.encoders.weights import load_weights

__all__ = [
    "Card",
    "Dense",
    "EncodeFunction",
    "Encoder",
    "EncoderInfo",
    "available_encoders",
    "get_encoder",
    "load_weights",
    "unavailable",
]

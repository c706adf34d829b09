"""Checkpoints: parameters, optimizer and step in one file, replaced whole."""

import os
import pathlib

import torch

from settings import SettingsError, differences

NAME = "checkpoint.pt"


def save(folder: pathlib.Path, settings, model, optimizer, step, seconds):
    """Writes the state before `step`, and the seconds of the steps so far. A run that ends while it writes leaves the
    checkpoint before."""
    partial = folder / (NAME + ".partial")
    torch.save({"settings": settings.to_dict(), "vocabulary": model.vocabulary, "step": step,
                "seconds": seconds, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    os.replace(partial, folder / NAME)


def load(folder: pathlib.Path, device):
    """The checkpoint's contents, or None if there is none."""
    path = folder / NAME
    return torch.load(path, map_location=device) if path.exists() else None


def restore(state, settings, model, optimizer):
    """Puts a checkpoint into the model and the optimizer; returns (next step, seconds)."""
    found = differences(state["settings"], settings)
    if state["vocabulary"] != model.vocabulary:
        found.append(f"vocabulary: found {model.vocabulary}, expected {state['vocabulary']} as in the checkpoint")
    if found:
        raise SettingsError("; ".join(found))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]

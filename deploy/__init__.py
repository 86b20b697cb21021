"""Use of trained networks: embeddings of photos, comparison, search, export, and folders to share."""

from deploy.embedder import FaceEmbedder

__all__ = ["FaceEmbedder"]

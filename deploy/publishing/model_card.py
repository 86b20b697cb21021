"""The README.md of a shared folder: what a network is, how accurate it is, and what it is not for."""

import json
from dataclasses import dataclass
from typing import Any

from deploy.networks.thresholds import SetEntries
from utils.flops import Cost

_FARS = ("1e-02", "1e-03", "1e-04")  # keys of thresholds.json


@dataclass(frozen=True)
class ModelCard:
    """Content of the README.md."""

    name: str
    folder: str  # name of the folder
    data: str  # what the network was trained on; empty if it is not said
    license: str  # of the weights, as the Hub spells it
    network: dict[str, Any]  # config fields that define it
    cost: Cost
    results: SetEntries  # of results.json
    thresholds: SetEntries  # of thresholds.json

    def format(self) -> str:
        """Returns the text: YAML front matter as the Hugging Face Hub reads it, then Markdown."""
        parts = [
            self._front_matter(), f"# {self.name}", self._introduction(), "## Accuracy", self._accuracy(),
            "## Thresholds", self._thresholds(), "## Use", self._use(), "## Licence and limits", self._limits(),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        fields: dict[str, Any] = {
            "license": self.license,
            "library_name": "pocketnet",
            "pipeline_tag": "image-feature-extraction",
            "tags": ["face-recognition", "face-verification", "arcface", self.network["net_name"].lower()],
        }
        if self.results:
            public = {name: entry for name, entry in self.results.items() if ":" not in name}  # not the user's photos
            results = [self._index_entry(name, entry) for name, entry in public.items()]
            fields["model-index"] = [{"name": self.name, "results": results}]
        # JSON is YAML too, and quotes every text safely.
        lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
        return "\n".join(["---", *lines, "---"])

    def _index_entry(self, name: str, entry: dict[str, Any]) -> dict[str, Any]:
        metric = {"type": "accuracy", "value": round(100 * entry["accuracy"], 2), "name": "ten-fold accuracy in %"}
        dataset = {"type": name, "name": name}
        task = {"type": "image-feature-extraction", "name": "face verification"}
        return {"task": task, "dataset": dataset, "metrics": [metric]}

    def _introduction(self) -> str:
        data = self.data or "data that are not named"
        return (
            f"A face-recognition network ({self.network['net_name']}) of {self.cost.parameters:,} parameters and "
            f"{self.cost.multiply_adds / 1e6:,.1f} million multiply-adds, trained on {data}. It maps an aligned face "
            f"of 112×112 RGB pixels to {self.network['embedding_size']} numbers; the cosine of two such embeddings "
            "tells whether the faces are of one person."
        )

    def _accuracy(self) -> str:
        if not self.results:
            return "Not evaluated."
        rows = [
            f"| {name} | {entry['pairs']:,} | {100 * entry['accuracy']:.2f} | "
            f"{100 * entry['interval'][0]:.2f} to {100 * entry['interval'][1]:.2f} |"
            for name, entry in self.results.items()
        ]
        head = ["| set | pairs | accuracy in % | 95 % interval |", "|---|---|---|---|"]
        note = (
            "Ten-fold accuracy on the embedding of the image plus that of its horizontal flip; the interval is a "
            "bootstrap over the pairs."
        )
        return "\n".join([*head, *rows, "", note])

    def _thresholds(self) -> str:
        rows = [
            f"| {name} | {float(far):g} | {point['cosine']:.3f} | {100 * point['frr']:.2f} |"
            for name, entry in self.thresholds.items()
            for far in _FARS
            if isinstance(point := entry.get(far), dict)
        ]
        if not rows:
            return "None were computed."
        head = ["| set | FAR | cosine | FRR in % |", "|---|---|---|---|"]
        note = (
            "Two faces count as one person if the cosine reaches the threshold. FAR and FRR are the rates of false "
            "accepts and of false rejects. A threshold holds for photos like those of its set: compute one on your own."
        )
        return "\n".join([*head, *rows, "", note])

    def _use(self) -> str:
        return (
            "With [PocketNet](https://arxiv.org/abs/2108.10710) in PyTorch, in this folder's parent:\n\n"
            "```python\n"
            "from deploy import FaceEmbedder\n\n"
            f"embedder = FaceEmbedder.load({json.dumps(self.folder, ensure_ascii=False)})\n"
            'print(embedder.compare("a.jpg", "b.jpg"))\n'
            "```\n\n"
            "`model.safetensors` holds the weights by the names of the published checkpoints, `config.json` the "
            "network, `thresholds.json` the thresholds. Inputs are RGB, (x / 255 - 0.5) / 0.5, aligned to the ArcFace "
            "template."
        )

    def _limits(self) -> str:
        licence = "not stated" if self.license == "other" else self.license
        return (
            f"- Licence of these weights: {licence}. Weights carry the terms of the data they were trained on "
            f"({self.data or 'not named here'}); most face data sets allow research only.\n"
            "- Not for decisions about people without a person who checks them, and not for identifying people "
            "without their consent or another lawful ground.\n"
            "- Error rates differ with age, sex, skin tone, pose, light and camera. Measure them on the people it will "
            "be used for.\n"
            "- It does not tell a living face from a photo of one."
        )

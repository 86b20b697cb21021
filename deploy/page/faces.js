// From a photo to the embedding of its face.

import { SIZE, crop, similarity } from "./alignment.js";
import { Detector, areaOf, chooseFace } from "./detector.js";
import { PhotoError } from "./images.js";
import { Network, download } from "./networks.js";

// A face counts as a second one if its box has at least this part of the area of the chosen face's box.
const SECOND_FACE_AREA = 0.25;

export class FaceEmbedder {
  constructor(settings, detector, network) {
    this.settings = settings;
    this.detector = detector;
    this.network = network;
  }

  /** Loads settings.json and the networks. Throws an Error that names a file. */
  static async load() {
    const [settings, ...networks] = await Promise.all([
      download("settings.json").then((response) => response.json()),
      ...["detector", "mesh", "network"].map((name) => Network.load(`networks/${name}.onnx`)),
    ]);
    return new FaceEmbedder(settings, new Detector(networks[0], networks[1]), networks[2]);
  }

  /**
   * Returns {box, aligned}: the box of the one face in an image, and the aligned face, 112×112 RGB. An image of 112×112
   * pixels is an aligned face already. Throws PhotoError if there is no face, or more than one.
   */
  async align(image, progress = async () => {}) {
    if (image.width === SIZE && image.height === SIZE) {
      return { box: [0, 0, SIZE, SIZE], aligned: image.data.filter((_, i) => i % 4 !== 3) };
    }
    const found = await this.detector.find(image, progress);
    const left = [...found];
    while (left.length) {
      const face = chooseFace(left, image.width, image.height);
      left.splice(left.indexOf(face), 1);
      const points = await this.detector.landmarks(image, face);
      const matrix = points && similarity(points);
      if (!matrix || !matrix.flat().every(Number.isFinite)) continue;
      const limit = SECOND_FACE_AREA * areaOf(face.box);
      const count = found.filter((other) => other === face || areaOf(other.box) >= limit).length;
      if (count > 1) throw new PhotoError(`${count} faces were found. Cut out one.`);
      return { box: face.box, aligned: crop(image, matrix) };
    }
    throw new PhotoError("No face was found. Take a photo that shows the face from the front, and larger.");
  }

  /** Returns the embedding of an aligned face, a vector of length 1. */
  async embed(aligned) {
    const { pixels, layout } = this.settings.input;
    let values = pixels === "uint8" ? Uint8Array.from(aligned) : Float32Array.from(aligned, (v) => (v / 255 - 0.5) / 0.5);
    if (layout === "NCHW") {
      const area = SIZE * SIZE;
      values = values.map((_, i) => values[3 * (i % area) + Math.floor(i / area)]);
    }
    const shape = layout === "NCHW" ? [1, 3, SIZE, SIZE] : [1, SIZE, SIZE, 3];
    const [embedding] = Object.values(await this.network.run(values, shape));
    const length = Math.hypot(...embedding);
    return embedding.map((value) => value / length);
  }
}

/** Returns the similarity of two faces: the cosine of their embeddings, from -1 to 1. */
export function compare(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

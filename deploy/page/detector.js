// Finds faces with BlazeFace in tiles of a photo, and five points of a face with the face mesh, as
// data/alignment/blazeface.py does, with the same networks.

import { invert } from "./alignment.js";
import { resize, roundEven, sample } from "./images.js";

const SIZE = 128; // pixels of the detector's input
const GRIDS = [[16, 2], [8, 6]]; // cells a side, and boxes a cell
const MESH_SIZE = 192; // pixels of the mesh's input
const MESH_MARGIN = 1.5; // side of the mesh's input relative to that of the box
// Points of the mesh: both corners of each eye, the tip of the nose, the corners of the mouth.
const POINTS = [[33, 133], [362, 263], [1], [61], [291]];
const MIN_TILE = 160; // pixels
const MAX_LEVELS = 4;
const STEP = 0.6; // of a tile's side
const MAX_OVERLAP = 0.4; // of the smaller box

/** A face is {box: [left, top, width, height], score, points}, in pixels of the photo. */
export class Detector {
  constructor(detector, mesh) {
    this.detector = detector;
    this.mesh = mesh;
    this.anchors = GRIDS.flatMap(([cells, boxes]) => anchors(cells, boxes));
  }

  /** Returns the faces in an image, best first, each once. progress is called with a number from 0 to 1. */
  async find(image, progress) {
    const tiles = makeTiles(image.width, image.height);
    const found = [];
    for (const [i, tile] of tiles.entries()) {
      found.push(...(await this.findInTile(image, ...tile)));
      await progress((i + 1) / tiles.length);
    }
    const faces = suppressOverlaps(found);
    if (tiles.length === 1) return faces;
    const seen = []; // many tiles make many false alarms, which the mesh recognises
    for (const face of faces) if (await this.landmarks(image, face)) seen.push(face);
    return seen;
  }

  async findInTile(image, left, top, side) {
    const partWidth = Math.min(side, image.width - left), partHeight = Math.min(side, image.height - top);
    const scale = SIZE / side;
    const [width, height] = [partWidth, partHeight].map((length) => Math.max(1, roundEven(length * scale)));
    const x = (SIZE - width) >> 1, y = (SIZE - height) >> 1;
    const pixels = resize(image, left, top, partWidth, partHeight, width, height);
    const square = new Float32Array(3 * SIZE * SIZE).fill(-1);
    for (let row = 0; row < height; row++) {
      const to = 3 * ((y + row) * SIZE + x);
      for (let k = 0; k < 3 * width; k++) square[to + k] = pixels[3 * width * row + k] / 127.5 - 1;
    }
    const { regressors, classificators } = await this.detector.run(square, [1, SIZE, SIZE, 3]);
    const faces = [];
    this.anchors.forEach((anchor, i) => {
      if (classificators[i] < 0) return; // the logit of 0.5
      // Centre, size and six points, in pixels of the input; centre and points from the anchor.
      const pairs = Array.from({ length: 8 }, (_, k) => [regressors[16 * i + 2 * k], regressors[16 * i + 2 * k + 1]]);
      const size = pairs.splice(1, 1)[0].map((value) => value / scale);
      const [centre, ...points] = pairs.map(([u, v]) => [
        (u + SIZE * anchor[0] - x) / scale + left,
        (v + SIZE * anchor[1] - y) / scale + top,
      ]);
      const box = [centre[0] - size[0] / 2, centre[1] - size[1] / 2, ...size];
      faces.push({ box, score: 1 / (1 + Math.exp(-classificators[i])), points });
    });
    return faces;
  }

  /** Returns eyes, nose and corners of the mouth, five points, or null if the mesh finds no face there. */
  async landmarks(image, face) {
    const [right, left] = face.points; // eyes
    const angle = Math.atan2(left[1] - right[1], left[0] - right[0]);
    const side = MESH_MARGIN * Math.max(face.box[2], face.box[3]);
    const cos = (MESH_SIZE / side) * Math.cos(angle), sin = (MESH_SIZE / side) * Math.sin(angle);
    const [x, y] = centreOf(face);
    const matrix = [[cos, sin, MESH_SIZE / 2 - cos * x - sin * y], [-sin, cos, MESH_SIZE / 2 + sin * x - cos * y]];
    const inverse = invert(matrix);
    const pixels = sample(image, MESH_SIZE, 1, (u, v) => apply(inverse, [u, v]));
    const { conv2d_20: mesh, conv2d_30: logit } = await this.mesh.run(
      Float32Array.from(pixels, (value) => value / 255),
      [1, MESH_SIZE, MESH_SIZE, 3],
    );
    if (logit[0] < 0) return null;
    return POINTS.map((numbers) => {
      const middle = [0, 1].map((k) => numbers.reduce((sum, n) => sum + mesh[3 * n + k], 0) / numbers.length);
      return apply(inverse, middle);
    });
  }
}

function apply(matrix, [x, y]) {
  return matrix.map(([a, b, c]) => a * x + b * y + c);
}

function centreOf({ box }) {
  return [box[0] + box[2] / 2, box[1] + box[3] / 2];
}

/** Returns the centres of the cells of a square grid, from 0 to 1, row by row, each `boxes` times. */
function anchors(cells, boxes) {
  return Array.from({ length: cells * cells * boxes }, (_, i) => {
    const cell = Math.floor(i / boxes);
    return [((cell % cells) + 0.5) / cells, (Math.floor(cell / cells) + 0.5) / cells];
  });
}

/** Returns the photo as one square, then squares of half its side, of a quarter, …, which overlap: [left, top, side]. */
export function makeTiles(width, height) {
  const side = Math.max(width, height);
  const tiles = [];
  for (let level = 0; level < MAX_LEVELS; level++) {
    const tile = side >> level;
    if (level && tile < MIN_TILE) break;
    for (const top of starts(height, tile)) for (const left of starts(width, tile)) tiles.push([left, top, tile]);
  }
  return tiles;
}

function starts(length, tile) {
  const rest = Math.max(0, length - tile);
  const count = Math.ceil(rest / (STEP * tile));
  return Array.from({ length: count + 1 }, (_, i) => (count ? roundEven((i * rest) / count) : 0));
}

/** Returns the faces, best first, without those that mostly cover a better one or are covered by it. */
function suppressOverlaps(faces) {
  const kept = [];
  for (const face of [...faces].sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => overlap(face.box, other.box) <= MAX_OVERLAP)) kept.push(face);
  }
  return kept;
}

/** Returns the area that two boxes share, as a fraction of the smaller one. */
function overlap(a, b) {
  const sides = [0, 1].map((k) => Math.max(0, Math.min(a[k] + a[k + 2], b[k] + b[k + 2]) - Math.max(a[k], b[k])));
  return (sides[0] * sides[1]) / Math.min(areaOf(a), areaOf(b));
}

export function areaOf(box) {
  return box[2] * box[3];
}

/** Returns the largest face near the middle of a photo: by its area, less twice its squared distance from there. */
export function chooseFace(faces, width, height) {
  const rank = (face) => {
    const [x, y] = centreOf(face);
    return areaOf(face.box) - 2 * ((x - width / 2) ** 2 + (y - height / 2) ** 2);
  };
  return faces.reduce((best, face) => (rank(face) > rank(best) ? face : best));
}

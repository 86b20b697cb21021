// Pixels of photos: reading a file, and resampling as OpenCV does it, so that page and command see the same face.
// An image is an ImageData: {data, width, height}, four bytes a pixel.

const MAX_PIXELS = 2 ** 25; // larger photos are read at half their width and height
const MOST_PIXELS = 2 ** 27;
const MAX_SIDE = 32766; // the longest photo that the command takes
const HEIC_BRANDS = ["heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1", "avif", "avis"];

/** A problem that the person at the page can do something about. Its message is shown. */
export class PhotoError extends Error {}

/** Returns the pixels of a photo in a file, turned as its EXIF orientation says. Throws PhotoError. */
export async function readPhoto(file) {
  let bitmap;
  try {
    // Heeds the EXIF orientation by default. Colours stay as stored, as in the command: profiles are not applied.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    const start = new TextDecoder("latin1").decode(await file.slice(4, 12).arrayBuffer());
    if (start.startsWith("ftyp") && HEIC_BRANDS.includes(start.slice(4))) {
      throw new PhotoError(
        "This browser cannot read HEIC photos. Convert it to JPEG (iPhone: Settings, Camera, Formats, Most Compatible).",
      );
    }
    throw new PhotoError("This file is not a photo that the browser can read.");
  }
  const size = bitmap.width * bitmap.height;
  if (size > MOST_PIXELS || Math.max(bitmap.width, bitmap.height) > MAX_SIDE) {
    throw new PhotoError("This photo is too large. Make it smaller.");
  }
  for (const part of size > MAX_PIXELS ? [2, 4] : [1, 2]) {
    const pixels = tryDrawing(bitmap, Math.ceil(bitmap.width / part), Math.ceil(bitmap.height / part));
    if (pixels) return pixels;
  }
  throw new PhotoError("This browser cannot hold so large a photo. Make it smaller.");
}

/** As drawPixels, but null if the canvas is too large: some browsers refuse to make it, others draw nothing on it. */
function tryDrawing(source, width, height) {
  try {
    const pixels = drawPixels(source, width, height);
    return pixels.data.some((value) => value) ? pixels : null;
  } catch {
    return null;
  }
}

/** Returns the pixels of a picture, or of the frame that a video shows, at a size. */
export function drawPixels(source, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { colorSpace: "srgb", willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** Rounds to the nearest integer, halves to the even one, as Python does. */
export function roundEven(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2 ? 1 : 0) : Math.round(value);
}

/**
 * Resamples a part of an image to width × height: by the mean over the area of each pixel where that is smaller, else
 * linearly. Returns RGB, three values from 0 to 255 a pixel.
 */
export function resize(image, left, top, partWidth, partHeight, width, height) {
  const method = partWidth >= width && partHeight >= height ? shrink : enlarge;
  return method(image, left, top, partWidth, partHeight, width, height);
}

/** Computes in float32, as OpenCV does: sums near a half would be rounded otherwise. */
function shrink(image, left, top, partWidth, partHeight, width, height) {
  const columns = areaWeights(partWidth, width), rows = areaWeights(partHeight, height);
  // Halves are rounded to even, but up where each pixel is the mean of four.
  const half = partWidth === 2 * width && partHeight === 2 * height ? 0.125 : 0;
  const resampled = new Uint8ClampedArray(3 * width * height); // rounds halves to even
  const sums = new Float32Array(3 * width);
  let last = [-1]; // the last row that was resampled along x, which the next one may share
  rows.forEach(({ start, weights }, y) => {
    sums.fill(half);
    weights.forEach((weight, i) => {
      if (last[0] !== start + i) last = [start + i, shrinkRow(image, left, top + start + i, columns)];
      const row = last[1];
      for (let k = 0; k < sums.length; k++) sums[k] += Math.fround(weight * row[k]);
    });
    resampled.set(sums, 3 * width * y);
  });
  return resampled;
}

function shrinkRow(image, left, y, columns) {
  const row = new Float32Array(3 * columns.length);
  const { data } = image;
  columns.forEach(({ start, weights }, x) => {
    let red = 0, green = 0, blue = 0;
    let k = 4 * (y * image.width + left + start);
    for (let i = 0; i < weights.length; i++, k += 4) {
      red = Math.fround(red + Math.fround(weights[i] * data[k]));
      green = Math.fround(green + Math.fround(weights[i] * data[k + 1]));
      blue = Math.fround(blue + Math.fround(weights[i] * data[k + 2]));
    }
    row[3 * x] = red;
    row[3 * x + 1] = green;
    row[3 * x + 2] = blue;
  });
  return row;
}

/** Returns, for each new pixel, the first old pixel that it covers, and how much of it each one fills. */
function areaWeights(length, size) {
  const scale = length / size;
  return Array.from({ length: size }, (_, i) => {
    const from = i * scale, to = Math.min(from + scale, length);
    const start = Math.floor(from + 1e-3); // slivers are left out, as in OpenCV
    const end = Math.max(start + 1, Math.ceil(to - 1e-3));
    const covered = Array.from({ length: end - start }, (_, k) => {
      return Math.min(to, start + k + 1) - Math.max(from, start + k);
    });
    return { start, weights: Float32Array.from(covered, (part) => part / (to - from)) };
  });
}

function enlarge(image, left, top, partWidth, partHeight, width, height) {
  const columns = linearWeights(partWidth, width), rows = linearWeights(partHeight, height);
  const resampled = new Uint8ClampedArray(3 * width * height);
  rows.forEach(([upper, lower, up, down], y) => {
    columns.forEach(([near, far, close, away], x) => {
      for (let c = 0; c < 3; c++) {
        const read = (row, column) => image.data[4 * ((top + row) * image.width + left + column) + c];
        const above = (read(upper, near) * close + read(upper, far) * away) >> 4;
        const below = (read(lower, near) * close + read(lower, far) * away) >> 4;
        resampled[3 * (y * width + x) + c] = (((up * above) >> 16) + ((down * below) >> 16) + 2) >> 2;
      }
    });
  });
  return resampled;
}

/** Returns, for each new pixel, the two old pixels around it and their weights in 1/2048, as OpenCV rounds them. */
function linearWeights(length, size) {
  return Array.from({ length: size }, (_, i) => {
    const position = Math.min(Math.max(((i + 0.5) * length) / size - 0.5, 0), length - 1);
    const start = Math.floor(position), part = position - start;
    return [start, Math.min(start + 1, length - 1), roundEven(2048 * (1 - part)), roundEven(2048 * part)];
  });
}

/**
 * Reads size × size pixels RGB at positions given in 1/steps of a pixel, linearly between the four around each, black
 * outside the image. locate(x, y) returns a position as two integers.
 */
export function sample(image, size, steps, locate) {
  const { data, width, height } = image;
  const sampled = new Uint8ClampedArray(3 * size * size);
  for (let y = 0, k = 0; y < size; y++) {
    for (let x = 0; x < size; x++, k += 3) {
      const [u, v] = locate(x, y);
      const left = Math.floor(u / steps), top = Math.floor(v / steps);
      const right = u - left * steps, down = v - top * steps; // in steps
      for (let corner = 0; corner < 4; corner++) {
        const column = left + (corner & 1), row = top + (corner >> 1);
        if (column < 0 || row < 0 || column >= width || row >= height) continue;
        const weight = (corner & 1 ? right : steps - right) * (corner >> 1 ? down : steps - down);
        const from = 4 * (row * width + column);
        for (let c = 0; c < 3; c++) sums[c] += weight * data[from + c];
      }
      for (let c = 0; c < 3; c++) {
        sampled[k + c] = Math.floor(sums[c] / (steps * steps) + 0.5);
        sums[c] = 0;
      }
    }
  }
  return sampled;
}

const sums = new Float64Array(3);

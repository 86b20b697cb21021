// Aligns a face to the 112×112 template by five points, as utils/datasets/alignment.py does.

import { roundEven, sample } from "./images.js";

export const SIZE = 112; // pixels
// Positions of eyes, nose and corners of the mouth in an aligned face.
const TEMPLATE = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/** Returns the similarity [[a, b, x], [c, d, y]] that maps five points to the template by least squares. */
export function similarity(points) {
  const [meanX, meanY] = mean(points), [targetX, targetY] = mean(TEMPLATE);
  let along = 0, across = 0, spread = 0;
  points.forEach(([x, y], i) => {
    const [dx, dy, tx, ty] = [x - meanX, y - meanY, TEMPLATE[i][0] - targetX, TEMPLATE[i][1] - targetY];
    along += dx * tx + dy * ty;
    across += dx * ty - dy * tx;
    spread += dx * dx + dy * dy;
  });
  const a = along / spread, c = across / spread; // scale times cosine and sine of the rotation
  return [[a, -c, targetX - a * meanX + c * meanY], [c, a, targetY - c * meanX - a * meanY]];
}

function mean(points) {
  const sum = points.reduce(([x, y], point) => [x + point[0], y + point[1]], [0, 0]);
  return sum.map((value) => value / points.length);
}

/** Returns the matrix of the opposite way. */
export function invert([[a, b, x], [c, d, y]]) {
  const determinant = a * d - b * c;
  const [e, f, g, h] = [d, -b, -c, a].map((value) => value / determinant);
  return [[e, f, -(e * x + f * y)], [g, h, -(g * x + h * y)]];
}

/** Returns the aligned face, 112×112 RGB: positions in steps of 1/32 pixel, from products rounded to 1/1024. */
export function crop(image, matrix) {
  const inverse = invert(matrix);
  const across = inverse.map(([a]) => Array.from({ length: SIZE }, (_, x) => roundEven(a * x * 1024)));
  const down = inverse.map(([, b, c]) => Array.from({ length: SIZE }, (_, y) => roundEven((b * y + c) * 1024) + 16));
  return sample(image, SIZE, 32, (x, y) => [(down[0][y] + across[0][x]) >> 5, (down[1][y] + across[1][x]) >> 5]);
}

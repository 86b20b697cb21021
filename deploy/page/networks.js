// Networks in ONNX files, run by onnxruntime-web in WebAssembly.

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more would need two headers of the server

/** Returns the content of a file beside the page. Throws an Error that names it. */
export async function download(file) {
  let response;
  try {
    response = await fetch(file);
  } catch {
    throw new Error(`${file} could not be loaded`);
  }
  if (!response.ok) throw new Error(`${file} could not be loaded (${response.status})`);
  return response;
}

export class Network {
  constructor(session) {
    this.session = session;
  }

  /** Loads a network. Throws an Error that names the file. */
  static async load(file) {
    const content = await (await download(file)).arrayBuffer();
    try {
      return new Network(await ort.InferenceSession.create(content, { executionProviders: ["wasm"] }));
    } catch (error) {
      throw new Error(`${file} could not be started (${error.message})`);
    }
  }

  /** Returns the outputs, by name, for one input: a Float32Array or a Uint8Array, and its shape. */
  async run(values, shape) {
    const type = values instanceof Float32Array ? "float32" : "uint8";
    const results = await this.session.run({ [this.session.inputNames[0]]: new ort.Tensor(type, values, shape) });
    return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, tensor.data]));
  }
}

// The page: two places for photos, and the verdict.

import { SIZE } from "./alignment.js";
import { FaceEmbedder, compare } from "./faces.js";
import { PhotoError, drawPixels, readPhoto } from "./images.js";

const FRAME = 50; // milliseconds of work after which the page may draw
const MAX_SHOWN = 1024; // pixels of the longer side of a photo that is shown

const state = document.getElementById("state");
const verdict = document.getElementById("verdict");
const loading = FaceEmbedder.load();
let queue = Promise.resolve(); // networks run one face at a time

/** A place for one photo. */
class Slot {
  constructor(name) {
    const part = document.getElementById("slot").content.cloneNode(true);
    for (const kind of ["frame", "photo", "hint", "camera", "shoot", "cancel", "aligned", "message"]) {
      this[kind] = part.querySelector(`.${kind}`);
    }
    this.progress = part.querySelector("progress");
    [this.root, this.video, this.input] = ["section", "video", "input"].map((tag) => part.querySelector(tag));
    this.name = name;
    this.embedding = null;
    this.task = 0; // counts photos: the results of earlier ones are dropped
    part.querySelector("h2").textContent = name;
    this.root.setAttribute("aria-label", name);
    this.input.setAttribute("aria-label", `Choose a photo: ${name}`);
    this.camera.setAttribute("aria-label", `Use the camera: ${name}`);
    document.getElementById("photos").append(part);
    this.input.addEventListener("change", () => this.input.files.length && this.take(this.input.files[0]));
    this.camera.addEventListener("click", () => this.openCamera());
    this.cancel.addEventListener("click", () => this.closeCamera());
    this.shoot.addEventListener("click", () => this.takeFrame());
    this.root.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.root.classList.add("over");
    });
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.root.classList.remove("over");
      const [file] = event.dataTransfer.files;
      if (file) this.take(file);
    });
  }

  /** Takes a photo from a file. */
  take(file) {
    this.input.value = ""; // so that the same file can be chosen again
    this.closeCamera();
    return this.process(() => readPhoto(file));
  }

  /** Finds and embeds the face of the image that read() returns, and shows what comes out. */
  process(read) {
    const task = ++this.task;
    this.clear();
    showVerdict();
    this.tell("Looking for a face …");
    const run = async () => {
      if (task !== this.task) return;
      try {
        const embedder = await loading;
        const image = await read();
        if (task !== this.task) return;
        this.show(image);
        const start = performance.now();
        const { box, aligned } = await embedder.align(image, this.makeProgress());
        const middle = performance.now();
        const embedding = await embedder.embed(aligned);
        const end = performance.now();
        if (task !== this.task) return;
        this.show(image, box);
        this.showAligned(aligned);
        this.embedding = embedding;
        this.tell(`Face found in ${Math.round(middle - start)} ms, embedded in ${Math.round(end - middle)} ms.`);
        showVerdict();
      } catch (error) {
        if (task === this.task) this.tell(error.message, true);
        if (!(error instanceof PhotoError)) throw error;
      } finally {
        if (task === this.task) this.progress.hidden = true;
      }
    };
    queue = queue.then(run, run);
    return queue;
  }

  /** Returns a function that shows progress, and lets the page draw from time to time. */
  makeProgress() {
    let last = performance.now();
    return async (part) => {
      if (performance.now() - last < FRAME) return;
      this.progress.value = part;
      this.progress.hidden = false;
      await new Promise((resolve) => setTimeout(resolve));
      last = performance.now();
    };
  }

  tell(text, isError = false) {
    this.message.textContent = text;
    this.message.classList.toggle("error", isError);
  }

  /** Shows an empty place. */
  clear() {
    this.embedding = null;
    this.aligned.hidden = this.photo.hidden = true;
    this.hint.hidden = false;
    this.frame.classList.remove("full");
  }

  /** Shows an image, smaller if it is large, and the box of the face. */
  show(image, box) {
    const scale = Math.min(1, MAX_SHOWN / Math.max(image.width, image.height));
    const canvas = this.photo;
    canvas.width = Math.max(1, Math.round(image.width * scale));
    canvas.height = Math.max(1, Math.round(image.height * scale));
    const context = canvas.getContext("2d");
    const full = document.createElement("canvas");
    [full.width, full.height] = [image.width, image.height];
    full.getContext("2d").putImageData(image, 0, 0);
    context.drawImage(full, 0, 0, canvas.width, canvas.height);
    if (box) {
      context.lineWidth = Math.max(2, canvas.width / 100);
      context.strokeStyle = "#3fd07c";
      context.strokeRect(...box.map((value) => value * scale));
    }
    canvas.setAttribute("aria-label", `${this.name}${box ? ", the face in a box" : ""}`);
    canvas.hidden = false;
    this.hint.hidden = true;
    this.frame.classList.add("full");
  }

  showAligned(aligned) {
    const image = new ImageData(SIZE, SIZE);
    for (let i = 0; i < SIZE * SIZE; i++) image.data.set([...aligned.subarray(3 * i, 3 * i + 3), 255], 4 * i);
    this.aligned.getContext("2d").putImageData(image, 0, 0);
    this.aligned.hidden = false;
  }

  async openCamera() {
    this.camera.disabled = true; // until the person has answered the question of the browser
    const task = this.task;
    try {
      if (!navigator.mediaDevices) throw new PhotoError("The camera needs this page from https or localhost.");
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
      if (task !== this.task) return stream.getTracks().forEach((track) => track.stop()); // a photo was given meanwhile
      this.stream = stream;
      this.video.srcObject = this.stream;
      await this.video.play();
      this.toggleCamera(true);
      this.shoot.focus();
    } catch (error) {
      this.closeCamera();
      this.tell(error instanceof PhotoError ? error.message : `The camera could not be used (${error.message}).`, true);
    } finally {
      this.camera.disabled = false;
    }
  }

  takeFrame() {
    const { videoWidth, videoHeight } = this.video;
    const image = drawPixels(this.video, videoWidth, videoHeight);
    this.closeCamera();
    this.camera.focus();
    return this.process(async () => image);
  }

  closeCamera() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = this.video.srcObject = null;
    this.toggleCamera(false);
  }

  toggleCamera(isOpen) {
    for (const part of [this.video, this.shoot, this.cancel]) part.hidden = !isOpen;
    for (const part of [this.camera, this.input.parentElement]) part.hidden = isOpen;
    this.photo.hidden = isOpen || !this.frame.classList.contains("full");
    this.hint.hidden = isOpen || this.frame.classList.contains("full");
  }
}

/** Shows whether both photos show one person, once both faces are embedded. */
async function showVerdict() {
  verdict.replaceChildren();
  verdict.className = "";
  if (!slots.every((slot) => slot.embedding)) return;
  const { threshold } = (await loading).settings;
  const similarity = compare(...slots.map((slot) => slot.embedding));
  const isSame = similarity >= threshold;
  verdict.className = isSame ? "same" : "different";
  const words = document.createElement("strong");
  words.textContent = isSame ? "The same person" : "Different people";
  const numbers = document.createElement("span");
  numbers.textContent = `Similarity ${similarity.toFixed(3)}; from ${threshold.toFixed(3)} on it counts as one person.`;
  verdict.append(words, numbers);
  verdict.scrollIntoView({ block: "nearest" });
}

/** Returns what the threshold means, in words. */
function describe({ network, embedding_size: size, far, set, warning }) {
  const rate = `${Math.round(1 / far).toLocaleString("en")}`;
  const note = warning ? ` (${warning})` : "";
  return (
    `At this threshold about one in ${rate} pairs of different people is taken for one person, measured on ${set}${note}. ` +
    `The network, ${network}, describes a face by ${size} numbers.`
  );
}

const slots = [new Slot("First photo"), new Slot("Second photo")];
// A photo that is dropped beside the places would replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
try {
  const { settings } = await loading;
  document.getElementById("about").textContent = describe(settings);
  state.hidden = true;
} catch (error) {
  state.textContent = `${error.message}. Reload the page.`;
  state.className = "error";
}

// The newest picture of each camera of one episode, never more than one request per camera in flight.

import { h, setData } from "./dom.js";

const AGAIN_AFTER_ERROR_MS = 3000;

class Camera {
  constructor(id, name) {
    this.address = `v1/episodes/${encodeURIComponent(id)}/frames/${encodeURIComponent(name)}`;
    this.name = name;
    this.busy = false;
    this.shown = null;
    this.next = 0;
    this.image = h("img", { alt: `${name} camera, newest picture`, decoding: "async" });
    this.figure = h("figure", { class: "camera", "data-state": "none" }, this.image, h("figcaption", {}, name));
    this.image.addEventListener("load", () => this.settle("shown"));
    this.image.addEventListener("error", () => this.settle("none"));
  }

  settle(state) {
    this.busy = false;
    setData(this.figure, "state", state);
    if (state === "none") {
      this.shown = null;
      this.next = performance.now() + AGAIN_AFTER_ERROR_MS;
    }
  }

  /** Ask for the picture of frame `seq` unless it is shown, being fetched, or the last one is too recent. */
  refresh(seq, every_ms) {
    const now = performance.now();
    if (this.busy || this.shown === seq || now < this.next) return;
    this.busy = true;
    this.shown = seq;
    this.next = now + every_ms;
    this.image.src = `${this.address}?seq=${seq}`; // the query only keeps an older answer from being reused
  }
}

export class Cameras {
  constructor(id) {
    this.id = id;
    this.cameras = [];
    this.element = h("div", { class: "cameras" });
  }

  /** Names may come late (with the list or the stream); keep the figures in their order. */
  setNames(names) {
    if (names.join("\n") === this.cameras.map((camera) => camera.name).join("\n")) return;
    this.cameras = names.slice(0, 6).map((name) => new Camera(this.id, name));
    this.element.replaceChildren(...this.cameras.map((camera) => camera.figure));
  }

  refresh(seq, every_ms) {
    for (const camera of this.cameras) camera.refresh(seq, every_ms);
  }
}

// One episode on the page: small in the grid, large when it is enlarged. The same elements, another layout.

import { Cameras } from "./cameras.js";
import { clock, h, milliseconds, percent, seconds, setData, setText, signed } from "./dom.js";
import { Timeline } from "./timeline.js";

const PICTURES_EVERY_MS = { small: 800, large: 180 };
const FACTS = ["reward", "confidence", "latency", "time", "frames", "falls", "uncertain share", "experts", "started", "model"];

export class Card {
  /** `onToggle(id)` is called when the user enlarges or shrinks the card. */
  constructor(episode, onToggle) {
    this.episode = episode;
    this.large = false;
    this.visible = true;
    this.restUntil = 0; // the page draws it no sooner
    this.waiting = null; // the timer until then
    this.build(onToggle);
    this.timeline = new Timeline(this.canvas, "small");
    this.listen();
  }

  build(onToggle) {
    const id = this.episode.id;
    this.title = h("button", { class: "title", type: "button", "aria-expanded": "false" });
    this.title.addEventListener("click", () => onToggle(id));
    this.badge = h("span", { class: "badge" });
    this.session = h("p", { class: "session" }, id);
    this.value = h("span", { class: "value" });
    this.interval = h("span", { class: "interval" });
    this.swatch = h("canvas", { class: "swatch", width: 12, height: 12, "aria-hidden": "true" });
    this.primitive = h("span", { class: "primitive" });
    this.certainty = h("span", { class: "certainty" });
    this.fallNote = h("p", { class: "fall-note", hidden: "" });
    this.cameras = new Cameras(id);
    this.canvas = h("canvas", { class: "timeline", "aria-hidden": "true" });
    this.slider = h("div", { class: "plot" }, this.canvas);
    this.readout = h("p", { class: "cursor-readout" });
    this.legend = h("ul", { class: "legend", "aria-label": "Primitives so far" });
    this.legendKey = "";
    this.facts = Object.fromEntries(FACTS.map((name) => [name, h("dd")]));
    this.element = h("article", { class: "card", "aria-label": `Episode ${id}` },
      h("header", { class: "card-head" }, h("h2", {}, this.title), this.badge, this.session),
      h("div", { class: "now" },
        h("p", { class: "big" }, this.value, h("span", { class: "unit" }, "%"), this.interval),
        h("p", { class: "doing" }, this.swatch, this.primitive, this.certainty),
        this.fallNote),
      this.cameras.element,
      h("div", { class: "chart" }, this.slider, this.readout, this.legend),
      h("dl", { class: "facts" }, ...FACTS.map((name) => h("div", { "data-fact": name }, h("dt", {}, name), this.facts[name]))),
    );
    this.element.cardOf = id;
  }

  listen() {
    this.slider.addEventListener("pointermove", (event) => this.point(event.clientX - this.canvas.getBoundingClientRect().left));
    this.slider.addEventListener("pointerleave", () => this.setCursor(null));
    this.slider.addEventListener("keydown", (event) => this.key(event));
    this.slider.addEventListener("blur", () => this.setCursor(null));
  }

  point(x) {
    this.setCursor(this.timeline.indexAt(x, this.episode));
  }

  key(event) {
    const last = this.episode.count - 1;
    if (!this.large || last < 0) return;
    const at = this.timeline.cursor ?? last;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.setCursor(Math.max(0, Math.min(last, moves[event.key])));
  }

  setCursor(index) {
    if (this.timeline.cursor === index) return;
    this.timeline.cursor = index;
    this.redraw?.();
  }

  setLarge(large) {
    this.large = large;
    this.timeline.size = large ? "large" : "small";
    this.timeline.cursor = null;
    this.element.classList.toggle("large", large);
    this.title.setAttribute("aria-expanded", String(large));
    const slider = { role: "slider", tabindex: "0", "aria-label": "Frame of the episode", "aria-valuemin": "0" };
    for (const [name, value] of Object.entries(slider)) {
      if (large) this.slider.setAttribute(name, value); else this.slider.removeAttribute(name);
    }
    if (!large) for (const name of ["aria-valuemax", "aria-valuenow", "aria-valuetext"]) this.slider.removeAttribute(name);
  }

  /** Bring everything to the episode's present state. `link` is the state of its stream. */
  draw(palette, theme, link) {
    const { episode } = this;
    setText(this.title, episode.task || "(no instruction)");
    this.title.setAttribute("aria-label", `${this.large ? "Shrink" : "Enlarge"} episode ${episode.id}: ${episode.task}`);
    this.drawBadge(link);
    this.drawNow(palette, theme);
    this.drawFacts();
    this.drawLegend(palette, theme);
    this.cameras.setNames(episode.cameras);
    this.refreshPictures();
    this.timeline.draw(episode, palette, theme);
    this.drawCursor();
  }

  drawBadge(link) {
    const { episode } = this;
    const state = !episode.live ? "ended" : link === "lost" ? "lost" : "live";
    setData(this.badge, "state", state);
    setData(this.element, "state", state);
    setText(this.badge, { lost: "reconnecting", live: "live", ended: "ended" }[state]);
  }

  drawNow(palette, theme) {
    const { episode } = this;
    const i = episode.count - 1;
    const row = episode.listed;
    const progress = i >= 0 ? episode.progress[i] : row.progress;
    const name = i >= 0 ? String(episode.last.primitive) : String(row.primitive ?? "");
    const uncertain = i >= 0 ? episode.uncertain[i] : Boolean(row.uncertain);
    const confidence = i >= 0 ? episode.confidence[i] : row.confidence;
    setText(this.value, percent(progress));
    setText(this.interval, i >= 0 ? `${percent(episode.low[i])} to ${percent(episode.high[i])}` : "");
    setText(this.primitive, name || "–");
    const strange = episode.last?.task_known === false ? ", instruction never trained on" : "";
    setText(this.certainty, name === "" ? "" : `${uncertain ? "uncertain, " : ""}${percent(confidence)} % sure${strange}`);
    setData(this.element, "uncertain", String(uncertain));
    this.paintSwatch(this.swatch, palette.fill(palette.primitives.indexOf(name), theme.dark));
    this.drawFall();
  }

  drawFall() {
    const { episode } = this;
    const fall = episode.falls[episode.falls.length - 1];
    this.fallNote.hidden = !fall;
    if (fall) setText(this.fallNote, `▼ fell ${percent(fall.depth)} at ${seconds(episode.time(fall.to))}`);
    setData(this.element, "fallen", String(Boolean(fall) && episode.live && episode.time(episode.count - 1) - episode.time(fall.to) < 3));
  }

  drawFacts() {
    const { episode, facts } = this;
    const last = episode.count - 1;
    const at = this.timeline.cursor ?? last;
    const timing = episode.last?.timing ?? {};
    const shares = (episode.experts[at] ?? []).map((weight, e) => [e, weight]).filter(([, weight]) => weight > 0).sort((a, b) => b[1] - a[1]);
    const uncertain = episode.uncertain.filter(Boolean).length / Math.max(1, episode.count);
    setText(facts.reward, signed(episode.reward[last]));
    setData(facts.reward, "sign", episode.reward[last] < -0.005 ? "down" : "flat");
    setText(facts.confidence, last >= 0 ? `${percent(episode.confidence[last])} %` : "–");
    setText(facts.latency, milliseconds(timing.total_ms));
    facts.latency.title = last >= 0 ? this.timingText(timing) : "";
    setData(facts.latency, "parts", this.large && last >= 0 ? this.timingText(timing) : "");
    setText(facts.time, last >= 0 ? seconds(episode.time(last)) : "–");
    setText(facts.frames, String(last >= 0 ? episode.count : episode.listed.frames ?? "–"));
    setText(facts.falls, String(episode.falls.length));
    setText(facts["uncertain share"], last >= 0 ? `${percent(uncertain)} %` : "–");
    setText(facts.experts, shares.slice(0, 3).map(([e, weight]) => `E${e} ${weight.toFixed(2).replace(/^0/, "")}`).join("  ") || "–");
    setText(facts.started, clock(episode.startedAt));
    setText(facts.model, String(episode.last?.model_version ?? "–"));
  }

  timingText(timing) {
    return `queue ${milliseconds(timing.queue_ms)}, encode ${milliseconds(timing.encode_ms)}, heads ${milliseconds(timing.heads_ms)}`;
  }

  drawLegend(palette, theme) {
    const seen = [...this.episode.seen].sort((a, b) => a - b);
    const key = `${seen.join()}|${theme.dark}|${palette.groupOf}|${this.episode.uncertain.includes(true)}`;
    if (key === this.legendKey) return;
    this.legendKey = key;
    const items = seen.map((index) => this.legendItem(palette.primitives[index] ?? "unknown", palette.fill(index, theme.dark)));
    if (this.episode.uncertain.includes(true)) items.push(h("li", { class: "hatched" }, h("span", { class: "hatch", "aria-hidden": "true" }), "uncertain"));
    this.legend.replaceChildren(...items);
  }

  legendItem(name, colour) {
    const swatch = h("canvas", { class: "swatch", width: 12, height: 12, "aria-hidden": "true" });
    this.paintSwatch(swatch, colour);
    return h("li", {}, swatch, name);
  }

  paintSwatch(canvas, colour) {
    if (canvas.dataset.colour === colour) return;
    canvas.dataset.colour = colour;
    const g = canvas.getContext("2d");
    g.fillStyle = colour;
    g.fillRect(0, 0, canvas.width, canvas.height);
  }

  refreshPictures() {
    const { episode } = this;
    if (document.hidden || !this.visible) return;
    const seq = episode.count ? episode.seq[episode.count - 1] : episode.listed.frames;
    if (seq !== undefined) this.cameras.refresh(seq, PICTURES_EVERY_MS[this.large ? "large" : "small"]);
  }

  drawCursor() {
    const { episode } = this;
    const last = episode.count - 1;
    const i = this.timeline.cursor;
    setText(this.readout, i === null || last < 0 ? "" : this.frameText(i));
    if (!this.large || last < 0) return;
    this.slider.setAttribute("aria-valuemax", String(episode.seq[last]));
    this.slider.setAttribute("aria-valuenow", String(episode.seq[i ?? last]));
    this.slider.setAttribute("aria-valuetext", this.frameText(i ?? last));
  }

  frameText(i) {
    const { episode } = this;
    const name = episode.primitives[episode.primitive[i]] ?? "unknown";
    const doubt = episode.uncertain[i] ? ", uncertain" : "";
    return `${seconds(episode.time(i))}: ${percent(episode.progress[i])} % (${percent(episode.low[i])} to ${percent(episode.high[i])}), `
      + `reward ${signed(episode.reward[i])}, ${name} ${percent(episode.confidence[i])} % sure${doubt}`;
  }
}

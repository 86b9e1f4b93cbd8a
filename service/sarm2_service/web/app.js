// The live page: which episodes there are, which of them are streamed, which one is enlarged, and when to draw.

import { Card } from "./card.js";
import { percent, seconds, setData, setText } from "./dom.js";
import { Episode, epochSeconds } from "./episode.js";
import { drawExample, exampleEpisode } from "./example.js";
import { Listing, Streams } from "./feed.js";
import { Palette, Theme } from "./palette.js";

const ARRANGE_EVERY_MS = 500;
const CARDS_MAX = 60;
const REPLAY_MS = 1500;
const DRAW_REST = 8; // a card rests this many times as long as its last drawing took: long episodes are drawn less often

const byId = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.cards = new Map();
    this.dirty = new Set();
    this.theme = new Theme();
    this.palettes = new Map();
    this.groupOf = new Map(); // primitive name -> group index, of the model being served
    this.announced = new Map();
    this.example = null;
    this.focused = decodeURIComponent(location.hash.slice(1)) || null;
    this.streams = new Streams((episode, what) => this.changed(episode, what));
    this.listing = new Listing((rows) => this.setRows(rows), (state, text) => this.setLink(state, text));
    this.seen = new IntersectionObserver((entries) => this.setVisible(entries), { rootMargin: "200px" });
  }

  run() {
    setText(byId("snippet"), this.snippet({}));
    this.listing.poll();
    this.loadModel();
    setInterval(() => this.arrange(), ARRANGE_EVERY_MS);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redrawAll());
    new ResizeObserver(() => this.redrawAll()).observe(byId("episodes"));
    addEventListener("keydown", (event) => { if (event.key === "Escape" && this.focused) this.toggle(this.focused); });
    addEventListener("hashchange", () => this.focus(decodeURIComponent(location.hash.slice(1)) || null));
    document.addEventListener("visibilitychange", () => this.redrawAll());
  }

  /** Python that streams to this very service. JSON strings are Python strings too. */
  snippet(model) {
    const host = location.hostname === "127.0.0.1" ? "" : `${JSON.stringify(location.hostname)}, `;
    const cameras = (model.cameras ?? ["front"]).map((name) => JSON.stringify(String(name))).join(", ");
    return [
      "from sarm2_client import RewardClient",
      "",
      `client = RewardClient(${host}port=${location.port || 80})`,
      `task = ${JSON.stringify(String(model.tasks?.[0] ?? "pick up the cube"))}`,
      `cameras = [${cameras}]`,
      "with client.episode(task, 10, cameras) as episode:",
      "    for images, state in robot:  # 10 times a second",
      "        episode.push(images, state)  # never waits",
      "        print(episode.latest)",
    ].join("\n");
  }

  /** Groups of the primitives, for the colours, and the model's name. The page works without them. */
  async loadModel() {
    try {
      const response = await fetch("v1/models", { signal: AbortSignal.timeout(5000) });
      const body = await response.json();
      const entry = body.models?.[0] ?? {};
      const model = entry.model ?? entry;
      setText(byId("snippet"), this.snippet(model));
      setText(byId("model"), [model.id, model.version].filter(Boolean).map(String).join(" "));
      (model.primitives ?? []).forEach((name, i) => this.groupOf.set(String(name), model.primitive_groups?.[i]));
      this.palettes.clear();
      this.redrawAll();
    } catch {
      setText(byId("model"), "");
    }
  }

  // --- what there is ---------------------------------------------------------------------------------

  setRows(rows) {
    const present = new Set();
    for (const row of rows.slice().sort(byInterest).slice(0, CARDS_MAX)) {
      const id = String(row.session_id ?? "");
      if (!id) continue;
      present.add(id);
      const card = this.cards.get(id) ?? this.addCard(id);
      card.episode.list(row);
      this.dirty.add(id);
    }
    for (const [id, card] of this.cards) if (!present.has(id)) this.removeCard(id, card);
    this.setCounts(rows);
    this.order([...present]);
    this.showEmpty(this.cards.size === 0);
    this.arrange();
    this.schedule();
  }

  addCard(id) {
    const card = new Card(new Episode(id), (chosen) => this.toggle(chosen));
    card.redraw = () => {
      card.waiting = null;
      this.dirty.add(id);
      this.schedule();
    };
    card.setLarge(id === this.focused);
    this.cards.set(id, card);
    byId("grid").append(card.element);
    this.seen.observe(card.element);
    return card;
  }

  removeCard(id, card) {
    this.seen.unobserve(card.element);
    card.element.remove();
    this.cards.delete(id);
    this.announced.delete(id);
    this.streams.forget(id);
  }

  /** Live ones first, newest first, the enlarged one before all. Elements move only when the order changed. */
  order(ids) {
    const wanted = ids.sort((a, b) => Number(b === this.focused) - Number(a === this.focused));
    const grid = byId("grid");
    wanted.forEach((id, place) => {
      const { element } = this.cards.get(id);
      if (grid.children[place] === element) return;
      const active = element.contains(document.activeElement) ? document.activeElement : null;
      grid.insertBefore(element, grid.children[place] ?? null);
      active?.focus({ preventScroll: true });
    });
  }

  setCounts(rows) {
    const live = rows.filter((row) => row.state === "live").length;
    setText(byId("counts"), rows.length ? `${live} live, ${rows.length - live} ended` : "");
  }

  setLink(state, text) {
    setData(byId("link"), "state", state);
    setText(byId("link"), text);
    setData(document.body, "link", state);
  }

  setVisible(entries) {
    for (const entry of entries) {
      const card = this.cards.get(entry.target.cardOf);
      if (!card) continue;
      card.visible = entry.isIntersecting;
      card.redraw();
    }
    this.arrange();
  }

  showEmpty(empty) {
    if (byId("empty").hidden === !empty) return;
    byId("empty").hidden = !empty;
    this.drawEmpty();
  }

  drawEmpty() {
    if (byId("empty").hidden) return;
    this.example ??= exampleEpisode();
    drawExample(byId("example"), this.example, this.theme);
  }

  // --- what is looked at -----------------------------------------------------------------------------

  toggle(id) {
    const next = this.focused === id ? null : id;
    history.replaceState(null, "", next === null ? location.pathname + location.search : `#${encodeURIComponent(next)}`);
    this.focus(next);
    this.cards.get(id)?.title.focus({ preventScroll: true });
    if (next !== null) scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  focus(id) {
    this.focused = id;
    for (const [key, card] of this.cards) card.setLarge(key === id);
    this.order([...this.cards.values()].map((card) => card.episode.listed).sort(byInterest).map((row) => String(row.session_id)));
    this.arrange();
    this.redrawAll();
  }

  arrange() {
    if (document.hidden) return;
    const wanted = [...this.cards.values()].filter((card) => card.visible || card.large).map((card) => card.episode);
    this.streams.arrange(wanted, this.focused);
  }

  changed(episode, what) {
    this.dirty.add(episode.id);
    if (what !== "link") this.announce(episode);
    this.schedule();
  }

  /** Say a fall, or the end, of a live episode once; what a fresh stream replays is not news. */
  announce(episode) {
    const now = { falls: episode.falls.length, ended: !episode.live };
    const known = this.announced.get(episode.id) ?? now;
    this.announced.set(episode.id, now);
    if (this.streams.age(episode.id) < REPLAY_MS) return;
    const fall = episode.falls[episode.falls.length - 1];
    if (episode.live && episode.falls.length > known.falls) {
      setText(byId("announce"), `${episode.id}: progress fell ${percent(fall.depth)} points at ${seconds(episode.time(fall.to))}`);
    } else if (!episode.live && !known.ended) {
      setText(byId("announce"), `${episode.id} ended at ${percent(episode.progress[episode.count - 1])} %`);
    }
  }

  // --- drawing ---------------------------------------------------------------------------------------

  schedule() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      const ids = [...this.dirty];
      this.dirty.clear();
      ids.forEach((id) => this.drawCard(id));
    });
  }

  drawCard(id) {
    const card = this.cards.get(id);
    if (!card || !(card.visible || card.large)) return;
    const begun = performance.now();
    if (begun < card.restUntil) {
      card.waiting ??= setTimeout(card.redraw, card.restUntil - begun);
      return;
    }
    card.draw(this.palette(card.episode), this.theme, this.streams.state(id));
    card.restUntil = performance.now() + DRAW_REST * (performance.now() - begun);
  }

  palette(episode) {
    const primitives = episode.start ? episode.primitives : [...this.groupOf.keys()];
    const key = JSON.stringify(primitives);
    if (!this.palettes.has(key)) {
      const groupOf = primitives.map((name) => this.groupOf.get(name));
      const known = groupOf.every((group) => Number.isInteger(group));
      this.palettes.set(key, new Palette(primitives, known ? groupOf : null));
    }
    return this.palettes.get(key);
  }

  redrawAll() {
    this.theme = new Theme();
    for (const id of this.cards.keys()) this.dirty.add(id);
    this.drawEmpty();
    this.schedule();
  }
}

/** Live before ended, then the newest first, then by id so that the order is stable. */
function byInterest(a, b) {
  const live = Number(b.state === "live") - Number(a.state === "live");
  const newer = epochSeconds(b.started_at) - epochSeconds(a.started_at);
  return live || newer || String(a.session_id).localeCompare(String(b.session_id));
}

new Page().run();

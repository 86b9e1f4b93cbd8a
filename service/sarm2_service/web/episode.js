// What the page knows of one episode: columns that grow by one with every score, and the falls found in them.

export const FALL_DEPTH = 0.1; // half of the smallest drop that counts, .2: the rule of the drop_recall bar
export const FALL_WINDOW_S = 1.2;

const number = (value, fallback = NaN) => (typeof value === "number" && Number.isFinite(value) ? value : fallback);
const texts = (value) => (Array.isArray(value) ? value.map(String) : []);

/** Seconds since 1970 from seconds, milliseconds, nanoseconds or an ISO date; NaN when it is none of them. */
export function epochSeconds(value) {
  if (typeof value === "string") return Date.parse(value) / 1000;
  const n = number(value);
  if (n > 1e16) return n / 1e9;
  return n > 1e11 ? n / 1e3 : n;
}

export class Episode {
  constructor(id) {
    this.id = id;
    this.listed = {};
    this.start = null;
    this.primitives = [];
    this.clear();
  }

  clear() {
    this.seq = [];
    this.progress = [];
    this.low = [];
    this.high = [];
    this.reward = [];
    this.primitive = [];
    this.confidence = [];
    this.uncertain = [];
    this.experts = [];
    this.seen = new Set();
    this.falls = [];
    this.last = null;
    this.summary = null;
  }

  /** The row of the episode list: enough for a card before, or without, a stream. It also tells of a new start. */
  list(row) {
    this.listed = row;
    if (this.start && row.started_at !== undefined && String(row.started_at) !== String(this.start.started_at)) {
      this.clear();
      this.start = null;
    }
    if (this.summary && row.state === "live") this.summary = null;
  }

  /** A `start` event. The same id with another start is another episode: forget the old one. */
  begin(start) {
    if (this.start && String(this.start.started_at) !== String(start.started_at)) this.clear();
    this.start = start;
    this.primitives = texts(start.primitives);
  }

  /** A `score` event; a replay after a reconnect repeats scores, which are skipped. Returns whether it was new. */
  add(score) {
    const seq = number(score.seq);
    if (!(seq >= 0) || (this.count > 0 && seq <= this.seq[this.count - 1])) return false;
    const interval = Array.isArray(score.interval) ? score.interval : [];
    const progress = number(score.progress);
    const primitive = this.primitives.indexOf(String(score.primitive));
    this.seq.push(seq);
    this.progress.push(progress);
    this.low.push(number(interval[0], progress));
    this.high.push(number(interval[1], progress));
    this.reward.push(number(score.reward));
    this.primitive.push(primitive);
    this.confidence.push(number(score.confidence));
    this.uncertain.push(Boolean(score.uncertain));
    this.experts.push(Array.isArray(score.experts) ? score.experts.map((w) => number(w, 0)) : []);
    this.seen.add(primitive);
    this.last = score;
    this.findFall(this.count - 1);
    return true;
  }

  finish(summary) {
    this.summary = summary;
  }

  /** Extend `falls` ({from, to: indices, depth}) by frame `i`. A fall deepens until its peak leaves the window. */
  findFall(i) {
    const reach = this.seq[i] - FALL_WINDOW_S * this.fps;
    let peak = i;
    for (let j = i; j >= 0 && this.seq[j] >= reach; j -= 1) {
      if (this.progress[j] > this.progress[peak]) peak = j;
    }
    const depth = this.progress[peak] - this.progress[i];
    if (!(depth >= FALL_DEPTH)) return;
    const open = this.falls[this.falls.length - 1];
    if (!open || peak >= open.to) {
      this.falls.push({ from: peak, to: i, depth });
    } else if (this.progress[i] < this.progress[open.to]) {
      open.to = i;
      open.depth = this.progress[open.from] - this.progress[i];
    }
  }

  get count() { return this.seq.length; }
  get task() { return String(this.start?.task ?? this.listed.task ?? ""); }
  get fps() { const fps = number(this.start?.fps ?? this.listed.fps, 10); return fps > 0 ? fps : 10; }
  get cameras() { return texts(this.start?.cameras ?? this.listed.cameras); }
  get expertCount() {
    const named = this.start?.experts;
    const stated = Array.isArray(named) ? named.length : number(named, 0);
    return Math.min(64, stated || this.experts[this.count - 1]?.length || 0);
  }
  get live() { return this.listed.state === "live" && !this.summary; }
  get startedAt() { return epochSeconds(this.start?.started_at ?? this.listed.started_at); }

  /** Seconds from the first frame of the episode to index `i`. */
  time(i) { return this.seq[i] / this.fps; }

  /** The index of the frame nearest to `seq`. */
  nearest(seq) {
    let low = 0;
    let high = this.count - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.seq[middle] < seq) low = middle; else high = middle;
    }
    return Math.abs(this.seq[low] - seq) <= Math.abs(this.seq[high] - seq) ? low : high;
  }
}
